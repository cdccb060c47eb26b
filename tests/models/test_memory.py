"""Memory moves exactly: what is pushed comes out in order, nothing twice, nothing lost."""

import math
from collections import deque

import pytest
import torch
from torch import Tensor

from audio_ct.models.memory import MemoryShape, push


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
    shape = MemoryShape(8, 2, 2, 4)
    assert shape.positions("contiguous").tolist() == [-4, -3, -2, -1]
    assert shape.positions("own").tolist() == [-2, -1, -2, -1]


@pytest.mark.parametrize(
    "shape",
    [
        MemoryShape(4, 3, 4, 1),
        MemoryShape(4, 5, 3, 2),
        MemoryShape(4, 0, 2, 4),
        MemoryShape(4, 7),
        MemoryShape(8, 8, 5, 3),
        MemoryShape(8, 6, 7, 5),
    ],
    ids=str,
)
def test_entries_are_filled_once_what_they_are_made_of_was_read(shape: MemoryShape) -> None:
    memory = deque([[math.nan]] * shape.memory_length)
    compressed = deque([[math.nan]] * shape.compressed_length)
    filled: dict[int, int] = {}
    begun: dict[int, int] = {}
    for segment in range(40):
        memory.extend([float(segment * shape.segment_length + t)] for t in range(shape.segment_length))
        left = [memory.popleft() for _ in range(shape.segment_length)]
        rate = shape.compression_rate
        for start in range(0, len(left) // rate * rate, rate):
            compressed.append([sample for span in left[start : start + rate] for sample in span])
            compressed.popleft()
        for slot, samples in enumerate([*compressed, *memory]):
            if not any(math.isnan(sample) for sample in samples):
                filled.setdefault(slot, segment + 1)
            if not all(math.isnan(sample) for sample in samples):
                begun.setdefault(slot, segment + 1)
    slots = range(shape.num_past)
    assert shape.filled_after().tolist() == [filled[slot] for slot in slots]
    assert shape.filled_after(wholly=False).tolist() == [begun[slot] for slot in slots]
    assert shape.positions("contiguous").tolist() == list(range(-shape.num_past, 0))
