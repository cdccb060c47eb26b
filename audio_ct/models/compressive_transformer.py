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
from audio_ct.models.attention import Causality, Kernel
from audio_ct.models.compression import attention_reconstruction_loss
from audio_ct.models.compressive_layer import CompressiveLayer
from audio_ct.models.convolution import ConvolutionalFront, caches_to_queues, queues_to_caches
from audio_ct.models.interface import READ_AHEAD, ModelOutput, State, TokenModel, compact, is_cut, slots, without_caches
from audio_ct.models.linear_prediction import LinearPrediction, LinearPredictionSettings
from audio_ct.models.memory import context_positions, push
from audio_ct.models.positions import frequencies, key_sinusoids, query_rotation


class CompressiveTransformer(TokenModel):
    """A Transformer over raw samples with a memory and a compressed memory in every layer.

    Args:
        vocabulary_size: number of token values.
        num_layers: Transformer layers.
        d_model: size of embeddings and activations.
        num_heads: attention heads; divides d_model.
        d_ff: hidden size of the feed-forward blocks.
        segment_length: samples read at once; between segments only memory is carried.
        memory_length: past activations kept in each layer.
        compressed_memory_length: compressed activations kept in each layer; 0 makes a Transformer-XL.
        compression_rate: samples that a compressed entry stands for; divides segment_length.
        compressed_positions: "contiguous" (paper) or "centre" of the span that an entry stands for.
        norm: "pre" or "post" (paper) layer norm.
        front_dilations: one gated convolution of width 2 for each, between embedding and layers; its skips and the
            layers' output together go through WaveNet's head. None in the paper.
        short_convolution_width: taps of a causal depthwise convolution on attention inputs; 0 for none (paper).
        attention_kernel: "fused", "plain" or by device "auto" (see `attention.dot_product_attention`).
        linear_prediction: backward-adaptive predictors to start from, whose frame length divides segment_length; none
            in the paper.

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
        memory_length: int,
        compressed_memory_length: int = 0,
        compression_rate: int = 1,
        compressed_positions: Literal["contiguous", "centre"] = "contiguous",
        norm: Literal["pre", "post"] = "pre",
        front_dilations: Sequence[int] = (),
        short_convolution_width: int = 0,
        attention_kernel: Kernel = "auto",
        linear_prediction: LinearPredictionSettings | None = None,
    ) -> None:
        super().__init__()
        if d_model % num_heads:
            raise InputError(f"model.num_heads={num_heads} must divide model.d_model={d_model}; change one of them.")
        if compressed_memory_length and segment_length % compression_rate:
            raise InputError(
                f"model.compression_rate={compression_rate} must divide model.segment_length={segment_length}; "
                "try 2 or 4."
            )
        if linear_prediction is not None and segment_length % linear_prediction.frame_length:
            raise InputError(
                f"model.linear_prediction.frame_length={linear_prediction.frame_length} must divide "
                f"model.segment_length={segment_length}; try {math.gcd(16, segment_length)}."
            )
        self.vocabulary_size = vocabulary_size
        self.segment_length = self.cache_length = segment_length
        self.adapt_every = segment_length if linear_prediction is None else linear_prediction.frame_length
        self.d_model = d_model
        self.memory_length = memory_length
        self.compressed_memory_length = compressed_memory_length
        self.embedding = nn.Embedding(vocabulary_size, d_model)
        self.front = ConvolutionalFront(d_model, front_dilations) if front_dilations else None
        self.layers: Sequence[CompressiveLayer] = nn.ModuleList(  # type: ignore[assignment]
            CompressiveLayer(
                d_model=d_model,
                num_heads=num_heads,
                d_ff=d_ff,
                pre_norm=norm == "pre",
                compression_rate=compression_rate if compressed_memory_length else 0,
                short_convolution_width=short_convolution_width,
                attention_kernel=attention_kernel,
            )
            for _ in range(num_layers)
        )
        self.final_norm = nn.LayerNorm(d_model) if norm == "pre" and self.front is None else nn.Identity()
        self.hidden = nn.Linear(d_model, d_model) if self.front is not None else None
        self.readout = nn.Linear(d_model, vocabulary_size)
        self.linear_prediction: LinearPrediction | None = None
        if linear_prediction is not None:
            self.linear_prediction = LinearPrediction(
                vocabulary_size, linear_prediction, input_channels=d_model, output_channels=d_model
            )
        # Positions are the same in every segment: the segment begins at 0, memories stand before it.
        angular = frequencies(self.layers[0].attention.num_sinusoids)
        segment = torch.arange(segment_length + READ_AHEAD, dtype=torch.float64)
        past = context_positions(
            compressed_memory_length,
            memory_length,
            compression_rate=compression_rate,
            compressed_positions=compressed_positions,
        )
        self.causality = Causality(segment_length, self.num_past + segment_length)
        sinusoids = key_sinusoids(torch.cat([past, segment]), angular).T.contiguous()
        self.register_buffer("key_sinusoids", sinusoids.float(), persistent=False)
        self.register_buffer("query_rotation", query_rotation(segment, angular).float(), persistent=False)
        self.key_sinusoids: Tensor
        self.query_rotation: Tensor

    @property
    def num_past(self) -> int:
        """Entries of compressed memory and memory together."""
        return self.compressed_memory_length + self.memory_length

    def initial_state(
        self, batch_size: int, device: torch.device | str = "cpu", dtype: torch.dtype = torch.float32
    ) -> State:
        """Return zero memories and queues, at the start of a segment (see the base class)."""

        def zeros(num_entries: int) -> Tensor:
            return torch.zeros(batch_size, num_entries, self.d_model, device=device, dtype=dtype)

        state = {} if self.front is None else self.front.initial_state(batch_size, device, dtype)
        if self.linear_prediction is not None:
            state |= self.linear_prediction.initial_state(batch_size, device)
        for i, layer in enumerate(self.layers):
            state[f"memory.{i}"] = zeros(self.memory_length)
            if self.compressed_memory_length:
                state[f"compressed_memory.{i}"] = zeros(self.compressed_memory_length)
            if layer.short is not None:
                state[f"short.{i}"] = zeros(layer.short.queue_length)
        return state

    def auxiliary_parameters(self) -> list[nn.Parameter]:
        """Return the compression functions' parameters (see the base class)."""
        functions = [layer.compression for layer in self.layers if layer.compression is not None]
        return [parameter for function in functions for parameter in function.parameters()]

    def forward(self, tokens: Int[Tensor, "batch time"], state: State) -> ModelOutput:
        """Read whole segments (see the base class); the state must stand at the start of one."""
        assert tokens.shape[1] % self.segment_length == 0, "forward reads whole segments; see consume()"
        assert not is_cut(state), "forward reads from the start of a segment; see consume()"
        h, skips, predicted = self.embedding(tokens), None, None
        if self.linear_prediction is not None:
            features, predicted, state = self.linear_prediction.predict(tokens, state)
            h = h + self.linear_prediction.read(features)
        if self.front is not None:
            h, skips, queues = self.front(h, state)
            state = state | queues
        outputs, losses = [], []
        for segment in h.split(self.segment_length, dim=1):
            output, state, reconstruction = self._segment(segment, state)
            outputs.append(output)
            losses.extend(reconstruction)
        auxiliary = {"attention_reconstruction": torch.stack(losses).mean()} if losses else {}
        return ModelOutput(self._logits(torch.cat(outputs, dim=1), skips, predicted), compact(state), auxiliary)

    def _segment(self, h: Tensor, state: State) -> tuple[Tensor, State, list[Tensor]]:
        new_state = dict(state)
        losses: list[Tensor] = []
        for i in range(len(self.layers)):
            h, changes, reconstruction = self._recomputed(self._layer, i, h, state)
            new_state |= changes
            losses.extend(reconstruction)
        return h, new_state, losses

    def _layer(self, i: int, h: Tensor, state: State) -> tuple[Tensor, State, list[Tensor]]:
        """Return (layer i's output for a segment, what it changes of the state, its reconstruction loss if any)."""
        layer, past = self.layers[i], self._past(i, state)
        sinusoids, rotation = self.key_sinusoids.T[:-READ_AHEAD], self.query_rotation[:, :-READ_AHEAD]
        x, queue = self._attention_input(i, h, state)
        dtype = self.embedding.weight.dtype
        k, v = layer.attention.keys_values(torch.cat([past.to(dtype), x.to(dtype)], dim=1), sinusoids)
        attended = layer.attention.attend(layer.attention.queries(x, rotation), k, v, self.causality)
        memories, old_mem, compressed = self._remember(i, x, state)
        losses = []
        if self.training and compressed is not None:
            losses.append(attention_reconstruction_loss(layer.attention, x, old_mem, compressed))
        return layer.feed_forward(h, attended), memories | queue, losses

    def open_cache(self, state: State, offset: int) -> State:
        """Return a state with caches of a segment, the memories' keys and values in place (see the base class)."""
        if offset == 0:
            room = self.segment_length + READ_AHEAD
            state = state | queues_to_caches(state, "front.", self.segment_length)
            state |= queues_to_caches(state, "short.", self.segment_length)
            for i, layer in enumerate(self.layers):
                past = self._past(i, state)
                state[f"cache.keys.{i}"], state[f"cache.values.{i}"] = (
                    each.to(past.dtype) for each in layer.attention.cache(past.to(self.embedding.weight.dtype), room)
                )
                state[f"cache.inputs.{i}"] = past.new_zeros(past.shape[0], room, self.d_model)
            lane = state["memory.0"]
            state["cache.place"] = torch.zeros(len(lane), dtype=torch.int64, device=lane.device)
        if self.linear_prediction is not None and offset % self.adapt_every == 0:
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
        rotation = self.query_rotation.index_select(1, taken)
        context_slots = self.num_past + taken
        later = torch.arange(self.key_sinusoids.shape[1], device=taken.device) > context_slots[:, None]
        hidden = torch.zeros(later.shape, device=taken.device).masked_fill(later, float("-inf"))
        for i, layer in enumerate(self.layers):
            x = layer.attention_norm(h) if layer.pre_norm else h
            if layer.short is not None:
                x = layer.short.read(x, state[f"cache.short.{i}"], taken)
            inputs = state[f"cache.inputs.{i}"]
            inputs.index_copy_(1, taken, x.to(inputs.dtype))
            attended = layer.attention.read(
                x,
                state[f"cache.keys.{i}"],
                state[f"cache.values.{i}"],
                slots=context_slots,
                rotation=rotation,
                sinusoids=self.key_sinusoids,
                hidden=hidden,
            )
            h = layer.feed_forward(h, attended)
        return self._logits(h, skips, predicted)

    def close_cache(self, state: State, offset: int) -> State:
        """Return a state whose memories hold the segment, at its end (see the base class)."""
        if self.linear_prediction is not None and offset % self.adapt_every == 0:
            state = state | self.linear_prediction.close_cache(state)
        if offset < self.segment_length:
            return state
        state = state | caches_to_queues(state, "front.", offset) | caches_to_queues(state, "short.", offset)
        for i in range(len(self.layers)):
            state |= self._remember(i, state[f"cache.inputs.{i}"][:, :offset], state)[0]
        return without_caches(state)

    def _logits(self, h: Tensor, skips: Tensor | None, predicted: Tensor | None) -> Tensor:
        """Return logits; with a front by WaveNet's head, the layers' output being one more skip."""
        if self.hidden is not None and skips is not None:
            h = F.relu(self.hidden(F.relu(h + skips)))
        else:
            h = self.final_norm(h)
        logits = self.readout(h)
        if self.linear_prediction is not None and predicted is not None:
            logits = logits + self.linear_prediction.logits(h, predicted)
        return logits

    def _attention_input(self, i: int, h: Tensor, state: State) -> tuple[Tensor, State]:
        """Return (what layer i's attention reads and its memory stores, its short convolution's queue if any)."""
        layer, name = self.layers[i], f"short.{i}"
        x = layer.attention_norm(h) if layer.pre_norm else h
        if layer.short is None:
            return x, {}
        x, queue = layer.short(x, state[name].to(x.dtype))
        return x, {name: queue.detach().to(state[name].dtype)}

    def _past(self, i: int, state: State) -> Tensor:
        memory = state[f"memory.{i}"]
        if not self.compressed_memory_length:
            return memory
        return torch.cat([state[f"compressed_memory.{i}"], memory], dim=1)

    def _remember(self, i: int, x: Tensor, state: State) -> tuple[State, Tensor, Tensor | None]:
        """Return (layer i's new memories after a whole segment of attention inputs x, old memory, its compression)."""
        memory = state[f"memory.{i}"]
        memory, old_mem = push(memory, x.detach().to(memory.dtype))
        memories = {f"memory.{i}": memory}
        compression = self.layers[i].compression
        if compression is None:
            return memories, old_mem, None
        compressed = compression(old_mem.to(self.embedding.weight.dtype))
        compressed_memory = state[f"compressed_memory.{i}"]
        memories[f"compressed_memory.{i}"], _ = push(compressed_memory, compressed.detach().to(memory.dtype))
        return memories, old_mem, compressed
