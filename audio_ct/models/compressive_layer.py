"""A layer of the Compressive Transformer: attention over its memories, what it remembers, and its feed-forward block.

A layer's part of the state is named by its number: "memory.0", "compressed_memory.0", ... It reads what it needs of the
whole state and returns what it changes.

Source: Rae et al. 2019, algorithms 1 and 2.
"""

from dataclasses import dataclass
from typing import Literal, NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn import functional as F

from audio_ct.errors import InputError
from audio_ct.models.attention import (
    Kernel,
    MemoryAttention,
    RelativeAttention,
    RotaryAttention,
    attend_by_content,
    attention_weights,
)
from audio_ct.models.compression import CompressionSettings, Decoder, MostUsedCompression, difference, make_compression
from audio_ct.models.convolution import ShortConvolution
from audio_ct.models.interface import READ_AHEAD, State
from audio_ct.models.memory import MEMORY_NAMES, CompressedPositions, push
from audio_ct.models.positions import ContextPositions


@dataclass(frozen=True)
class LayerSettings:
    """What all layers of a model share; `CompressiveTransformer` explains each."""

    d_model: int
    num_heads: int
    d_ff: int
    norm: Literal["pre", "post"]
    positions: Literal["relative", "rotary"]
    num_key_value_heads: int | None
    attention_kernel: Kernel
    compression: CompressionSettings
    compressed_positions: CompressedPositions
    memory_stores: Literal["attention_input", "layer_input"]
    learned_initial_memory: bool
    short_convolution_width: int

    def __post_init__(self) -> None:
        """Refuse heads that do not fit.

        Raises:
            InputError: naming the value and the rule.
        """
        if self.d_model % self.num_heads:
            raise InputError(f"model.num_heads={self.num_heads} must divide model.d_model={self.d_model}; change one.")
        if self.num_heads % (self.num_key_value_heads or self.num_heads):
            raise InputError(
                f"model.num_key_value_heads={self.num_key_value_heads} must divide model.num_heads={self.num_heads}; "
                "try 1."
            )
        if self.positions == "rotary" and self.d_head % 2:
            raise InputError(
                f"model.positions='rotary' needs an even model.d_model / model.num_heads={self.d_head}; change one."
            )
        if self.positions == "rotary" and self.compressed_positions == "own":
            raise InputError("model.compressed_positions='own' is about relative positions; use contiguous or centre.")
        if self.memory_stores == "layer_input" and self.short_convolution_width:
            raise InputError(
                f"model.short_convolution_width={self.short_convolution_width} is lost on model.memory_stores="
                "'layer_input', which memory does not go through; use attention_input."
            )

    @property
    def d_head(self) -> int:
        """Channels of a head."""
        return self.d_model // self.num_heads

    @property
    def num_sinusoids(self) -> int:
        """Sinusoids of a position: as many as a head has channels, rounded up to pairs."""
        return self.d_head + self.d_head % 2


class LayerOutput(NamedTuple):
    """What a layer does with a segment.

    Attributes:
        h: its output [batch, time, d_model].
        changes: what it changes of the state.
        compression_loss: of its compression function, while training or looking; None where nothing is compressed.
        received: attention that each key received, averaged over heads and queries [batch, keys]; only while looking.
    """

    h: Tensor
    changes: State
    compression_loss: Tensor | None
    received: Tensor | None


def make_attention(settings: LayerSettings) -> MemoryAttention:
    """Return a layer's attention."""
    shared = {"num_key_value_heads": settings.num_key_value_heads, "kernel": settings.attention_kernel}
    if settings.positions == "rotary":
        return RotaryAttention(settings.d_model, settings.num_heads, **shared)  # type: ignore[arg-type]
    own = settings.compressed_positions == "own"
    return RelativeAttention(settings.d_model, settings.num_heads, **shared, own_compressed_positions=own)  # type: ignore[arg-type]


class CompressiveLayer(nn.Module):
    """One layer, with its memories and its own compression function.

    Args:
        number: its number or name, which names its part of the state.
        settings: what all layers share.
        positions: where its context stands, which says how long its memories are.
    """

    def __init__(self, number: int | str, settings: LayerSettings, positions: ContextPositions) -> None:
        super().__init__()
        d_model, shape, compression = settings.d_model, positions.shape, settings.compression
        self.number = number
        self.positions = positions
        self.shape = shape
        self.d_model = d_model
        self.pre_norm = settings.norm == "pre"
        self.stores_layer_input = settings.memory_stores == "layer_input"
        self.attention = make_attention(settings)
        self.attention_norm = nn.LayerNorm(d_model)
        self.expand_contract = nn.Sequential(
            nn.Linear(d_model, settings.d_ff), nn.GELU(), nn.Linear(settings.d_ff, d_model)
        )
        self.feed_forward_norm = nn.LayerNorm(d_model)
        width = settings.short_convolution_width
        self.short = ShortConvolution(d_model, width) if width else None
        self.loss, self.loss_form = compression.loss, compression.loss_form
        # One function for each compressed memory; modules of a list are registered in order.
        self.compressions = nn.ModuleList(
            make_compression(compression, d_model=d_model, rate=shape.compression_rate)
            for _ in shape.compressed_lengths
        )
        self.decoders = nn.ModuleList(
            Decoder(d_model, shape.compression_rate)
            for _ in shape.compressed_lengths
            if compression.loss == "auto_encoding"
        )
        if compression.function == "most_used" and shape.compressed_lengths:
            if len(shape.compressed_lengths) > 1:
                raise InputError(
                    "model.compression.function='most_used' compresses once; leave out twice_compressed_memory_length."
                )
            if shape.memory_length < shape.segment_length:
                raise InputError(
                    f"model.memory_length={shape.memory_length} must be at least model.segment_length="
                    f"{shape.segment_length} for compression by use, which is counted in memory; raise it."
                )
        self.counts_usage = any(isinstance(each, MostUsedCompression) for each in self.compressions)
        self.initial_memory: nn.Parameter | None = None
        if settings.learned_initial_memory and shape.num_past:
            self.initial_memory = nn.Parameter(torch.randn(shape.num_past, d_model) * 0.02)
            self.register_buffer("filled_after", shape.filled_after(), persistent=False)
            self.filled_after: Tensor

    def initial_state(self, batch_size: int, device: torch.device | str, dtype: torch.dtype) -> State:
        """Return empty memories and queues."""
        lengths = (self.shape.memory_length, *self.shape.compressed_lengths)
        sizes: dict[str, tuple[int, ...]] = {
            MEMORY_NAMES[tier]: (length, self.d_model) for tier, length in enumerate(lengths)
        }
        if self.counts_usage:
            sizes["usage"] = (self.shape.memory_length,)
        if self.short is not None:
            sizes["short"] = (self.short.queue_length, self.d_model)
        return {
            self._name(name): torch.zeros(batch_size, *size, device=device, dtype=dtype) for name, size in sizes.items()
        }

    def forward(self, h: Float[Tensor, "batch time d_model"], state: State, *, look: bool = False) -> LayerOutput:
        """Read a segment; `look` wants to know the attention that keys receive, and the compression's loss."""
        x = self.attention_norm(h) if self.pre_norm else h
        changes: State = {}
        if self.short is not None:
            queue = state[self._name("short")]
            x, new_queue = self.short(x, queue.to(x.dtype))
            changes[self._name("short")] = new_queue.detach().to(queue.dtype)
        sinusoids, rotation = self.positions.segment()
        context = torch.cat([self._as_context(self._past(state)).to(x.dtype), x], dim=1)
        k, v = self.attention.keys_values(context.to(self._dtype), sinusoids)
        q = self.attention.queries(x, rotation)
        attended = self.attention.attend(q, k, v, self.positions.causality)
        received = None
        if look or self.counts_usage:
            with torch.no_grad():
                weights = attention_weights(q, k, self.positions.causality)
                received = weights.mean(dim=(1, 2), dtype=torch.promote_types(weights.dtype, torch.float32))
        used = None
        if self.counts_usage and received is not None:
            used = received[:, self.shape.num_compressed : self.shape.num_past]
        memories, old, new = self._remember(h if self.stores_layer_input else x, used, state)
        loss = self._compression_loss(x, old, new, look=look) if self.training or look else None
        return LayerOutput(self._feed_forward(h, attended), changes | memories, loss, received if look else None)

    def open_cache(self, state: State) -> State:
        """Return caches of a segment: the memories' keys and values in place, then slots for samples."""
        past, room = self._past(state), self.shape.segment_length + READ_AHEAD
        sinusoids = self.positions.key_sinusoids.T[: self.shape.num_past]
        keys, values = self.attention.cache(self._as_context(past).to(self._dtype), sinusoids, room)
        caches = {"keys": keys.to(past.dtype), "values": values.to(past.dtype)}
        caches["inputs"] = past.new_zeros(past.shape[0], room, self.d_model)
        if self.counts_usage:
            caches["received"] = past.new_zeros(past.shape[0], room, self.shape.memory_length)
        return {self._name(f"cache.{name}"): tensor for name, tensor in caches.items()}

    def read(
        self,
        h: Float[Tensor, "batch time d_model"],
        state: State,
        taken: Int[Tensor, " time"],
        hidden: Float[Tensor, "time slots"],
    ) -> Float[Tensor, "batch time d_model"]:
        """Read a few samples that take these slots of the caches; `hidden` is `positions.hidden(taken)`."""
        x = self.attention_norm(h) if self.pre_norm else h
        if self.short is not None:
            x = self.short.read(x, state[f"cache.{self._name('short')}"], taken)
        inputs = state[self._name("cache.inputs")]
        inputs.index_copy_(1, taken, (h if self.stores_layer_input else x).to(inputs.dtype))
        received = x.new_empty(*x.shape[:2], hidden.shape[1]) if self.counts_usage else None
        attended = self.attention.read(
            x,
            state[self._name("cache.keys")],
            state[self._name("cache.values")],
            slots=self.shape.num_past + taken,
            rotation=self.positions.query_rotation.index_select(1, taken),
            sinusoids=self.positions.key_sinusoids,
            hidden=hidden,
            received=received,
        )
        if received is not None:
            cache = state[self._name("cache.received")]
            used = received[..., self.shape.num_compressed : self.shape.num_past]
            cache.index_copy_(1, taken, used.to(cache.dtype))
        return self._feed_forward(h, attended)

    def close_cache(self, state: State) -> State:
        """Return the layer's memories after a whole segment."""
        length = self.shape.segment_length
        used = state[self._name("cache.received")][:, :length].mean(dim=1) if self.counts_usage else None
        return self._remember(state[self._name("cache.inputs")][:, :length], used, state)[0]

    @property
    def _dtype(self) -> torch.dtype:
        return self.attention_norm.weight.dtype

    def _name(self, name: str) -> str:
        return f"{name}.{self.number}"

    def _past(self, state: State) -> Float[Tensor, "batch past d_model"]:
        """Return all memories in order, learned where a slot is still empty."""
        tiers = MEMORY_NAMES[: 1 + len(self.shape.compressed_lengths)]
        past = torch.cat([state[self._name(tier)] for tier in reversed(tiers)], dim=1)
        if self.initial_memory is None:
            return past
        is_empty = state["segments_read"][:, None] < self.filled_after
        return torch.where(is_empty[..., None], self.initial_memory.to(past.dtype), past)

    def _as_context(self, entries: Tensor) -> Tensor:
        """Return memory entries as attention reads them: through its norm where the layer's input is stored."""
        if not (self.pre_norm and self.stores_layer_input):
            return entries
        return self.attention_norm(entries.to(self._dtype))

    def _remember(self, stored: Tensor, used: Tensor | None, state: State) -> tuple[State, list[Tensor], list[Tensor]]:
        """Return (memories after a segment, what left memory and each compressed memory but the last, its compression).

        Args:
            stored: what memory keeps of the segment.
            used: attention that memory's entries received in the segment [batch, memory_length].
            state: before the segment.
        """
        memory = state[self._name("memory")]
        memory, leaving = push(memory, stored.detach().to(memory.dtype))
        memories, old, new = {self._name("memory"): memory}, [], []
        usage = None
        if used is not None:
            name = self._name("usage")
            usage = state[name] + used.to(state[name].dtype)
            usage, leaving_usage = push(usage[..., None], usage.new_zeros(*stored.shape[:2], 1))
            memories[name], usage = usage[..., 0], leaving_usage[..., 0]
            # Where the segment does not divide the memory, an entry leaves after one more segment than its neighbour.
            stayed = (self.shape.memory_length - 1 - torch.arange(stored.shape[1], device=stored.device)).div(
                self.shape.segment_length, rounding_mode="floor"
            )
            usage = usage / (stayed + 1)
        for tier, compression in enumerate(self.compressions, start=1):
            old.append(leaving.detach())
            new.append(compression(old[-1].to(self._dtype), usage))
            name = self._name(MEMORY_NAMES[tier])
            # Only the task's loss through time may reach what was compressed in an earlier segment.
            entries = new[-1] if self.loss == "task" and self.training else new[-1].detach()
            memories[name], leaving = push(state[name], entries.to(memory.dtype))
        return memories, old, new

    def _compression_loss(self, x: Tensor, old: list[Tensor], new: list[Tensor], *, look: bool) -> Tensor | None:
        """Return the loss that teaches the compression functions, looking that of attention reconstruction in any case.

        The segment, what is compressed and the layer's projections are constants: only the functions learn from it.
        """
        if not new or (self.loss not in ("attention_reconstruction", "auto_encoding") and not look):
            return None
        losses = []
        for tier, (entries, compressed) in enumerate(zip(old, new, strict=True)):
            if self.loss == "auto_encoding" and not look:
                decoded = self.decoders[tier](compressed)
                losses.append(difference(decoded, entries[:, : decoded.shape[1]].to(decoded.dtype), self.loss_form))
                continue
            target = attend_by_content(self.attention, x, self._constant_context(entries))
            reconstructed = attend_by_content(self.attention, x, self._constant_context(compressed))
            losses.append(difference(reconstructed, target.detach(), self.loss_form))
        return torch.stack(losses).sum()

    def _constant_context(self, entries: Tensor) -> Tensor:
        """Return `_as_context`, the norm's own parameters held constant."""
        if not (self.pre_norm and self.stores_layer_input):
            return entries
        norm = self.attention_norm
        return F.layer_norm(
            entries.to(self._dtype), norm.normalized_shape, norm.weight.detach(), norm.bias.detach(), norm.eps
        )

    def _feed_forward(self, h: Tensor, attended: Tensor) -> Tensor:
        if self.pre_norm:
            h = h + attended
            return h + self.expand_contract(self.feed_forward_norm(h))
        h = self.attention_norm(h + attended)
        return self.feed_forward_norm(h + self.expand_contract(h))
