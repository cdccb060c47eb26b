"""What is done to samples between decoding and mu-law."""

from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np
import pytest

from audio_ct.audio.files import Samples
from data_prep import processing

RATE_HZ = 24_000


def blocks(waveform: np.ndarray, length: int = 7001) -> Iterator[Samples]:
    for start in range(0, len(waveform), length):
        yield waveform[start : start + length].astype(np.float32)


def joined(parts: Iterable[Samples]) -> np.ndarray:
    return np.concatenate(list(parts))


def noise(seconds: float, level: float = 0.1, seed: int = 0) -> np.ndarray:
    return level * np.random.default_rng(seed).standard_normal(round(seconds * RATE_HZ))


def test_an_offset_is_taken_away_and_speech_is_not() -> None:
    time = np.arange(3 * RATE_HZ) / RATE_HZ
    tone = 0.2 * np.sin(2 * np.pi * 80 * time) * np.linspace(0.1, 1, len(time))
    found = joined(processing.remove_offset(blocks(tone + 0.2), RATE_HZ))
    assert abs(found.mean()) < 1e-3
    assert np.abs(found[:100] - tone[:100]).max() < 0.01, "no step at the beginning"
    # 80 Hz keep their level; their phase turns a little.
    for part in (slice(0, RATE_HZ), slice(2 * RATE_HZ, 3 * RATE_HZ)):
        assert 0.98 < found[part].std() / tone[part].std() < 1.02
    whole = joined(processing.remove_offset([(tone + 0.2).astype(np.float32)], RATE_HZ))
    np.testing.assert_allclose(found, whole, atol=1e-7)


def test_pauses_of_digital_silence_stay_silent_beside_speech_with_an_offset() -> None:
    waveform = np.concatenate([noise(1.0) + 0.1, np.zeros(2 * RATE_HZ), noise(1.0) + 0.1])
    found = joined(processing.remove_offset(blocks(waveform), RATE_HZ))
    assert np.abs(found[round(1.5 * RATE_HZ) : 3 * RATE_HZ]).max() < 1e-6


@pytest.mark.parametrize("seconds", [0.2, 3.0])
def test_loudness_is_brought_to_a_value_and_relations_survive(seconds: float) -> None:
    pyloudnorm = pytest.importorskip("pyloudnorm")
    waveform = noise(seconds, 0.01)
    found = joined(processing.level(blocks(waveform), RATE_HZ, -23.0))
    if seconds > 1:
        assert pyloudnorm.Meter(RATE_HZ).integrated_loudness(found) == pytest.approx(-23, abs=0.1)
    gain = found / waveform
    assert np.ptp(gain) < 1e-3 * gain.mean()
    loud = joined(processing.level(blocks(noise(seconds, 0.2)), RATE_HZ, -1.0))
    assert np.abs(loud).max() <= 1 + 1e-6
    silent = joined(processing.level(blocks(np.zeros(3000)), RATE_HZ, -23.0))
    assert not silent.any()


def test_long_recordings_are_cut_at_quiet_places() -> None:
    waveform = noise(10.0)
    for second in (1.2, 2.6, 4.1, 5.5, 7.0, 8.4):
        waveform[round(second * RATE_HZ) : round((second + 0.1) * RATE_HZ)] *= 1e-4
    pieces = list(processing.cut(blocks(waveform), RATE_HZ, 2.0))
    assert [number for number, _ in pieces] == list(range(len(pieces)))
    np.testing.assert_array_equal(joined(piece for _, piece in pieces), waveform.astype(np.float32))
    assert all(2 / 3 * RATE_HZ <= len(piece) <= 2 * RATE_HZ for _, piece in pieces)
    ends = np.cumsum([len(piece) for _, piece in pieces])[:-1] / RATE_HZ
    quiet = [any(second <= end <= second + 0.1 for second in (1.2, 2.6, 4.1, 5.5, 7.0, 8.4)) for end in ends]
    assert sum(quiet) >= 4
    assert [number for number, _ in processing.cut(blocks(noise(2.0)), RATE_HZ, 2.0)] == [None]
    for seconds in np.arange(2.0, 4.2, 0.1):
        lengths = [len(piece) for _, piece in processing.cut(blocks(noise(seconds)), RATE_HZ, 2.0)]
        assert sum(lengths) == round(seconds * RATE_HZ)
        assert max(lengths) <= 2 * RATE_HZ
        assert min(lengths) >= 0.65 * RATE_HZ


def test_short_recordings_are_padded() -> None:
    assert len(joined(processing.pad(blocks(noise(0.3)), RATE_HZ))) == RATE_HZ
    assert len(joined(processing.pad(blocks(noise(1.3)), RATE_HZ))) == round(1.3 * RATE_HZ)
    assert not list(processing.pad(iter(()), RATE_HZ)), "nothing is no short recording"


@pytest.fixture(scope="module")
def speech() -> np.ndarray:
    """Two sentences, at 24 kHz."""
    hibari = pytest.importorskip("hibari")
    pytest.importorskip("silero_vad")
    voice = hibari.Hibari(threads=1)
    return np.concatenate([voice(text, seed=1) for text in ("The quick brown fox.", "It jumps over the lazy dog.")])


def test_pauses_are_shortened_and_speech_is_kept(speech: np.ndarray, tmp_path: Path) -> None:
    room = noise(30.0, 1e-4)
    pause = room[: 4 * RATE_HZ]
    waveform = np.concatenate([pause, speech, pause, speech, pause])
    found = joined(processing.shorten_pauses(blocks(waveform), RATE_HZ, 1.0))
    saved = (len(waveform) - len(found)) / RATE_HZ
    # Of three pauses of 4 s, half a second is left at both edges and a second between; the sentences have edges too.
    assert 9.9 < saved < 12
    energy = np.square(found).sum() / np.square(waveform).sum()
    assert energy > 0.999
    unhurt = joined(processing.shorten_pauses(blocks(waveform), RATE_HZ, 60.0))
    np.testing.assert_array_equal(unhurt, waveform.astype(np.float32))
    assert not list(processing.shorten_pauses(blocks(noise(2.0, 1e-5)), RATE_HZ, 1.0)), "no speech, nothing"
