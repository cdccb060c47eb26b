"""Layers at a lower rate beside those of every sample: cheap, and they see far.

A frame of samples becomes one vector, which goes through Compressive Transformer layers with memories of their own, and
comes back to every sample of the *next* frame: what a frame holds is known when it is over. Memories are counted in
frames, so 64 of them of 16 samples span 1,024 samples.

    samples   | 0 1 2 3 | 4 5 6 7 | 8 ...
    down      |    a    |    b    |
    layers    |    A    |    B    |
    up        |         | A A A A | B ...

Source: SaShiMi (Goel et al. 2022, 2202.09729), section 4.1, pools between its layers, in a U; that the coarse layers
are Compressive Transformer layers beside the fine ones is this project's.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from einops import rearrange
from jaxtyping import Float, Int
from torch import Tensor, nn

from audio_ct.errors import InputError
from audio_ct.models.compressive_layer import CompressiveLayer, LayerSettings
from audio_ct.models.interface import READ_AHEAD, State
from audio_ct.models.memory import MemoryShape
from audio_ct.models.positions import ContextPositions


@dataclass(frozen=True)
class CoarseSettings:
    """What layers there are at the lower rate.

    Attributes:
        frame_length: samples that become one; divides the segment.
        num_layers: layers that read frames.
        memory_length: frames kept in each layer.
        compressed_memory_length: compressed frames kept in each layer; by the model's rate and function.
    """

    frame_length: int
    num_layers: int
    memory_length: int
    compressed_memory_length: int = 0


class CoarseLayers(nn.Module):
    """Frames of samples through layers of their own, and back to the samples of the next frame.

    Args:
        settings: the layers.
        layer: what they share with the model's other layers.
        segment_length: samples of a segment.
        compression_rate: of their compressed memories.

    Raises:
        InputError: if a frame does not divide the segment, or the rate leaves nothing of its frames.
    """

    def __init__(
        self, settings: CoarseSettings, layer: LayerSettings, *, segment_length: int, compression_rate: int
    ) -> None:
        super().__init__()
        if segment_length % settings.frame_length:
            raise InputError(
                f"model.coarse.frame_length={settings.frame_length} must divide model.segment_length={segment_length}; "
                "try 16."
            )
        num_frames, compressed = segment_length // settings.frame_length, settings.compressed_memory_length
        if compressed and compression_rate > num_frames:
            raise InputError(
                f"model.compression_rate={compression_rate} leaves nothing of a segment's {num_frames} frames of "
                f"model.coarse.frame_length={settings.frame_length}; set model.coarse.compressed_memory_length to 0."
            )
        if compressed and layer.compression.function == "most_used" and settings.memory_length < num_frames:
            raise InputError(
                f"model.coarse.memory_length={settings.memory_length} must be at least the segment's {num_frames} "
                "frames for compression by use, which is counted in memory; raise it."
            )
        self.frame_length = settings.frame_length
        self.segment_length = segment_length
        self.d_model = layer.d_model
        shape = MemoryShape(
            num_frames,
            settings.memory_length,
            (compressed,) if compressed else (),
            compression_rate if compressed else 1,
        )
        self.positions = ContextPositions(shape, layer.compressed_positions, layer.num_sinusoids)
        self.down = nn.Linear(settings.frame_length * layer.d_model, layer.d_model)
        # A name of their own in the state: those of the other layers are numbers.
        plain = replace(layer, short_convolution_width=0, learned_initial_memory=False)
        self.layers: Sequence[CompressiveLayer] = nn.ModuleList(  # type: ignore[assignment]
            CompressiveLayer(f"coarse_{number}", plain, self.positions) for number in range(settings.num_layers)
        )
        self.norm = nn.LayerNorm(layer.d_model)
        self.up = nn.Linear(layer.d_model, layer.d_model)

    def initial_state(self, batch_size: int, device: torch.device | str, dtype: torch.dtype) -> State:
        """Return empty memories, and nothing from the frame before."""
        state = {"coarse": torch.zeros(batch_size, self.d_model, device=device, dtype=dtype)}
        for layer in self.layers:
            state |= layer.initial_state(batch_size, device, dtype)
        return state

    def forward(
        self, h: Float[Tensor, "batch time d_model"], state: State
    ) -> tuple[Float[Tensor, "batch time d_model"], State, list[Tensor]]:
        """Return (whole segments with what the frames before say added, changes of the state, compression losses)."""
        frames = self.down(rearrange(h, "b (f s) d -> b f (s d)", s=self.frame_length))
        changes, losses, outputs = dict(state), [], []
        for segment in frames.split(self.segment_length // self.frame_length, dim=1):
            for layer in self.layers:
                segment, changed, loss, _ = layer(segment, changes)
                changes |= changed
                losses.extend([] if loss is None else [loss])
            outputs.append(segment)
        said = self.norm(torch.cat(outputs, dim=1))
        before = torch.cat([state["coarse"][:, None].to(said.dtype), said[:, :-1]], dim=1)
        changes["coarse"] = said[:, -1].detach().to(state["coarse"].dtype)
        return h + self.up(before).repeat_interleave(self.frame_length, dim=1), changes, losses

    def open_cache(self, state: State, offset: int) -> State:
        """Return caches to read the frame at this offset of a segment from, made anew where it is 0."""
        if offset == 0:
            room = self.segment_length + READ_AHEAD
            caches = {
                name: state["coarse"].new_zeros(len(state["coarse"]), room, self.d_model) for name in ("in", "out")
            }
            state = state | {f"cache.coarse.{name}": cache for name, cache in caches.items()}
            for layer in self.layers:
                state |= layer.open_cache(state)
        if offset % self.frame_length == 0:
            said = self.up(state["coarse"].to(self.up.weight.dtype))[:, None]
            end = offset + self.frame_length + READ_AHEAD
            state["cache.coarse.out"][:, offset:end] = said.to(state["coarse"].dtype)
        return state

    def read(
        self, h: Float[Tensor, "batch time d_model"], state: State, taken: Int[Tensor, " time"]
    ) -> Float[Tensor, "batch time d_model"]:
        """Return samples in these slots of the caches with what the frame before says added."""
        state["cache.coarse.in"].index_copy_(1, taken, h.to(state["cache.coarse.in"].dtype))
        return h + state["cache.coarse.out"].index_select(1, taken).to(h.dtype)

    def close_cache(self, state: State, offset: int) -> State:
        """Return the state once a frame is full, which ends at this offset of its segment; memories at the last."""
        if offset % self.frame_length:
            return state
        frame = state["cache.coarse.in"][:, offset - self.frame_length : offset].to(self.norm.weight.dtype)
        said = self.down(frame.flatten(1))[:, None]
        taken = torch.full((1,), offset // self.frame_length - 1, device=said.device)
        hidden = self.positions.hidden(taken)
        for layer in self.layers:
            said = layer.read(said, state, taken, hidden)
        state = state | {"coarse": self.norm(said)[:, 0].to(state["coarse"].dtype)}
        if offset == self.segment_length:
            for layer in self.layers:
                state |= layer.close_cache(state)
        return state
