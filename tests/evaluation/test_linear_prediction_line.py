"""Linear prediction as a reference line: probabilities, positions, and that it knows a resonance when it hears one."""

import math
from itertools import pairwise

import numpy as np
import pytest
import torch

from audio_ct.audio import mu_law
from audio_ct.errors import InputError
from audio_ct.evaluation import linear_prediction_line
from audio_ct.evaluation.linear_prediction_line import LinearPredictionLine, fit_linear_prediction_line
from audio_ct.evaluation.reference_lines import fit


def resonance(seed: int, length: int = 6000, bits: int = 8) -> np.ndarray:
    noise = 0.02 * np.random.default_rng(seed).standard_normal(length)
    x = np.zeros(length)
    for t in range(2, length):
        x[t] = 1.9 * math.cos(0.2) * x[t - 1] - 0.95 * x[t - 2] + noise[t]
    return mu_law.encode(torch.from_numpy(np.clip(x, -1, 1)), bits).numpy()


@pytest.fixture(scope="module")
def line() -> LinearPredictionLine:
    return fit_linear_prediction_line([resonance(0, 800, 4)], 16, start_token=8)


def test_probabilities_of_all_tokens_sum_to_one(line: LinearPredictionLine) -> None:
    past = resonance(1, 40, 4)
    for t in (0, 1, 17, 31, 39):
        bits = [line.bits_per_sample([np.append(past[:t], token)], t) for token in range(16)]
        assert sum(2**-value for value in bits) == pytest.approx(1)


def test_positions_before_first_scored_are_context_only(line: LinearPredictionLine) -> None:
    recording = resonance(1, 100, 4)
    each = [line.bits_per_sample([recording[: t + 1]], t) for t in range(100)]
    assert line.bits_per_sample([recording], 30) == pytest.approx(sum(each[30:]) / 70)
    short = resonance(2, 30, 4)
    assert line.bits_per_sample([recording, short], 30) == line.bits_per_sample([recording], 30)


def test_reading_in_chunks_changes_nothing(line: LinearPredictionLine, monkeypatch: pytest.MonkeyPatch) -> None:
    recordings = [resonance(seed, 150 + seed, 4) for seed in range(3)]
    whole = line.bits_per_sample(recordings, 20)
    monkeypatch.setattr(linear_prediction_line, "CHUNK_TOKENS", 32)
    assert line.bits_per_sample(recordings, 20) == pytest.approx(whole, abs=1e-9)
    again = fit_linear_prediction_line([resonance(0, 800, 4)], 16, start_token=8)
    assert np.array_equal(again.counts, line.counts)


def test_it_is_far_below_counting_on_a_resonance() -> None:
    train, test = [resonance(seed) for seed in range(6)], [resonance(7)]
    predicted = fit_linear_prediction_line(train, 256, start_token=128).bits_per_sample(test, 1000)
    counted = fit(train, 256).bits_per_sample(test, 1000)
    assert predicted < min(value for value in counted.values() if value is not None) - 0.5


def test_more_training_helps() -> None:
    test = [resonance(7)]
    bits = [
        fit_linear_prediction_line([resonance(seed) for seed in range(n)], 256, start_token=128).bits_per_sample(
            test, 100
        )
        for n in (0, 1, 6)
    ]
    assert all(before > after for before, after in pairwise(bits))


def test_nothing_scored_is_refused(line: LinearPredictionLine) -> None:
    with pytest.raises(InputError, match="first_scored=9"):
        line.bits_per_sample([np.arange(4)], 9)
