"""Filters keep the right side, and what is drawn follows the probabilities."""

import math

import numpy as np
import pytest
import torch
from torch import Tensor

from audio_ct.errors import InputError
from audio_ct.models.heads import draw_from
from audio_ct.sampling.filters import Filters, filtered_probabilities

PROBABILITIES = [0.05, 0.4, 0.15, 0.3, 0.1]


def logits(*rows: list[float]) -> Tensor:
    return torch.tensor(rows or [PROBABILITIES]).log()


def kept(probabilities: Tensor) -> list[list[int]]:
    return [row.nonzero().flatten().tolist() for row in probabilities]


def test_by_default_nothing_is_changed() -> None:
    torch.testing.assert_close(filtered_probabilities(logits()), torch.tensor([PROBABILITIES]))
    torch.testing.assert_close(
        filtered_probabilities(logits() + 1000), torch.tensor([PROBABILITIES]), atol=1e-4, rtol=0
    )


@pytest.mark.parametrize(
    ("top_p", "tokens"),
    [
        (0.01, [1]),
        (0.39, [1]),
        (0.41, [1, 3]),
        (0.69, [1, 3]),
        (0.71, [1, 2, 3]),
        (0.94, [1, 2, 3, 4]),
        (0.96, [0, 1, 2, 3, 4]),
        (1.0, [0, 1, 2, 3, 4]),
    ],
)
def test_top_p_keeps_the_likeliest_and_the_token_that_crosses(top_p: float, tokens: list[int]) -> None:
    probabilities = filtered_probabilities(logits(), Filters(top_p=top_p))
    assert kept(probabilities) == [tokens]
    ratio = probabilities[0, tokens] / torch.tensor(PROBABILITIES)[tokens]
    torch.testing.assert_close(ratio, ratio[:1].expand_as(ratio))


@pytest.mark.parametrize(("top_k", "tokens"), [(1, [1]), (2, [1, 3]), (4, [1, 2, 3, 4]), (5, [0, 1, 2, 3, 4])])
def test_top_k_keeps_the_k_likeliest(top_k: int, tokens: list[int]) -> None:
    assert kept(filtered_probabilities(logits(), Filters(top_k=top_k))) == [tokens]
    assert kept(filtered_probabilities(logits(), Filters(top_k=99))) == [[0, 1, 2, 3, 4]]


def test_top_p_counts_among_what_top_k_left() -> None:
    # After top-k 3 the probabilities are .4, .3, .15 of .85: the first two reach .8 together, .7 would not without it.
    assert kept(filtered_probabilities(logits(), Filters(top_k=3, top_p=0.8))) == [[1, 3]]
    assert kept(filtered_probabilities(logits(), Filters(top_p=0.8))) == [[1, 2, 3]]


def test_rows_are_filtered_by_themselves() -> None:
    rows = logits(PROBABILITIES, PROBABILITIES[::-1])
    assert kept(filtered_probabilities(rows, Filters(top_k=2))) == [[1, 3], [1, 3]]
    assert kept(filtered_probabilities(rows, Filters(top_p=0.39))) == [[1], [3]]


@pytest.mark.fault("sampling")
def test_temperature_sharpens_flattens_and_at_0_takes_the_likeliest() -> None:
    sharp, flat = (filtered_probabilities(logits(), Filters(temperature=value)) for value in (0.5, 2.0))
    squares = torch.tensor([PROBABILITIES]).square()
    torch.testing.assert_close(sharp, squares / squares.sum())
    roots = torch.tensor([PROBABILITIES]).sqrt()
    torch.testing.assert_close(flat, roots / roots.sum())
    for temperature in (0.0, 1e-3, 1e-30, 1e-38):
        probabilities = filtered_probabilities(logits() * 30, Filters(temperature=temperature))
        assert probabilities.tolist() == [[0, 1, 0, 0, 0]], temperature


@pytest.mark.fault("sampling")
@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"temperature": -0.1}, "temperature=-0.1"),
        ({"temperature": math.nan}, "temperature=nan"),
        ({"temperature": math.inf}, "temperature=inf"),
        ({"top_k": 0}, "top-k=0"),
        ({"top_p": 0.0}, "top-p=0.0"),
        ({"top_p": 1.1}, "top-p=1.1"),
        ({"top_p": math.nan}, "top-p=nan"),
    ],
)
def test_values_out_of_range_are_named(values: dict[str, float], message: str) -> None:
    with pytest.raises(InputError, match=message):
        Filters(**values)  # type: ignore[arg-type]


def test_draws_follow_the_probabilities() -> None:
    num_draws = 20_000
    uniform = torch.rand(num_draws, generator=torch.Generator().manual_seed(0))
    for filters in ({}, {"top_k": 3}, {"top_p": 0.69}, {"temperature": 3.0}):
        probabilities = filtered_probabilities(logits(), Filters(**filters))  # type: ignore[arg-type]
        tokens = draw_from(probabilities.expand(num_draws, -1), uniform)
        counts = np.bincount(tokens.numpy(), minlength=5)
        expected = (probabilities / probabilities.sum())[0].double().numpy() * num_draws
        assert (counts[expected == 0] == 0).all()
        possible = expected > 0
        chi_square = ((counts - expected)[possible] ** 2 / expected[possible]).sum()
        # The 99.9 % points of 1 to 4 degrees of freedom end at 18.5.
        assert chi_square < 18.5, filters


def test_draws_at_the_ends_never_take_a_token_of_probability_0() -> None:
    probabilities = torch.tensor([[0.0, 0.5, 0.0, 0.5, 0.0]]).expand(4, -1)
    uniform = torch.tensor([0.0, 0.4999999, 0.5, 1 - 2**-24])
    assert draw_from(probabilities, uniform).tolist() == [1, 1, 3, 3]
    # Rows need not sum to 1.
    assert draw_from(probabilities * 0.01, uniform).tolist() == [1, 1, 3, 3]
    assert draw_from(torch.tensor([[0.1] * 10]), torch.tensor([1 - 2**-24])).tolist() == [9]
