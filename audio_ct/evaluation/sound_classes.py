"""Classes of sound that samples belong to, as far as the signal tells: silence, voiced or unvoiced."""

import librosa
import numpy as np

from audio_ct.audio.pitch import pitch

CLASSES = ("silence", "unvoiced", "voiced")
# Of the loudest frame of a recording: pauses of a quiet speaker are quieter too.
SILENCE_BELOW_PEAK_DB = 40.0
HOP_SECONDS = 0.008
FRAME_SECONDS = 0.032


def sound_classes(waveform: np.ndarray, sample_rate_hz: int) -> np.ndarray:
    """The class of each sample of a mono waveform [num_samples] as an index into CLASSES [num_samples] int8.

    A sample is silent where its frame of 32 ms is 40 dB below the recording's loudest; else voiced where probabilistic
    YIN finds a pitch of 60 to 500 Hz, and unvoiced where not.
    """
    if waveform.size == 0 or not np.any(waveform):
        return np.zeros(waveform.size, dtype=np.int8)
    hop = round(HOP_SECONDS * sample_rate_hz)
    frame_length = round(FRAME_SECONDS * sample_rate_hz)
    rms = librosa.feature.rms(y=waveform, frame_length=frame_length, hop_length=hop)[0]
    level_db = librosa.amplitude_to_db(rms, amin=1e-9, top_db=None)
    _, voiced = pitch(waveform, sample_rate_hz, hop_seconds=HOP_SECONDS)
    num_frames = min(len(level_db), len(voiced))
    kinds = np.where(voiced[:num_frames], CLASSES.index("voiced"), CLASSES.index("unvoiced"))
    kinds[level_db[:num_frames] < level_db.max() - SILENCE_BELOW_PEAK_DB] = CLASSES.index("silence")
    nearest = np.minimum((np.arange(waveform.size) + hop // 2) // hop, num_frames - 1)
    return kinds[nearest].astype(np.int8)


def seconds_since_onset(classes: np.ndarray, sample_rate_hz: int) -> np.ndarray:
    """The time of each sample since the recording's first sound, in seconds; negative before it [num_samples]."""
    sounding = np.flatnonzero(classes != CLASSES.index("silence"))
    onset = int(sounding[0]) if sounding.size else classes.size
    return (np.arange(classes.size) - onset) / sample_rate_hz
