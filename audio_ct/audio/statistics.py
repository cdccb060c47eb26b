"""Figures that describe a waveform without a reference, and distances between waveforms and between sets of them."""

from collections.abc import Iterable
from dataclasses import asdict

import numpy as np

from audio_ct.audio.levels import levels, mono
from audio_ct.audio.pitch import pitch
from audio_ct.audio.spectrogram import band_power, power_spectrogram
from audio_ct.errors import InputError

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
NUM_BANDS = 40
BAND_FLOOR_DB = -80.0


def statistics(waveform: np.ndarray, sample_rate_hz: int) -> Statistics:
    """Measure level, spectrum and pitch of one waveform.

    Centroid and rolloff are those of the long-term power spectrum, so that pauses don't count. A figure that isn't
    defined (pitch without voiced frames, spectrum of digital silence, anything of an empty waveform) is None.

    Args:
        waveform: [num_samples] float, mono, full scale 1.
        sample_rate_hz: Its sample rate.

    Returns:
        A figure for each of STATISTIC_NAMES: levels in dB of full scale (not below -120), fractions from 0 to 1, the
        others in Hz.

    Raises:
        InputError: If the waveform has several channels or samples that are not finite.
    """
    waveform = mono(waveform)
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


def long_term_spectrum_db(waveforms: Iterable[np.ndarray], sample_rate_hz: int) -> np.ndarray:
    """Average the power in each of 40 mel bands over all frames of all waveforms, relative to the total power.

    Relative, so that two sets that differ in loudness only have the same spectrum.

    Returns:
        [40] float64, dB; not below -80, so that an empty band of the real speech doesn't decide a distance.

    Raises:
        InputError: If the waveforms hold no sound at all, or a sample that is not finite.
    """
    total = np.zeros(NUM_BANDS)
    for waveform in waveforms:
        if waveform.size:
            total += band_power(mono(waveform), sample_rate_hz, NUM_BANDS).sum(axis=1)
    if not total.sum() > 0:
        raise InputError("long_term_spectrum_db: waveforms=silent, must hold some sound; leave silent ones out.")
    return np.asarray(10 * np.log10(np.maximum(total / total.sum(), 10 ** (BAND_FLOOR_DB / 10))))


def spectrum_distance_db(a: np.ndarray, b: np.ndarray) -> float:
    """Root mean square difference in dB over the bands of two long-term spectra."""
    return float(np.sqrt(np.mean((a - b) ** 2)))


def log_spectral_distance_db(a: np.ndarray, b: np.ndarray, sample_rate_hz: int) -> float:
    """Compare two aligned waveforms frame by frame: the distance is small where one is recognisable in the other.

    For each frame the root mean square over 40 mel bands of the difference in dB; the mean over frames in which either
    is above the floor, which is 80 dB below the strongest band of the two waveforms. Level counts.

    Args:
        a: [num_samples] float.
        b: [num_samples] float, sample for sample beside a.
        sample_rate_hz: Sample rate of both.

    Returns:
        Distance in dB; 0 where both are silent.

    Raises:
        InputError: If the lengths differ, or a sample is not finite.
    """
    if a.shape != b.shape:
        raise InputError(
            f"log_spectral_distance_db: lengths {a.size} and {b.size} must agree; cut both to the shorter."
        )
    power = np.stack([band_power(mono(waveform), sample_rate_hz, NUM_BANDS) for waveform in (a, b)])
    floor = power.max(initial=0.0) * 10 ** (BAND_FLOOR_DB / 10)
    audible = (power > floor).any(axis=(0, 1))
    if not audible.any():
        return 0.0
    level_db = 10 * np.log10(np.maximum(power[:, :, audible], floor))
    return float(np.mean(np.sqrt(np.mean((level_db[0] - level_db[1]) ** 2, axis=0))))
