"""Bits per sample that counting alone achieves: the lines a model has to stay below to have learned anything."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import numpy as np

from audio_ct.errors import InputError

# Above these a table of counts stops being small: 256^3 counts are 134 MB, 4096^2 as many.
MAX_VOCABULARY_SIZE_ORDER_1 = 4096
MAX_VOCABULARY_SIZE_ORDER_2 = 256

CHUNK_TOKENS = 1 << 21


@dataclass(frozen=True)
class ReferenceLines:
    """Counts of tokens after each context of 0, 1 and 2 tokens, seen on a training split.

    The probabilities are smoothed by Witten and Bell's interpolation with the next lower order,

        p_k(x | h) = (count(h, x) + distinct(h) p_{k-1}(x | h')) / (count(h) + distinct(h)),

    where distinct(h) is the number of different tokens seen after context h, h' is h without its oldest token, and
    below order 0 stands the uniform distribution. No token has probability 0; a context never seen falls back whole.

    Source: Witten & Bell 1991, "The zero-frequency problem", method C; Chen & Goodman 1998, section 2.4.
    """

    start_token: int
    counts: tuple[np.ndarray, ...]
    """One int64 array per order k, [vocabulary] * (k + 1): oldest context token first, next token last."""

    @property
    def vocabulary_size(self) -> int:
        """Number of different tokens."""
        return len(self.counts[0])

    def bits_per_sample(self, recordings: Iterable[np.ndarray], first_scored: int) -> dict[str, float | None]:
        """Mean code length of the scored tokens under each order, on the positions on which the models are scored.

        Args:
            recordings: [num_tokens] integers each.
            first_scored: positions t >= first_scored of every recording are scored. The context of a position is the
                real tokens before it, also those before first_scored; before the recording it is start_token.

        Returns:
            uniform, unigram, order_1, order_2 in bits per sample; None for an order too large for the vocabulary.

        Raises:
            InputError: no position is scored, or a token is outside the vocabulary.
        """
        totals = [(counts.sum(axis=-1), np.count_nonzero(counts, axis=-1)) for counts in self.counts]
        bits = np.zeros(len(self.counts))
        num_scored = 0
        for recording in recordings:
            for context in _contexts(recording, first_scored, self.start_token, self.vocabulary_size):
                num_scored += len(context[-1])
                probability = np.full(len(context[-1]), 1 / self.vocabulary_size)
                for order, (counts, (total, distinct)) in enumerate(zip(self.counts, totals, strict=True)):
                    history = context[2 - order : 2]
                    seen = distinct[history]
                    # Where seen is 0 so is the total: one in the place of 0 / 0 hands the lower order through.
                    weight = np.where(seen == 0, 1, seen)
                    count = counts[(*history, context[2])]
                    probability = (count + weight * probability) / (total[history] + weight)
                    bits[order] -= np.log2(probability).sum()
        if num_scored == 0:
            raise InputError(
                f"first_scored={first_scored}: no recording is longer than that; score fewer or longer ones."
            )
        known = [float(np.log2(self.vocabulary_size)), *(float(total) / num_scored for total in bits)]
        return dict(zip(("uniform", "unigram", "order_1", "order_2"), [*known, None, None][:4], strict=True))


def fit(
    train_recordings: Iterable[np.ndarray], vocabulary_size: int, *, start_token: int | None = None
) -> ReferenceLines:
    """Count the tokens of a training split, one pass, in memory that depends on the vocabulary only.

    Args:
        train_recordings: [num_tokens] integers each; contexts don't reach across recordings.
        vocabulary_size: number of different tokens.
        start_token: stands before every recording; silence, vocabulary_size // 2, by default.

    Raises:
        InputError: a token is outside the vocabulary.
    """
    start_token = vocabulary_size // 2 if start_token is None else start_token
    num_orders = 1 + (vocabulary_size <= MAX_VOCABULARY_SIZE_ORDER_1) + (vocabulary_size <= MAX_VOCABULARY_SIZE_ORDER_2)
    counts = [np.zeros(vocabulary_size ** (order + 1), np.int64) for order in range(num_orders)]
    for recording in train_recordings:
        for older, newer, token in _contexts(recording, 0, start_token, vocabulary_size):
            index = token
            np.add.at(counts[0], index, 1)
            if num_orders > 1:
                index = index + vocabulary_size * newer
                np.add.at(counts[1], index, 1)
            if num_orders > 2:
                np.add.at(counts[2], index + vocabulary_size**2 * older, 1)
    shaped = (table.reshape((vocabulary_size,) * (order + 1)) for order, table in enumerate(counts))
    return ReferenceLines(start_token, tuple(shaped))


def _contexts(
    recording: np.ndarray, first: int, start_token: int, vocabulary_size: int
) -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray]]:
    """Tokens at t - 2, t - 1 and t for all t >= first, in chunks: [chunk] int64 each.

    Recording a b c with first 1 gives (start, a), (a, b), (b, c).
    """
    for begin in range(first, len(recording), CHUNK_TOKENS):
        lead = min(begin, 2)
        tokens = np.asarray(recording[begin - lead : begin + CHUNK_TOKENS], dtype=np.int64)
        if tokens.min() < 0 or tokens.max() >= vocabulary_size:
            raise InputError(
                f"tokens: range {tokens.min()}..{tokens.max()} must lie in 0..{vocabulary_size - 1}; "
                "check the number of bits of the store."
            )
        tokens = np.concatenate([np.full(2 - lead, start_token), tokens])
        yield tokens[:-2], tokens[1:-1], tokens[2:]
