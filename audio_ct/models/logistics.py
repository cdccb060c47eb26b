"""The log of a mixture of logistics, one around each predictor's forecast, as the beginning of a softmax's logits.

A softmax has no notion that tokens are places on a scale: to move its hump by a third of a token, it has to change all
logits. Here the network only says how far from each forecast to put a logistic, how wide to make it, both in the
forecast's expected errors, and how much to trust it; what a logistic cannot say, the softmax's own logits add.

    logits[t] = readout(hidden)[t] + ... + log( sum_k  a_k . density((t - m_k) / s_k) )
    m_k = forecast_k + error_k . shift_k        s_k = error_k . exp(log_width_k)        a_k = softmax(trust)_k / s_k

Source: discretised logistics are PixelCNN++'s (Salimans et al. 2017, 1701.05517), there a distribution of their own;
mixing the forecasts of predictors that adapt is lossless audio coding's.

Shape suffixes: B batch, T time, K predictors, V vocabulary.
"""

from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

# Tokens: expected errors are taken to be at least so large, as a token has no parts; and so are the logistics' scales.
LEAST_ERROR = 0.25
LEAST_LOG_SCALE = -2.0
# Log widths at the start, in expected errors: a logistic of scale s has a standard deviation of 1.8 s.
START_LOG_WIDTH = -0.5
# Added to the mixture, so that its log stays a number where all logistics are far.
BACKGROUND = 1e-9


class ForecastLogistics(nn.Module):
    """Logits from forecasts; at the start those of even trust in all of them.

    Args:
        channels: of what is read.
        num_predictors: forecasts, K.
        vocabulary_size: number of tokens.
    """

    def __init__(self, channels: int, *, num_predictors: int, vocabulary_size: int) -> None:
        super().__init__()
        self.vocabulary_size = vocabulary_size
        self.num_predictors = num_predictors
        self.readout = nn.Linear(channels, 3 * num_predictors)
        nn.init.zeros_(self.readout.weight)
        nn.init.zeros_(self.readout.bias)

    def forward(
        self,
        hidden: Float[Tensor, "batch time channels"],
        forecasts: Float[Tensor, "batch time predictors"],
        errors: Float[Tensor, "batch time predictors"],
    ) -> Float[Tensor, "batch time vocabulary"]:
        """Logits of all tokens, in float32 or more.

        Args:
            hidden: what the head reads logits from.
            forecasts: in tokens from the middle of the scale.
            errors: their expected errors in tokens.
        """
        raw = self.readout(hidden)
        trust, shift, log_width = raw.to(torch.promote_types(raw.dtype, torch.float32)).chunk(3, dim=-1)
        errors = errors.to(trust.dtype).clamp_min(LEAST_ERROR)
        means = forecasts.to(trust.dtype) + errors * shift + (self.vocabulary_size - 1) / 2
        log_scales = (errors.log() + log_width + START_LOG_WIDTH).clamp_min(LEAST_LOG_SCALE)
        return log_mixture(trust.softmax(dim=-1), means, (-log_scales).exp(), self.vocabulary_size)


def log_mixture(
    weights: Float[Tensor, "batch time components"],
    means: Float[Tensor, "batch time components"],
    inverse_scales: Float[Tensor, "batch time components"],
    vocabulary_size: int,
) -> Float[Tensor, "batch time vocabulary"]:
    """The log of a mixture of logistic densities at tokens 0, 1, ..., vocabulary_size - 1.

    Args:
        weights: of the components; they sum to 1.
        means: in tokens.
        inverse_scales: in 1 / tokens.
        vocabulary_size: number of tokens.
    """
    arguments = weights * inverse_scales, means, inverse_scales
    if torch.is_grad_enabled():
        outputs: Tensor = _LogMixture.apply(*arguments, vocabulary_size)
        return outputs
    return _mixture(*arguments, vocabulary_size)[0].log_()


def _mixture(heights: Tensor, means: Tensor, inverse_scales: Tensor, size: int) -> tuple[Tensor, list[Tensor]]:
    """The mixture at all tokens, and for each component sigmoid(-|z|), from which its density is s (1 - s)."""
    tokens = torch.arange(size, device=means.device, dtype=means.dtype)
    mixture = torch.full_like(tokens, BACKGROUND).expand(*means.shape[:-1], size).clone()
    tails = []
    for height, mean, inverse in _components(heights, means, inverse_scales):
        # By way of the smaller tail nothing cancels, however far the token.
        tail = torch.addcmul(-mean * inverse, tokens, inverse).abs_().neg_().sigmoid_()
        mixture.addcmul_(torch.addcmul(tail, tail, tail, value=-1), height)
        tails.append(tail)
    return mixture, tails


def _components(*parameters: Tensor) -> Any:
    """Each component's parameters, [batch, time, 1] each."""
    return zip(*(parameter.split(1, dim=-1) for parameter in parameters), strict=True)


class _LogMixture(torch.autograd.Function):
    """The mixture's log with a gradient of its own, in a third of the time and memory of torch's."""

    @staticmethod
    def forward(ctx: Any, heights: Tensor, means: Tensor, inverse_scales: Tensor, size: int) -> Tensor:
        mixture, tails = _mixture(heights, means, inverse_scales, size)
        ctx.save_for_backward(heights, means, inverse_scales, mixture, *tails)
        return mixture.log()

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, Tensor, Tensor, None]:
        heights, means, inverse_scales, mixture, *tails = ctx.saved_tensors
        by_mixture = gradients[0] / mixture
        size = mixture.shape[-1]
        tokens = torch.arange(size, device=mixture.device, dtype=mixture.dtype)
        found = []
        for tail, (height, mean, inverse) in zip(tails, _components(heights, means, inverse_scales), strict=True):
            by_height = torch.addcmul(tail, tail, tail, value=-1).mul_(by_mixture)
            # The density's derivative is -density tanh(z / 2), and tanh(|z| / 2) = 1 - 2 sigmoid(-|z|).
            slope = torch.addcmul(by_height, by_height, tail, value=-2)
            slope = torch.where(tokens > mean, -slope, slope)
            by_z = slope.sum(dim=-1, keepdim=True) * height
            # No matrix product, which a compiled model's backward pass would do in the autocast's type.
            by_inverse = slope.mul_(tokens - mean).sum(dim=-1, keepdim=True) * height
            found.append((by_height.sum(dim=-1, keepdim=True), -by_z * inverse, by_inverse))
        by_heights, by_means, by_inverse_scales = (torch.cat(parts, dim=-1) for parts in zip(*found, strict=True))
        return by_heights, by_means, by_inverse_scales, None
