"""Memory moves exactly: what is pushed comes out in order, nothing twice, nothing lost."""

import math
from collections import deque

import pytest
import torch
from torch import Tensor

from audio_ct.errors import InputError
from audio_ct.models.memory import MemoryShape, per_layer, push


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
    shape = MemoryShape(8, 2, (2,), 4)
    assert shape.positions("contiguous").tolist() == [-4, -3, -2, -1]
    assert shape.positions("centre").tolist() == [-8.5, -4.5, -2, -1]
    assert shape.positions("own").tolist() == [-2, -1, -2, -1]


def slow_spans(shape: MemoryShape, num_segments: int) -> tuple[list[list[float]], list[int], list[int]]:
    """Return the samples behind each of the past's entries, and after how many segments all, or any, were read."""
    tiers: list[deque[list[float]]] = [
        deque([[math.nan]] * length) for length in (shape.memory_length, *shape.compressed_lengths)
    ]
    filled: dict[int, int] = {}
    begun: dict[int, int] = {}
    for segment in range(num_segments):
        entries = [[float(segment * shape.segment_length + t)] for t in range(shape.segment_length)]
        for tier in tiers:
            tier.extend(entries)
            left = [tier.popleft() for _ in entries]
            whole = len(left) // shape.compression_rate * shape.compression_rate
            entries = [
                [sample for span in left[start : start + shape.compression_rate] for sample in span]
                for start in range(0, whole, shape.compression_rate)
            ]
        past = [entry for tier in reversed(tiers) for entry in tier]
        for slot, samples in enumerate(past):
            if not any(math.isnan(sample) for sample in samples):
                filled.setdefault(slot, segment + 1)
            if not all(math.isnan(sample) for sample in samples):
                begun.setdefault(slot, segment + 1)
    end = num_segments * shape.segment_length
    spans = [[sample - end for sample in samples] for samples in past]
    return spans, [filled[slot] for slot in range(len(past))], [begun[slot] for slot in range(len(past))]


SHAPES = [
    MemoryShape(4, 3, (4,), 1),
    MemoryShape(4, 5, (3,), 2),
    MemoryShape(4, 0, (2,), 4),
    MemoryShape(4, 7, (), 1),
    MemoryShape(8, 8, (5,), 3),
    MemoryShape(8, 6, (7,), 5),
    MemoryShape(8, 8, (5, 3), 2),
    MemoryShape(7, 9, (4, 5), 2),
]


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_a_centre_is_the_mean_of_what_an_entry_was_made_of(shape: MemoryShape) -> None:
    spans, filled, begun = slow_spans(shape, 40)
    assert shape.positions("centre").tolist() == pytest.approx([sum(span) / len(span) for span in spans])
    assert shape.filled_after().tolist() == filled
    assert shape.filled_after(wholly=False).tolist() == begun
    assert shape.positions("contiguous").tolist() == list(range(-shape.num_past, 0))


def test_a_rate_must_leave_something() -> None:
    with pytest.raises(InputError, match="compression_rate=5 leaves nothing of "):
        MemoryShape(4, 4, (2,), 5)
    with pytest.raises(InputError, match="compressed 2 times; lower the rate"):
        MemoryShape(8, 4, (2, 2), 3)


def test_lengths_are_one_for_all_or_one_for_each() -> None:
    assert per_layer(3, 2, name="memory_length") == (3, 3)
    assert per_layer([3, 0], 2, name="memory_length") == (3, 0)
    with pytest.raises(InputError, match=r"model.memory_length=\[3\] has 1 entries, must have one for each of"):
        per_layer([3], 2, name="memory_length")
