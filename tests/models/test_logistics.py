"""The mixture around forecasts: its value by torch's own functions, its gradient by differences, its beginning."""

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from audio_ct.models.logistics import BACKGROUND, LEAST_ERROR, START_LOG_WIDTH, ForecastLogistics, log_mixture

SIZE = 9


def parameters(num_components: int = 3, dtype: torch.dtype = torch.float64) -> tuple[Tensor, Tensor, Tensor]:
    random = torch.Generator().manual_seed(0)
    weights, means, scales = torch.randn(3, 2, 5, num_components, generator=random, dtype=dtype)
    return weights.softmax(dim=-1), means * 4 + SIZE / 2, scales.exp()


def slow_log_mixture(weights: Tensor, means: Tensor, inverse_scales: Tensor) -> Tensor:
    """By the logarithm of the logistic density: -z - log s - 2 softplus(-z)."""
    z = (torch.arange(SIZE)[:, None] - means[..., None, :]) * inverse_scales[..., None, :]
    log_density = inverse_scales.log()[..., None, :] - z - 2 * F.softplus(-z)
    mixed = (weights.log()[..., None, :] + log_density).logsumexp(dim=-1)
    return torch.logaddexp(mixed, torch.tensor(BACKGROUND).to(mixed).log())


@pytest.mark.parametrize("with_gradient", [True, False])
def test_the_mixture_is_that_of_torchs_functions(with_gradient: bool) -> None:
    with torch.set_grad_enabled(with_gradient):
        got = log_mixture(*parameters(), SIZE)
    torch.testing.assert_close(got, slow_log_mixture(*parameters()), atol=1e-12, rtol=0)


def test_the_gradient_is_that_of_torchs_functions() -> None:
    leaves = [[part.clone().requires_grad_() for part in parameters()] for _ in range(2)]
    weight = torch.randn(2, 5, SIZE, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    (log_mixture(*leaves[0], SIZE) * weight).sum().backward()
    (slow_log_mixture(*leaves[1]) * weight).sum().backward()
    for fast, slow in zip(*leaves, strict=True):
        torch.testing.assert_close(fast.grad, slow.grad, atol=1e-10, rtol=1e-10)


def test_far_tokens_keep_their_order_in_float32() -> None:
    # A logistic a quarter of a token wide, whose upper tail by 1 - sigmoid(z) would be rounding after 4 tokens.
    logits = log_mixture(torch.ones(1, 1, 1), torch.zeros(1, 1, 1), torch.full((1, 1, 1), 4.0), 5)[0, 0]
    torch.testing.assert_close(logits.diff()[1:], torch.full((3,), -4.0), atol=0.05, rtol=0)


def test_it_begins_as_even_trust_in_all_forecasts() -> None:
    layer = ForecastLogistics(6, num_predictors=2, vocabulary_size=SIZE)
    forecasts, errors = torch.tensor([[[-2.0, 2.0]]]), torch.tensor([[[1.0, 0.0]]])
    got = layer(torch.randn(1, 1, 6), forecasts, errors)
    # An error of 0 is taken for the least one.
    scales = torch.tensor([[[1.0, LEAST_ERROR]]]) * torch.tensor(START_LOG_WIDTH).exp()
    wanted = slow_log_mixture(torch.full((1, 1, 2), 0.5), forecasts + (SIZE - 1) / 2, 1 / scales)
    torch.testing.assert_close(got, wanted, atol=1e-5, rtol=0)
    assert (got[0, 0, 2] > got[0, 0, 4]).item()
