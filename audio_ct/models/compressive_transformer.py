"""The Compressive Transformer's layers as a stage; with an empty second memory they are Transformer-XL's.

Each layer attends over [compressed memory | memory | segment]. When the segment is complete, its attention inputs are
pushed into memory, what leaves memory is compressed by the layer's own function, and the result is pushed into
compressed memory.

Source: Rae et al. 2019, algorithms 1 and 2; docs/notation.md lists where paper and published code differ and what is
chosen.
"""

from collections.abc import Callable, Iterable, Sequence

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from audio_ct.models.attention import RelativeAttention
from audio_ct.models.compression import Compressor
from audio_ct.models.memory import MemoryShape, push
from audio_ct.models.positions import ContextPositions, SlotPositions
from audio_ct.models.settings import CompressiveTransformerSettings, TransformerXLSettings
from audio_ct.models.stage import Stage, StageOutput, State

StackSettings = CompressiveTransformerSettings | TransformerXLSettings


class CompressiveLayer(nn.Module):
    """One layer, with its memories and its own compression function.

    Its state is {"memory": [batch, memory_length, d_model], "compressed_memory": [batch, compressed_length, d_model]}
    and, where compression goes by use, "usage": [batch, memory_length].

    Args:
        settings: of the stage.
        positions: of the layer's context, which all layers share; they say how long the memories are.
    """

    def __init__(self, settings: StackSettings, positions: ContextPositions) -> None:
        super().__init__()
        d_model, shape = settings.d_model, positions.shape
        self.shape = shape
        self.d_model = d_model
        self.is_pre_norm = settings.norm == "pre"
        self.positions = positions
        self.attention = RelativeAttention(settings, positions)
        self.attention_norm = nn.LayerNorm(d_model)
        self.expand_contract = nn.Sequential(
            nn.Linear(d_model, settings.d_ff), nn.GELU(), nn.Linear(settings.d_ff, d_model)
        )
        self.feed_forward_norm = nn.LayerNorm(d_model)
        self.compressor: Compressor | None = None
        if shape.compressed_length:
            self.compressor = Compressor(settings.compression, d_model=d_model, rate=shape.compression_rate)
        self.counts_usage = self.compressor is not None and self.compressor.counts_usage

    def initial_state(self, batch_size: int, device: torch.device | str, dtype: torch.dtype) -> State:
        """Empty memories."""
        sizes: dict[str, tuple[int, ...]] = {
            "memory": (self.shape.memory_length, self.d_model),
            "compressed_memory": (self.shape.compressed_length, self.d_model),
        }
        if self.counts_usage:
            sizes["usage"] = (self.shape.memory_length,)
        return {name: torch.zeros(batch_size, *size, device=device, dtype=dtype) for name, size in sizes.items()}

    def forward(
        self, h: Float[Tensor, "batch time d_model"], state: State
    ) -> tuple[Float[Tensor, "batch time d_model"], State, Tensor | None]:
        """Read a segment: algorithm 1 for one layer.

        Returns:
            The layer's output, the state after the segment, and the loss of its compression in training.
        """
        x, q, k, v = self.queries_keys_values(h, state)
        attended = self.attention.attend(q, k, v)
        received = self.attention.received(q, k) if self.counts_usage else None
        new_state, old_mem, new_cmem = self.remember(x, state, received)
        loss = None
        if self.training and self.compressor is not None:
            loss = self.compressor.loss(self.attention, x, old_mem, new_cmem)
        return self._feed_forward(h, attended), new_state, loss

    def queries_keys_values(
        self, h: Float[Tensor, "batch time d_model"], state: State
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Attention's inputs, and queries, keys and values over [compressed memory | memory | segment]."""
        x = self.attention_norm(h) if self.is_pre_norm else h
        context = torch.cat([self._past(state).to(x.dtype), x], dim=1)
        k, v = self.attention.keys_values(context.to(self._dtype))
        return x, self.attention.queries(x, self.positions.query_rotation), k, v

    def remember(
        self, x: Float[Tensor, "batch segment d_model"], state: State, received: Float[Tensor, "batch keys"] | None
    ) -> tuple[State, Float[Tensor, "batch segment d_model"], Float[Tensor, "batch compressed d_model"]]:
        """Push a segment into memory, compress what leaves it, and push that into compressed memory.

        Args:
            x: the segment's attention inputs.
            state: before the segment.
            received: attention that each key received in the segment, where compression goes by use.

        Returns:
            The state after the segment, what left memory, and its compression.
        """
        new_state: State = {}
        memory, compressed_memory = state["memory"], state["compressed_memory"]
        usage = None
        if received is not None:
            of_memory = received[:, self.shape.compressed_length : self.shape.num_past]
            new_state["usage"], usage = self.shape.pushed_usage(state["usage"], of_memory)
        new_state["memory"], old_mem = push(memory, x.detach().to(memory.dtype))
        new_cmem = old_mem[:, :0] if self.compressor is None else self.compressor(old_mem.to(self._dtype), usage)
        # Only the task's loss through time reaches what was compressed in an earlier segment.
        by_task = self.training and self.compressor is not None and self.compressor.settings.loss == "task"
        entries = new_cmem if by_task else new_cmem.detach()
        new_state["compressed_memory"], _ = push(compressed_memory, entries.to(memory.dtype))
        return new_state, old_mem, new_cmem

    def open_cache(self, state: State) -> State:
        """Caches of a segment: keys and values of the memories in place, then slots for samples."""
        past, segment_length = self._past(state), self.shape.segment_length
        keys, values = self.attention.open_cache(past.to(self._dtype), segment_length)
        caches = {"keys": keys.to(past.dtype), "values": values.to(past.dtype)}
        caches["inputs"] = past.new_zeros(past.shape[0], segment_length, self.d_model)
        if self.counts_usage:
            caches["received"] = past.new_zeros(past.shape[0], segment_length, self.shape.num_past + segment_length)
        return caches

    def read(
        self, h: Float[Tensor, "batch 1 d_model"], caches: State, at: SlotPositions
    ) -> Float[Tensor, "batch 1 d_model"]:
        """Read one sample, at its positions in the segment."""
        x = self.attention_norm(h) if self.is_pre_norm else h
        caches["inputs"].index_copy_(1, at.slot, x.to(caches["inputs"].dtype))
        attended, weights = self.attention.read(x, caches["keys"], caches["values"], at)
        if self.counts_usage:
            caches["received"].index_copy_(1, at.slot, weights.mean(dim=1).to(caches["received"].dtype))
        return self._feed_forward(h, attended)

    def close_cache(self, state: State, caches: State) -> State:
        """The memories after the segment in the caches."""
        received = caches["received"].mean(dim=1) if self.counts_usage else None
        return self.remember(caches["inputs"], state, received)[0]

    @property
    def _dtype(self) -> torch.dtype:
        return self.attention_norm.weight.dtype

    def _past(self, state: State) -> Float[Tensor, "batch past d_model"]:
        return torch.cat([state["compressed_memory"], state["memory"]], dim=1)

    def _feed_forward(self, h: Tensor, attended: Tensor) -> Tensor:
        if self.is_pre_norm:
            h = h + attended
            return h + self.expand_contract(self.feed_forward_norm(h))
        h = self.attention_norm(h + attended)
        return self.feed_forward_norm(h + self.expand_contract(h))


def memory_shape(settings: StackSettings) -> MemoryShape:
    """Lengths of each layer's memories."""
    return MemoryShape(
        settings.segment_length,
        settings.memory_length,
        settings.compressed_memory_length,
        settings.compression_rate if settings.compressed_memory_length else 1,
    )


def own_loss_parameters(layers: Iterable[CompressiveLayer]) -> list[nn.Parameter]:
    """The parameters of layers that learn from their compression's own loss alone."""
    compressors = [layer.compressor for layer in layers if layer.compressor is not None]
    return [parameter for each in compressors if each.has_own_loss for parameter in each.parameters()]


class CompressiveTransformer(Stage):
    """Layers with memories, read segment by segment; the last layer's output is what the head reads.

    Args:
        settings: sizes, memories and compression.
    """

    steps_by_segments = True

    def __init__(self, settings: StackSettings) -> None:
        super().__init__()
        self.segment_length = settings.segment_length
        self._compression = settings.compression
        positions = ContextPositions(memory_shape(settings), settings.compressed_positions, settings.num_sinusoids)
        self.positions = positions
        self.layers: Sequence[CompressiveLayer] = nn.ModuleList(  # type: ignore[assignment]
            CompressiveLayer(settings, positions) for _ in range(settings.num_layers)
        )

    def initial_state(self, batch_size: int, device: torch.device | str, dtype: torch.dtype) -> State:
        """Empty memories of every layer."""
        return self._of_layers(lambda layer, _: layer.initial_state(batch_size, device, dtype))

    def forward(self, h: Float[Tensor, "batch time d_model"], state: State) -> StageOutput:
        """Read whole segments; see the base class."""
        state, outputs, losses = dict(state), [], []
        for segment in h.split(self.segment_length, dim=1):
            for index, layer in enumerate(self.layers):
                segment, state[str(index)], loss = self._run(layer, segment, state[str(index)])
                losses.extend([] if loss is None else [loss])
            outputs.append(segment)
        h = torch.cat(outputs, dim=1)
        return StageOutput(h, h, state, self._auxiliary(losses, num_segments=len(outputs)))

    def open_cache(self, state: State, num_samples: int) -> State:
        """Caches of a segment; see the base class."""
        return self._of_layers(lambda layer, name: layer.open_cache(state[name]))

    def read(
        self, h: Float[Tensor, "batch 1 d_model"], caches: State, slot: Int[Tensor, " 1"]
    ) -> tuple[Float[Tensor, "batch 1 d_model"], Float[Tensor, "batch 1 d_model"]]:
        """Read one sample; see the base class."""
        at = self.positions.at(slot)
        for index, layer in enumerate(self.layers):
            h = layer.read(h, caches[str(index)], at)
        return h, h

    def close_cache(self, state: State, caches: State) -> State:
        """Memories after the segment; see the base class."""
        return self._of_layers(lambda layer, name: layer.close_cache(state[name], caches[name]))

    def auxiliary_parameters(self) -> list[nn.Parameter]:
        """Parameters of compression functions that have a loss of their own."""
        return own_loss_parameters(self.layers)

    def _auxiliary(self, losses: list[Tensor], num_segments: int) -> dict[str, Tensor]:
        """The losses by name: summed over layers as printed, or averaged over them as coded; averaged over segments."""
        if not losses:
            return {}
        num_terms = num_segments if self._compression.loss_form == "norm" else len(losses)
        return {self._compression.loss: torch.stack(losses).sum() / num_terms}

    def _of_layers(self, function: Callable[[CompressiveLayer, str], State]) -> State:
        return {str(index): function(layer, str(index)) for index, layer in enumerate(self.layers)}
