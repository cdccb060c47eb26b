"""Stages stand between a model's embedding and its head; each owns its part of the state.

A *state* is what a model remembers of a stream: a nested dictionary of tensors, nested as the parts are, with the lane
(batch row) as every tensor's first axis. Models keep nothing between calls. The functions here detach, reset and
flatten states without knowing what is inside.

    {"linear_prediction": {...}, "convolutions": {"0": queue, ...}, "transformer": {"0": {"memory": ...}, ...}}

Sample by sample, a stream is read in *stretches* of a fixed number of samples. In a stretch a part works on *caches*,
tensors of fixed shape with a slot for each sample, nested like the state:

    caches = stage.open_cache(state, num_samples)      before the stretch
    h, skip = stage.read(h, caches, slot)              each sample; in place, without decisions
    stage.advance(caches, offset)                      within the stretch, each `period`; in place
    state = stage.close_cache(state, caches)           after the stretch

`read` decides nothing, so that it can be compiled or captured once and repeated.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

State = dict[str, Any]


@dataclass(frozen=True)
class StageOutput:
    """The output of a stage for a window.

    Attributes:
        h: activations for the next stage [batch, time, channels].
        skip: what the head reads of this stage [batch, time, skip channels]; the head reads the sum over stages.
        state: the stage's state after the window.
        auxiliary_losses: scalars to be added to the loss in training, by name.
    """

    h: Tensor
    skip: Tensor
    state: State
    auxiliary_losses: dict[str, Tensor] = field(default_factory=dict)


class Stage(nn.Module, ABC):
    """A map from activations to activations with a state of its own.

    Attributes:
        segment_length: `forward` takes whole multiples of so many samples; 1 where a stream may be cut anywhere.
        steps_by_segments: stretches must be of `segment_length`; else of any multiple of it.
        period: samples between two calls of `advance`; None where it has nothing to do.
        recompute_activations: in training keep each layer's inputs only, and compute its inside again for the gradient.
    """

    segment_length: int = 1
    steps_by_segments: bool = False
    period: int | None = None
    recompute_activations: bool = False

    @abstractmethod
    def initial_state(self, batch_size: int, device: torch.device | str, dtype: torch.dtype) -> State:
        """The state of `batch_size` lanes that have seen nothing."""

    @abstractmethod
    def forward(self, h: Float[Tensor, "batch time channels"], state: State) -> StageOutput:
        """Read a window of every lane.

        Args:
            h: [batch, time, channels]; time is a multiple of `segment_length`.
            state: left as it was.
        """

    @abstractmethod
    def open_cache(self, state: State, num_samples: int) -> State:
        """Make the caches of a stretch of so many samples."""

    @abstractmethod
    def read(
        self, h: Float[Tensor, "batch 1 channels"], caches: State, slot: Int[Tensor, " 1"]
    ) -> tuple[Float[Tensor, "batch 1 channels"], Float[Tensor, "batch 1 skip"]]:
        """Read one sample of every lane.

        Args:
            h: activations of the sample.
            caches: written to.
            slot: the sample's place in the stretch.

        Returns:
            Activations for the next stage, and what the head reads.
        """

    def advance(self, caches: State, offset: int) -> None:
        """Bring caches up to date, in place, after `offset` samples of the stretch, a multiple of `period`.

        At the end of a stretch `close_cache` comes in its place.
        """

    @abstractmethod
    def close_cache(self, state: State, caches: State) -> State:
        """The state after a whole stretch."""

    def auxiliary_parameters(self) -> list[nn.Parameter]:
        """Parameters that learn from auxiliary losses alone."""
        return []

    def _run(self, layer: Callable[..., Any], *arguments: Any) -> Any:
        """Call a layer; see `recompute_activations`."""
        if not (self.recompute_activations and torch.is_grad_enabled()):
            return layer(*arguments)
        return checkpoint(layer, *arguments, use_reentrant=False, preserve_rng_state=False)


def map_state(function: Callable[..., Tensor], *states: State) -> State:
    """Apply a function to every tensor of a state, or to the tensors in the same place of several states."""
    return {
        name: map_state(function, *(state[name] for state in states))
        if isinstance(part, dict)
        else function(*(state[name] for state in states))
        for name, part in states[0].items()
    }


def flatten(state: State) -> dict[str, Tensor]:
    """The tensors of a state by dotted names, such as "transformer.0.memory"."""
    flat: dict[str, Tensor] = {}
    for name, part in state.items():
        flat |= (
            {f"{name}.{rest}": tensor for rest, tensor in flatten(part).items()}
            if isinstance(part, dict)
            else {name: part}
        )
    return flat


def unflatten(flat: dict[str, Tensor]) -> State:
    """Build the nested state from what `flatten` made of it."""
    state: State = {}
    for name, tensor in flat.items():
        *path, last = name.split(".")
        part = state
        for key in path:
            part = part.setdefault(key, {})
        part[last] = tensor
    return state


def select_lanes(lanes: Bool[Tensor, " batch"], chosen: State, other: State) -> State:
    """Combine two states: tensors of `chosen` in the marked lanes, of `other` in the rest."""
    assert "cache" not in chosen, "lanes are chosen between stretches"
    assert "cache" not in other, "lanes are chosen between stretches"
    return map_state(lambda new, old: torch.where(lanes.view(-1, *[1] * (old.dim() - 1)), new, old), chosen, other)


def detached(state: State) -> State:
    """Copy a state out of its graph, into tensors of one layout, so that a compiled model is compiled once.

    What a window leaves is mostly the end of a longer tensor.
    """
    return map_state(lambda tensor: tensor.detach().clone(memory_format=torch.contiguous_format), state)
