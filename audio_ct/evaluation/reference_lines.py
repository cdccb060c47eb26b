"""Bits per sample that need no network: what a model has to stay below to have learned anything.

Counting knows how often each token followed the last two. Linear prediction knows where the next sample of a signal is
about to be and how far off that usually is, as a lossless codec of the 1990s does.
"""

from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import cached_property
from itertools import zip_longest
from typing import Self

import numpy as np
import torch

from audio_ct.evaluation.likelihood import Selection, choose_recordings
from audio_ct.models.linear_prediction import BackwardPredictor
from audio_ct.models.settings import LinearPredictionSettings

# Above these a table of counts stops being small: 256^3 counts are 134 MB, 4096^2 as many.
MAX_VOCABULARY_SIZE_ORDER_1 = 4096
MAX_VOCABULARY_SIZE_ORDER_2 = 256
MAX_VOCABULARY_SIZE_LINEAR_PREDICTION = 4096
# Distances from linear predictions are counted on so much of the training split: a few seconds' work.
LINEAR_PREDICTION_TOKENS = 2_000_000

# The long window predicts; the errors of both tell how sure it can be.
PREDICTORS = LinearPredictionSettings(order=32, windows=[200, 25], frame_length=16, bandwidth_expansion=1.0)
# Half octaves of an expected error, from below a quarter of a token up.
NUM_LEVELS = 16
# Added to the count of every distance: none has probability 0.
SMOOTHING = 0.02

# Tokens read at once; a multiple of the predictors' frame.
CHUNK_TOKENS = 1 << 14


@dataclass(frozen=True)
class ReferenceLine(ABC):
    """Counts on a training split that give every next token a probability; the start token precedes every recording."""

    vocabulary_size: int
    start_token: int

    @classmethod
    @abstractmethod
    def fit(cls, recordings: Iterable[np.ndarray], vocabulary_size: int, start_token: int) -> Self:
        """Count recordings [num_tokens] of a training split, in one pass."""

    @abstractmethod
    def code_lengths(self, recording: np.ndarray) -> Iterator[np.ndarray]:
        """Yield the bits that tokens [time] of a recording cost, in chunks [orders, chunk], each token once."""

    def bits_per_sample(self, recordings: Iterable[np.ndarray], first_scored: int) -> list[float]:
        """Mean code length of each order over positions t >= first_scored; those before are context only."""
        total, num_scored = np.zeros(1), 0
        for recording in recordings:
            start = 0
            for bits in self.code_lengths(recording):
                scored = bits[:, max(first_scored - start, 0) :]
                start += bits.shape[1]
                total = total + scored.sum(axis=1)
                num_scored += scored.shape[1]
        assert num_scored > 0
        return [float(bits) / num_scored for bits in total]


@dataclass(frozen=True)
class CountingLine(ReferenceLine):
    """Counts of tokens after each context of 0, 1 and 2 tokens; orders too large for the vocabulary are left out.

    The probabilities are smoothed by Witten and Bell's interpolation with the next lower order,

        p_k(x | h) = (count(h, x) + distinct(h) p_{k-1}(x | h')) / (count(h) + distinct(h)),

    where distinct(h) is the number of different tokens seen after context h, h' is h without its oldest token, and
    below order 0 stands the uniform distribution. No token has probability 0; a context never seen falls back whole.

    Source: Witten & Bell 1991, "The zero-frequency problem", method C; Chen & Goodman 1998, section 2.4.
    """

    counts: tuple[np.ndarray, ...]
    """int64 of each order k, [vocabulary] * (k + 1): oldest context token first, next token last."""

    @classmethod
    def fit(cls, recordings: Iterable[np.ndarray], vocabulary_size: int, start_token: int) -> Self:
        """Count tokens after each context."""
        limits = (MAX_VOCABULARY_SIZE_ORDER_1, MAX_VOCABULARY_SIZE_ORDER_2)
        num_orders = 1 + sum(vocabulary_size <= limit for limit in limits)
        counts = tuple(np.zeros((vocabulary_size,) * (order + 1), np.int64) for order in range(num_orders))
        for recording in recordings:
            for context in _contexts(recording, start_token):
                for order, table in enumerate(counts):
                    np.add.at(table.reshape(-1), np.ravel_multi_index(context[2 - order :], table.shape), 1)
        return cls(vocabulary_size, start_token, counts)

    @cached_property
    def _totals(self) -> list[tuple[np.ndarray, np.ndarray]]:
        """For each order, how often each context was seen, and the number of different tokens after it."""
        return [(counts.sum(axis=-1), np.count_nonzero(counts, axis=-1)) for counts in self.counts]

    def code_lengths(self, recording: np.ndarray) -> Iterator[np.ndarray]:
        """See the base class; one row for each order."""
        for context in _contexts(recording, self.start_token):
            probability = np.full(len(context[-1]), 1 / self.vocabulary_size)
            bits = []
            for order, (counts, (total, distinct)) in enumerate(zip(self.counts, self._totals, strict=True)):
                history = context[2 - order : 2]
                # Where nothing was seen, so is the total: one in the place of 0 / 0 hands the lower order through.
                weight = np.maximum(distinct[history], 1)
                probability = (counts[(*history, context[2])] + weight * probability) / (total[history] + weight)
                bits.append(-np.log2(probability))
            yield np.stack(bits)


@dataclass(frozen=True)
class LinearPredictionLine(ReferenceLine):
    """Counts of token minus rounded prediction, apart for each pair of expected errors."""

    counts: np.ndarray
    """[levels, levels, 2 vocabulary - 1], from distance 1 - vocabulary up."""

    @classmethod
    def fit(cls, recordings: Iterable[np.ndarray], vocabulary_size: int, start_token: int) -> Self:
        """Count distances from the predictions."""
        counts = np.full((NUM_LEVELS, NUM_LEVELS, 2 * vocabulary_size - 1), SMOOTHING)
        for recording in recordings:
            for levels, nearest, tokens in _predictions(recording, vocabulary_size, start_token):
                np.add.at(counts, (*levels, tokens - nearest + vocabulary_size - 1), 1)
        return cls(vocabulary_size, start_token, counts)

    @cached_property
    def _below(self) -> np.ndarray:
        """Counts of all smaller distances; the counts of a span of distances are a difference of two of these."""
        return np.concatenate([np.zeros_like(self.counts[..., :1]), self.counts.cumsum(axis=-1)], axis=-1)

    def code_lengths(self, recording: np.ndarray) -> Iterator[np.ndarray]:
        """See the base class; a single row."""
        for levels, nearest, tokens in _predictions(recording, self.vocabulary_size, self.start_token):
            lowest = self.vocabulary_size - 1 - nearest
            # A token's distance must leave it on the scale.
            on_scale = self._below[(*levels, lowest + self.vocabulary_size)] - self._below[(*levels, lowest)]
            yield -np.log2(self.counts[(*levels, lowest + tokens)] / on_scale)[None]


def reference_lines(selection: Selection, first_scored: int) -> dict[str, float | None]:
    """Bits per sample of every line, fitted to the store's training split; the first samples are context only.

    Returns:
        uniform, unigram, order_1, order_2 and linear_prediction; None for what is too large for the vocabulary.
    """
    store, size = selection.store, selection.store.vocabulary_size
    scored = [selection.tokens(index) for index in range(len(selection.recordings))]
    train = (store.tokens("train", recording) for recording in store.recordings("train"))
    counted = CountingLine.fit(train, size, store.start_token).bits_per_sample(scored, first_scored)
    lines = {"uniform": float(np.log2(size)), **dict(zip_longest(("unigram", "order_1", "order_2"), counted))}
    lines["linear_prediction"] = None
    if size <= MAX_VOCABULARY_SIZE_LINEAR_PREDICTION:
        part = (
            store.tokens("train", recording, 0, min(recording.length, LINEAR_PREDICTION_TOKENS))
            for recording in choose_recordings(store, "train", LINEAR_PREDICTION_TOKENS).recordings
        )
        line = LinearPredictionLine.fit(part, size, store.start_token)
        (lines["linear_prediction"],) = line.bits_per_sample(scored, first_scored)
    return lines


def _contexts(recording: np.ndarray, start_token: int) -> Iterator[tuple[np.ndarray, ...]]:
    """Yield the tokens at t - 2, t - 1 and t for all t, in chunks: [chunk] int64 each.

    Recording a b c gives (start, start, a), (start, a, b), (a, b, c).
    """
    padded = np.concatenate([np.full(2, start_token, dtype=recording.dtype), recording])
    for begin in range(0, len(recording), CHUNK_TOKENS):
        chunk = padded[begin : begin + CHUNK_TOKENS + 2].astype(np.int64)
        yield chunk[:-2], chunk[1:-1], chunk[2:]


def _predictions(
    recording: np.ndarray, vocabulary_size: int, start_token: int
) -> Iterator[tuple[tuple[np.ndarray, np.ndarray], np.ndarray, np.ndarray]]:
    """Yield the levels of both expected errors, the tokens nearest to the predictions and the tokens, in chunks."""
    predictor = BackwardPredictor(vocabulary_size, PREDICTORS)
    state = predictor.initial_state(1, "cpu")
    middle = (vocabulary_size - 1) / 2
    last = start_token
    for begin in range(0, len(recording), CHUNK_TOKENS):
        tokens = np.asarray(recording[begin : begin + CHUNK_TOKENS], dtype=np.int64)
        num_frames = -(-len(tokens) // PREDICTORS.frame_length)
        read = np.full(num_frames * PREDICTORS.frame_length, start_token)
        read[0], read[1 : len(tokens)] = last, tokens[:-1]
        last = int(tokens[-1])
        predicted, expected, state = predictor(torch.from_numpy(read[None]), state)
        level = (2 * (expected[0, : len(tokens)] + 0.05).log2() + 4).round().long().clamp(0, NUM_LEVELS - 1).numpy()
        nearest = (predicted[0, : len(tokens), 0] + middle).round().long().clamp(0, vocabulary_size - 1).numpy()
        yield (level[:, 0], level[:, 1]), nearest, tokens
