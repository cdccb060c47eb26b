"""The Compressive Transformer; with a compressed memory of length 0 it is Transformer-XL.

The way of a segment: tokens -> embedding -> optional front of gated dilated convolutions -> layers -> logits. Each
layer attends over [compressed memory | memory | segment] and, when the segment is complete, pushes its attention
inputs into memory; what leaves memory is compressed into compressed memory.

Source: Rae et al. 2019, algorithm 1; docs/notation.md lists where paper and published code differ and what is chosen.
"""

import math
from collections.abc import Sequence
from typing import Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn import functional as F

from audio_ct.errors import InputError
from audio_ct.models.attention import Kernel
from audio_ct.models.coarse import CoarseLayers, CoarseSettings
from audio_ct.models.compression import CompressionSettings
from audio_ct.models.compressive_layer import CompressiveLayer, LayerSettings
from audio_ct.models.convolution import ConvolutionalFront, caches_to_queues, queues_to_caches
from audio_ct.models.embedding import AmplitudeEmbedding
from audio_ct.models.interface import MemoryModel, MemoryUse, ModelOutput, State, compact, is_cut, slots, without_caches
from audio_ct.models.linear_prediction import LinearPrediction, LinearPredictionSettings
from audio_ct.models.memory import CompressedPositions, MemoryShape, per_layer
from audio_ct.models.mixture import MixtureOfLogistics
from audio_ct.models.positions import ContextPositions


class CompressiveTransformer(MemoryModel):
    """A Transformer over raw samples with a memory and a compressed memory in every layer.

    Args:
        vocabulary_size: number of token values.
        num_layers: Transformer layers.
        d_model: size of embeddings and activations.
        num_heads: attention heads; divides d_model.
        d_ff: hidden size of the feed-forward blocks.
        segment_length: samples read at once; between segments only memory is carried.
        memory_length: past activations kept in each layer, or a list with a length for each; 0 for none.
        compressed_memory_length: compressed activations kept in each layer, or a list; 0 makes a Transformer-XL.
        twice_compressed_memory_length: entries kept of what leaves compressed memory, compressed again, in each layer
            that has a compressed memory. None in the paper.
        compression_rate: entries that become one; the newest of a segment are dropped where it does not divide it.
        compression: the compression function and its loss.
        compressed_positions: where compressed entries stand (`MemoryShape.positions`); "own" gives them a projection
            and bias of their own, as DeepMind's code does.
        memory_stores: "attention_input" (DeepMind's code) or "layer_input" (printed), which differ in pre-norm only.
        learned_initial_memory: what attention sees in slots that are still empty is learned. Zeros in the paper.
        norm: "pre" or "post" (paper) layer norm.
        positions: "relative" (Transformer-XL, paper) or "rotary".
        num_key_value_heads: heads of keys and values, where several query heads share one; None for one each (paper).
        embedding: "learned" (paper) or "sinusoidal" features of the token's place on the scale.
        front_dilations: one gated convolution of width 2 for each, between embedding and layers; its skips and the
            layers' output together go through WaveNet's head. None in the paper.
        coarse: layers that read frames of samples, before the others. None in the paper.
        short_convolution_width: taps of a causal depthwise convolution on attention inputs; 0 for none (paper).
        attention_kernel: "fused", "plain" or by device "auto" (see `attention.dot_product_attention`).
        linear_prediction: predictors to start from, whose frame length divides segment_length; none in the paper.
        output: "softmax" (paper) or "mixture_of_logistics", whose size does not grow with the vocabulary.

    Raises:
        InputError: if sizes do not fit together.
    """

    def __init__(
        self,
        *,
        vocabulary_size: int,
        num_layers: int,
        d_model: int,
        num_heads: int,
        d_ff: int,
        segment_length: int,
        memory_length: int | Sequence[int],
        compressed_memory_length: int | Sequence[int] = 0,
        twice_compressed_memory_length: int = 0,
        compression_rate: int = 1,
        compression: CompressionSettings | None = None,
        compressed_positions: CompressedPositions = "contiguous",
        memory_stores: Literal["attention_input", "layer_input"] = "attention_input",
        learned_initial_memory: bool = False,
        norm: Literal["pre", "post"] = "pre",
        positions: Literal["relative", "rotary"] = "relative",
        num_key_value_heads: int | None = None,
        embedding: Literal["learned", "sinusoidal"] = "learned",
        front_dilations: Sequence[int] = (),
        coarse: CoarseSettings | None = None,
        short_convolution_width: int = 0,
        attention_kernel: Kernel = "auto",
        linear_prediction: LinearPredictionSettings | None = None,
        output: Literal["softmax", "mixture_of_logistics"] = "softmax",
    ) -> None:
        super().__init__()
        settings = LayerSettings(
            d_model=d_model,
            num_heads=num_heads,
            d_ff=d_ff,
            norm=norm,
            positions=positions,
            num_key_value_heads=num_key_value_heads,
            attention_kernel=attention_kernel,
            compression=compression or CompressionSettings(),
            compressed_positions=compressed_positions,
            memory_stores=memory_stores,
            learned_initial_memory=learned_initial_memory,
            short_convolution_width=short_convolution_width,
        )
        if linear_prediction is not None and segment_length % linear_prediction.frame_length:
            raise InputError(
                f"model.linear_prediction.frame_length={linear_prediction.frame_length} must divide "
                f"model.segment_length={segment_length}; try {math.gcd(16, segment_length)}."
            )
        self.vocabulary_size = vocabulary_size
        self.segment_length = self.cache_length = segment_length
        frames = [each.frame_length for each in (linear_prediction, coarse) if each is not None]
        self.adapt_every = math.gcd(segment_length, *frames)
        self.compression_loss: str = settings.compression.loss
        self._sums_losses = settings.compression.loss_form == "norm"
        embeddings: dict[str, type[nn.Module]] = {"learned": nn.Embedding, "sinusoidal": AmplitudeEmbedding}
        self.embedding = embeddings[embedding](vocabulary_size, d_model)
        self.front = ConvolutionalFront(d_model, front_dilations) if front_dilations else None
        self.coarse: CoarseLayers | None = None
        if coarse is not None:
            self.coarse = CoarseLayers(
                coarse, settings, segment_length=segment_length, compression_rate=compression_rate
            )
        shapes = [
            MemoryShape(
                segment_length,
                memory,
                (compressed, twice_compressed_memory_length)[
                    : (compressed > 0) * (1 + bool(twice_compressed_memory_length))
                ],
                compression_rate,
            )
            for memory, compressed in zip(
                per_layer(memory_length, num_layers, name="memory_length"),
                per_layer(compressed_memory_length, num_layers, name="compressed_memory_length"),
                strict=True,
            )
        ]
        # Layers whose memories are as long share their positions.
        distinct = list(dict.fromkeys(shapes))
        where = [ContextPositions(shape, compressed_positions, settings.num_sinusoids) for shape in distinct]
        self._positions_of_layers = [distinct.index(shape) for shape in shapes]
        self.positions: Sequence[ContextPositions] = nn.ModuleList(where)  # type: ignore[assignment]
        self.layers: Sequence[CompressiveLayer] = nn.ModuleList(  # type: ignore[assignment]
            CompressiveLayer(number, settings, where[index]) for number, index in enumerate(self._positions_of_layers)
        )
        self.final_norm = nn.LayerNorm(d_model) if norm == "pre" and self.front is None else nn.Identity()
        self.hidden = nn.Linear(d_model, d_model) if self.front is not None else None
        self.mixture = MixtureOfLogistics(vocabulary_size) if output == "mixture_of_logistics" else None
        self.readout = nn.Linear(d_model, vocabulary_size if self.mixture is None else self.mixture.num_outputs)
        self.linear_prediction: LinearPrediction | None = None
        if linear_prediction is not None:
            read_by = d_model if self.mixture is None else None
            self.linear_prediction = LinearPrediction(
                vocabulary_size, linear_prediction, input_channels=d_model, output_channels=read_by
            )

    def initial_state(
        self, batch_size: int, device: torch.device | str = "cpu", dtype: torch.dtype = torch.float32
    ) -> State:
        """Return empty memories and queues, at the start of a segment (see the base class)."""
        state = {} if self.front is None else self.front.initial_state(batch_size, device, dtype)
        if self.linear_prediction is not None:
            state |= self.linear_prediction.initial_state(batch_size, device)
        if any(layer.initial_memory is not None for layer in self.layers):
            state["segments_read"] = torch.zeros(batch_size, dtype=torch.int64, device=device)
        if self.coarse is not None:
            state |= self.coarse.initial_state(batch_size, device, dtype)
        for layer in self.layers:
            state |= layer.initial_state(batch_size, device, dtype)
        return state

    @property
    def memory_shapes(self) -> list[MemoryShape]:
        """The shape of each layer's memories."""
        return [layer.shape for layer in self.layers]

    def auxiliary_parameters(self) -> list[nn.Parameter]:
        """Return the parameters of compression functions that have a loss of their own (see the base class)."""
        if self.compression_loss in ("task", "none"):
            return []
        layers = [*self.layers, *([] if self.coarse is None else self.coarse.layers)]
        modules = [module for layer in layers for module in (layer.compressions, layer.decoders)]
        return [parameter for module in modules for parameter in module.parameters()]

    def forward(self, tokens: Int[Tensor, "batch time"], state: State) -> ModelOutput:
        """Read whole segments (see the base class); the state must stand at the start of one."""
        assert tokens.shape[1] % self.segment_length == 0, "forward reads whole segments; see consume()"
        assert not is_cut(state), "forward reads from the start of a segment; see consume()"
        h, skips, predicted, losses, state = self._before_layers(tokens, state)
        outputs = []
        for segment in h.split(self.segment_length, dim=1):
            for layer in self.layers:
                segment, changes, loss, _ = self._recomputed(layer, segment, state)
                state = state | changes
                losses.extend([] if loss is None else [loss])
            state = self._next_segment(state)
            outputs.append(segment)
        auxiliary: dict[str, Tensor] = {}
        if losses:
            total = torch.stack(losses).sum()
            num_terms = len(outputs) if self._sums_losses else len(losses)
            auxiliary[self.compression_loss] = total / num_terms
        logits = self._logits(torch.cat(outputs, dim=1), skips, predicted)
        return ModelOutput(logits, compact({name: tensor.detach() for name, tensor in state.items()}), auxiliary)

    @torch.no_grad()
    def look(self, tokens: Int[Tensor, "batch time"], state: State) -> MemoryUse:
        """Read one segment and say how memories were used (see the base class)."""
        h, _, _, _, state = self._before_layers(tokens, state)
        received, losses = {}, {}
        for number, layer in enumerate(self.layers):
            h, changes, loss, received[number] = layer(h, state, look=True)
            state = state | changes
            if loss is not None:
                losses[number] = float(loss)
        return MemoryUse(received, losses, self._next_segment(state))

    def open_cache(self, state: State, offset: int) -> State:
        """Return a state with caches of a segment, the memories' keys and values in place (see the base class)."""
        if offset == 0:
            state = state | queues_to_caches(state, "front.", self.segment_length)
            state |= queues_to_caches(state, "short.", self.segment_length)
            for layer in self.layers:
                state |= layer.open_cache(state)
            lane = state["memory.0"]
            state["cache.place"] = torch.zeros(len(lane), dtype=torch.int64, device=lane.device)
        if self.coarse is not None:
            state = self.coarse.open_cache(state, offset)
        if self.linear_prediction is not None and offset % self.linear_prediction.frame_length == 0:
            state = state | self.linear_prediction.open_cache(state, offset)
        return state

    def read(self, tokens: Int[Tensor, "batch time"], state: State) -> Float[Tensor, "batch time vocabulary"]:
        """Read a few samples (see the base class)."""
        taken = slots(state, tokens.shape[1])
        h, skips, predicted = self.embedding(tokens), None, None
        if self.linear_prediction is not None:
            features, predicted = self.linear_prediction.predict_cached(tokens, state, taken)
            h = h + self.linear_prediction.read(features)
        if self.front is not None:
            h, skips = self.front.read(h, state, taken)
        if self.coarse is not None:
            h = self.coarse.read(h, state, taken)
        hidden = [positions.hidden(taken) for positions in self.positions]
        for layer, index in zip(self.layers, self._positions_of_layers, strict=True):
            h = layer.read(h, state, taken, hidden[index])
        return self._logits(h, skips, predicted)

    def close_cache(self, state: State, offset: int) -> State:
        """Return a state whose memories hold the segment, at its end (see the base class)."""
        if self.linear_prediction is not None and offset % self.linear_prediction.frame_length == 0:
            state = state | self.linear_prediction.close_cache(state)
        if self.coarse is not None:
            state = self.coarse.close_cache(state, offset)
        if offset < self.segment_length:
            return state
        state = state | caches_to_queues(state, "front.", offset) | caches_to_queues(state, "short.", offset)
        for layer in self.layers:
            state |= layer.close_cache(state)
        return without_caches(self._next_segment(state))

    def _before_layers(
        self, tokens: Tensor, state: State
    ) -> tuple[Tensor, Tensor | None, Tensor | None, list[Tensor], State]:
        """Return (what the first layer reads, front's skips, predictions, coarse layers' losses, the state after)."""
        h, skips, predicted, losses = self.embedding(tokens), None, None, []
        if self.linear_prediction is not None:
            features, predicted, state = self.linear_prediction.predict(tokens, state)
            h = h + self.linear_prediction.read(features)
        if self.front is not None:
            h, skips, queues = self.front(h, state)
            state = state | queues
        if self.coarse is not None:
            h, state, losses = self.coarse(h, state)
        return h, skips, predicted, losses, state

    def _next_segment(self, state: State) -> State:
        if "segments_read" not in state:
            return state
        return state | {"segments_read": state["segments_read"] + 1}

    def _logits(self, h: Tensor, skips: Tensor | None, predicted: Tensor | None) -> Tensor:
        """Return logits; with a front by WaveNet's head, the layers' output being one more skip."""
        if self.hidden is not None and skips is not None:
            h = F.relu(self.hidden(F.relu(h + skips)))
        else:
            h = self.final_norm(h)
        if self.mixture is not None:
            return self.mixture.parameters(self.readout, h, predicted)
        if self.linear_prediction is None or predicted is None:
            return self.readout(h)
        return self.readout(h) + self.linear_prediction.logits(h, predicted)
