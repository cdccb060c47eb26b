"""The level of a waveform, as a whole and frame by frame, in dB of full scale."""

from dataclasses import dataclass

import numpy as np

from audio_ct.errors import InputError

FRAME_SECONDS = 0.03
FLOOR_DBFS = -120.0
SILENT_FRAME_DBFS = -60.0
# The outermost 8-bit mu-law codes decode to +-1.0 and their neighbours to +-0.978: this holds the outermost codes only.
CLIPPED_AMPLITUDE = 0.985


@dataclass(frozen=True)
class Levels:
    """Figures of one waveform.

    Attributes:
        rms_dbfs: Root mean square.
        peak_dbfs: Largest amplitude.
        silence_fraction: Share of frames of 30 ms below -60 dBFS.
        clipped_fraction: Share of samples at full scale.
    """

    rms_dbfs: float
    peak_dbfs: float
    silence_fraction: float
    clipped_fraction: float

    @property
    def crest_factor_db(self) -> float:
        """Peak over root mean square."""
        return self.peak_dbfs - self.rms_dbfs


def levels(waveform: np.ndarray, sample_rate_hz: int) -> Levels:
    """Measure a waveform [num_samples] of one sample or more."""
    frames_dbfs = frame_levels_dbfs(waveform, sample_rate_hz)
    return Levels(
        rms_dbfs=float(decibels(np.mean(waveform**2))),
        peak_dbfs=float(decibels(np.max(waveform**2))),
        silence_fraction=float(np.mean(frames_dbfs < SILENT_FRAME_DBFS)),
        clipped_fraction=float(np.mean(np.abs(waveform) >= CLIPPED_AMPLITUDE)),
    )


def frame_levels_dbfs(waveform: np.ndarray, sample_rate_hz: int) -> np.ndarray:
    """Level of each whole frame of 30 ms, or of the one shorter frame that a short waveform is; [num_frames]."""
    frame_length = min(waveform.size, max(1, round(FRAME_SECONDS * sample_rate_hz)))
    num_frames = waveform.size // frame_length
    return decibels(np.mean(waveform[: num_frames * frame_length].reshape(num_frames, frame_length) ** 2, axis=1))


def decibels(mean_square: np.ndarray | np.floating) -> np.ndarray:
    """Mean squares in dB of full scale, not below -120."""
    return np.asarray(10 * np.log10(np.maximum(mean_square, 10 ** (FLOOR_DBFS / 10))))


def mono(waveform: np.ndarray) -> np.ndarray:
    """The waveform [num_samples] in float64.

    Raises:
        InputError: If it has several channels or samples that are not finite.
    """
    if waveform.ndim != 1:
        raise InputError(f"waveform: shape {waveform.shape} must be mono, [num_samples]; mix the channels first.")
    if not np.isfinite(waveform).all():
        raise InputError(f"waveform: {waveform.size} samples must all be finite; drop this waveform.")
    return waveform.astype(np.float64)
