"""Reference lines: counting against an oracle of dictionaries, prediction on a resonance, and what both must obey."""

import math
from collections import defaultdict
from itertools import pairwise

import numpy as np
import pytest
import torch

from audio_ct.audio import mu_law
from audio_ct.evaluation import reference_lines
from audio_ct.evaluation.reference_lines import CountingLine, LinearPredictionLine, ReferenceLine


def oracle(train: list[list[int]], test: list[list[int]], order: int, first_scored: int) -> float:
    """Witten-Bell of 6 tokens, 2 at the start, written as its recursion on dictionaries."""
    counts: dict[tuple, dict[int, int]] = defaultdict(lambda: defaultdict(int))
    for recording in train:
        padded = [2, 2, *recording]
        for t in range(2, len(padded)):
            for k in range(3):
                counts[tuple(padded[t - k : t])][padded[t]] += 1

    def probability(history: tuple, token: int) -> float:
        lower = probability(history[1:], token) if history else 1 / 6
        after = counts.get(history)
        if not after:
            return lower
        return (after.get(token, 0) + len(after) * lower) / (sum(after.values()) + len(after))

    bits = []
    for recording in test:
        padded = [2, 2, *recording]
        scored = range(2 + first_scored, len(padded))
        bits += [-math.log2(probability(tuple(padded[t - order : t]), padded[t])) for t in scored]
    return sum(bits) / len(bits)


def walks(seed: int, num_recordings: int, length: int, vocabulary_size: int) -> list[np.ndarray]:
    generator = np.random.default_rng(seed)
    steps = generator.integers(-1, 2, size=(num_recordings, length))
    return list((np.cumsum(steps, axis=1) % vocabulary_size).astype(np.uint8))


def resonance(seed: int, length: int = 3000, bits: int = 8) -> np.ndarray:
    noise = 0.02 * np.random.default_rng(seed).standard_normal(length)
    x = np.zeros(length)
    for t in range(2, length):
        x[t] = 1.9 * math.cos(0.2) * x[t - 1] - 0.95 * x[t - 2] + noise[t]
    return mu_law.encode(torch.from_numpy(np.clip(x, -1, 1)), bits).numpy()


@pytest.fixture(scope="module", params=[CountingLine, LinearPredictionLine])
def line(request: pytest.FixtureRequest) -> ReferenceLine:
    return request.param.fit([resonance(0, 800, 4)], 16, 8)


@pytest.mark.parametrize("first_scored", [0, 1, 2, 7])
@pytest.mark.parametrize("chunk_tokens", [5, 1 << 14])
def test_counting_equals_the_oracle(first_scored: int, chunk_tokens: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reference_lines, "CHUNK_TOKENS", chunk_tokens)
    train, test = walks(0, 4, 50, 6), walks(1, 3, 31, 6)
    found = CountingLine.fit(train, 6, 2).bits_per_sample(test, first_scored)
    as_lists = [r.tolist() for r in train], [r.tolist() for r in test]
    assert found == pytest.approx([oracle(*as_lists, order, first_scored) for order in range(3)], rel=1e-12)


def test_probabilities_of_all_tokens_sum_to_one(line: ReferenceLine) -> None:
    past = resonance(1, 40, 4)
    for t in (0, 1, 17, 31, 39):
        bits = [line.bits_per_sample([np.append(past[:t], token)], t) for token in range(16)]
        np.testing.assert_allclose(np.sum(2.0 ** -np.array(bits), axis=0), 1)


def test_positions_before_first_scored_are_context_only(line: ReferenceLine) -> None:
    recording, short = resonance(1, 100, 4), resonance(2, 30, 4)
    each = [line.bits_per_sample([recording[: t + 1]], t) for t in range(100)]
    expected = np.mean(each[30:], axis=0)
    assert line.bits_per_sample([recording], 30) == pytest.approx(expected)
    assert line.bits_per_sample([recording, short], 30) == line.bits_per_sample([recording], 30)


def test_reading_in_chunks_changes_nothing(line: ReferenceLine, monkeypatch: pytest.MonkeyPatch) -> None:
    recordings = [resonance(seed, 150 + seed, 4) for seed in range(3)]
    whole = line.bits_per_sample(recordings, 20)
    monkeypatch.setattr(reference_lines, "CHUNK_TOKENS", 32)
    assert line.bits_per_sample(recordings, 20) == pytest.approx(whole, abs=1e-9)
    again = type(line).fit([resonance(0, 800, 4)], 16, 8)
    assert all(map(np.array_equal, again.counts, line.counts))


def test_longer_contexts_help_on_a_walk_and_not_on_noise() -> None:
    unigram, order_1, _ = CountingLine.fit(walks(0, 20, 5000, 16), 16, 8).bits_per_sample(walks(1, 2, 5000, 16), 10)
    assert order_1 == pytest.approx(math.log2(3), abs=0.02)
    assert unigram == pytest.approx(4, abs=0.05)
    noise = [np.random.default_rng(seed).integers(16, size=50_000) for seed in range(2)]
    assert all(4 <= bits < 4.1 for bits in CountingLine.fit(noise[:1], 16, 8).bits_per_sample(noise[1:], 0))


def test_counting_nothing_is_uniform() -> None:
    assert CountingLine.fit([], 8, 4).bits_per_sample([np.arange(8)], 0) == [3.0] * 3


@pytest.mark.parametrize(("vocabulary_size", "num_orders"), [(256, 3), (512, 2), (8192, 1)])
def test_orders_too_large_to_count_are_left_out(vocabulary_size: int, num_orders: int) -> None:
    line = CountingLine.fit([np.arange(20)], vocabulary_size, 0)
    assert len(line.bits_per_sample([np.arange(5)], 0)) == num_orders


def test_prediction_is_far_below_counting_on_a_resonance_and_learns_from_more_of_it() -> None:
    train, test = [resonance(seed) for seed in range(6)], [resonance(7)]
    predicted = [
        LinearPredictionLine.fit(train[:number], 256, 128).bits_per_sample(test, 1000)[0] for number in (0, 1, 6)
    ]
    assert all(before > after for before, after in pairwise(predicted))
    counted = CountingLine.fit(train, 256, 128).bits_per_sample(test, 1000)
    assert predicted[-1] < min(counted) - 0.5
