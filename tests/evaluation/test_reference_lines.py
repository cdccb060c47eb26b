"""Reference lines against an oracle of dictionaries, and what any of them must obey."""

import math
from collections import defaultdict

import numpy as np
import pytest

from audio_ct.errors import InputError
from audio_ct.evaluation import reference_lines
from audio_ct.evaluation.reference_lines import fit


def oracle(
    train: list[list[int]], test: list[list[int]], vocabulary_size: int, order: int, first_scored: int, start: int
) -> float:
    """Witten-Bell written as its recursion, on dictionaries."""
    counts: dict[tuple, dict[int, int]] = defaultdict(lambda: defaultdict(int))
    for recording in train:
        padded = [start, start, *recording]
        for t in range(2, len(padded)):
            for k in range(3):
                counts[tuple(padded[t - k : t])][padded[t]] += 1

    def probability(history: tuple, token: int) -> float:
        lower = probability(history[1:], token) if history else 1 / vocabulary_size
        after = counts.get(history)
        if not after:
            return lower
        return (after.get(token, 0) + len(after) * lower) / (sum(after.values()) + len(after))

    bits = []
    for recording in test:
        padded = [start, start, *recording]
        bits += [
            -math.log2(probability(tuple(padded[t - order : t]), padded[t]))
            for t in range(2 + first_scored, len(padded))
        ]
    return sum(bits) / len(bits)


def walks(seed: int, num_recordings: int, length: int, vocabulary_size: int) -> list[np.ndarray]:
    generator = np.random.default_rng(seed)
    steps = generator.integers(-1, 2, size=(num_recordings, length))
    return list((np.cumsum(steps, axis=1) % vocabulary_size).astype(np.uint8))


@pytest.mark.parametrize("first_scored", [0, 1, 2, 7])
@pytest.mark.parametrize("chunk_tokens", [5, 1 << 21])
def test_equals_the_oracle(first_scored: int, chunk_tokens: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reference_lines, "CHUNK_TOKENS", chunk_tokens)
    train, test = walks(0, 4, 50, 6), walks(1, 3, 31, 6)
    found = fit(train, 6, start_token=2).bits_per_sample(test, first_scored)
    as_lists = [r.tolist() for r in train], [r.tolist() for r in test]
    for order, name in enumerate(("unigram", "order_1", "order_2")):
        assert found[name] == pytest.approx(oracle(*as_lists, 6, order, first_scored, 2), rel=1e-12)
    assert found["uniform"] == pytest.approx(math.log2(6))


def test_probabilities_after_any_context_sum_to_one() -> None:
    lines = fit(walks(0, 2, 40, 5), 5)
    for history in [(a, b) for a in range(5) for b in range(5)]:
        for name in ("unigram", "order_1", "order_2"):
            bits = [lines.bits_per_sample([np.array([*history, token])], 2)[name] for token in range(5)]
            assert sum(2**-value for value in bits if value is not None) == pytest.approx(1)


def test_longer_contexts_help_on_a_walk_and_not_on_noise() -> None:
    walk = fit(walks(0, 20, 5000, 16), 16).bits_per_sample(walks(1, 2, 5000, 16), 10)
    assert walk["order_1"] == pytest.approx(math.log2(3), abs=0.02)
    assert walk["unigram"] == pytest.approx(4, abs=0.05)
    noise = [np.random.default_rng(seed).integers(16, size=50_000) for seed in range(2)]
    on_noise = fit(noise[:1], 16).bits_per_sample(noise[1:], 0)
    assert all(4 <= value < 4.1 for value in on_noise.values() if value is not None)


def test_trained_on_nothing_is_uniform() -> None:
    found = fit([], 8).bits_per_sample([np.arange(8)], 0)
    assert set(found.values()) == {3.0}


def test_positions_before_first_scored_are_context_only() -> None:
    lines = fit(walks(0, 2, 40, 5), 5)
    recording = np.array([0, 1, 2, 3, 4, 3])
    changed = np.array([4, 1, 2, 3, 4, 3])
    assert lines.bits_per_sample([recording], 3) == lines.bits_per_sample([changed], 3)
    assert lines.bits_per_sample([recording], 2)["unigram"] == lines.bits_per_sample([changed], 2)["unigram"]


def test_recordings_no_longer_than_first_scored_do_not_count() -> None:
    lines = fit(walks(0, 2, 40, 5), 5)
    long, short = np.array([0, 1, 2, 1]), np.array([3, 3, 3])
    assert lines.bits_per_sample([long, short], 3) == lines.bits_per_sample([long], 3)


@pytest.mark.parametrize(("vocabulary_size", "unknown"), [(512, {"order_2"}), (8192, {"order_1", "order_2"})])
def test_orders_too_large_to_count_are_none(vocabulary_size: int, unknown: set[str]) -> None:
    found = fit([np.arange(20)], vocabulary_size).bits_per_sample([np.arange(5)], 0)
    assert {name for name, value in found.items() if value is None} == unknown


def test_nothing_scored_and_foreign_tokens_are_refused() -> None:
    lines = fit([np.arange(4)], 4)
    with pytest.raises(InputError, match="first_scored=9"):
        lines.bits_per_sample([np.arange(4)], 9)
    for token in (-1, 4):
        with pytest.raises(InputError, match=r"must lie in 0\.\.3"):
            fit([np.array([token])], 4)
