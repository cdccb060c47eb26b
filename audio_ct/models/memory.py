"""The two tiers of memory: first in, first out, always full length, empty slots zero.

Every function takes and returns whole tensors [batch, length, d_model] and changes none of them.
"""

import torch
from jaxtyping import Float
from torch import Tensor


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


def context_positions(
    compressed_memory_length: int, memory_length: int, *, compression_rate: int, compressed_positions: str
) -> Float[Tensor, " entries"]:
    """Return where [compressed memory | memory] stand, in samples, if the segment begins at 0.

    Args:
        compressed_memory_length: number of compressed entries.
        memory_length: number of memory entries.
        compression_rate: samples that a compressed entry stands for.
        compressed_positions: "contiguous" numbers compressed entries as if each were one sample, as in the paper;
            "centre" puts each in the middle of the span that it stands for.

    Example: 2 compressed entries of rate 4 and 2 of memory: contiguous -4 -3 | -2 -1; centre -8.5 -4.5 | -2 -1.
    """
    memory = torch.arange(-memory_length, 0, dtype=torch.float64)
    slots = torch.arange(-compressed_memory_length, 0, dtype=torch.float64)
    if compressed_positions == "centre":
        slots = slots * compression_rate + (compression_rate - 1) / 2
    return torch.cat([slots - memory_length, memory])
