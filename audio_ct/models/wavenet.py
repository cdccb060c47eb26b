"""WaveNet: stacks of gated dilated causal convolutions; its state is the queues of their inputs.

Source: van den Oord et al. 2016, 1609.03499; the queues are Paine et al. 2016, 1611.09482.
"""

from collections.abc import Sequence
from typing import Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn import functional as F

from audio_ct.models.convolution import GatedConvolution, caches_to_queues, queues_to_caches
from audio_ct.models.embedding import AmplitudeEmbedding
from audio_ct.models.interface import ModelOutput, State, TokenModel, compact, is_cut, place, slots, without_caches
from audio_ct.models.linear_prediction import LinearPrediction, LinearPredictionSettings
from audio_ct.models.mixture import MixtureOfLogistics

# Samples between two copies of the queues when sampling without linear prediction.
CACHE_LENGTH = 16


class WaveNet(TokenModel):
    """WaveNet over tokens; a stream may be cut anywhere, with linear prediction between its frames.

    Args:
        vocabulary_size: number of token values.
        num_stacks: cycles of dilations.
        layers_per_stack: layers in a cycle, of dilations 1, 2, 4, ...
        residual_channels: channels of the residual stream and of the gates.
        skip_channels: channels of the summed skips.
        width: taps of each convolution.
        embedding: "learned" or "sinusoidal" features of the token's place on the scale.
        linear_prediction: backward-adaptive predictors to start from; none in the paper.
        output: "softmax" (paper) or "mixture_of_logistics", whose size does not grow with the vocabulary.
    """

    def __init__(
        self,
        *,
        vocabulary_size: int,
        num_stacks: int,
        layers_per_stack: int,
        residual_channels: int,
        skip_channels: int,
        width: int = 2,
        embedding: Literal["learned", "sinusoidal"] = "learned",
        linear_prediction: LinearPredictionSettings | None = None,
        output: Literal["softmax", "mixture_of_logistics"] = "softmax",
    ) -> None:
        super().__init__()
        self.vocabulary_size = vocabulary_size
        self.segment_length = 1 if linear_prediction is None else linear_prediction.frame_length
        self.cache_length = CACHE_LENGTH if linear_prediction is None else linear_prediction.frame_length
        self.adapt_every = self.cache_length
        self.residual_channels = residual_channels
        embeddings: dict[str, type[nn.Module]] = {"learned": nn.Embedding, "sinusoidal": AmplitudeEmbedding}
        self.embedding = embeddings[embedding](vocabulary_size, residual_channels)
        self.layers: Sequence[GatedConvolution] = nn.ModuleList(  # type: ignore[assignment]
            GatedConvolution(residual_channels, skip_channels=skip_channels, width=width, dilation=2**power)
            for _ in range(num_stacks)
            for power in range(layers_per_stack)
        )
        self.hidden = nn.Linear(skip_channels, skip_channels)
        self.mixture = MixtureOfLogistics(vocabulary_size) if output == "mixture_of_logistics" else None
        self.readout = nn.Linear(skip_channels, vocabulary_size if self.mixture is None else self.mixture.num_outputs)
        self.linear_prediction: LinearPrediction | None = None
        if linear_prediction is not None:
            read_by = skip_channels if self.mixture is None else None
            self.linear_prediction = LinearPrediction(
                vocabulary_size, linear_prediction, input_channels=residual_channels, output_channels=read_by
            )

    @property
    def receptive_field(self) -> int:
        """Samples that a prediction depends on through the convolutions; linear prediction sees all of the past."""
        return 1 + sum(layer.queue_length for layer in self.layers)

    def initial_state(
        self, batch_size: int, device: torch.device | str = "cpu", dtype: torch.dtype = torch.float32
    ) -> State:
        """Return zero queues and, with linear prediction, a past of silence (see the base class)."""
        state = {
            f"queue.{i}": torch.zeros(
                batch_size, layer.queue_length, self.residual_channels, device=device, dtype=dtype
            )
            for i, layer in enumerate(self.layers)
        }
        if self.linear_prediction is not None:
            state |= self.linear_prediction.initial_state(batch_size, device)
        return state

    def forward(self, tokens: Int[Tensor, "batch time"], state: State) -> ModelOutput:
        """Read a window of any length; with linear prediction, of whole frames (see the base class)."""
        assert tokens.shape[1] % self.segment_length == 0, "forward reads whole frames; see consume()"
        if self.linear_prediction is None and is_cut(state):
            state = self._closed(state, place(state))
        assert not is_cut(state), "forward reads from the start of a frame; see consume()"
        h, predicted = self.embedding(tokens), None
        state = dict(state)
        if self.linear_prediction is not None:
            features, predicted, state = self.linear_prediction.predict(tokens, state)
            h = h + self.linear_prediction.read(features)
        skips = h.new_zeros(())
        for i, layer in enumerate(self.layers):
            queue = state[f"queue.{i}"]
            h, skip, new_queue = self._recomputed(layer, h, queue.to(h.dtype))
            skips = skips + skip
            state[f"queue.{i}"] = new_queue.detach().to(queue.dtype)
        return ModelOutput(self._logits(skips, predicted), compact(state))

    def open_cache(self, state: State, offset: int) -> State:
        """Return a state with caches of the queues (see the base class)."""
        if offset:
            return state
        state = state | queues_to_caches(state, "queue.", self.cache_length)
        lane = next(iter(state.values()))
        state["cache.place"] = torch.zeros(len(lane), dtype=torch.int64, device=lane.device)
        if self.linear_prediction is not None:
            state |= self.linear_prediction.open_cache(state, offset)
        return state

    def read(self, tokens: Int[Tensor, "batch time"], state: State) -> Float[Tensor, "batch time vocabulary"]:
        """Read a few samples (see the base class)."""
        taken = slots(state, tokens.shape[1])
        h, predicted = self.embedding(tokens), None
        if self.linear_prediction is not None:
            features, predicted = self.linear_prediction.predict_cached(tokens, state, taken)
            h = h + self.linear_prediction.read(features)
        skips = h.new_zeros(())
        for i, layer in enumerate(self.layers):
            h, skip = layer.read(h, state[f"cache.queue.{i}"], taken)
            skips = skips + skip
        return self._logits(skips, predicted)

    def close_cache(self, state: State, offset: int) -> State:
        """Return a state whose queues have moved on (see the base class)."""
        return state if offset < self.cache_length else self._closed(state, offset)

    def _closed(self, state: State, offset: int) -> State:
        state = state | caches_to_queues(state, "queue.", offset)
        if self.linear_prediction is not None:
            state |= self.linear_prediction.close_cache(state)
        return without_caches(state)

    def _logits(self, skips: Tensor, predicted: Tensor | None) -> Tensor:
        hidden = F.relu(self.hidden(F.relu(skips)))
        if self.mixture is not None:
            return self.mixture.parameters(self.readout, hidden, predicted)
        if self.linear_prediction is None or predicted is None:
            return self.readout(hidden)
        return self.readout(hidden) + self.linear_prediction.logits(hidden, predicted)
