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

from typing import Any, NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn.attention.bias import causal_lower_right

from audio_ct.models.memory import MemoryShape
from audio_ct.models.settings import CompressedPositions


def frequencies(num_sinusoids: int) -> Float[Tensor, " half"]:
    """Angular frequencies of half as many sines and cosines, from 1 down to nearly 1/10000 a sample.

    Source: Vaswani et al. 2017, section 3.5.
    """
    assert num_sinusoids % 2 == 0
    half = num_sinusoids // 2
    return 10000.0 ** -(torch.arange(half, dtype=torch.float64) / half)


def key_sinusoids(
    positions: Float[Tensor, " keys"], angular: Float[Tensor, " half"]
) -> Float[Tensor, "keys sinusoids"]:
    """The key side, [cos wj ; sin wj], of keys at real positions j (in samples)."""
    angle = positions[:, None] * angular
    return torch.cat([angle.cos(), angle.sin()], dim=-1)


def query_rotation(
    positions: Float[Tensor, " queries"], angular: Float[Tensor, " half"]
) -> Float[Tensor, "2 queries half"]:
    """The factors sin wi and cos wi that `rotate_query` needs of queries at positions i (in samples)."""
    angle = positions[:, None] * angular
    return torch.stack([angle.sin(), angle.cos()])


def rotate_query(
    projected: Float[Tensor, "*batch queries sinusoids"],
    rotation: Float[Tensor, "2 queries half"],
) -> Float[Tensor, "*batch queries sinusoids"]:
    """The query side, [a sin wi + b cos wi ; b sin wi - a cos wi], of p = [a ; b] = W_r^T (q + v)."""
    sin, cos = rotation
    a, b = projected.chunk(2, dim=-1)
    return torch.cat([a * sin + b * cos, b * sin - a * cos], dim=-1)


class Causality:
    """The rule that the last queries of so many keys see no key behind their own: torch's mask for fused kernels.

    It is made once, with the model: torch can compile the use of it, but not its making.
    """

    def __init__(self, num_queries: int, num_keys: int) -> None:
        self.mask = causal_lower_right(num_queries, num_keys)

    def __deepcopy__(self, memo: dict[int, Any]) -> "Causality":
        """Share it: it never changes, and torch cannot copy the mask."""
        return self


class SlotPositions(NamedTuple):
    """Positions of one sample of a segment, for attention by steps.

    Attributes:
        slot: the sample's place in the segment [1].
        rotation: see `query_rotation`, [2, 1, half].
        mask: -inf for keys that are later than the sample, 0 for the others [1, keys].
    """

    slot: Tensor
    rotation: Tensor
    mask: Tensor


class ContextPositions(nn.Module):
    """Positions of a layer's keys and queries, the same in every segment: it begins at 0, memories stand before it.

    Args:
        shape: the layer's memories.
        placement: of compressed entries, see `MemoryShape.positions`.
        num_sinusoids: of a distance.
    """

    def __init__(self, shape: MemoryShape, placement: CompressedPositions, num_sinusoids: int) -> None:
        super().__init__()
        self.shape = shape
        self.placement: CompressedPositions = placement
        self._num_sinusoids = num_sinusoids
        self.causality = Causality(shape.segment_length, shape.num_past + shape.segment_length)
        sinusoids, rotation = self.tables()
        self.register_buffer("key_sinusoids", sinusoids.float(), persistent=False)
        self.register_buffer("query_rotation", rotation.float(), persistent=False)
        self.key_sinusoids: Tensor
        self.query_rotation: Tensor

    def tables(self) -> tuple[Float[Tensor, "sinusoids keys"], Float[Tensor, "2 queries half"]]:
        """Keys' sinusoids and queries' rotation of a whole segment, in float64.

        With own positions compressed entries have sinusoids of their own, behind the others': zero where a key is of
        the other kind.
        """
        angular = frequencies(self._num_sinusoids)
        segment = torch.arange(self.shape.segment_length, dtype=torch.float64)
        sinusoids = key_sinusoids(torch.cat([self.shape.positions(self.placement), segment]), angular).T.contiguous()
        if self.placement == "own":
            is_compressed = torch.arange(sinusoids.shape[1]) < self.shape.compressed_length
            sinusoids = torch.cat([sinusoids * ~is_compressed, sinusoids * is_compressed])
        return sinusoids, query_rotation(segment, angular)

    def at(self, slot: Int[Tensor, " 1"]) -> SlotPositions:
        """Positions of the sample in a slot of the segment."""
        keys = torch.arange(self.key_sinusoids.shape[1], device=slot.device)
        is_later = keys > (self.shape.num_past + slot)[:, None]
        mask = torch.zeros(is_later.shape, device=slot.device).masked_fill(is_later, float("-inf"))
        return SlotPositions(slot, self.query_rotation.index_select(1, slot), mask)
