"""Where a spectrum ends: sound that was upsampled or filtered has less band than its rate has room for."""

from typing import Any

import numpy as np
import numpy.typing as npt

BAND_HZ = 250.0
# What lies so far below the strongest band is nothing: rounding, dither, a codec's remains.
NOTHING_DB = 75.0
BANDS_BELOW_DROP = 3
BANDS_OF_DROP = 2
# Below it the gaps between a vowel's formants are as steep as a filter.
LOWEST_END_HZ = 3000.0
# Drops that are as large but for so much are one.
SAME_DROP_DB = 1.25

Array = npt.NDArray[Any]


def power_of_bands(power: Array, frequencies_hz: Array) -> Array:
    """Mean power in each band of 250 Hz from 0 up, [bands], of a power spectrum and its frequencies, [bins] each.

    The bins must be finer than the bands.
    """
    places = (frequencies_hz // BAND_HZ).astype(int)
    return np.asarray(np.bincount(places, power) / np.bincount(places))


def decibels(power: Array) -> Array:
    """Power relative to the largest, in dB; silence is at -200."""
    return np.asarray(10 * np.log10(np.maximum(power / max(power.max(), 1e-20), 1e-20)))


def spectrum_end_hz(level_db: Array, drop_db: float) -> float | None:
    """Find where a spectrum ends, as that of an upsampled recording or of a codec's low-pass does.

    That is a sharp drop, to a level that no band above exceeds. A noise floor is no drop, and may lie above one.

    Args:
        level_db: Levels of bands of 250 Hz from 0 up, [bands].
        drop_db: Smallest drop that counts, within two bands.

    Returns:
        The middle of the largest drop, or None if there is none.
    """
    places = np.arange(round(LOWEST_END_HZ / BAND_HZ), len(level_db) - BANDS_OF_DROP)
    if not len(places):
        return None
    power = 10 ** (level_db / 10)
    level_db = 10 * np.log10(power + power.max() * 10 ** (-NOTHING_DB / 10))
    below = np.convolve(level_db, np.full(BANDS_BELOW_DROP, 1 / BANDS_BELOW_DROP), "valid")[places - BANDS_BELOW_DROP]
    highest_from = np.maximum.accumulate(level_db[::-1])[::-1]
    drops = below - highest_from[places + BANDS_OF_DROP]
    if drops.max() < drop_db:
        return None
    # A drop within a band is as large two bands earlier: the middle of all that are largest.
    largest = np.median(places[drops > drops.max() - SAME_DROP_DB])
    return float((largest + BANDS_OF_DROP / 2) * BAND_HZ)
