"""What every model owes training, sampling and evaluation: a state that is data, `forward` over windows, `step` by one.

A model keeps nothing between calls. What it remembers of a stream is its *state*: a flat dictionary of tensors whose
first axis is the lane (batch row). So detaching, slicing, resetting and saving a state are one-line comprehensions here
and need no knowledge of the architecture.
"""

from abc import ABC, abstractmethod
from dataclasses import dataclass, field

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

State = dict[str, Tensor]


@dataclass(frozen=True)
class ModelOutput:
    """What `forward` returns.

    Attributes:
        logits: [batch, time, vocabulary]; row t predicts the token that follows input t.
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
    """

    vocabulary_size: int
    segment_length: int

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

    def auxiliary_parameters(self) -> list[nn.Parameter]:
        """Return the parameters that learn from auxiliary losses alone; their gradients are clipped by themselves."""
        return []

    @abstractmethod
    def step(self, tokens: Int[Tensor, " batch"], state: State) -> tuple[Float[Tensor, "batch vocabulary"], State]:
        """Read one token of every lane; the same numbers as `forward`, to rounding.

        Args:
            tokens: [batch]
            state: where the lanes stand, all at the same sample of their segments; its tensors may be written to, so
                use the returned state from here on.

        Returns:
            Logits of the next token [batch, vocabulary] and the new state.
        """


def num_parameters(module: nn.Module) -> int:
    """Return how many trained numbers the module holds."""
    return sum(parameter.numel() for parameter in module.parameters())


def is_cut(state: State) -> bool:
    """Return whether a state stands within a segment, so that only `step` can go on from it.

    Within a segment, and only there, `step` keeps what it needs to its end under names that begin with "cache.".
    """
    return any(name.startswith("cache.") for name in state)


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
