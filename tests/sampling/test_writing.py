"""Files of generated audio and bytes: the same seed the same, described beside, nothing overwritten unasked."""

import errno
import json
import os
import resource
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
import torch

from audio_ct.errors import InputError
from audio_ct.models.build import build_model
from audio_ct.models.settings import WaveNetSettings
from audio_ct.models.token_model import TokenModel
from audio_ct.sampling.engine import EngineOptions, Sampler
from audio_ct.sampling.filters import Filters
from audio_ct.sampling.writing import WrittenSample, write_samples
from audio_ct.tokens.codec import ByteCodec, Codec, MuLawCodec

AUDIO, BYTES = MuLawCodec(sample_rate_hz=24_000, bits=8), ByteCodec()
both = pytest.mark.parametrize("codec", [AUDIO, BYTES], ids=["audio", "bytes"])


@pytest.fixture(scope="module")
def model() -> TokenModel:
    torch.manual_seed(0)
    sizes = {"num_stacks": 1, "layers_per_stack": 3, "residual_channels": 8, "skip_channels": 8}
    return build_model(WaveNetSettings(**sizes), vocabulary_size=256)


def write(model: TokenModel, folder: Path, codec: Codec = AUDIO, **settings: Any) -> list[WrittenSample]:
    return write_samples(model, codec, folder, **{"stem": "voice", "num": 2, "num_tokens": 120, "seed": 5} | settings)


@both
def test_the_same_seed_gives_the_same_bytes(model: TokenModel, tmp_path: Path, codec: Codec) -> None:
    for name in ("a", "b"):
        write(model, tmp_path / name, codec)
    suffix = codec.default_format
    files = sorted(path.name for path in (tmp_path / "a").iterdir())
    assert files == sorted(f"voice-0{i}.{each}" for i in range(2) for each in ("json", suffix))
    for name in files:
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()
    # Waveform 1 of seed 5 is waveform 0 of seed 6.
    write(model, tmp_path / "c", codec, seed=6, num=1)
    alone = (tmp_path / f"c/voice-00.{suffix}").read_bytes()
    assert alone == (tmp_path / f"a/voice-01.{suffix}").read_bytes()


@both
def test_the_models_samples_are_drawn_after_the_start_token(model: TokenModel, tmp_path: Path, codec: Codec) -> None:
    written = write(model, tmp_path, codec)
    sampler = Sampler(model, num_waveforms=2)
    (expected,) = sampler.generate(num_samples=120, start_token=codec.start_token, seed=5)
    assert torch.equal(torch.stack([sample.tokens for sample in written]), expected)
    if codec is BYTES:
        assert [sample.path.read_bytes() for sample in written] == [bytes(row.tolist()) for row in expected]


@pytest.mark.parametrize("file_format", ["wav", "flac", "ogg"])
def test_formats(model: TokenModel, tmp_path: Path, file_format: str) -> None:
    for sample in write(model, tmp_path, file_format=file_format):
        audio, rate_hz = soundfile.read(sample.path)
        assert (rate_hz, audio.shape) == (24_000, (120,))
        if file_format != "ogg":
            np.testing.assert_allclose(audio, AUDIO.decode(sample.tokens), atol=1.01 / 2**15)


@pytest.mark.parametrize(
    ("codec", "expected"),
    [
        (AUDIO, {"file": "voice-01.wav", "seconds": 0.005, "prompt_samples": 3, "sample_rate_hz": 24_000}),
        (BYTES, {"file": "voice-01.txt", "num_bytes": 120, "prompt_bytes": 3}),
    ],
    ids=["audio", "bytes"],
)
def test_the_sidecar_describes_the_file(
    model: TokenModel, tmp_path: Path, codec: Codec, expected: dict[str, Any]
) -> None:
    about = {"checkpoint": "run/checkpoints/step-00000001", "recipe": "tiny"}
    filters = Filters(temperature=0.9, top_k=40, top_p=0.95)
    write(model, tmp_path, codec, filters=filters, about=about, prompt=torch.tensor([1, 2, 3]))
    sidecar = json.loads((tmp_path / "voice-01.json").read_text())
    expected = expected | {"seed": 6, "temperature": 0.9, "top_k": 40, "top_p": 0.95} | about
    expected |= {"engine": {"compiled": False, "weights": "float32", "memory": "float32"}}
    assert {key: sidecar[key] for key in expected} == expected
    assert sidecar.keys() - expected.keys() == {"warnings", "commit", "version"}


def test_a_prompt_stands_before_the_samples(model: TokenModel, tmp_path: Path) -> None:
    prompt = AUDIO.encode(0.5 * np.sin(np.arange(1200) / 20))
    (sample,) = write(model, tmp_path, prompt=prompt, num=1)
    audio, _ = soundfile.read(sample.path)
    expected = np.concatenate([AUDIO.decode(prompt), AUDIO.decode(sample.tokens)])
    np.testing.assert_allclose(audio, expected, atol=1.01 / 2**15)
    (text,) = write(model, tmp_path, BYTES, stem="text", prompt=torch.arange(256), num=1)
    assert text.path.read_bytes() == bytes(range(256)) + bytes(text.tokens.tolist())


def test_every_file_may_have_a_prompt_of_its_own(model: TokenModel, tmp_path: Path) -> None:
    prompts = torch.arange(6).view(2, 3) + 65
    for text, prompt in zip(write(model, tmp_path, BYTES, prompt=prompts, num=2), prompts, strict=True):
        assert text.path.read_bytes() == bytes([*prompt.tolist(), *text.tokens.tolist()])


@pytest.mark.fault("sampling")
@both
def test_an_existing_file_is_refused_and_stays(model: TokenModel, tmp_path: Path, codec: Codec) -> None:
    suffix = codec.default_format
    for taken in (tmp_path / f"voice-01.{suffix}", tmp_path / "voice-00.json"):
        taken.write_bytes(b"mine")
        with pytest.raises(InputError, match=f"{taken.name}' exists already"):
            write(model, tmp_path, codec)
        assert [path.read_bytes() for path in tmp_path.iterdir()] == [b"mine"], "nothing half made is left"
        taken.unlink()
    for name in ("voice-01.json", f"voice-00.{suffix}"):
        (tmp_path / name).write_bytes(b"mine")
    write(model, tmp_path, codec, overwrite=True)
    assert all(path.read_bytes() != b"mine" for path in tmp_path.iterdir())


@pytest.mark.fault("sampling")
@both
def test_an_interrupted_overwrite_keeps_the_old_file_and_what_was_made(
    model: TokenModel, tmp_path: Path, codec: Codec
) -> None:
    (old,) = write(model, tmp_path, codec, num=1)
    before = old.path.read_bytes()

    def interrupt(done: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write(model, tmp_path, codec, num=1, num_tokens=2100, seed=6, overwrite=True, on_progress=interrupt)
    assert old.path.read_bytes() == before
    partial = old.path.with_stem("voice-00.partial")
    num_made = len(partial.read_bytes()) if codec is BYTES else soundfile.info(partial).frames
    assert num_made == 2048
    write(model, tmp_path, codec, num=1, num_tokens=2100, seed=6, overwrite=True)
    assert not partial.exists()
    assert old.path.read_bytes() != before


@pytest.mark.fault("sampling")
@pytest.mark.parametrize(
    ("codec", "settings", "message"),
    [
        (AUDIO, {"num": 0}, "num=0"),
        (AUDIO, {"num": 10_000}, "num=10000"),
        (AUDIO, {"file_format": "exe"}, "names no audio format"),
        (AUDIO, {"file_format": ".wav"}, "format='.wav' must be a suffix without its dot"),
        (BYTES, {"file_format": "wav"}, "format='wav': bytes are written as txt or bin"),
    ],
)
def test_values_out_of_range_are_named(
    model: TokenModel, tmp_path: Path, codec: Codec, settings: dict[str, Any], message: str
) -> None:
    with pytest.raises(InputError, match=message):
        write(model, tmp_path, codec, **settings)
    assert not list(tmp_path.iterdir())


@pytest.mark.fault("sampling")
def test_a_failure_before_the_first_sample_leaves_no_file(
    model: TokenModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("audio_ct.sampling.compiled.can_compile", lambda device: False)
    with pytest.raises(InputError, match="--no-compiled"):
        write(model, tmp_path, options=EngineOptions(compiled=True))
    assert not list(tmp_path.iterdir())


@pytest.fixture
def disk_of() -> Iterator[Callable[[int], None]]:
    """Let no file become longer than so many bytes: writing more fails as on a full disk."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    yield lambda limit_bytes: resource.setrlimit(resource.RLIMIT_FSIZE, (limit_bytes, hard))
    resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@pytest.mark.fault("full disk")
@both
@pytest.mark.parametrize("limit_bytes", [0, 30, 60])
def test_a_disk_that_is_full_at_once_leaves_no_file_and_one_line(
    model: TokenModel, tmp_path: Path, disk_of: Callable[[int], None], codec: Codec, limit_bytes: int
) -> None:
    disk_of(limit_bytes)
    with pytest.raises(InputError, match=f"voice-00.{codec.default_format}.*(disk full|free some space)") as caught:
        write(model, tmp_path, codec)
    assert len(str(caught.value).splitlines()) == 1
    assert not list(tmp_path.iterdir())


@pytest.mark.fault("full disk")
@both
def test_a_disk_that_becomes_full_keeps_what_was_made(
    model: TokenModel, tmp_path: Path, disk_of: Callable[[int], None], codec: Codec
) -> None:
    disk_of(4200)
    with pytest.raises(InputError, match=f"voice-00.{codec.default_format}.*writing stopped"):
        write(model, tmp_path, codec, num=1, num_tokens=5000)
    (path,) = tmp_path.iterdir()
    (whole,) = Sampler(model, num_waveforms=1).generate(num_samples=2048, start_token=codec.start_token, seed=5)
    if codec is BYTES:
        assert path.read_bytes()[:2048] == bytes(whole[0].tolist())
    else:
        audio, _ = soundfile.read(path)
        np.testing.assert_allclose(audio[:2048], AUDIO.decode(whole[0]), atol=1.01 / 2**15)


@pytest.mark.fault("full disk")
@pytest.mark.parametrize(("codec", "suffix"), [(AUDIO, "json"), (AUDIO, "png"), (BYTES, "json")])
def test_a_sidecar_or_picture_is_whole_or_absent(
    model: TokenModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, codec: Codec, suffix: str
) -> None:
    write_bytes = Path.write_bytes

    def full(path: Path, content: bytes) -> int:
        if suffix not in path.name:
            return write_bytes(path, content)
        write_bytes(path, content[:10])
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(Path, "write_bytes", full)
    with pytest.raises(InputError) as caught:
        write(model, tmp_path, codec, num=1, pictures=True)
    sound = f"voice-00.{codec.default_format}"
    assert str(caught.value) == (
        f"{str(tmp_path / f'voice-00.{suffix}')!r} cannot be written: No space left on device; free some space. "
        f"{sound!r} is whole."
    )
    picture = {"voice-00.png"} if suffix == "json" and codec is AUDIO else set()
    assert {path.name for path in tmp_path.iterdir()} == {sound} | picture


def test_progress_and_pictures(model: TokenModel, tmp_path: Path) -> None:
    done: list[int] = []
    (sample,) = write(model, tmp_path, num=1, num_tokens=2400, pictures=True, on_progress=done.append)
    assert done == [2048, 2400]
    assert sample.picture is not None
    assert sample.picture.read_bytes().startswith(b"\x89PNG")
    (text,) = write(model, tmp_path, BYTES, num=1, pictures=True, overwrite=True)
    assert text.picture is None
