"""Files of generated audio and bytes: the same seed the same, described beside, nothing overwritten unasked."""

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
import torch

from audio_ct.audio.mu_law import decode
from audio_ct.errors import InputError, MissingError
from audio_ct.models.wavenet import WaveNet
from audio_ct.sampling.engine import EngineOptions, generate
from audio_ct.sampling.filters import Filters
from audio_ct.sampling.prompt import read_byte_prompt, read_prompt
from audio_ct.sampling.writing import WrittenBytes, WrittenSample, write_byte_samples, write_samples

SIZES = {"num_stacks": 1, "layers_per_stack": 3, "residual_channels": 8, "skip_channels": 8}


@pytest.fixture(scope="module")
def model() -> WaveNet:
    torch.manual_seed(0)
    return WaveNet(vocabulary_size=256, **SIZES)


def write(model: WaveNet, folder: Path, **settings: Any) -> list[WrittenSample]:
    values = {"stem": "voice", "sample_rate_hz": 24_000, "bits": 8, "num_waveforms": 2, "seconds": 0.005, "seed": 5}
    return write_samples(model, folder, **values | settings)


def test_the_same_seed_gives_the_same_bytes(model: WaveNet, tmp_path: Path) -> None:
    for name in ("a", "b"):
        write(model, tmp_path / name)
    files = sorted(path.name for path in (tmp_path / "a").iterdir())
    assert files == ["voice-00.json", "voice-00.wav", "voice-01.json", "voice-01.wav"]
    for name in files:
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()
    # Waveform 1 of seed 5 is waveform 0 of seed 6.
    write(model, tmp_path / "c", seed=6, num_waveforms=1)
    assert (tmp_path / "c/voice-00.wav").read_bytes() == (tmp_path / "a/voice-01.wav").read_bytes()


@pytest.mark.parametrize("audio_format", ["wav", "flac", "ogg"])
def test_formats(model: WaveNet, tmp_path: Path, audio_format: str) -> None:
    written = write(model, tmp_path, audio_format=audio_format)
    for sample in written:
        audio, rate_hz = soundfile.read(sample.path)
        assert (rate_hz, audio.ndim) == (24_000, 1)
        assert sample.waveform.shape == (120,)
        assert len(audio) == 120
        if audio_format != "ogg":
            np.testing.assert_allclose(audio, sample.waveform, atol=1.01 / 2**15)


def test_the_sidecar_says_how_it_was_made(model: WaveNet, tmp_path: Path) -> None:
    about = {"checkpoint": "run/checkpoints/step-00000001", "recipe": "tiny"}
    write(model, tmp_path, filters=Filters(temperature=0.9, top_k=40, top_p=0.95), about=about)
    sidecar = json.loads((tmp_path / "voice-01.json").read_text())
    assert sidecar.keys() >= {"warnings", "commit", "version"}
    expected = {"file": "voice-01.wav", "seed": 6, "seconds": 0.005, "prompt_samples": 0, "sample_rate_hz": 24_000}
    expected |= {"temperature": 0.9, "top_k": 40, "top_p": 0.95} | about
    assert {key: sidecar[key] for key in expected} == expected


def test_a_draft_is_said_in_the_sidecar(model: WaveNet, tmp_path: Path) -> None:
    (sample,) = write(model, tmp_path, num_waveforms=1, draft=model, num_drafted=2)
    assert sample.waveform.shape == (120,)
    engine = json.loads(sample.path.with_suffix(".json").read_text())["engine"]
    assert engine == {"compiled": False, "weights": "float32", "memory": "float32", "num_drafted": 2}


def test_a_prompt_stands_before_what_is_made(model: WaveNet, tmp_path: Path) -> None:
    time = np.arange(2400) / 24_000
    soundfile.write(tmp_path / "prompt.wav", 0.5 * np.sin(2 * np.pi * 200 * time), 24_000)
    prompt = read_prompt(tmp_path / "prompt.wav", 24_000, 8, max_seconds=0.05)
    assert prompt.shape == (1200,)
    (sample,) = write(model, tmp_path / "out", prompt=prompt, num_waveforms=1)
    audio, _ = soundfile.read(sample.path)
    assert len(audio) == 1200 + 120
    np.testing.assert_allclose(audio[:1200], decode(prompt, 8).numpy(), atol=1.01 / 2**15)
    np.testing.assert_allclose(audio[1200:], sample.waveform, atol=1.01 / 2**15)
    assert json.loads(sample.path.with_suffix(".json").read_text())["prompt_samples"] == 1200


@pytest.mark.parametrize("seconds", [0.0, -0.01, math.nan, math.inf])
def test_a_prompt_of_no_length_is_refused(tmp_path: Path, seconds: float) -> None:
    soundfile.write(tmp_path / "prompt.wav", np.zeros(2400), 24_000)
    with pytest.raises(InputError):
        read_prompt(tmp_path / "prompt.wav", 24_000, 8, max_seconds=seconds)


def test_an_existing_file_is_refused_and_stays(model: WaveNet, tmp_path: Path) -> None:
    (tmp_path / "voice-01.wav").write_bytes(b"mine")
    with pytest.raises(InputError, match=r"voice-01.wav' exists already"):
        write(model, tmp_path)
    assert (tmp_path / "voice-01.wav").read_bytes() == b"mine"
    assert not (tmp_path / "voice-00.wav").exists(), "nothing half made is left"
    (tmp_path / "voice-01.wav").rename(tmp_path / "voice-00.json")
    with pytest.raises(InputError, match=r"voice-00.json' exists already"):
        write(model, tmp_path, audio_format="flac")
    write(model, tmp_path, overwrite=True)
    assert (tmp_path / "voice-00.json").read_bytes() != b"mine"


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"seconds": 0.0}, "seconds=0.0"),
        ({"seconds": -1.0}, "seconds=-1.0"),
        ({"seconds": math.nan}, "seconds=nan"),
        ({"seconds": math.inf}, "seconds=inf"),
        ({"seconds": 1e-6}, "seconds=1e-06"),
        ({"seconds": 1e9}, "seconds="),
        ({"num_waveforms": 0}, "num=0"),
        ({"num_waveforms": 10_000}, "num=10000"),
        ({"draft": WaveNet(vocabulary_size=256, **SIZES)}, "num=2: a draft"),
        ({"draft": WaveNet(vocabulary_size=64, **SIZES), "num_waveforms": 1}, "64 token values"),
        ({"draft": WaveNet(vocabulary_size=256, **SIZES), "num_waveforms": 1, "num_drafted": 0}, "drafted=0"),
        ({"audio_format": "exe"}, "names no audio format"),
    ],
)
def test_values_out_of_range_are_named(model: WaveNet, tmp_path: Path, settings: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        write(model, tmp_path / "out", **settings)
    assert not list(tmp_path.rglob("*.wav"))


def test_what_fails_before_the_first_sample_leaves_no_file(
    model: WaveNet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("audio_ct.sampling.compiled.can_compile", lambda device: False)
    with pytest.raises(InputError, match="--no-compiled"):
        write(model, tmp_path, options=EngineOptions(compiled=True))
    assert not list(tmp_path.iterdir())


def test_progress_and_pictures(model: WaveNet, tmp_path: Path) -> None:
    done: list[int] = []
    (sample,) = write(model, tmp_path, num_waveforms=1, seconds=0.1, spectrograms=True, on_progress=done.append)
    assert done == [2048, 2400]
    assert sample.spectrogram is not None
    assert sample.spectrogram.read_bytes().startswith(b"\x89PNG")


def write_bytes(model: WaveNet, folder: Path, **settings: Any) -> list[WrittenBytes]:
    return write_byte_samples(model, folder, **{"stem": "text", "num_files": 2, "num_bytes": 50, "seed": 5} | settings)


def test_bytes_are_what_the_model_draws_after_byte_0(model: WaveNet, tmp_path: Path) -> None:
    written = write_bytes(model, tmp_path, about={"recipe": "tiny"})
    (expected,) = generate(model, num_waveforms=2, num_samples=50, start_token=0, seed=5)
    for i, text in enumerate(written):
        assert text.path == tmp_path / f"text-{i:02d}.txt"
        assert text.path.read_bytes() == text.content == bytes(expected[i].tolist())
        sidecar = json.loads(text.path.with_suffix(".json").read_text())
        assert sidecar.keys() >= {"engine", "commit", "version", "temperature"}
        about = {"file": text.path.name, "seed": 5 + i, "num_bytes": 50, "prompt_bytes": 0, "recipe": "tiny"}
        assert {key: sidecar[key] for key in about} == about
    (alone,) = write_bytes(model, tmp_path, stem="alone", num_files=1, seed=6, byte_format="bin")
    assert alone.path.name == "alone-00.bin"
    assert alone.content == written[1].content


def test_a_file_of_any_bytes_is_a_prompt(model: WaveNet, tmp_path: Path) -> None:
    content = bytes(range(256))
    (tmp_path / "prompt").write_bytes(content)
    prompt = read_byte_prompt(tmp_path / "prompt")
    assert prompt.tolist() == list(content)
    (text,) = write_bytes(model, tmp_path / "out", num_files=1, prompt=prompt)
    assert text.path.read_bytes() == content + text.content
    assert json.loads(text.path.with_suffix(".json").read_text())["prompt_bytes"] == 256
    (tmp_path / "empty").touch()
    for name, kind in (("empty", InputError), (".", InputError), ("absent", MissingError)):
        with pytest.raises(kind, match=r"^prompt="):
            read_byte_prompt(tmp_path / name)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"num_bytes": 0}, "num-bytes=0"),
        ({"num_bytes": 1 << 31}, "num-bytes=2147483648"),
        ({"num_files": 0}, "num=0"),
        ({"byte_format": "wav"}, "format='wav': bytes are written as txt or bin"),
        ({"draft": WaveNet(vocabulary_size=256, **SIZES)}, "num=2: a draft"),
    ],
)
def test_values_out_of_range_are_named_for_bytes(
    model: WaveNet, tmp_path: Path, settings: dict[str, Any], message: str
) -> None:
    with pytest.raises(InputError, match=message):
        write_bytes(model, tmp_path / "out", **settings)
    assert not list(tmp_path.iterdir())


def test_an_existing_text_stays_unless_it_may_be_replaced(model: WaveNet, tmp_path: Path) -> None:
    (tmp_path / "text-01.txt").write_bytes(b"mine")
    with pytest.raises(InputError, match=r"text-01.txt' exists already"):
        write_bytes(model, tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["text-01.txt"]
    done: list[int] = []
    write_bytes(model, tmp_path, overwrite=True, on_progress=done.append)
    assert (tmp_path / "text-01.txt").stat().st_size == 50
    assert done == [50]
