"""Intervals over recordings: what they must hold, whatever the figures are."""

import numpy as np
import pytest

from audio_ct.errors import InputError
from audio_ct.evaluation import bootstrap
from audio_ct.evaluation.bootstrap import interval, paired_difference

Scores = tuple[np.ndarray, np.ndarray]


@pytest.fixture
def scores() -> Scores:
    generator = np.random.default_rng(3)
    tokens = generator.integers(1000, 50_000, size=60)
    return tokens * generator.normal(2.5, 0.3, size=60), tokens


@pytest.mark.parametrize("chunk_indices", [1, 60 * 7, 1 << 22])
def test_equals_resampling_written_as_a_loop(
    scores: Scores, chunk_indices: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bootstrap, "CHUNK_INDICES", chunk_indices)
    bits, tokens = scores
    generator = np.random.default_rng(7)
    drawn = [generator.integers(60, size=60) for _ in range(2000)]
    ratios = [bits[row].sum() / tokens[row].sum() for row in drawn]
    assert interval(bits, tokens, seed=7) == pytest.approx(tuple(np.quantile(ratios, [0.025, 0.975])))


def test_covers_the_truth_about_as_often_as_it_says() -> None:
    generator = np.random.default_rng(0)
    covered = 0
    for trial in range(200):
        tokens = generator.integers(500, 1500, size=80)
        low, high = interval(tokens * generator.normal(2.0, 0.5, size=80), tokens, seed=trial)
        covered += low <= 2.0 <= high
    assert 0.9 < covered / 200 <= 0.99


def test_difficulty_shared_by_both_models_cancels(scores: Scores) -> None:
    bits, tokens = scores
    difference, (low, high) = paired_difference(bits - 0.01 * tokens, bits, tokens)
    assert (difference, low, high) == pytest.approx((-0.01, -0.01, -0.01))


def test_swapped_models_swap_signs(scores: Scores) -> None:
    bits, tokens = scores
    other = bits * np.random.default_rng(1).normal(1, 0.05, size=60)
    difference, (low, high) = paired_difference(bits, other, tokens)
    assert paired_difference(other, bits, tokens) == (-difference, pytest.approx((-high, -low)))


def test_one_recording_says_nothing_about_others() -> None:
    assert interval(np.array([5.0]), np.array([2])) == (-np.inf, np.inf)


def test_bits_that_are_not_finite_are_refused_in_one_line() -> None:
    with pytest.raises(InputError, match="bits must be finite") as error:
        interval(np.array([1.0, np.nan]), np.array([1, 1]))
    assert "\n" not in str(error.value)
