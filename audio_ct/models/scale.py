"""The mu-law scale in float64, as models see it: amplitudes of tokens, and of places between them."""

import math

import torch
from torch import Tensor


def amplitude(tokens: Tensor, mu: int) -> Tensor:
    """Amplitudes in [-1, 1] of mu-law tokens, float64; the middle of the scale, mu / 2, is 0."""
    compressed = 2 * tokens.double() / mu - 1
    return compressed.sign() * torch.expm1(compressed.abs() * math.log1p(mu)) / mu


def scale_place(amplitude: Tensor, mu: int) -> Tensor:
    """Places of amplitudes in [-1, 1] on the scale, in tokens from its middle."""
    return amplitude.sign() * torch.log1p(mu * amplitude.abs()) / math.log1p(mu) * mu / 2


def amplitude_per_token(amplitude: Tensor, mu: int) -> Tensor:
    """Growth of amplitudes from a token to the next, at an amplitude."""
    return (amplitude.abs() + 1 / mu) * math.log1p(mu) * 2 / mu
