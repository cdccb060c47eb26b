"""The one outer class of all models: embedding, linear prediction, stages in order, head.

    tokens -> embedding (+ linear prediction's features) -> stage -> stage -> ... -> head -> outputs
                                                              |         |             |
                                                              +-- skips-+------> sum -+

WaveNet is gated convolutions and a head; the Compressive Transformer has its own stage, with or without gated
convolutions before it (`audio_ct.models.build`). The state is nested as the parts are; see `audio_ct.models.stage`.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from audio_ct.models.heads import Head
from audio_ct.models.linear_prediction import LinearPrediction, Prediction
from audio_ct.models.stage import Stage, State, detached, flatten

# A stretch is at least so long where its length is free: queues are copied at its end.
MINIMUM_STRETCH = 16
# A window of some thousand tokens bounds the memory that a long prompt takes.
PROMPT_WINDOW = 4096


@dataclass(frozen=True)
class ModelOutput:
    """The output of a model for a window.

    Attributes:
        logits: [batch, time, outputs]; row t is about the token that follows input t. The model's head knows what they
            mean; with a softmax they are logits.
        state: after the window; detached from the graph.
        auxiliary_losses: scalars to be added to the loss in training, by name; empty in evaluation.
    """

    logits: Tensor
    state: State
    auxiliary_losses: dict[str, Tensor] = field(default_factory=dict)


class TokenModel(nn.Module):
    """An autoregressive model of a stream of tokens, made of parts.

    Args:
        vocabulary_size: number of token values.
        embedding: from tokens to activations.
        stages: by name, in order; names are those of the state.
        head: from the sum of the stages' skips to probabilities.
        linear_prediction: predictors to start from, or None.

    Attributes:
        segment_length: `forward` takes whole multiples of so many tokens; 1 where a stream may be cut anywhere.
        cache_length: samples of a stretch of steps, a multiple of segment_length.
        period: samples between two calls of `advance`.
    """

    def __init__(
        self,
        vocabulary_size: int,
        *,
        embedding: nn.Module,
        stages: Mapping[str, Stage],
        head: Head,
        linear_prediction: LinearPrediction | None = None,
    ) -> None:
        super().__init__()
        self.vocabulary_size = vocabulary_size
        self.embedding = embedding
        self.stages: Mapping[str, Stage] = nn.ModuleDict(stages)  # type: ignore[assignment]
        self.head = head
        self.linear_prediction = linear_prediction
        segments = [stage.segment_length for stage in stages.values()]
        fixed = {stage.segment_length for stage in stages.values() if stage.steps_by_segments}
        frames = [] if linear_prediction is None else [linear_prediction.frame_length]
        self.segment_length = math.lcm(*segments, *frames)
        self.cache_length = self.segment_length
        if not fixed:
            self.cache_length *= -(-MINIMUM_STRETCH // self.segment_length)
        assert fixed <= {self.cache_length}, "all stages that step by segments have segments of one length, the longest"
        periods = [stage.period for stage in stages.values() if stage.period is not None]
        self.period = math.gcd(self.cache_length, *periods, *frames)

    def initial_state(
        self, batch_size: int, device: torch.device | str = "cpu", dtype: torch.dtype = torch.float32
    ) -> State:
        """The state of `batch_size` lanes that have seen nothing."""
        state: State = {}
        if self.linear_prediction is not None:
            state["linear_prediction"] = self.linear_prediction.initial_state(batch_size, device)
        return state | {name: stage.initial_state(batch_size, device, dtype) for name, stage in self.stages.items()}

    def forward(self, tokens: Int[Tensor, "batch time"], state: State) -> ModelOutput:
        """Read a window of every lane and predict the token after each.

        Args:
            tokens: [batch, time]; time is a multiple of `segment_length`.
            state: of the lanes, between stretches of steps; left as it was.

        Returns:
            Outputs, the new state and auxiliary losses. Cutting a stream into other windows gives the same outputs.
        """
        assert tokens.shape[1] % self.segment_length == 0, "forward reads whole segments; see consume()"
        assert not is_cut(state), "forward reads from the start of a segment; see consume()"
        new_state, prediction, skips = dict(state), None, None
        auxiliary_losses: dict[str, Tensor] = {}
        h = self.embedding(tokens)
        if self.linear_prediction is not None:
            predicted, prediction, new_state["linear_prediction"] = self.linear_prediction(
                tokens, state["linear_prediction"]
            )
            h = h + predicted
        for name, stage in self.stages.items():
            output = stage(h, state[name])
            h, new_state[name] = output.h, output.state
            skips = output.skip if skips is None else skips + output.skip
            for loss_name, loss in output.auxiliary_losses.items():
                others = auxiliary_losses.get(loss_name)
                auxiliary_losses[loss_name] = loss if others is None else others + loss
        return ModelOutput(self.head(skips, prediction), detached(new_state), auxiliary_losses)

    @torch.no_grad()
    def step(self, tokens: Int[Tensor, " batch"], state: State) -> tuple[Float[Tensor, "batch outputs"], State]:
        """Read one token of every lane; the same numbers as `forward`, to rounding.

        Args:
            tokens: [batch]
            state: of the lanes, all at the same sample of their stretches; its caches are written to, so use the
                returned state from here on.

        Returns:
            Outputs for the next token and the new state, which holds the stretch's caches under "cache".
        """
        offset = position(state)
        caches = state["cache"] if offset else self.open_cache(state)
        outputs = self.read(tokens, caches)
        if offset + 1 == self.cache_length:
            return outputs, self.close_cache(state, caches)
        if (offset + 1) % self.period == 0:
            self.advance(caches, offset + 1)
        return outputs, state | {"cache": caches}

    def open_cache(self, state: State) -> State:
        """Make the caches of a stretch of `cache_length` samples, in which "position" [batch] counts them."""
        caches: State = {}
        if self.linear_prediction is not None:
            caches["linear_prediction"] = self.linear_prediction.open_cache(
                state["linear_prediction"], self.cache_length
            )
        for name, stage in self.stages.items():
            caches[name] = stage.open_cache(state[name], self.cache_length)
        lane = next(iter(flatten(caches).values()))
        return caches | {"position": torch.zeros(len(lane), dtype=torch.int64, device=lane.device)}

    def read(self, tokens: Int[Tensor, " batch"], caches: State) -> Float[Tensor, "batch outputs"]:
        """Read one token of every lane at the caches' position, in place, and move the position on.

        Args:
            tokens: [batch]
            caches: written to.

        Returns:
            Outputs for the next token.
        """
        slot = caches["position"][:1].clone()
        prediction: Prediction | None = None
        skips: Tensor | None = None
        h = self.embedding(tokens[:, None])
        if self.linear_prediction is not None:
            predicted, prediction = self.linear_prediction.read(tokens[:, None], caches["linear_prediction"], slot)
            h = h + predicted
        for name, stage in self.stages.items():
            h, skip = stage.read(h, caches[name], slot)
            skips = skip if skips is None else skips + skip
        caches["position"] += 1
        return self.head(skips, prediction)[:, 0]

    def advance(self, caches: State, offset: int) -> None:
        """Bring caches up to date, in place, within a stretch.

        Args:
            caches: of the stretch.
            offset: samples of it that have been read, a multiple of `period`.
        """
        if self.linear_prediction is not None and offset % self.linear_prediction.frame_length == 0:
            self.linear_prediction.advance(caches["linear_prediction"], offset)
        for name, stage in self.stages.items():
            if stage.period is not None and offset % stage.period == 0:
                stage.advance(caches[name], offset)

    def close_cache(self, state: State, caches: State) -> State:
        """The state after a whole stretch.

        Args:
            state: before the stretch.
            caches: after its last sample.
        """
        new_state: State = {}
        if self.linear_prediction is not None:
            new_state["linear_prediction"] = self.linear_prediction.close_cache(caches["linear_prediction"])
        return new_state | {name: stage.close_cache(state[name], caches[name]) for name, stage in self.stages.items()}

    def auxiliary_parameters(self) -> list[nn.Parameter]:
        """Parameters that learn from auxiliary losses alone; their gradients are clipped by themselves."""
        return [parameter for stage in self.stages.values() for parameter in stage.auxiliary_parameters()]

    @property
    def recompute_activations(self) -> bool:
        """In training keep each layer's inputs only, and compute its inside again for the gradient."""
        return all(stage.recompute_activations for stage in self.stages.values())

    @recompute_activations.setter
    def recompute_activations(self, recompute: bool) -> None:
        for stage in self.stages.values():
            stage.recompute_activations = recompute


def num_parameters(module: nn.Module) -> int:
    """Number of trained numbers."""
    return sum(parameter.numel() for parameter in module.parameters())


def all_finite(module: nn.Module) -> bool:
    """True where all parameters are finite; a GPU is waited for."""
    return bool(torch.stack([parameter.isfinite().all() for parameter in module.parameters()]).all())


def is_cut(state: State) -> bool:
    """True where a state stands within a stretch of samples, so that only steps can go on from it."""
    return "cache" in state


def position(state: State) -> int:
    """Samples of its stretch that a state has read; a GPU is waited for."""
    return int(state["cache"]["position"][0]) if is_cut(state) else 0


def consume(
    model: TokenModel, tokens: Int[Tensor, "batch time"], state: State
) -> tuple[Float[Tensor, "batch outputs"], State]:
    """Read a prompt of any length: whole segments by `forward`, the rest by `step`.

    Args:
        model: any model.
        tokens: [batch, time], time at least 1.
        state: of the lanes, at the start of a segment.

    Returns:
        Outputs for the token after the prompt, and the state to go on from.
    """
    num_tokens = tokens.shape[1]
    assert num_tokens > 0, "an empty prompt predicts nothing"
    whole = num_tokens - num_tokens % model.segment_length
    window = max(1, PROMPT_WINDOW // model.segment_length) * model.segment_length
    outputs = None
    for start in range(0, whole, window):
        output = model(tokens[:, start : min(start + window, whole)], state)
        outputs, state = output.logits[:, -1], output.state
    for place in range(whole, num_tokens):
        outputs, state = model.step(tokens[:, place], state)
    assert outputs is not None
    return outputs, state
