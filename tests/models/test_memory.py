"""Memory moves exactly: what is pushed comes out in order, nothing twice, nothing lost."""

from collections import deque

import pytest
import torch
from torch import Tensor

from audio_ct.models.memory import context_positions, push


def column(*values: int) -> Tensor:
    return torch.tensor(values, dtype=torch.float64).view(1, -1, 1)


def row(x: Tensor) -> list[int]:
    return x.flatten().int().tolist()


@pytest.mark.parametrize(
    ("fifo", "new", "kept", "left"),
    [
        ([1, 2, 3], [4, 5], [3, 4, 5], [1, 2]),
        ([1], [2, 3], [3], [1, 2]),
        ([1, 2], [3, 4], [3, 4], [1, 2]),
        ([], [1, 2], [], [1, 2]),
        ([1, 2], [], [1, 2], []),
    ],
)
def test_push(fifo: list[int], new: list[int], kept: list[int], left: list[int]) -> None:
    memory, old_mem = push(column(*fifo), column(*new))
    assert (row(memory), row(old_mem)) == (kept, left)


@pytest.mark.parametrize("length", [0, 1, 3, 4, 7])
@pytest.mark.parametrize("entries", [1, 3, 4])
def test_a_memory_is_a_queue(length: int, entries: int) -> None:
    queue = deque([0] * length)
    memory = column(*queue)
    for start in range(1, 40, entries):
        new = list(range(start, start + entries))
        queue.extend(new)
        expected = [queue.popleft() for _ in range(entries)]
        before = memory.clone()
        following, old_mem = push(memory, column(*new))
        assert (row(following), row(old_mem)) == (list(queue), expected)
        assert torch.equal(memory, before)
        memory = following


def test_positions_of_the_docstring() -> None:
    def positions(where: str) -> list[float]:
        return context_positions(2, 2, compression_rate=4, compressed_positions=where).tolist()

    assert positions("contiguous") == [-4, -3, -2, -1]
    assert positions("centre") == [-8.5, -4.5, -2, -1]


@pytest.mark.parametrize(("rate", "memory_length", "compressed"), [(1, 3, 4), (2, 5, 3), (4, 0, 2), (3, 4, 0)])
def test_a_centre_is_the_mean_of_its_span(rate: int, memory_length: int, compressed: int) -> None:
    got = context_positions(compressed, memory_length, compression_rate=rate, compressed_positions="centre")
    samples = torch.arange(-memory_length - rate * compressed, 0, dtype=torch.float64)
    spans = samples[: rate * compressed].view(compressed, rate).mean(dim=1)
    assert got.tolist() == [*spans.tolist(), *samples[rate * compressed :].tolist()]
