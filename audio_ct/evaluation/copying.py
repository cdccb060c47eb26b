"""Whether a model copies: how near the pieces of waveforms come to the training split, beside held-out speech."""

from collections.abc import Iterator, Sequence

import librosa
import numpy as np

from audio_ct.audio.levels import ACTIVE_DBFS, decibels
from audio_ct.evaluation.windows import real_windows
from audio_ct.tokens.codec import MuLawCodec
from audio_ct.tokens.store import TokenStore

# A piece is 15 frames of 32 ms, 20 ms apart; training is searched in steps of 5 ms.
FRAME_SECONDS = 0.032
STEP_SECONDS = 0.005
STEPS_PER_FRAME = 4
STEPS_PER_PIECE = 60
NUM_BANDS = 40
# What is so far below a piece's loudest value counts as silence, the mu-law's noise with it.
RANGE_DB = 50.0
# Of the training split so much at most is searched, in windows of so much.
MAX_SEARCHED_SECONDS = 1200.0
SEARCHED_WINDOW_SECONDS = 10.0
CANDIDATES_AT_ONCE = 4096


class TrainingSpeech:
    """Log-mel frames of the training split, or of 20 minutes of it, to look for pieces of 0.3 s in.

    Attributes:
        searched: share of the split that is held.
    """

    def __init__(self, store: TokenStore, codec: MuLawCodec, *, seed: int = 0) -> None:
        """Read the whole split where it is short, and else windows of 10 s from all over it."""
        self.sample_rate_hz = codec.sample_rate_hz
        num_tokens, most = store.num_tokens("train"), round(MAX_SEARCHED_SECONDS * codec.sample_rate_hz)
        length = min(num_tokens, round(SEARCHED_WINDOW_SECONDS * codec.sample_rate_hz))
        if num_tokens <= most:
            indices = range(len(store.recordings("train")))
            waveforms = [codec.decode(np.concatenate([store.tokens("train", index) for index in indices]))]
        else:
            drawn = real_windows(store, codec, split="train", num=most // length, num_samples=length, seed=seed)
            waveforms = list(drawn.waveforms)
        self.searched = min(1.0, most / num_tokens)
        self._log_mels = [_log_mel(waveform, self.sample_rate_hz) for waveform in waveforms]

    def nearest_db(self, waveforms: Sequence[np.ndarray]) -> list[np.ndarray]:
        """Distance of each sounding piece of each waveform from the nearest in training, in dB: arrays [num_pieces].

        Root mean square over a piece's log-mel values less their mean, so that a copy at another level is a copy. The
        pieces of a waveform follow each other; those below -45 dBFS are left out.
        """
        of_waveforms = [self._pieces(waveform) for waveform in waveforms]
        wanted = np.concatenate(of_waveforms)
        nearest = np.full(len(wanted), np.inf)
        for candidates in self._candidates():
            squared = (candidates**2).sum(axis=1)[:, None] - 2 * candidates @ wanted.T
            nearest = np.minimum(nearest, squared.min(axis=0))
        mean_square = (nearest + (wanted**2).sum(axis=1)) / wanted.shape[1]
        found = np.sqrt(np.maximum(mean_square, 0))
        return np.split(found, np.cumsum([len(pieces) for pieces in of_waveforms])[:-1])

    def _pieces(self, waveform: np.ndarray) -> np.ndarray:
        """Log-mel values of the pieces that sound [num_pieces, 15 frames x 40 bands]."""
        log_mel = _log_mel(waveform, self.sample_rate_hz)
        pieces = [np.zeros((0, STEPS_PER_PIECE // STEPS_PER_FRAME * NUM_BANDS), dtype=np.float32)]
        num_samples = round(STEPS_PER_PIECE * STEP_SECONDS * self.sample_rate_hz)
        for number in range(len(log_mel) // STEPS_PER_PIECE):
            samples = waveform[number * num_samples : (number + 1) * num_samples].astype(np.float64)
            if decibels(np.mean(samples**2)) > ACTIVE_DBFS:
                steps = log_mel[number * STEPS_PER_PIECE : (number + 1) * STEPS_PER_PIECE]
                pieces.append(_without_level(steps[None, ::STEPS_PER_FRAME]))
        return np.concatenate(pieces)

    def _candidates(self) -> Iterator[np.ndarray]:
        """Yield the values of every place in training [num_places, 15 frames x 40 bands], some thousand at a time."""
        for log_mel in self._log_mels:
            if len(log_mel) < STEPS_PER_PIECE:
                continue
            places = np.lib.stride_tricks.sliding_window_view(log_mel, STEPS_PER_PIECE, axis=0)
            places = places[..., ::STEPS_PER_FRAME].swapaxes(1, 2)
            for begin in range(0, len(places), CANDIDATES_AT_ONCE):
                yield _without_level(places[begin : begin + CANDIDATES_AT_ONCE])


def _log_mel(waveform: np.ndarray, sample_rate_hz: int) -> np.ndarray:
    """Power in 40 mel bands every 5 ms in dB [num_steps, 40] float32."""
    length = round(FRAME_SECONDS * sample_rate_hz)
    power = librosa.feature.melspectrogram(
        y=np.pad(waveform.astype(np.float32), (0, length)),
        sr=sample_rate_hz,
        n_fft=length,
        hop_length=round(STEP_SECONDS * sample_rate_hz),
        n_mels=NUM_BANDS,
        norm=None,
        center=False,
    )
    return decibels(power.T).astype(np.float32)


def _without_level(pieces: np.ndarray) -> np.ndarray:
    """Pieces [num, frames, bands] in rows, each not below its maximum less 50 dB, and less its mean."""
    rows = pieces.reshape(len(pieces), -1)
    rows = np.maximum(rows, rows.max(axis=1, keepdims=True) - RANGE_DB)
    return np.asarray(rows - rows.mean(axis=1, keepdims=True))
