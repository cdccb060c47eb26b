"""Figures that describe a waveform without a reference."""

from collections.abc import Iterable
from dataclasses import asdict

import numpy as np

from audio_ct.audio.levels import levels
from audio_ct.audio.pitch import pitch
from audio_ct.audio.spectrogram import power_spectrogram

Statistics = dict[str, float | None]

STATISTIC_NAMES = (
    "rms_dbfs",
    "peak_dbfs",
    "crest_factor_db",
    "silence_fraction",
    "clipped_fraction",
    "zero_crossing_rate_hz",
    "spectral_centroid_hz",
    "spectral_rolloff_hz",
    "f0_median_hz",
    "f0_iqr_hz",
    "voiced_fraction",
)

ROLLOFF_FRACTION = 0.85


def statistics(waveform: np.ndarray, sample_rate_hz: int) -> Statistics:
    """Measure level, spectrum and pitch of one waveform.

    Centroid and rolloff are those of the long-term power spectrum, so that pauses don't count. A figure that isn't
    defined (pitch without voiced frames, spectrum of digital silence, anything of an empty waveform) is None.

    Args:
        waveform: [num_samples], finite, full scale 1.
        sample_rate_hz: Its sample rate.

    Returns:
        A figure for each of STATISTIC_NAMES: levels in dB of full scale (not below -120), fractions from 0 to 1, the
        others in Hz.
    """
    assert waveform.ndim == 1
    assert np.isfinite(waveform).all()
    waveform = waveform.astype(np.float64)
    result: Statistics = dict.fromkeys(STATISTIC_NAMES)
    if waveform.size == 0:
        return result
    level = levels(waveform, sample_rate_hz)
    signs = waveform >= 0
    result |= asdict(level)
    result["zero_crossing_rate_hz"] = float(np.count_nonzero(signs[1:] != signs[:-1]) * sample_rate_hz / waveform.size)
    if not np.any(waveform):
        result["voiced_fraction"] = 0.0
        return result
    result["crest_factor_db"] = level.crest_factor_db
    power = power_spectrogram(waveform, sample_rate_hz).mean(axis=1)
    frequencies_hz = np.linspace(0, sample_rate_hz / 2, power.size)
    result["spectral_centroid_hz"] = float(frequencies_hz @ power / power.sum())
    cumulative = np.cumsum(power)
    result["spectral_rolloff_hz"] = float(
        frequencies_hz[np.searchsorted(cumulative, ROLLOFF_FRACTION * cumulative[-1])]
    )
    f0_hz, voiced = pitch(waveform, sample_rate_hz)
    result["voiced_fraction"] = float(voiced.mean())
    if voiced.any():
        low, median, high = np.percentile(f0_hz[voiced], (25, 50, 75))
        result["f0_median_hz"], result["f0_iqr_hz"] = float(median), float(high - low)
    return result


def average(of_waveforms: Iterable[Statistics]) -> Statistics:
    """Mean of every statistic over the waveforms for which it is defined; None where it is for none."""
    rows = list(of_waveforms)
    known = {name: [value for row in rows if (value := row[name]) is not None] for name in STATISTIC_NAMES}
    return {name: float(np.mean(values)) if values else None for name, values in known.items()}
