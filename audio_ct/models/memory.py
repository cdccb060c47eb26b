"""The two memories of a layer: first in, first out, always full length, empty slots zero.

A layer's past is [compressed memory | memory], oldest first; either may be of length 0. As many entries leave memory as
come, and what leaves is compressed.
"""

from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from audio_ct.models.settings import CompressedPositions


def push(
    fifo: Float[Tensor, "batch length d_model"], new: Float[Tensor, "batch entries d_model"]
) -> tuple[Float[Tensor, "batch length d_model"], Float[Tensor, "batch entries d_model"]]:
    """Append entries to a memory; return the memory and the oldest entries, which have left it.

    As many entries leave as came, in order. A memory shorter than what comes passes some of it straight through.

    Example: [1 2 3] with 4 5 pushed gives ([3 4 5], [1 2]); [1] with 2 3 pushed gives ([3], [1 2]).

    Source: Rae et al. 2019, algorithm 1, the lines that set old_mem and m.
    """
    both = torch.cat([fifo, new], dim=1)
    num_entries = new.shape[1]
    return both[:, num_entries:], both[:, :num_entries]


@dataclass(frozen=True)
class MemoryShape:
    """Lengths of one layer's memories.

    Attributes:
        segment_length: entries that are pushed into memory at once.
        memory_length: entries of memory.
        compressed_length: entries of compressed memory.
        compression_rate: entries that become one.
    """

    segment_length: int
    memory_length: int
    compressed_length: int = 0
    compression_rate: int = 1

    @property
    def num_past(self) -> int:
        """Entries of both memories."""
        return self.compressed_length + self.memory_length

    def positions(self, placement: CompressedPositions) -> Float[Tensor, " past"]:
        """Positions of the past's entries in samples, where the segment begins at 0.

        Args:
            placement: "contiguous" numbers compressed entries as if each were one sample, as in the paper; "own" as if
                they directly preceded the segment, as in DeepMind's code, where their distances have their own
                projection.

        Example: 2 compressed entries and 2 of memory: contiguous -4 -3 | -2 -1; own -2 -1 | -2 -1.
        """
        memory = torch.arange(-self.memory_length, 0, dtype=torch.float64)
        compressed = torch.arange(-self.compressed_length, 0, dtype=torch.float64)
        return torch.cat([compressed - (self.memory_length if placement == "contiguous" else 0), memory])

    def filled_after(self, *, wholly: bool = True) -> Int[Tensor, " past"]:
        """Segments after which each of the past's entries holds nothing but what was read.

        Not `wholly`: segments after which it holds anything that was read. They differ where the span of a compressed
        entry begins within a segment.
        """
        from_newest = torch.arange(self.memory_length - 1, -1, -1)
        memory = from_newest // self.segment_length + 1
        # A push of `pushed` compressed entries is made of the segment that has just left memory.
        pushed = max(1, self.segment_length // self.compression_rate)
        from_newest = torch.arange(self.compressed_length - 1, -1, -1)
        turn, index = from_newest // pushed, pushed - 1 - from_newest % pushed
        # The oldest source's place in memory as if that had no end, counted from the newest, 0.
        oldest = self.memory_length + (turn + 1) * self.segment_length - 1 - index * self.compression_rate
        source = oldest if wholly else oldest - self.compression_rate + 1
        return torch.cat([source // self.segment_length + 1, memory])

    def pushed_usage(
        self, usage: Float[Tensor, "batch memory"], received: Float[Tensor, "batch memory"]
    ) -> tuple[Float[Tensor, "batch memory"], Float[Tensor, "batch segment"]]:
        """Add the attention that memory received in a segment to its usage, and push the segment.

        Returns:
            Usage of the memory after the push, and the mean usage of what left it over the segments that it stayed.
        """
        total = usage + received.to(usage.dtype)
        kept, left = push(total[..., None], total.new_zeros(len(total), self.segment_length, 1))
        # Where the segment does not divide the memory, an entry leaves after one more segment than its neighbour.
        last_place = self.memory_length - 1 - torch.arange(self.segment_length, device=usage.device)
        num_segments = last_place.div(self.segment_length, rounding_mode="floor") + 1
        return kept[..., 0], left[..., 0] / num_segments
