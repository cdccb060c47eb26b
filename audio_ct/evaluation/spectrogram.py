"""Mel spectrograms as numbers and as pictures, the same everywhere so that they can be compared by eye."""

import math
from pathlib import Path

import librosa
import numpy as np
from matplotlib.image import imsave

NUM_MEL_BANDS = 128
COLOUR_MAP = "magma"
COLOUR_RANGE_DB = 80.0


def mel_db(waveform: np.ndarray, sample_rate_hz: int) -> np.ndarray:
    """Return the mel power spectrogram in dB of full scale [128 bands, frames], some 160 frames a second.

    Args:
        waveform: [samples], finite; may be shorter than a frame.
        sample_rate_hz: sample rate.
    """
    if waveform.size == 0:
        return np.zeros((NUM_MEL_BANDS, 0))
    fft_length = 1 << math.ceil(math.log2(0.04 * sample_rate_hz))
    # At most some 1200 columns, whatever the length.
    hop_length = max(1, sample_rate_hz // 160, waveform.size // 1200)
    padded = np.pad(waveform, (0, max(0, fft_length - waveform.size)))
    power = librosa.feature.melspectrogram(
        y=padded, sr=sample_rate_hz, n_fft=fft_length, hop_length=hop_length, n_mels=NUM_MEL_BANDS
    )
    return np.asarray(10 * np.log10(np.maximum(power, 1e-10)))


def save_spectrogram(waveform: np.ndarray, sample_rate_hz: int, path: Path) -> None:
    """Write a waveform's mel spectrogram as a PNG, time to the right and low bands below."""
    level_db = mel_db(waveform, sample_rate_hz)
    top = float(level_db.max())
    imsave(path, level_db, cmap=COLOUR_MAP, vmin=top - COLOUR_RANGE_DB, vmax=top, origin="lower", format="png")
