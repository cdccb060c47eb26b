"""How a model uses its memories: where attention goes, what compression loses, and what the bits say without them."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from audio_ct.evaluation.likelihood import scored_windows
from audio_ct.models.interface import MemoryModel, State, TokenModel
from audio_ct.models.memory import MEMORY_NAMES
from audio_ct.tokens.store import Recording, TokenStore

NUM_BUCKETS = 6


@dataclass(frozen=True)
class Attention:
    """Where attention goes, averaged over heads, samples and segments that have their memories full.

    Attributes:
        received: by layer, the weight that each key received from a sample that sees it [keys]; keys are those of the
            layer's memories, oldest first, then the segment's own.
        shares: by layer, the share of all attention that each kind of key received, by kind.
        compression_losses: by layer that compresses, the mean attention-reconstruction loss.
        num_segments: segments that were read.
    """

    received: list[np.ndarray]
    shares: list[dict[str, float]]
    compression_losses: dict[int, float]
    num_segments: int


def kinds_of_keys(model: MemoryModel, layer: int) -> list[tuple[str, int]]:
    """Return (kind, number of keys) of a layer in the order of its keys; kinds of length 0 are left out."""
    shape = model.memory_shapes[layer]
    lengths = (shape.memory_length, *shape.compressed_lengths)
    tiers = [(MEMORY_NAMES[tier], length) for tier, length in reversed(list(enumerate(lengths)))]
    return [(kind, length) for kind, length in [*tiers, ("segment", shape.segment_length)] if length]


@torch.no_grad()
def look_at_attention(
    model: MemoryModel,
    store: TokenStore,
    split: str,
    recordings: Sequence[Recording],
    *,
    start_token: int,
    device: torch.device,
    max_segments: int = 256,
) -> Attention:
    """Read the longest recordings side by side and return where attention went once their memories were full.

    Args:
        model: a model with memories.
        store: the token store.
        split: which of its splits.
        recordings: of which up to 8 are read, at least half as long as the longest, as far as the shortest goes.
        start_token: stands before the first token of each recording.
        device: where the model is.
        max_segments: read at most so many segments after memories are full.

    Raises:
        ValueError: if no recording fills the memories.
    """
    model.eval()
    shapes, length = model.memory_shapes, model.segment_length
    warm_up = max((int(shape.filled_after().max()) for shape in shapes if shape.num_past), default=0)
    longest = sorted(recordings, key=lambda recording: -recording.length)
    shortest = max(longest[0].length / 2, (warm_up + 1) * length + 1)
    lanes = [each for each in longest[:8] if each.length >= shortest] or longest[:1]
    num_segments = min(lanes[-1].length // length, warm_up + max_segments)
    if num_segments <= warm_up:
        raise ValueError(
            f"the longest recording has {lanes[0].length} samples, fewer than the {(warm_up + 1) * length} that fill "
            "the memories"
        )
    streams = np.stack([store.tokens(split, each, 0, num_segments * length).astype(np.int64) for each in lanes])
    inputs = torch.from_numpy(np.pad(streams, ((0, 0), (1, 0)), constant_values=start_token)[:, :-1]).to(device)
    state = model.initial_state(len(lanes), device)
    received = [torch.zeros(shape.num_past + length, dtype=torch.float64, device=device) for shape in shapes]
    losses: dict[int, float] = {}
    for number, segment in enumerate(inputs.split(length, dim=1)):
        use = model.look(segment, state)
        state = use.state
        if number < warm_up:
            continue
        for layer, weights in use.received.items():
            received[layer] += weights.double().mean(dim=0)
        for layer, loss in use.compression_losses.items():
            losses[layer] = losses.get(layer, 0.0) + loss
    count = num_segments - warm_up
    means = [(total / count).cpu().numpy() for total in received]
    by_kind = []
    for layer, mean in enumerate(means):
        names, lengths = zip(*kinds_of_keys(model, layer), strict=True)
        parts = np.split(mean, np.cumsum(lengths)[:-1])
        by_kind.append({name: float(part.sum()) for name, part in zip(names, parts, strict=True)})
    # A key of the segment is seen by itself and by those after it only.
    seen_by = np.arange(length, 0, -1) / length
    per_sight = [np.concatenate([mean[:-length], mean[-length:] / seen_by]) for mean in means]
    return Attention(per_sight, by_kind, {layer: loss / count for layer, loss in losses.items()}, count)


def buckets(received: np.ndarray, kinds: Sequence[tuple[str, int]]) -> list[tuple[str, float]]:
    """Return (kind, mean weight of a key) of 6 buckets for each kind of key, oldest first; fewer where keys are fewer.

    Source: the paper's figure of attention by position, with DeepMind's code's six buckets each.
    """
    found, start = [], 0
    for kind, length in kinds:
        for part in np.array_split(received[start : start + length], min(NUM_BUCKETS, length)):
            found.append((kind, float(part.mean())))
        start += length
    return found


def zeroed(model: MemoryModel, kind: str) -> Callable[[State], State]:
    """Return what empties the memories of a kind in a model's state."""
    names = _names(model, kind)
    return lambda state: {name: torch.zeros_like(tensor) if name in names else tensor for name, tensor in state.items()}


def shuffled(model: MemoryModel, kind: str, seed: int = 0) -> Callable[[State], State]:
    """Return what puts a kind's memories into another order, entry by entry, a new one each time it is called."""
    names, generator = _names(model, kind), torch.Generator().manual_seed(seed)

    def alter(state: State) -> State:
        return {name: order(tensor) if name in names else tensor for name, tensor in state.items()}

    def order(memory: Tensor) -> Tensor:
        return memory[:, torch.randperm(memory.shape[1], generator=generator).to(memory.device)]

    return alter


def _names(model: MemoryModel, kind: str) -> set[str]:
    """Return what the state calls the memories of a kind, of layers that read every sample."""
    return {f"{kind}.{layer}" for layer in range(len(model.memory_shapes))}


def bits_of_samples(
    model: TokenModel,
    store: TokenStore,
    split: str,
    recordings: tuple[Recording, ...],
    **reading: Any,
) -> list[np.ndarray]:
    """Return what every sample of every recording costs in bits, [length] float32 each; see `scored_windows`."""
    bits = [np.zeros(recording.length, dtype=np.float32) for recording in recordings]
    for window in scored_windows(model, store, split, recordings, **reading):
        bits[window.recording][window.start : window.start + len(window.bits)] = window.bits
    return bits
