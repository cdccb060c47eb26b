"""Codecs: prompts to tokens, tokens to files, and every wrong length, name or format in one line."""

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
import soxr
import torch

from audio_ct.audio.mu_law import decode, silence_token
from audio_ct.errors import InputError, MissingError
from audio_ct.tokens.codec import ByteCodec, Codec, MuLawCodec, make_codec

AUDIO = MuLawCodec(24_000, 8)
BYTES = ByteCodec()


def tone(num_samples: int, rate_hz: int = 24_000) -> np.ndarray:
    return 0.5 * np.sin(2 * np.pi * 200 * np.arange(num_samples) / rate_hz)


def test_a_codec_is_what_its_name_makes() -> None:
    assert make_codec("mu-law", sample_rate_hz=24_000, bits=8) == AUDIO != MuLawCodec(16_000, 8)
    assert make_codec("bytes", sample_rate_hz=None, bits=8) == BYTES != AUDIO
    assert (AUDIO.encoding, AUDIO.unit, AUDIO.vocabulary_size, AUDIO.default_format) == ("mu-law", "sample", 256, "wav")
    assert (BYTES.encoding, BYTES.unit, BYTES.vocabulary_size, BYTES.default_format) == ("bytes", "byte", 256, "txt")
    assert (BYTES.sample_rate_hz, BYTES.bits) == (None, 8)


def test_waveforms_start_from_silence_and_bytes_from_a_byte_that_no_text_holds() -> None:
    for bits in range(1, 17):
        assert MuLawCodec(24_000, bits).start_token == silence_token(bits)
    assert BYTES.start_token == 0


@pytest.mark.parametrize(
    ("encoding", "values"),
    [
        ("bytes", {"sample_rate_hz": 24_000, "bits": 8}),
        ("bytes", {"sample_rate_hz": None, "bits": 9}),
        ("mu-law", {"sample_rate_hz": None, "bits": 8}),
        ("mu-law", {"sample_rate_hz": 0, "bits": 8}),
        ("mu-law", {"sample_rate_hz": 10**12, "bits": 8}),
        ("mu-law", {"sample_rate_hz": 24_000, "bits": -3}),
        ("mu-law", {"sample_rate_hz": 24_000, "bits": 17}),
    ],
)
def test_rates_and_depths_that_do_not_fit_are_refused(encoding: Any, values: dict[str, Any]) -> None:
    with pytest.raises(InputError, match=f"sample_rate_hz={values['sample_rate_hz']}"):
        make_codec(encoding, **values)


def test_lengths_are_in_the_codecs_own_unit() -> None:
    assert (AUDIO.num_tokens(), AUDIO.num_tokens(seconds=0.5)) == (24_000, 12_000)
    assert (BYTES.num_tokens(), BYTES.num_tokens(num_bytes=5)) == (1024, 5)


@pytest.mark.parametrize(
    ("codec", "length", "message"),
    [
        (AUDIO, {"num_bytes": 5}, "num-bytes=5: this is a model of audio; give --seconds."),
        (BYTES, {"seconds": 1.0}, "seconds=1.0: this is a model of bytes; give --num-bytes."),
        *((AUDIO, {"seconds": seconds}, "seconds=") for seconds in (0.0, -1.0, 1e-6, 1e9, math.nan, math.inf)),
        *((BYTES, {"num_bytes": num_bytes}, "num-bytes=") for num_bytes in (0, -1, 1 << 31)),
    ],
)
def test_lengths_out_of_range_and_of_the_other_unit_are_refused(
    codec: Codec, length: dict[str, Any], message: str
) -> None:
    with pytest.raises(InputError, match=message):
        codec.num_tokens(**length)


@pytest.mark.fault("sampling")
def test_a_recording_is_a_prompt(tmp_path: Path) -> None:
    waveform = tone(2400, 48_000)
    soundfile.write(tmp_path / "prompt.wav", np.stack([waveform, waveform], axis=1), 48_000, subtype="FLOAT")
    whole = AUDIO.read_prompt(tmp_path / "prompt.wav")
    assert whole.dtype == torch.int64
    assert torch.equal(whole, AUDIO.encode(waveform, 48_000))
    resampled = soxr.resample(waveform.astype(np.float32), 48_000, 24_000)
    np.testing.assert_allclose(AUDIO.decode(whole), resampled, atol=0.03)
    assert torch.equal(AUDIO.read_prompt(tmp_path / "prompt.wav", max_seconds=0.02), whole[:480])
    for seconds in (0.0, -0.01, math.nan, math.inf):
        with pytest.raises(InputError, match=f"prompt-seconds={seconds} must be above 0"):
            AUDIO.read_prompt(tmp_path / "prompt.wav", max_seconds=seconds)
    with pytest.raises(InputError, match="holds no samples"):
        AUDIO.read_prompt(tmp_path / "prompt.wav", max_seconds=1e-9)


@pytest.mark.fault("sampling")
def test_a_prompt_of_a_lower_rate_is_read_with_a_word_about_its_band(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    soundfile.write(tmp_path / "telephone.wav", np.zeros(800), 8000)
    assert len(AUDIO.read_prompt(tmp_path / "telephone.wav")) == 2400
    assert "8,000 Hz: brought to the model's 24,000 Hz it is empty above 4,000 Hz" in caplog.text
    assert str(AUDIO) == f"{AUDIO.bits}-bit mu-law codes at 24,000 Hz"


def test_a_file_of_any_bytes_is_a_prompt(tmp_path: Path) -> None:
    (tmp_path / "prompt").write_bytes(bytes(range(256)))
    assert BYTES.read_prompt(tmp_path / "prompt").tolist() == list(range(256))
    with pytest.raises(InputError, match=r"prompt-seconds=1.0: .*shorten the prompt's file"):
        BYTES.read_prompt(tmp_path / "prompt", max_seconds=1.0)
    (tmp_path / "empty").touch()
    for name, kind in (("empty", InputError), (".", InputError), ("absent", MissingError)):
        with pytest.raises(kind, match=r"^prompt="):
            BYTES.read_prompt(tmp_path / name)


def test_tokens_are_written_as_sound(tmp_path: Path) -> None:
    tokens = AUDIO.encode(tone(2400))
    with AUDIO.open_writer(tmp_path / "a.wav") as writer:
        writer.write(tokens[:1000])
        writer.write(tokens[1000:])
    written, rate_hz = soundfile.read(tmp_path / "a.wav")
    assert rate_hz == 24_000
    np.testing.assert_allclose(written, decode(tokens, 8).numpy(), atol=1.01 / 2**15)
    with pytest.raises(InputError, match="exists already"):
        AUDIO.open_writer(tmp_path / "a.wav")


@pytest.mark.parametrize("kind", [torch.tensor, lambda tokens: np.array(tokens, np.uint8)])
def test_tokens_are_written_as_bytes_at_once(tmp_path: Path, kind: Any) -> None:
    with BYTES.open_writer(tmp_path / "a.txt") as writer:
        writer.write(kind([0, 255, 10]))
        assert (tmp_path / "a.txt").read_bytes() == b"\x00\xff\n"
    with pytest.raises(FileExistsError):
        BYTES.open_writer(tmp_path / "a.txt")
    with BYTES.open_writer(tmp_path / "a.txt", overwrite=True) as writer:
        writer.write(kind([65]))
    assert (tmp_path / "a.txt").read_bytes() == b"A"


def test_formats_that_cannot_be_written_are_refused() -> None:
    for file_format in ("wav", "flac", "xyz"):
        AUDIO.check_format(file_format)
    for file_format in ("txt", "bin"):
        BYTES.check_format(file_format)
    with pytest.raises(InputError, match="a suffix without its dot"):
        AUDIO.check_format("../wav")
    with pytest.raises(InputError, match="format='wav': bytes are written as txt or bin"):
        BYTES.check_format("wav")


def test_sound_is_checked_and_drawn_and_bytes_are_not(tmp_path: Path) -> None:
    silence = np.full(24_000, 128, np.uint8)
    assert AUDIO.check(silence) == ["silence: level -81 dBFS"]
    assert AUDIO.save_picture(silence, tmp_path / "a.png")
    assert (tmp_path / "a.png").read_bytes().startswith(b"\x89PNG")
    assert BYTES.check(silence) == []
    assert not BYTES.save_picture(silence, tmp_path / "b.png")
    assert not (tmp_path / "b.png").exists()
