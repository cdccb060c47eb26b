"""The mu-law scale, as models see it in float64: which amplitude stands at a token, or between two."""

import math

import torch
from torch import Tensor


def amplitude(tokens: Tensor, mu: int) -> Tensor:
    """Return mu-law tokens as amplitudes in [-1, 1], float64; the middle of the scale, mu / 2, is 0."""
    compressed = 2 * tokens.double() / mu - 1
    return compressed.sign() * torch.expm1(compressed.abs() * math.log1p(mu)) / mu


def amplitude_per_token(amplitude: Tensor, mu: int) -> Tensor:
    """Return by how much amplitudes grow from a token to the next, at an amplitude."""
    return (amplitude.abs() + 1 / mu) * math.log1p(mu) * 2 / mu
