"""Measures of recordings: right on signals whose figures are known, however they are cut into blocks."""

import json
import tracemalloc
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pytest
import soundfile
import soxr

from audio_ct.audio.spectrum_end import BAND_HZ, spectrum_end_hz
from data_prep.measures import LETTERS, MAXIMUM_BANDS, Measures, Meter, places_of, spectrum_db

RATE_HZ = 24_000


def measure(waveform: np.ndarray, rate_hz: int = RATE_HZ, block_length: int | None = None) -> Measures:
    meter = Meter(rate_hz)
    waveform = waveform.astype(np.float32)
    for begin in range(0, len(waveform), block_length or len(waveform)):
        meter.update(waveform[begin : begin + (block_length or len(waveform))])
    return meter.result()


def noise(seconds: float = 1.0, rate_hz: int = RATE_HZ, seed: int = 0) -> np.ndarray:
    return 0.1 * np.random.default_rng(seed).standard_normal(round(seconds * rate_hz))


def upsampled(waveform: np.ndarray, from_hz: int, to_hz: int) -> np.ndarray:
    """As it comes out of a 16-bit file."""
    return np.round(soxr.resample(waveform, from_hz, to_hz) * 32_768) / 32_768


def test_a_tone_is_measured_as_it_was_made() -> None:
    time = np.arange(2 * RATE_HZ) / RATE_HZ
    measures = measure(0.05 + 0.5 * np.sin(2 * np.pi * 1000 * time))
    assert measures.seconds == 2.0
    assert measures.sample_rate_hz == RATE_HZ
    assert measures.level_dbfs == pytest.approx(10 * np.log10(0.5**2 / 2 + 0.05**2), abs=1e-3)
    assert measures.peak == pytest.approx(0.55, abs=1e-3)
    assert measures.offset == pytest.approx(0.05, abs=1e-4)
    assert measures.rolloff_hz == pytest.approx(1000, abs=100)
    assert measures.clipped == 0
    assert measures.silent == 0


def test_figures_do_not_depend_on_how_a_recording_is_cut_into_blocks() -> None:
    waveform = noise(1.3) * np.linspace(0, 1, round(1.3 * RATE_HZ))
    whole = measure(waveform)
    for block_length in (1, 333, 480, 7001):
        cut = measure(waveform, block_length=block_length)
        for name, value in asdict(whole).items():
            if name in ("spectrum", "fingerprint"):
                places = [places_of(np.frombuffer(text.encode(), np.uint8)) for text in (value, getattr(cut, name))]
                assert np.abs(places[0].astype(int) - places[1]).max() <= 1
            else:
                assert getattr(cut, name) == pytest.approx(value, rel=1e-5, abs=1e-6), name


def test_memory_does_not_grow_with_a_recording() -> None:
    meter = Meter(16_000)
    block = noise(1.0, 16_000).astype(np.float32)[:15_999]
    meter.update(block)
    tracemalloc.start()
    for _ in range(300):
        meter.update(block)
    left, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert left < 20_000


@pytest.mark.parametrize(("from_hz", "to_hz"), [(8000, 24_000), (16_000, 24_000), (16_000, 44_100), (11_025, 48_000)])
def test_upsampled_sources_end_at_half_their_first_rate(from_hz: int, to_hz: int) -> None:
    measures = measure(upsampled(noise(2.0, from_hz), from_hz, to_hz), to_hz)
    assert measures.bandwidth_hz == pytest.approx(from_hz / 2, abs=400)


@pytest.mark.parametrize("floor_db", [-120.0, -80.0, -55.0])
def test_a_noise_floor_above_the_drop_hides_nothing(floor_db: float) -> None:
    # The strongest bands lie 50 dB over the floor, so that it used to count as sound up to its end.
    narrow = soxr.resample(noise(3.0, 16_000), 16_000, RATE_HZ)
    time = np.arange(len(narrow)) / RATE_HZ
    loud = 0.3 * np.sin(2 * np.pi * 200 * time) + narrow
    floor = 10 ** (floor_db / 20) * np.random.default_rng(1).standard_normal(len(narrow))
    assert measure(loud + floor).bandwidth_hz == pytest.approx(8000, abs=400)


@pytest.mark.parametrize("rate_hz", [16_000, 24_000, 48_000])
def test_a_spectrum_that_falls_to_a_noise_floor_has_no_end(rate_hz: int) -> None:
    # Brown noise: 6 dB an octave, and a floor that it sinks into.
    falling = np.cumsum(noise(3.0, rate_hz)) / 100
    falling -= falling.mean()
    assert measure(falling + noise(3.0, rate_hz, seed=1) / 1000, rate_hz).bandwidth_hz == rate_hz / 2
    assert measure(noise(1.0, rate_hz), rate_hz).bandwidth_hz == rate_hz / 2


def test_the_low_pass_of_a_codec_is_found(tmp_path: Path) -> None:
    soundfile.write(tmp_path / "a.mp3", noise(3.0, 44_100), 44_100, bitrate_mode="CONSTANT", compression_level=0.95)
    waveform, rate_hz = soundfile.read(tmp_path / "a.mp3")
    assert measure(waveform, rate_hz).bandwidth_hz < 20_500


def test_what_is_below_3_khz_or_rises_again_is_no_end() -> None:
    level_db = np.zeros(40)
    level_db[8:] = -60.0
    assert spectrum_end_hz(level_db, 20.0) is None
    level_db = np.zeros(40)
    level_db[20:] = -60.0
    assert spectrum_end_hz(level_db, 20.0) == pytest.approx(20 * BAND_HZ, abs=BAND_HZ)
    assert spectrum_end_hz(level_db, 61.0) is None
    level_db[39] = -10.0
    assert spectrum_end_hz(level_db, 20.0) is None
    assert spectrum_end_hz(level_db[:13], 20.0) is None


def test_a_spectrum_says_how_far_bands_lie_below_the_strongest() -> None:
    time = np.arange(2 * RATE_HZ) / RATE_HZ
    measures = measure(0.5 * np.sin(2 * np.pi * 1100 * time) + 0.05 * np.sin(2 * np.pi * 5100 * time))
    level_db = spectrum_db(measures.spectrum)
    assert len(level_db) == RATE_HZ / 2 / BAND_HZ + 1
    assert level_db[4] == 0
    assert level_db[20] == pytest.approx(-20, abs=0.7)
    assert level_db[12] < -70
    assert len(measure(noise(1.0, 96_000), 96_000).spectrum) == MAXIMUM_BANDS
    assert set(measures.fingerprint + measures.spectrum) <= set(LETTERS)


def test_clipped_and_silent_shares() -> None:
    time = np.arange(2 * RATE_HZ) / RATE_HZ
    tone = np.clip(2 * np.sin(2 * np.pi * 100 * time), -1, 1)
    assert measure(tone).clipped == pytest.approx(2 / 3, abs=0.01)
    assert measure(np.concatenate([0.5 * tone, 1e-4 * tone])).silent == pytest.approx(0.5, abs=0.01)


@pytest.mark.parametrize("rate_hz", [4000, 8000, 11_025, 44_100, 128_000, 768_000])
@pytest.mark.parametrize("waveform", [np.zeros(1), np.ones(7), np.zeros(5000), noise(0.3)])
def test_any_rate_and_any_recording_has_figures(rate_hz: int, waveform: np.ndarray) -> None:
    measures = measure(waveform, rate_hz)
    assert Measures(**json.loads(json.dumps(asdict(measures), allow_nan=False))) == measures
    assert 0 < measures.bandwidth_hz <= rate_hz / 2
    assert 0 <= measures.silent <= 1
    if not waveform.any():
        assert measures.fingerprint == ""
