"""What every model owes training, sampling and evaluation: a state that is data, `forward` over windows, `step` by one.

A model keeps nothing between calls. What it remembers of a stream is its *state*: a flat dictionary of tensors whose
first axis is the lane (batch row). So detaching, slicing, resetting and saving a state are one-line comprehensions here
and need no knowledge of the architecture.

Sample by sample, a model goes through its stream in stretches of `cache_length` samples. In a stretch the state also
holds *caches*, tensors of fixed shape whose names begin with "cache.", with a slot for each of its samples:

    open_cache(state, 0)         the caches, from the state
    read(tokens, state)          a sample or a few: writes the slots from cache.place on, and nothing else
    ...
    close_cache(state, length)   the state after the stretch, without caches

All decisions are made in `open_cache` and `close_cache`, by the count of samples that the caller keeps. `read` makes
none, so that it can be compiled or captured once and repeated. What it wrote is overwritten when `cache.place` is set
back, which is all that taking samples back means.
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from audio_ct.models.memory import MemoryShape
from audio_ct.models.mixture import MixtureOfLogistics

State = dict[str, Tensor]

# Slots that caches have past their stretch: what is read there is only ever taken back.
READ_AHEAD = 16


@dataclass(frozen=True)
class ModelOutput:
    """What `forward` returns.

    Attributes:
        logits: [batch, time, vocabulary]; row t predicts the token that follows input t. Where the model has a mixture
            these are its parameters [batch, time, outputs], see `MixtureOfLogistics`.
        state: the state after the window; detached from the graph.
        auxiliary_losses: scalars to be added to the loss in training, by name; empty in evaluation.
    """

    logits: Tensor
    state: State
    auxiliary_losses: dict[str, Tensor] = field(default_factory=dict)


class TokenModel(nn.Module, ABC):
    """An autoregressive model of a stream of tokens.

    Attributes:
        vocabulary_size: number of token values.
        segment_length: `forward` takes whole multiples of this many tokens; 1 where a stream may be cut anywhere.
        cache_length: samples that caches hold; a multiple of segment_length.
        adapt_every: `open_cache` and `close_cache` change something at multiples of this many samples only; divides
            cache_length.
        recompute_activations: in training keep each layer's inputs only, and compute its inside again for the gradient.
        mixture: what gives tokens' probabilities where they are not the softmax of logits.
    """

    vocabulary_size: int
    segment_length: int
    cache_length: int
    adapt_every: int
    recompute_activations: bool = False
    mixture: MixtureOfLogistics | None = None

    @abstractmethod
    def initial_state(
        self, batch_size: int, device: torch.device | str = "cpu", dtype: torch.dtype = torch.float32
    ) -> State:
        """Return the state of `batch_size` lanes that have seen nothing."""

    @abstractmethod
    def forward(self, tokens: Int[Tensor, "batch time"], state: State) -> ModelOutput:
        """Read a window of every lane and predict what follows each token.

        Args:
            tokens: [batch, time]; time is a multiple of `segment_length`.
            state: where the lanes stand; left as it was.

        Returns:
            Logits, the new state and auxiliary losses. Cutting a stream into other windows gives the same logits.
        """

    def nats(self, logits: Float[Tensor, "*batch outputs"], targets: Int[Tensor, "*batch"]) -> Float[Tensor, "*batch"]:
        """Return -log of each target's probability; 0 where a target is -1.

        Args:
            logits: what `forward`, `read` and `step` return.
            targets: tokens.
        """
        if self.mixture is not None:
            return self.mixture.nats(logits, targets)
        rows = logits.float().flatten(0, -2)
        return F.cross_entropy(rows, targets.flatten(), ignore_index=-1, reduction="none").view_as(targets)

    def nats_between(
        self, logits: Float[Tensor, "*batch outputs"], first: Int[Tensor, "*batch"], last: Int[Tensor, "*batch"]
    ) -> Float[Tensor, "*batch"]:
        """Return -log of the probability of all tokens from `first` to `last`; 0 where the first is -1."""
        if self.mixture is not None:
            return self.mixture.nats_between(logits, first, last)
        tokens = torch.arange(self.vocabulary_size, device=logits.device)
        is_within = (tokens >= first[..., None]) & (tokens <= last[..., None])
        nats = -logits.float().log_softmax(dim=-1).masked_fill(~is_within, -math.inf).logsumexp(dim=-1)
        return nats.masked_fill(first < 0, 0)

    def distribution(self, logits: Float[Tensor, "*batch outputs"]) -> Float[Tensor, "*batch vocabulary"]:
        """Return what a softmax makes the probabilities of all tokens from."""
        return logits if self.mixture is None else self.mixture.distribution(logits)

    def auxiliary_parameters(self) -> list[nn.Parameter]:
        """Return the parameters that learn from auxiliary losses alone; their gradients are clipped by themselves."""
        return []

    def _recomputed(self, layer: Callable[..., Any], *arguments: Any) -> Any:
        """Return what a layer does with arguments; see `recompute_activations`."""
        if not (self.recompute_activations and torch.is_grad_enabled()):
            return layer(*arguments)
        return checkpoint(layer, *arguments, use_reentrant=False, preserve_rng_state=False)

    @abstractmethod
    def open_cache(self, state: State, offset: int) -> State:
        """Return a state to `read` the sample at `offset` from: with caches, made anew where the offset is 0.

        Args:
            state: where the lanes stand.
            offset: samples of the stretch that were read, the same for all lanes.
        """

    @abstractmethod
    def read(self, tokens: Int[Tensor, "batch time"], state: State) -> Float[Tensor, "batch time vocabulary"]:
        """Read a few tokens of every lane from `cache.place` on, in place, and return logits.

        Args:
            tokens: [batch, time]; up to READ_AHEAD, and up to the next multiple of `adapt_every`: logits past that
                mean nothing, and what was read there must be taken back.
            state: with caches; they are written to.
        """

    @abstractmethod
    def close_cache(self, state: State, offset: int) -> State:
        """Return the state after `offset` samples of the stretch were read: without caches at its end."""

    @torch.no_grad()
    def step(self, tokens: Int[Tensor, " batch"], state: State) -> tuple[Float[Tensor, "batch vocabulary"], State]:
        """Read one token of every lane; the same numbers as `forward`, to rounding.

        Args:
            tokens: [batch]
            state: where the lanes stand, all at the same sample of their stretches; its tensors may be written to, so
                use the returned state from here on.

        Returns:
            Logits of the next token [batch, vocabulary] and the new state.
        """
        offset = place(state)
        state = self.open_cache(state, offset)
        logits = self.read(tokens[:, None], state)
        return logits[:, 0], self.close_cache(state, offset + 1)


@dataclass(frozen=True)
class MemoryUse:
    """How a model used its memories in a segment.

    Attributes:
        received: attention that each key received [batch, keys], averaged over heads and the segment's samples, by
            layer; keys are those of `MemoryModel.memory_shapes`' memories, oldest first, then the segment's own.
        compression_losses: attention-reconstruction loss by layer, of those that compress.
        state: after the segment.
    """

    received: dict[int, Tensor]
    compression_losses: dict[int, float]
    state: State


class MemoryModel(TokenModel, ABC):
    """A model whose layers have memories, so that their use can be looked into and taken away."""

    @property
    @abstractmethod
    def memory_shapes(self) -> list[MemoryShape]:
        """The shape of each layer's memories, which the state holds as [batch, length, d_model] under their names."""

    @abstractmethod
    def look(self, tokens: Int[Tensor, "batch time"], state: State) -> MemoryUse:
        """Read one segment and say how memories were used.

        Args:
            tokens: [batch, segment_length]
            state: where the lanes stand, at the start of a segment.
        """


def num_parameters(module: nn.Module) -> int:
    """Return how many trained numbers the module holds."""
    return sum(parameter.numel() for parameter in module.parameters())


def is_cut(state: State) -> bool:
    """Return whether a state stands within a stretch of samples, so that only steps can go on from it."""
    return "cache.place" in state


def place(state: State) -> int:
    """Return how many samples of its stretch a state has read; a GPU is waited for."""
    return int(state["cache.place"][0]) if is_cut(state) else 0


def slots(state: State, num_samples: int) -> Int[Tensor, " time"]:
    """Return which slots of the caches the next samples take, and move `cache.place` behind them."""
    next_slot = state["cache.place"]
    taken = next_slot[0] + torch.arange(num_samples, device=next_slot.device)
    next_slot += num_samples
    return taken


def without_caches(state: State) -> State:
    """Return what remains of a state when a stretch is over."""
    return {name: tensor for name, tensor in state.items() if not name.startswith("cache.")}


def compact(state: State) -> State:
    """Return the same state in tensors of their own, always laid out alike: a compiled model is compiled once.

    What a window leaves is mostly the end of a longer tensor.
    """
    return {name: tensor.clone(memory_format=torch.contiguous_format) for name, tensor in state.items()}


def select_lanes(lanes: Bool[Tensor, " batch"], chosen: State, other: State) -> State:
    """Return a state with `chosen`'s tensors in the marked lanes and `other`'s in the rest, between segments."""
    assert not is_cut(chosen), "lanes are chosen between segments"
    assert not is_cut(other), "lanes are chosen between segments"
    return {name: torch.where(lanes.view(-1, *[1] * (old.dim() - 1)), chosen[name], old) for name, old in other.items()}


def consume(
    model: TokenModel, tokens: Int[Tensor, "batch time"], state: State
) -> tuple[Float[Tensor, "batch vocabulary"], State]:
    """Read a prompt of any length: whole segments by `forward`, the rest by `step`.

    Args:
        model: any model.
        tokens: [batch, time], time at least 1.
        state: where the lanes stand, at the start of a segment.

    Returns:
        Logits of the token after the prompt [batch, vocabulary], and the state to go on from.
    """
    num_tokens = tokens.shape[1]
    assert num_tokens > 0, "an empty prompt predicts nothing"
    whole = num_tokens - num_tokens % model.segment_length
    # A window of some thousand tokens bounds the memory that a long prompt takes.
    window = max(1, 4096 // model.segment_length) * model.segment_length
    logits = None
    for start in range(0, whole, window):
        output = model(tokens[:, start : min(start + window, whole)], state)
        logits, state = output.logits[:, -1], output.state
    for position in range(whole, num_tokens):
        logits, state = model.step(tokens[:, position], state)
    assert logits is not None
    return logits, state
