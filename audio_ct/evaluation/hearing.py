"""Sets of waveforms measured by what an ear would notice first: voice, melody, rhythm, pauses, level and colour."""

from collections.abc import Sequence
from dataclasses import dataclass

import librosa
import numpy as np

from audio_ct.audio.checks import BURST_CREST_FACTOR_DB, check
from audio_ct.audio.levels import ACTIVE_DBFS, FRAME_SECONDS, decibels, levels
from audio_ct.audio.pitch import pitch
from audio_ct.audio.spectrogram import band_power

HOP_SECONDS = 0.016
# Closures of plosives are shorter.
SHORTEST_PAUSE_SECONDS = 0.1
# Syllables come at 2 to 8 Hz: Greenberg et al. 2003, "Temporal properties of spontaneous speech".
SYLLABLE_HZ = (2.0, 8.0)
NUM_BANDS = 80
BAND_FLOOR_DB = -80.0

Figures = dict[str, float]


@dataclass(frozen=True)
class Heard:
    """What is measured of one waveform.

    Attributes:
        num_frames: frames, 16 ms apart.
        num_active: those of them above -45 dBFS.
        f0_hz: pitch of the active frames that have one [num_voiced].
        level_dbfs: level of the active frames together; NaN without any.
        pauses_seconds: lengths of the pauses of 0.1 s or more.
        modulation_depth: level's movement at 2 to 8 Hz, standard deviation over mean; NaN if silent or too short.
        modulation_hz: where in that range the level moves most.
        num_samples: samples.
        num_clipped: those of them at full scale.
        bursts: its peak is over 22 dB above its level.
        band_power: power in 80 mel bands [80].
        warnings: of `audio_ct.audio.checks.check`.
    """

    num_frames: int
    num_active: int
    f0_hz: np.ndarray
    level_dbfs: float
    pauses_seconds: list[float]
    modulation_depth: float
    modulation_hz: float
    num_samples: int
    num_clipped: int
    bursts: bool
    band_power: np.ndarray
    warnings: list[str]


def hear(waveform: np.ndarray, sample_rate_hz: int) -> Heard:
    """Measure a waveform [num_samples] of one sample or more; samples that aren't finite count as silence."""
    warnings = check(waveform, sample_rate_hz)
    waveform = np.nan_to_num(waveform.astype(np.float64), nan=0.0, posinf=0.0, neginf=0.0)
    of_frames_hz, frames_dbfs = contours(waveform, sample_rate_hz)
    active = frames_dbfs > ACTIVE_DBFS
    depth, peak_hz = _modulation(frames_dbfs) if active.any() else (np.nan, np.nan)
    level = levels(waveform, sample_rate_hz)
    return Heard(
        num_frames=active.size,
        num_active=int(active.sum()),
        f0_hz=of_frames_hz[np.isfinite(of_frames_hz)],
        level_dbfs=float(decibels(np.mean(10 ** (frames_dbfs[active] / 10)))) if active.any() else np.nan,
        pauses_seconds=_pauses_seconds(active),
        modulation_depth=depth,
        modulation_hz=peak_hz,
        num_samples=waveform.size,
        num_clipped=round(level.clipped_fraction * waveform.size),
        bursts=bool(level.crest_factor_db > BURST_CREST_FACTOR_DB),
        band_power=band_power(waveform, sample_rate_hz, NUM_BANDS).sum(axis=1),
        warnings=warnings,
    )


def figures(heard: Sequence[Heard], reference: Sequence[Heard]) -> Figures:
    """Figures of a set of waveforms beside another set, of real speech; NaN where a figure isn't defined.

    Returns:
        voiced: share of active frames that have a pitch.
        f0_hz: median pitch of those.
        f0_octaves: melody, the interquartile range of the pitch within a waveform, median over waveforms.
        modulation_depth, modulation_hz: medians over waveforms.
        pauses: share of frames that aren't active.
        pause_seconds: median length of a pause.
        level_dbfs, level_iqr_db: median and interquartile range over waveforms of the level of active frames.
        spectrum_db: root mean square distance of the long-term spectra in 80 mel bands, total power apart.
        clipped: share of samples at full scale.
        bursts: share of waveforms with bursts.
        unwarned: share of waveforms for which `check` has no warning.
    """
    num_active = sum(one.num_active for one in heard)
    spans = [float(np.diff(np.log2(np.percentile(one.f0_hz, (25, 75))))[0]) for one in heard if one.f0_hz.size > 4]
    known_dbfs = [one.level_dbfs for one in heard if one.num_active]
    return {
        "voiced": sum(one.f0_hz.size for one in heard) / num_active if num_active else np.nan,
        "f0_hz": median(np.concatenate([one.f0_hz for one in heard])),
        "f0_octaves": median(spans),
        "modulation_depth": median([one.modulation_depth for one in heard]),
        "modulation_hz": median([one.modulation_hz for one in heard]),
        "pauses": 1 - num_active / sum(one.num_frames for one in heard),
        "pause_seconds": median([length for one in heard for length in one.pauses_seconds]),
        "level_dbfs": median(known_dbfs),
        "level_iqr_db": float(np.diff(np.percentile(known_dbfs, (25, 75)))[0]) if known_dbfs else np.nan,
        "spectrum_db": float(np.sqrt(np.mean((_spectrum_db(heard) - _spectrum_db(reference)) ** 2))),
        "clipped": sum(one.num_clipped for one in heard) / sum(one.num_samples for one in heard),
        "bursts": float(np.mean([one.bursts for one in heard])),
        "unwarned": float(np.mean([not one.warnings for one in heard])),
    }


def contours(
    waveform: np.ndarray, sample_rate_hz: int, *, hop_seconds: float = HOP_SECONDS
) -> tuple[np.ndarray, np.ndarray]:
    """Pitch and level of a waveform over time.

    Args:
        waveform: [num_samples] float64, finite, of one sample or more.
        sample_rate_hz: its sample rate.
        hop_seconds: time between two frames; the first one's centre is the first sample.

    Returns:
        f0_hz [num_frames], NaN for frames that have no pitch or are not above -45 dBFS, and the level of 30 ms around
        the same centres, in dB of full scale [num_frames].
    """
    half = round(FRAME_SECONDS * sample_rate_hz / 2)
    total = np.concatenate([[0.0], np.cumsum(np.pad(waveform, half) ** 2)])
    begins = np.arange(0, waveform.size + 1, round(hop_seconds * sample_rate_hz))
    frames_dbfs = decibels((total[begins + 2 * half] - total[begins]) / (2 * half))
    active = frames_dbfs > ACTIVE_DBFS
    f0_hz = np.full(active.size, np.nan)
    if active.any():
        estimated_hz, voiced = pitch(waveform, sample_rate_hz, hop_seconds=hop_seconds)
        known = voiced[: active.size] & active
        f0_hz[known] = estimated_hz[: active.size][known]
    return f0_hz, frames_dbfs


def _pauses_seconds(active: np.ndarray) -> list[float]:
    """Lengths of the runs of frames that aren't active, of 0.1 s or more."""
    edges = np.flatnonzero(np.diff(np.concatenate([[1], active.astype(int), [1]])))
    lengths = (edges[1::2] - edges[::2]) * HOP_SECONDS
    return [float(length) for length in lengths if length >= SHORTEST_PAUSE_SECONDS]


def _modulation(frames_dbfs: np.ndarray) -> tuple[float, float]:
    """Depth of the level's movement from 2 to 8 Hz and its strongest frequency; NaN for less than a period of 2 Hz."""
    if frames_dbfs.size * HOP_SECONDS < 1 / SYLLABLE_HZ[0]:
        return np.nan, np.nan
    amplitude = 10 ** (frames_dbfs / 20)
    # Padded to twice its length: a finer frequency, and the power of two bins for each of before.
    num_bins = 2 * amplitude.size
    power = np.abs(np.fft.rfft(amplitude - amplitude.mean(), num_bins)) ** 2
    frequency_hz = np.fft.rfftfreq(num_bins, HOP_SECONDS)
    within = (frequency_hz >= SYLLABLE_HZ[0]) & (frequency_hz <= SYLLABLE_HZ[1])
    deviation = np.sqrt(power[within].sum()) / amplitude.size
    return float(deviation / amplitude.mean()), float(frequency_hz[within][power[within].argmax()])


def _spectrum_db(heard: Sequence[Heard]) -> np.ndarray:
    """Mean power in mel bands relative to the total, dB and not below -80 [80]."""
    power = np.sum([one.band_power for one in heard], axis=0)
    share = power / max(power.sum(), 1e-20)
    return np.asarray(librosa.power_to_db(share, amin=10 ** (BAND_FLOOR_DB / 10), top_db=None))


def median(values: Sequence[float] | np.ndarray) -> float:
    """Median of the values that are finite; NaN without any."""
    finite = np.asarray(values, dtype=np.float64)
    finite = finite[np.isfinite(finite)]
    return float(np.median(finite)) if finite.size else np.nan
