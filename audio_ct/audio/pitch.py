"""Pitch by probabilistic YIN."""

import librosa
import numpy as np

LOWEST_HZ = 60.0
HIGHEST_HZ = 500.0


def pitch(waveform: np.ndarray, sample_rate_hz: int, *, hop_seconds: float = 0.016) -> tuple[np.ndarray, np.ndarray]:
    """Estimate the pitch from 60 to 500 Hz of overlapping frames of 64 ms.

    Args:
        waveform: [num_samples], mono, of one sample or more.
        sample_rate_hz: Its sample rate.
        hop_seconds: Time between the centres of two frames; the first centre is the first sample.

    Returns:
        f0_hz [num_frames], NaN where there is none, and voiced [num_frames], true where there is one.
    """
    # YIN must see two periods of the lowest pitch; 64 ms hold nearly four.
    frame_length = 4 * round(0.016 * sample_rate_hz)
    f0_hz, voiced, _ = librosa.pyin(
        np.pad(waveform, (0, max(0, frame_length - waveform.size))),
        fmin=LOWEST_HZ,
        fmax=min(HIGHEST_HZ, sample_rate_hz / 4),
        sr=sample_rate_hz,
        frame_length=frame_length,
        hop_length=round(hop_seconds * sample_rate_hz),
    )
    return f0_hz, voiced
