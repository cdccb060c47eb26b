"""The level of a waveform, as a whole and frame by frame, in dB of full scale."""

from dataclasses import dataclass

import librosa
import numpy as np

FRAME_SECONDS = 0.03
FLOOR_DBFS = -120.0
SILENT_FRAME_DBFS = -60.0
# The noise of 8-bit mu-law is some 38 dB below speech, which corpora have at -25 to -15 dBFS.
ACTIVE_DBFS = -45.0
# The outermost 8-bit mu-law codes decode to +-1.0 and their neighbours to +-0.978: this holds the outermost codes only.
CLIPPED_AMPLITUDE = 0.985


@dataclass(frozen=True)
class Levels:
    """Figures of a waveform."""

    rms_dbfs: float
    peak_dbfs: float
    silence_fraction: float
    """Share of frames of 30 ms below -60 dBFS."""
    clipped_fraction: float
    """Share of samples at full scale."""

    @property
    def crest_factor_db(self) -> float:
        """Peak over root mean square."""
        return self.peak_dbfs - self.rms_dbfs


def levels(waveform: np.ndarray, sample_rate_hz: int) -> Levels:
    """Measure a waveform [num_samples] of at least one sample."""
    # A frame of 30 ms, or the shorter one that a short waveform is.
    frame_length = min(waveform.size, max(1, round(FRAME_SECONDS * sample_rate_hz)))
    num_frames = waveform.size // frame_length
    frames = waveform[: num_frames * frame_length].reshape(num_frames, frame_length)
    frames_dbfs = decibels(np.mean(frames**2, axis=1))
    return Levels(
        rms_dbfs=float(decibels(np.mean(waveform**2))),
        peak_dbfs=float(decibels(np.max(waveform**2))),
        silence_fraction=float(np.mean(frames_dbfs < SILENT_FRAME_DBFS)),
        clipped_fraction=float(np.mean(np.abs(waveform) >= CLIPPED_AMPLITUDE)),
    )


def decibels(mean_square: np.ndarray | np.floating) -> np.ndarray:
    """Turn mean squares into dB of full scale, not below -120."""
    return np.asarray(librosa.power_to_db(mean_square, amin=10 ** (FLOOR_DBFS / 10), top_db=None))
