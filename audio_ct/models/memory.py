"""The tiers of memory: first in, first out, always full length, empty slots zero.

A layer's memories are [compressed twice | compressed | memory], oldest first; any of them may be of length 0. In
each tier as many entries leave as come, and what leaves is what the next tier compresses.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor

from audio_ct.errors import InputError

# What the state calls the tiers, each followed by a point and the layer's number.
MEMORY_NAMES = ("memory", "compressed_memory", "twice_compressed_memory")

CompressedPositions = Literal["contiguous", "centre", "own"]


def push(
    fifo: Float[Tensor, "batch length d_model"], new: Float[Tensor, "batch entries d_model"]
) -> tuple[Float[Tensor, "batch length d_model"], Float[Tensor, "batch entries d_model"]]:
    """Append entries to a memory and return (the memory, the oldest entries, which have left it).

    As many entries leave as came, in order. A memory shorter than what comes passes some of it straight through.

    Example: [1 2 3] with 4 5 pushed gives ([3 4 5], [1 2]); [1] with 2 3 pushed gives ([3], [1 2]).

    Source: Rae et al. 2019, algorithm 1, the lines that set old_mem and m.
    """
    both = torch.cat([fifo, new], dim=1)
    num_entries = new.shape[1]
    return both[:, num_entries:], both[:, :num_entries]


@dataclass(frozen=True)
class MemoryShape:
    """How long one layer's memories are.

    Attributes:
        segment_length: entries that are pushed into memory at once.
        memory_length: entries of memory.
        compressed_lengths: entries of compressed memory and of what is compressed again, and so on.
        compression_rate: entries that become one, in each tier.
    """

    segment_length: int
    memory_length: int
    compressed_lengths: tuple[int, ...] = ()
    compression_rate: int = 1

    def __post_init__(self) -> None:
        """Refuse a rate that leaves nothing.

        Raises:
            InputError: naming the value and the rule.
        """
        if not self.pushed(len(self.compressed_lengths)):
            raise InputError(
                f"model.compression_rate={self.compression_rate} leaves nothing of model.segment_length="
                f"{self.segment_length} compressed {len(self.compressed_lengths)} times; lower the rate."
            )

    @property
    def num_compressed(self) -> int:
        """Entries of all compressed memories together."""
        return sum(self.compressed_lengths)

    @property
    def num_past(self) -> int:
        """Entries of all memories together."""
        return self.num_compressed + self.memory_length

    def pushed(self, tier: int) -> int:
        """Return how many entries are pushed into a tier at a time, 0 being memory: a remainder is dropped."""
        return self.segment_length // self.compression_rate**tier

    def positions(self, placement: CompressedPositions) -> Float[Tensor, " past"]:
        """Return where the past's entries stand, in samples, if the segment begins at 0.

        Args:
            placement: "contiguous" numbers compressed entries as if each were one sample, as in the paper; "centre"
                puts each in the middle of the span that it stands for; "own" numbers them as if they directly preceded
                the segment, as in DeepMind's code, where their distances have their own projection.

        Example: 2 compressed entries of rate 4 and 2 of memory: contiguous -4 -3 | -2 -1; centre -8.5 -4.5 | -2 -1;
        own -2 -1 | -2 -1.
        """
        memory = torch.arange(-self.memory_length, 0, dtype=torch.float64)
        compressed = torch.arange(-self.num_compressed, 0, dtype=torch.float64)
        if placement == "contiguous":
            compressed = compressed - self.memory_length
        elif placement == "centre":
            tiers = reversed(list(enumerate(self.compressed_lengths, start=1)))
            centres = [self._centre(tier, entry) for tier, length in tiers for entry in reversed(range(length))]
            compressed = torch.tensor(centres, dtype=torch.float64)
        return torch.cat([compressed, memory])

    def filled_after(self, *, wholly: bool = True) -> Int[Tensor, " past"]:
        """Return after how many segments each of the past's entries holds nothing but what was read.

        Not `wholly`: after how many it holds something that was read. They differ where a compressed entry's span may
        begin within a segment.
        """
        tiers = reversed(list(enumerate((self.memory_length, *self.compressed_lengths))))
        return torch.tensor(
            [self._pushes(tier, entry, wholly) for tier, length in tiers for entry in reversed(range(length))],
            dtype=torch.int64,
        )

    def _sources(self, tier: int, entry: int) -> range:
        """Return the entries of the tier before that an entry was made of; both counted from the newest, 0.

        Counted on past a tier's length, where they stood when they left it.
        """
        pushed, before = self.pushed(tier), self.pushed(tier - 1)
        turn, from_newest = divmod(entry, pushed)
        index = pushed - 1 - from_newest
        oldest = self._length(tier - 1) + (turn + 1) * before - 1 - index * self.compression_rate
        return range(oldest - self.compression_rate + 1, oldest + 1)

    def _centre(self, tier: int, entry: int) -> float:
        if tier == 0:
            return -(entry + 1.0)
        sources = self._sources(tier, entry)
        return sum(self._centre(tier - 1, source) for source in sources) / len(sources)

    def _pushes(self, tier: int, entry: int, wholly: bool) -> int:
        if tier == 0:
            return entry // self.segment_length + 1
        pushes = [self._pushes(tier - 1, source, wholly) for source in self._sources(tier, entry)]
        return max(pushes) if wholly else min(pushes)

    def _length(self, tier: int) -> int:
        return self.memory_length if tier == 0 else self.compressed_lengths[tier - 1]


def per_layer(lengths: int | Sequence[int], num_layers: int, *, name: str) -> tuple[int, ...]:
    """Return a length for every layer, of one for all or of a list with one for each.

    Raises:
        InputError: if the list has another length than there are layers.
    """
    if isinstance(lengths, int):
        return (lengths,) * num_layers
    if len(lengths) != num_layers:
        raise InputError(
            f"model.{name}={list(lengths)} has {len(lengths)} entries, must have one for each of "
            f"model.num_layers={num_layers}; or give one number for all."
        )
    return tuple(lengths)
