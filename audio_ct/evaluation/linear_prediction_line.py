"""Bits per sample of linear prediction without a network: what any model of speech should stay below.

A backward-adaptive predictor says where the next token is about to be and how far off it usually is; how far off it was
is counted on a training split. There is nothing else: it is what a lossless codec of the 1990s knows about speech.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import numpy as np
import torch

from audio_ct.errors import InputError
from audio_ct.models.linear_prediction import BackwardPredictor, LinearPredictionSettings

# The long window predicts; the errors of both tell how sure it can be.
SETTINGS = LinearPredictionSettings(order=32, windows=(200, 25), frame_length=16)
CHUNK_TOKENS = 1024 * SETTINGS.frame_length
# Half octaves of an expected error, from below a quarter of a token up.
NUM_LEVELS = 16
# What every distance is counted besides: none has probability 0.
SMOOTHING = 0.02


@dataclass(frozen=True)
class LinearPredictionLine:
    """Counts of token minus rounded prediction, one row for each pair of expected errors.

    Attributes:
        counts: [levels, levels, 2 vocabulary - 1], from distance 1 - vocabulary up.
        start_token: stands before every recording.
    """

    counts: np.ndarray
    start_token: int

    def bits_per_sample(self, recordings: Iterable[np.ndarray], first_scored: int) -> float:
        """Return the mean code length of the positions t >= first_scored of recordings [num_tokens].

        Raises:
            InputError: no position is scored.
        """
        vocabulary_size = (self.counts.shape[-1] + 1) // 2
        # A token's distance must leave it on the scale: what is on it sums to a difference of two of these.
        below = np.concatenate([np.zeros_like(self.counts[..., :1]), self.counts.cumsum(axis=-1)], axis=-1)
        bits, num_scored = 0.0, 0
        for recording in recordings:
            start = 0
            for context, nearest, tokens in _predictions(recording, vocabulary_size, self.start_token):
                first = min(max(first_scored - start, 0), len(tokens))
                start += len(tokens)
                rows, lowest = tuple(level[first:] for level in context), vocabulary_size - 1 - nearest[first:]
                on_scale = below[(*rows, lowest + vocabulary_size)] - below[(*rows, lowest)]
                counted = self.counts[(*rows, lowest + tokens[first:])]
                bits -= float(np.log2(counted / on_scale).sum())
                num_scored += len(counted)
        if num_scored == 0:
            raise InputError(
                f"first_scored={first_scored}: no recording is longer than that; score fewer or longer ones."
            )
        return bits / num_scored


def fit_linear_prediction_line(
    train_recordings: Iterable[np.ndarray], vocabulary_size: int, *, start_token: int
) -> LinearPredictionLine:
    """Count distances on recordings [num_tokens] of a training split, one pass."""
    counts = np.full((NUM_LEVELS, NUM_LEVELS, 2 * vocabulary_size - 1), SMOOTHING)
    for recording in train_recordings:
        for context, nearest, tokens in _predictions(recording, vocabulary_size, start_token):
            np.add.at(counts, (*context, tokens - nearest + vocabulary_size - 1), 1)
    return LinearPredictionLine(counts, start_token)


def _predictions(
    recording: np.ndarray, vocabulary_size: int, start_token: int
) -> Iterator[tuple[tuple[np.ndarray, np.ndarray], np.ndarray, np.ndarray]]:
    """Yield (levels of both expected errors, nearest tokens to the predictions, the tokens), in chunks [time]."""
    predictor = BackwardPredictor(vocabulary_size, SETTINGS)
    state = predictor.initial_state(1, "cpu")
    last = start_token
    for begin in range(0, len(recording), CHUNK_TOKENS):
        tokens = np.asarray(recording[begin : begin + CHUNK_TOKENS], dtype=np.int64)
        read = np.full(-(-len(tokens) // SETTINGS.frame_length) * SETTINGS.frame_length, start_token)
        read[0], read[1 : len(tokens)] = last, tokens[:-1]
        last = int(tokens[-1])
        predicted, expected, state = predictor(torch.from_numpy(read[None]), state)
        level = (2 * (expected[0, : len(tokens)] + 0.05).log2() + 4).round().long().clamp(0, NUM_LEVELS - 1).numpy()
        middle = (vocabulary_size - 1) / 2
        nearest = (predicted[0, : len(tokens), 0] + middle).round().long().clamp(0, vocabulary_size - 1).numpy()
        yield (level[:, 0], level[:, 1]), nearest, tokens
