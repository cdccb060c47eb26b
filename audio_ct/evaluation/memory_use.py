"""Use of a model's memories: where attention goes, what compression loses, and the bits per sample without them."""

from collections.abc import Callable, Sequence
from contextlib import ExitStack
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from audio_ct.errors import InputError
from audio_ct.evaluation.likelihood import Reading, Selection, scored_windows
from audio_ct.models.compression import attention_reconstruction
from audio_ct.models.compressive_transformer import CompressiveLayer
from audio_ct.models.stage import State, flatten, unflatten
from audio_ct.models.token_model import TokenModel

MAX_LANES = 8
NUM_BUCKETS = 6


class _Watch:
    """A hook that sums up what happens in a layer, segment by segment."""

    def __init__(self, layer: CompressiveLayer) -> None:
        num_keys = layer.shape.num_past + layer.shape.segment_length
        self.layer = layer
        self.num_segments = 0
        self.received = torch.zeros(num_keys, dtype=torch.float64, device=layer.attention_norm.weight.device)
        self.loss = 0.0

    def __call__(self, layer: nn.Module, inputs: tuple[Tensor, State], output: Any) -> None:
        """Add the segment that the layer has just read."""
        h, state = inputs
        x, q, k, _ = self.layer.queries_keys_values(h, state)
        received = self.layer.attention.received(q, k)
        self.num_segments += 1
        self.received += received.double().mean(dim=0)
        if self.layer.compressor is not None:
            _, old_mem, new_cmem = self.layer.remember(x, state, received if self.layer.counts_usage else None)
            self.loss += float(attention_reconstruction(self.layer.attention, x, old_mem, new_cmem, "mean_square"))

    def describe_attention(self) -> dict[str, Any]:
        """The attention that each kind of key, and each key, received, averaged over heads, samples and segments.

        A key's weight is the mean over the samples that see it.
        """
        shape, length = self.layer.shape, self.layer.shape.segment_length
        kinds = {"compressed_memory": shape.compressed_length, "memory": shape.memory_length, "segment": length}
        keys = [(kind, number) for kind, number in kinds.items() if number]
        weights = (self.received / self.num_segments).cpu().numpy()
        parts = np.split(weights, np.cumsum([number for _, number in keys])[:-1])
        share = {kind: float(part.sum()) for (kind, _), part in zip(keys, parts, strict=True)}
        # A key of the segment is seen by itself and by those after it only.
        weights[-length:] /= np.arange(length, 0, -1) / length
        return {
            "keys": [{"kind": kind, "length": number} for kind, number in keys],
            "share": share,
            "buckets": [{"kind": kind, "weight": weight} for kind, weight in buckets(weights, keys)],
            "weights": [float(f"{weight:.6g}") for weight in weights],
        }


def memory_layers(model: nn.Module) -> list[CompressiveLayer]:
    """The layers of a model that have memories, in order."""
    layers = [module for module in model.modules() if isinstance(module, CompressiveLayer)]
    return [layer for layer in layers if layer.shape.num_past]


@torch.no_grad()
def look_at_memories(model: TokenModel, selection: Selection, *, max_segments: int = 256) -> tuple[dict[str, Any], int]:
    """Read the longest recordings side by side and watch the layers once their memories are full.

    Args:
        model: a model with memories; left in evaluation mode.
        selection: of which up to 8 are read, at least half as long as the longest, as far as the shortest goes.
        max_segments: read at most so many segments after memories are full.

    Returns:
        {"attention": [of each layer], "compression_losses": {layer: mean square of attention reconstruction}}, and the
        number of segments that they are averaged over.

    Raises:
        InputError: if no recording fills the memories.
    """
    model.eval()
    watches, length = [_Watch(layer) for layer in memory_layers(model)], model.segment_length
    device = next(model.parameters()).device
    warm_up = max(int(watch.layer.shape.filled_after().max()) for watch in watches)
    longest = sorted(selection.recordings, key=lambda recording: -recording.length)
    shortest = max(longest[0].length / 2, (warm_up + 1) * length + 1)
    lanes = [recording for recording in longest[:MAX_LANES] if recording.length >= shortest] or longest[:1]
    num_segments = min(lanes[-1].length // length, warm_up + max_segments)
    if num_segments <= warm_up:
        raise InputError(
            f"split={selection.split!r}: the longest recording has {lanes[0].length} samples, fewer than the "
            f"{(warm_up + 1) * length} that fill the memories; choose another split or more of it."
        )
    store, stop = selection.store, num_segments * length
    streams = np.stack([store.tokens(selection.split, each, 0, stop).astype(np.int64) for each in lanes])
    inputs = np.pad(streams, ((0, 0), (1, 0)), constant_values=store.start_token)[:, :-1]
    state = model.initial_state(len(lanes), device)
    with ExitStack() as hooks:
        for number, segment in enumerate(torch.from_numpy(inputs).to(device).split(length, dim=1)):
            if number == warm_up:
                for watch in watches:
                    hooks.enter_context(watch.layer.register_forward_hook(watch))
            state = model(segment, state).state
    losses = {
        str(number): watch.loss / watch.num_segments
        for number, watch in enumerate(watches)
        if watch.layer.compressor is not None
    }
    attention = [watch.describe_attention() for watch in watches]
    return {"attention": attention, "compression_losses": losses}, num_segments - warm_up


def buckets(weights: np.ndarray, keys: Sequence[tuple[str, int]]) -> list[tuple[str, float]]:
    """(kind, mean weight of a key) of 6 buckets for each kind of key, oldest first; fewer where keys are fewer.

    Source: the paper's figure of attention by position, with DeepMind's code's six buckets each.
    """
    found, start = [], 0
    for kind, length in keys:
        for part in np.array_split(weights[start : start + length], min(NUM_BUCKETS, length)):
            found.append((kind, float(part.mean())))
        start += length
    return found


def zeroed(kind: str) -> Callable[[State], State]:
    """Make the function that empties the memories of a kind in a state."""
    return lambda state: _altered(state, kind, torch.zeros_like)


def shuffled(kind: str) -> Callable[[State], State]:
    """Make the function that reorders the memories of a kind, entry by entry, anew at every call."""
    generator = torch.Generator().manual_seed(0)

    def shuffle(memory: Tensor) -> Tensor:
        return memory[:, torch.randperm(memory.shape[1], generator=generator).to(memory.device)]

    return lambda state: _altered(state, kind, shuffle)


def _altered(state: State, kind: str, change: Callable[[Tensor], Tensor]) -> State:
    flat = flatten(state)
    return unflatten({name: change(flat[name]) if name.split(".")[-1] == kind else flat[name] for name in flat})


def bits_of_samples(
    model: TokenModel, selection: Selection, reading: Reading, *, alter: Callable[[State], State] | None = None
) -> list[np.ndarray]:
    """The cost in bits of every sample of every recording, [length] float32 each; see `scored_windows`."""
    bits = [np.zeros(recording.length, dtype=np.float32) for recording in selection.recordings]
    for window in scored_windows(model, selection, reading, alter=alter):
        bits[window.recording][window.start : window.start + len(window.bits)] = window.bits
    return bits
