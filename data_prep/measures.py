"""Figures of a recording as it comes from its file, gathered block by block while it is decoded."""

import functools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import scipy.fft

from audio_ct.audio.files import Samples
from audio_ct.audio.spectrum_end import decibels, power_of_bands, spectrum_end_hz

# Frames overlap by half. Shorter ones would hear single periods of a voice, and differ with where they begin.
HOP_SECONDS = 0.02
# Codecs decode speech that was clipped to a little more or less than full scale.
CLIPPED_AMPLITUDE = 0.999
LOWEST_LEVEL_DBFS = -100
LOUD_QUANTILE = 0.95
SILENT_BELOW_LOUD_DB = 35

MAXIMUM_BANDS = 96
# A letter for each step of a level below the strongest one.
LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/"
STEP_DB = 1.25

# Single vowels drop by up to 22 dB where nothing was filtered.
SHARP_DROP_DB = 25.0

# A fingerprint hears what a telephone lets through, in bands that overlap: each rises from the middle of the one
# below to its own and falls to that of the one above. So a recording has the same at any rate.
FINGERPRINT_MIDDLES_HZ = (75, 210, 370, 540, 730, 940, 1170, 1430, 1720, 2040, 2400, 2820, 3290, 3850)
# How fast bands rise and fall: as syllables do and slower, none a multiple of another.
MODULATIONS_HZ = (0.0, 1.1, 2.3, 3.7, 5.3, 7.1, 9.1)

_ALPHABET = np.frombuffer(LETTERS.encode("ascii"), np.uint8)
_PLACES = np.zeros(128, np.uint8)
_PLACES[_ALPHABET] = np.arange(len(LETTERS))

Array = npt.NDArray[Any]


@dataclass(frozen=True)
class Measures:
    """Figures of a source recording at its own rate.

    Attributes:
        seconds: Its length.
        sample_rate_hz: Its rate.
        level_dbfs: Root mean square, in dB of full scale.
        peak: The largest absolute value; full scale is 1.
        offset: The mean.
        bandwidth_hz: Where its spectrum ends in a sharp drop, else half its rate; see `spectrum_end_hz`.
        rolloff_hz: The frequency below which 99 % of its energy lies.
        clipped: Share of samples at or beyond full scale.
        silent: Share of stretches of 20 ms that lie 35 dB or more below the loud ones.
        spectrum: The level of each band of 250 Hz up to 24 kHz, a letter each; see `spectrum_db`.
        fingerprint: What the recording keeps at another level, rate or format; see `data_prep.duplicates`.
    """

    seconds: float
    sample_rate_hz: int
    level_dbfs: float
    peak: float
    offset: float
    bandwidth_hz: float
    rolloff_hz: float
    clipped: float
    silent: float
    spectrum: str
    fingerprint: str


class Meter:
    """Measures a recording block by block, in memory that does not grow with it.

    Args:
        sample_rate_hz: The recording's rate.
    """

    def __init__(self, sample_rate_hz: int) -> None:
        self._rate_hz = sample_rate_hz
        self._num_samples = self._num_clipped = self._num_frames = 0
        self._sum = self._energy = self._peak = 0.0
        # A length whose transform is quick.
        self._hop = scipy.fft.next_fast_len(max(1, round(HOP_SECONDS * sample_rate_hz)), real=True)
        length = 2 * self._hop
        self._window = _window(length)
        self._rest = np.zeros(0, np.float32)
        self._power = np.zeros(length // 2 + 1)
        self._levels = np.zeros(1 - LOWEST_LEVEL_DBFS, np.int64)
        self._filters = _filters(length, sample_rate_hz)
        self._modulation = np.zeros((len(self._filters), len(MODULATIONS_HZ)), np.complex128)

    def update(self, block: Samples) -> None:
        """Take in samples [time] at the recording's rate, at least one."""
        peak = max(float(block.max()), -float(block.min()))
        self._peak = max(self._peak, peak)
        if peak >= CLIPPED_AMPLITUDE:
            self._num_clipped += int(np.count_nonzero(np.abs(block) >= CLIPPED_AMPLITUDE))
        self._num_samples += len(block)
        self._sum += float(block.sum(dtype=np.float64))
        samples = np.concatenate([self._rest, block]) if len(self._rest) else block
        num_hops = len(samples) // self._hop
        if num_hops > 1:
            self._hear(samples[: num_hops * self._hop].reshape(-1, self._hop))
            samples = samples[(num_hops - 1) * self._hop :]
        self._rest = samples.copy()

    def result(self) -> Measures:
        """Compute the measures of all that was heard; samples after the last whole frame have no spectrum."""
        energy = self._energy + float(np.square(self._rest, dtype=np.float64).sum())
        if not self._num_frames:
            self._hear(np.pad(self._rest, (0, len(self._window) - len(self._rest))).reshape(2, -1))
        frequencies_hz = np.arange(len(self._power)) * self._rate_hz / len(self._window)
        # An offset is no sound, and its bin's neighbour hears it too.
        power = np.where(frequencies_hz < 2 * self._rate_hz / len(self._window), 0.0, self._power)
        cumulative = np.cumsum(power)
        level_db = decibels(power_of_bands(power, frequencies_hz))
        count = max(self._num_samples, 1)
        return Measures(
            seconds=self._num_samples / self._rate_hz,
            sample_rate_hz=self._rate_hz,
            level_dbfs=float(10 * np.log10(max(energy / count, 1e-20))),
            peak=self._peak,
            offset=self._sum / count,
            bandwidth_hz=spectrum_end_hz(level_db, SHARP_DROP_DB) or self._rate_hz / 2,
            rolloff_hz=float(frequencies_hz[np.searchsorted(cumulative, 0.99 * cumulative[-1])]),
            clipped=self._num_clipped / count,
            silent=self._silent_share(),
            spectrum=_letters(-level_db[:MAXIMUM_BANDS] / STEP_DB),
            fingerprint=self._fingerprint(),
        )

    def _hear(self, hops: Samples) -> None:
        """Add hops [hops, time], the first of which was heard before as another's second half, to all sums."""
        frames = np.concatenate([hops[:-1], hops[1:]], axis=1)
        frames *= self._window
        # Real and imaginary parts, side by side: [frames, 2 bins].
        parts = scipy.fft.rfft(frames).view(np.float32)
        # For the spectrum every other frame will do.
        squares = np.square(parts[self._num_frames % 2 :: 2])
        self._power += squares.sum(axis=0).reshape(-1, 2).sum(axis=1)
        # Not np.dot: its threads wait for each other where processes share the cores.
        energy = np.einsum("ht,ht->h", hops[:-1], hops[:-1])
        self._energy += float(energy.sum(dtype=np.float64))
        level_dbfs = 10 * np.log10(np.maximum(energy / self._hop, 10 ** (LOWEST_LEVEL_DBFS / 10)))
        places = np.round(-level_dbfs).clip(0, -LOWEST_LEVEL_DBFS).astype(int)
        self._levels += np.bincount(places, minlength=len(self._levels))
        heard = np.square(parts[:, : self._filters.shape[1]])
        amplitude = np.sqrt(np.einsum("fp,bp->bf", heard, self._filters))
        time = (self._num_frames + np.arange(len(frames))) * self._hop / self._rate_hz
        self._modulation += amplitude @ np.exp(-2j * np.pi * np.outer(time, MODULATIONS_HZ))
        self._num_frames += len(frames)

    def _silent_share(self) -> float:
        """Levels are counted by whole dB below full scale, the loudest first."""
        share = np.cumsum(self._levels) / self._levels.sum()
        loud = int(np.searchsorted(share, 1 - LOUD_QUANTILE))
        return float(self._levels[loud + SILENT_BELOW_LOUD_DB :].sum() / self._levels.sum())

    def _fingerprint(self) -> str:
        """Magnitudes of the modulations: that of its mean, and those of its rises and falls, by themselves.

        A recording that begins later has the same magnitudes.
        """
        magnitude = np.abs(self._modulation)
        if not magnitude.any():
            return ""
        parts = (magnitude[:, 0], magnitude[:, 1:].ravel())
        return "".join(_letters(part / max(part.max(), 1e-20) * (len(LETTERS) - 1)) for part in parts)


@functools.lru_cache(maxsize=8)
def _window(length: int) -> Samples:
    return np.hanning(length + 1)[:-1].astype(np.float32)


@functools.lru_cache(maxsize=8)
def _filters(length: int, sample_rate_hz: int) -> Samples:
    """The fingerprint's bands over real and imaginary parts side by side, [bands, parts up to the highest band]."""
    frequencies_hz = np.arange(length // 2 + 1) * sample_rate_hz / length
    frequencies_hz = frequencies_hz[frequencies_hz < FINGERPRINT_MIDDLES_HZ[-1]]
    middles = zip(FINGERPRINT_MIDDLES_HZ, FINGERPRINT_MIDDLES_HZ[1:], FINGERPRINT_MIDDLES_HZ[2:], strict=False)
    return np.array([np.interp(frequencies_hz, each, (0, 1, 0)) for each in middles], np.float32).repeat(2, axis=1)


def spectrum_db(letters: str) -> Array:
    """Levels of bands of 250 Hz from 0 up, relative to the strongest: 0 dB for "A", -1.25 dB for "B"; [bands]."""
    return -STEP_DB * places_of(np.frombuffer(letters.encode("ascii"), np.uint8))


def places_of(letters: Array) -> Array:
    """Values from 0 to 63 of letters given as bytes, in their shape."""
    return _PLACES[letters]


def _letters(values: Array | Sequence[float]) -> str:
    """Values as letters, 0 as "A" and 63 and more as "/"."""
    places = np.clip(np.round(values), 0, len(LETTERS) - 1).astype(int)
    return _ALPHABET[places].tobytes().decode("ascii")
