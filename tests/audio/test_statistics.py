"""Statistics of waveforms whose figures are known, and warnings for what is no speech."""

import os
from pathlib import Path

import numpy as np
import pytest
import soundfile

from audio_ct.audio.checks import check
from audio_ct.audio.statistics import STATISTIC_NAMES, average, statistics
from samples.continue_clip import log_spectral_distance_db

pytestmark = pytest.mark.xdist_group("pitch")

RATE_HZ = 24_000
SPEECH_FOLDER = os.environ.get("AUDIO_CT_REAL_SPEECH")


def tone(frequency_hz: float, amplitude: float = 0.5, seconds: float = 1.0, rate_hz: int = RATE_HZ) -> np.ndarray:
    times_seconds = np.arange(round(seconds * rate_hz)) / rate_hz
    return (amplitude * np.sin(2 * np.pi * frequency_hz * times_seconds)).astype(np.float32)


def noise(amplitude: float, seed: int = 0, num_samples: int = RATE_HZ) -> np.ndarray:
    return (amplitude * np.random.default_rng(seed).normal(size=num_samples)).astype(np.float32)


def buzz(f0_hz: float, rate_hz: int = RATE_HZ) -> np.ndarray:
    """A voiced sound: harmonics that fall by 12 dB an octave."""
    harmonics = [tone(f0_hz * k, 0.4 / k**2, 1.0, rate_hz) for k in range(1, int(0.45 * rate_hz / f0_hz))]
    return np.sum(harmonics, axis=0).astype(np.float32)


@pytest.mark.parametrize("rate_hz", [16_000, 24_000])
def test_a_tone_has_the_figures_of_a_tone(rate_hz: int) -> None:
    found = statistics(tone(1000, rate_hz=rate_hz), rate_hz)
    assert found["rms_dbfs"] == pytest.approx(20 * np.log10(0.5) - 3.01, abs=0.01)
    assert found["peak_dbfs"] == pytest.approx(20 * np.log10(0.5), abs=0.01)
    assert found["crest_factor_db"] == pytest.approx(3.01, abs=0.01)
    assert found["zero_crossing_rate_hz"] == pytest.approx(2000, rel=0.01)
    assert found["spectral_centroid_hz"] == pytest.approx(1000, rel=0.01)
    assert found["spectral_rolloff_hz"] == pytest.approx(1000, abs=40)
    assert found["silence_fraction"] == found["clipped_fraction"] == 0


@pytest.mark.parametrize("f0_hz", [90.0, 210.0])
def test_pitch_of_a_voiced_sound(f0_hz: float) -> None:
    found = statistics(buzz(f0_hz), RATE_HZ)
    assert found["f0_median_hz"] == pytest.approx(f0_hz, rel=0.01)
    assert found["f0_iqr_hz"] == pytest.approx(0, abs=2)
    assert found["voiced_fraction"] is not None
    assert found["voiced_fraction"] > 0.9


def test_level_moves_levels_only() -> None:
    loud, quiet = statistics(buzz(120), RATE_HZ), statistics(0.1 * buzz(120), RATE_HZ)
    for name in STATISTIC_NAMES:
        change = -20.0 if name in ("rms_dbfs", "peak_dbfs") else 0.0
        assert quiet[name] == pytest.approx(loud[name] + change, rel=1e-3, abs=0.01)


@pytest.mark.parametrize("num_samples", [0, 1, 2, 100, 1000])
@pytest.mark.parametrize("amplitude", [0.0, 0.1])
def test_short_waveforms_survive(num_samples: int, amplitude: float) -> None:
    waveform = noise(amplitude, num_samples=num_samples)
    found = statistics(waveform, RATE_HZ)
    assert tuple(found) == STATISTIC_NAMES
    assert all(value is None or np.isfinite(value) for value in found.values())
    assert isinstance(check(waveform, RATE_HZ), list)


def test_silence_has_no_pitch_and_no_spectrum() -> None:
    waveform = np.concatenate([tone(500), np.zeros(RATE_HZ, np.float32)])
    assert statistics(waveform, RATE_HZ)["silence_fraction"] == pytest.approx(0.5, abs=0.02)
    found = statistics(np.zeros(RATE_HZ, np.float32), RATE_HZ)
    assert found["f0_median_hz"] is found["spectral_centroid_hz"] is found["crest_factor_db"] is None
    assert found["voiced_fraction"] == 0
    assert found["rms_dbfs"] == -120


def test_average_leaves_out_what_is_unknown() -> None:
    known, unknown = dict.fromkeys(STATISTIC_NAMES, 2.0), dict.fromkeys(STATISTIC_NAMES)
    assert average([known, {**known, "rms_dbfs": 4.0}, unknown]) == {**known, "rms_dbfs": 3.0}
    assert average([unknown]) == average([]) == unknown


def test_log_spectral_distance_grows_with_the_change() -> None:
    original = np.concatenate([buzz(120), buzz(180)])
    added = noise(1, num_samples=original.size)
    distances_db = [log_spectral_distance_db(original, original + a * added, RATE_HZ) for a in (0, 1e-4, 1e-3, 1e-2)]
    assert distances_db[0] == 0
    assert distances_db == sorted(distances_db)
    assert distances_db[3] > distances_db[1] + 5
    swapped = np.concatenate([buzz(180), buzz(120)])
    assert log_spectral_distance_db(original, swapped, RATE_HZ) > 1


def test_log_spectral_distance_of_a_gain_is_that_gain() -> None:
    waveform = noise(0.1)
    assert log_spectral_distance_db(waveform, 2 * waveform, RATE_HZ) == pytest.approx(6.02, abs=0.01)
    assert log_spectral_distance_db(np.zeros(500), np.zeros(500), RATE_HZ) == 0


@pytest.mark.parametrize(
    ("waveform", "fault"),
    [
        (np.zeros(0), "empty"),
        (np.zeros(RATE_HZ), "silence"),
        (noise(1e-4), "silence"),
        (noise(0.3), "noise"),
        (noise(0.02), "noise"),
        (np.clip(4 * buzz(120), -1, 1), "clipping"),
        (0.3 * buzz(120) + 0.1, "DC"),
        (np.concatenate([buzz(120), np.zeros(2 * RATE_HZ)]), "mostly silence"),
        (0.02 * buzz(120) + 0.9 * (np.arange(RATE_HZ) // 10 == 100), "bursts"),
        (np.array([0.0, np.nan, 0.1]), "not finite"),
    ],
)
@pytest.mark.parametrize("rate_hz", [16_000, 24_000])
def test_what_is_no_speech_warns(waveform: np.ndarray, fault: str, rate_hz: int) -> None:
    assert [warning.split(":")[0] for warning in check(waveform, rate_hz)] == [fault]


def test_a_voiced_sound_with_a_noisy_ending_does_not_warn() -> None:
    assert check(np.concatenate([buzz(120), noise(0.02, num_samples=RATE_HZ // 3)]), RATE_HZ) == []


@pytest.mark.skipif(SPEECH_FOLDER is None, reason="AUDIO_CT_REAL_SPEECH names no folder of real speech")
def test_real_speech_does_not_warn() -> None:
    paths = sorted(path for path in Path(str(SPEECH_FOLDER)).glob("*.flac") if not path.name.startswith("silence"))[::8]
    warned = {path.name: warnings for path in paths if (warnings := check(*soundfile.read(path, dtype="float32")))}
    assert len(paths) > 10
    assert warned == {}
