"""Frames: a stage at a lower rate in front of the samples.

Every `frame_length` samples are one entry of the Compressive Transformer, whose output, made wide again, is added to
the samples of the *next* frame. A layer is paid for once a frame, so its memories span seconds where they spanned a
tenth.

    samples   | 0 1 2 | 3 4 5 | 6 ...
    inner     |   a   |   b   |
    added     |       | a a a | b ...      each sample of a frame through its own part of the matrix

Source: tiers at lower rates are SampleRNN's (Mehri et al. 2017, 1612.07837), learned upsampling included; layers with
memories in a tier's place are this project's.
"""

import torch
from einops import rearrange
from jaxtyping import Float, Int
from torch import Tensor, nn

from audio_ct.models.stage import Stage, StageOutput, State


class Frames(Stage):
    """Frames of samples through another stage, and back to the samples of the next frame.

    Its state is {"inner": of the inner stage, "last": [batch, 1, d_model], the inner stage's last output}.

    Args:
        inner: the stage at the rate of frames; it steps by segments.
        channels: of a sample.
        d_model: of a frame.
        frame_length: samples of a frame.
    """

    steps_by_segments = True

    def __init__(self, inner: Stage, *, channels: int, d_model: int, frame_length: int) -> None:
        super().__init__()
        self.inner = inner
        self.frame_length = frame_length
        self.d_model = d_model
        self.segment_length, self.period = frame_length * inner.segment_length, frame_length
        self.down = nn.Sequential(nn.Linear(frame_length * channels, d_model), nn.GELU(), nn.Linear(d_model, d_model))
        self.norm = nn.LayerNorm(d_model)
        self.up = nn.Linear(d_model, frame_length * channels)

    @property
    def recompute_activations(self) -> bool:
        """The inner stage's."""
        return self.inner.recompute_activations

    @recompute_activations.setter
    def recompute_activations(self, recompute: bool) -> None:
        self.inner.recompute_activations = recompute

    def initial_state(self, batch_size: int, device: torch.device | str, dtype: torch.dtype) -> State:
        """Empty memories, and nothing heard."""
        last = torch.zeros(batch_size, 1, self.d_model, device=device, dtype=dtype)
        return {"inner": self.inner.initial_state(batch_size, device, dtype), "last": last}

    def forward(self, h: Float[Tensor, "batch time channels"], state: State) -> StageOutput:
        """Read whole segments; see the base class."""
        frames = self.down(rearrange(h, "b (f s) c -> b f (s c)", s=self.frame_length))
        output = self.inner(frames, state["inner"])
        before = torch.cat([state["last"].to(output.h.dtype), output.h[:, :-1]], dim=1)
        h = h + rearrange(self.up(self.norm(before)), "b f (s c) -> b (f s) c", s=self.frame_length)
        new_state = {"inner": output.state, "last": output.h[:, -1:].detach().to(state["last"].dtype)}
        return StageOutput(h, h, new_state, output.auxiliary_losses)

    def open_cache(self, state: State, num_samples: int) -> State:
        """Caches of a segment: the inner stage's, what is added to the running frame, and slots for its samples."""
        added = self._added(state["last"])
        return {
            "inner": self.inner.open_cache(state["inner"], num_samples // self.frame_length),
            "last": state["last"].clone(),
            "added": added,
            "frame": torch.zeros_like(added),
        }

    def read(
        self, h: Float[Tensor, "batch 1 channels"], caches: State, slot: Int[Tensor, " 1"]
    ) -> tuple[Float[Tensor, "batch 1 channels"], Float[Tensor, "batch 1 channels"]]:
        """Read one sample; see the base class."""
        place = slot % self.frame_length
        caches["frame"].index_copy_(1, place, h.to(caches["frame"].dtype))
        h = h + caches["added"].index_select(1, place).to(h.dtype)
        return h, h

    def advance(self, caches: State, offset: int) -> None:
        """Read the frame that is full after `offset` samples of the stretch."""
        entry = self.down(caches["frame"].to(self.norm.weight.dtype).flatten(1))[:, None]
        slot = torch.full((1,), offset // self.frame_length - 1, device=entry.device)
        caches["last"].copy_(self.inner.read(entry, caches["inner"], slot)[0])
        caches["added"].copy_(self._added(caches["last"]))

    def close_cache(self, state: State, caches: State) -> State:
        """The state after a whole segment, whose last frame is read here."""
        self.advance(caches, self.segment_length)
        return {"inner": self.inner.close_cache(state["inner"], caches["inner"]), "last": caches["last"].clone()}

    def auxiliary_parameters(self) -> list[nn.Parameter]:
        """Those of the inner stage."""
        return self.inner.auxiliary_parameters()

    def _added(self, last: Tensor) -> Float[Tensor, "batch frame channels"]:
        added = self.up(self.norm(last.to(self.norm.weight.dtype)))
        return rearrange(added, "b 1 (s c) -> b s c", s=self.frame_length).to(last.dtype)
