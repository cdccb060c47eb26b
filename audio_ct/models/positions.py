"""Relative positions of Transformer-XL in factored form: the score as one dot product of longer vectors.

Transformer-XL adds to a query's content score the term p . R(i - j), where p = W_r^T (q + v) and R is a vector of
sinusoids of the distance, here [sin w(i-j) for each w ; cos w(i-j) for each w]. Write p = [a ; b] in the same halves.
The addition theorems split every distance into a factor of the query's position i and one of the key's position j:

    a sin w(i-j) + b cos w(i-j) = (a sin wi + b cos wi) cos wj + (b sin wi - a cos wi) sin wj

So `rotate_query(p, i) . key_sinusoids(j)` equals p . R(i - j) exactly, no [query, key] table of positions is ever made,
and a key may stand at any real position. Worked example, one frequency w = 1, a = 1, b = 0, i = 2, j = 0: the rotated
query is [sin 2 ; -cos 2], the key is [cos 0 ; sin 0] = [1 ; 0], the score is sin 2 = sin w(i - j).

Source: Dai et al. 2019 (Transformer-XL), section 3.3, for the score; the factoring is this project's.
"""

import torch
from jaxtyping import Float
from torch import Tensor


def frequencies(num_sinusoids: int) -> Float[Tensor, " half"]:
    """Return the angular frequencies of half as many sines and cosines, from 1 down to nearly 1/10000 a sample.

    Source: Vaswani et al. 2017, section 3.5.
    """
    assert num_sinusoids % 2 == 0
    half = num_sinusoids // 2
    return 10000.0 ** -(torch.arange(half, dtype=torch.float64) / half)


def key_sinusoids(
    positions: Float[Tensor, " keys"], angular: Float[Tensor, " half"]
) -> Float[Tensor, "keys sinusoids"]:
    """Return the key side, [cos wj ; sin wj], of keys at real positions j (in samples)."""
    angle = positions[:, None] * angular
    return torch.cat([angle.cos(), angle.sin()], dim=-1)


def query_rotation(
    positions: Float[Tensor, " queries"], angular: Float[Tensor, " half"]
) -> Float[Tensor, "2 queries half"]:
    """Return sin wi and cos wi, what `rotate_query` needs of the queries' positions i (in samples)."""
    angle = positions[:, None] * angular
    return torch.stack([angle.sin(), angle.cos()])


def rotate_query(
    projected: Float[Tensor, "*batch queries sinusoids"],
    rotation: Float[Tensor, "2 queries half"],
) -> Float[Tensor, "*batch queries sinusoids"]:
    """Return the query side, [a sin wi + b cos wi ; b sin wi - a cos wi], of p = [a ; b] = W_r^T (q + v)."""
    sin, cos = rotation
    a, b = projected.chunk(2, dim=-1)
    return torch.cat([a * sin + b * cos, b * sin - a * cos], dim=-1)
