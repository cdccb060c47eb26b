"""Spectrograms as numbers and as pictures, the same everywhere so that they can be compared by eye."""

import io
import math
from pathlib import Path

import librosa
import numpy as np
from matplotlib.image import imsave

from audio_ct.durable import write_whole

NUM_MEL_BANDS = 128
COLOUR_MAP = "magma"
COLOUR_RANGE_DB = 80.0


def _fft_length(seconds: float, sample_rate_hz: int) -> int:
    """The smallest power of two that spans so many seconds."""
    return 1 << math.ceil(math.log2(seconds * sample_rate_hz))


def power_spectrogram(waveform: np.ndarray, sample_rate_hz: int) -> np.ndarray:
    """Hann-windowed power of frames of 32 to 64 ms that overlap by half.

    Args:
        waveform: [num_samples], finite; zeros are read beyond its ends.
        sample_rate_hz: Its sample rate.

    Returns:
        [1 + FFT length // 2, num_frames]; the frames cover every sample.
    """
    length = _fft_length(0.032, sample_rate_hz)
    padded = np.pad(waveform, (0, max(0, length - waveform.size)))
    spectrum = librosa.stft(padded, n_fft=length, hop_length=length // 2, pad_mode="constant")
    return np.asarray(np.abs(spectrum) ** 2)


def band_power(waveform: np.ndarray, sample_rate_hz: int, num_bands: int) -> np.ndarray:
    """Power in mel bands of the frames of `power_spectrogram`; [num_bands, num_frames]."""
    # So long that the narrowest band holds a bin at any rate.
    length = _fft_length(0.032, sample_rate_hz)
    filters = librosa.filters.mel(sr=sample_rate_hz, n_fft=length, n_mels=num_bands, norm=None)
    return np.asarray(filters @ power_spectrogram(waveform, sample_rate_hz))


def mel_db(waveform: np.ndarray, sample_rate_hz: int) -> np.ndarray:
    """The mel power spectrogram of a waveform [num_samples] in dB of full scale, for pictures.

    Returns:
        [128 bands, num_frames], some 160 frames a second and at most some 1200, whatever the length.
    """
    if waveform.size == 0:
        return np.zeros((NUM_MEL_BANDS, 0))
    length = _fft_length(0.04, sample_rate_hz)
    hop_length = max(1, sample_rate_hz // 160, waveform.size // 1200)
    padded = np.pad(waveform, (0, max(0, length - waveform.size)))
    power = librosa.feature.melspectrogram(
        y=padded, sr=sample_rate_hz, n_fft=length, hop_length=hop_length, n_mels=NUM_MEL_BANDS
    )
    return np.asarray(librosa.power_to_db(power, top_db=None))


def save_spectrogram(waveform: np.ndarray, sample_rate_hz: int, path: Path) -> None:
    """Write a waveform's mel spectrogram as a PNG, time to the right and low bands below.

    Raises:
        OSError: If it cannot be written; it is then not there.
    """
    level_db = mel_db(waveform, sample_rate_hz)
    top = float(level_db.max())
    picture = io.BytesIO()
    imsave(picture, level_db, cmap=COLOUR_MAP, vmin=top - COLOUR_RANGE_DB, vmax=top, origin="lower", format="png")
    write_whole(path, picture.getvalue())
