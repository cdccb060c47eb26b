"""The memory as a module that steps through observations with resets, usable where an LSTM's cell was.

Every lane has a clock of its own: an episode begins at the first slot of a segment, and a segment that is full is
pushed into memory. So a lane's steps of an unroll are cut into *pieces*, at the ends of segments and of episodes:

    segments of 4; a lane that has read 2 slots of one; an unroll of 7 steps; a reset at step 4

    step   0 1 | 2 3 | 4 5 6
    slot   2 3 | 0 1 | 0 1 2

The first pieces of all lanes go through the layers at once, then the second ones, wherever they stand in the unroll.
At a reset a lane's whole state becomes the initial one, so that a reset lane is a fresh lane, and no compressed entry
stands for steps of two episodes. What the running segment has read is part of the state, and attention reads it anew,
so that an unroll may end anywhere. Slots that are still empty are hidden from attention; a compressed entry is not
empty if its span holds any step.

Source: Rae et al. 2019, whose reinforcement-learning experiment has the Compressive Transformer in an LSTM's place in
an IMPALA agent. How lanes are cut into pieces, and that empty slots are hidden, is this project's.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import torch
from einops import rearrange
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from torch.nn import functional as F

from audio_ct.errors import InputError
from audio_ct.models.compressive_transformer import CompressiveLayer, StackSettings, memory_shape, own_loss_parameters
from audio_ct.models.positions import ContextPositions
from audio_ct.models.stage import State, detached, map_state, select_lanes


@dataclass(frozen=True)
class MemoryOutput:
    """The output of `CompressiveMemory` for an unroll.

    Attributes:
        outputs: [batch, time, d_model].
        state: the lanes' state after the unroll; detached from the graph.
        auxiliary_losses: scalars to be added to the loss in training, by name; empty in evaluation, and where no
            segment of the unroll pushed anything out of memory.
    """

    outputs: Tensor
    state: State
    auxiliary_losses: dict[str, Tensor] = field(default_factory=dict)


class Piece(NamedTuple):
    """A stretch of each lane's steps within one segment of one episode.

    Attributes:
        steps: of the unroll [batch, queries]; a lane's first `num_steps` count, the others only fill up.
        num_steps: steps of each lane [batch], 0 where a lane has no more of them.
        first_slot: where in its segment the lane's first step stands [batch].
        begins_episode: whether the lane is reset before the piece [batch].
    """

    steps: Tensor
    num_steps: Tensor
    first_slot: Tensor
    begins_episode: Tensor

    def completes(self, segment_length: int) -> Bool[Tensor, " batch"]:
        """Lanes whose segments are full after the piece."""
        return (self.num_steps > 0) & (self.first_slot + self.num_steps == segment_length)


def cut_unroll(
    place: Int[Tensor, " batch"], resets: Bool[Tensor, "batch time"], segment_length: int
) -> tuple[list[Piece], Int[Tensor, "batch time"]]:
    """Cut an unroll into pieces.

    A GPU is waited for once.

    Args:
        place: slots of its segment that each lane has read.
        resets: steps at which an episode begins.
        segment_length: slots of a segment.

    Returns:
        The pieces, and the place of each step among all pieces' queries side by side.

    Example: the module's, beside a lane that has read nothing and is not reset, whose steps are 0 1 2 3 | 4 5 6. The
    pieces are 4, 3 and 3 queries wide: the first lane's steps are at 0 1 | 4 5 | 7 8 9, the other's at 0 1 2 3 | 4 5 6.
    """
    num_steps = resets.shape[1]
    step = torch.arange(num_steps, device=place.device)
    last_reset = torch.where(resets, step, -1).cummax(dim=1).values
    slot = torch.where(last_reset < 0, place[:, None] + step, step - last_reset) % segment_length
    begins = (slot == 0) | (step == 0)
    number = begins.cumsum(dim=1) - 1
    # A lane has at most as many pieces as steps; those past its last have none.
    lengths = torch.zeros_like(number).scatter_add_(1, number, torch.ones_like(number))
    starts = lengths.cumsum(dim=1) - lengths
    widths = [width for width in lengths.amax(dim=0).tolist() if width]
    pieces, offsets, offset = [], [], 0
    for index, width in enumerate(widths):
        start = starts[:, index, None].clamp(max=num_steps - 1)
        steps = (start + torch.arange(width, device=place.device)).clamp(max=num_steps - 1)
        has_steps = lengths[:, index] > 0
        begins_episode = resets.gather(1, start)[:, 0] & has_steps
        pieces.append(Piece(steps, lengths[:, index], slot.gather(1, start)[:, 0], begins_episode))
        offsets.append(offset)
        offset += width
    where = torch.tensor(offsets, device=place.device)[number] + step - starts.gather(1, number)
    return pieces, where


class SteppingLayer(CompressiveLayer):
    """A layer that reads a segment in pieces, every lane at its own slot.

    Its state also holds "segment" [batch, segment_length, d_model], the inputs of the running segment.
    """

    def __init__(self, settings: StackSettings, positions: ContextPositions) -> None:
        super().__init__(settings, positions)
        self.register_buffer("begun_after", self.shape.filled_after(wholly=False), persistent=False)
        self.begun_after: Tensor

    def initial_state(self, batch_size: int, device: torch.device | str, dtype: torch.dtype) -> State:
        """Empty memories, and an empty segment."""
        segment = torch.zeros(batch_size, self.shape.segment_length, self.d_model, device=device, dtype=dtype)
        return super().initial_state(batch_size, device, dtype) | {"segment": segment}

    def read_piece(
        self,
        h: Float[Tensor, "batch queries d_model"],
        state: State,
        piece: Piece,
        segments_read: Int[Tensor, " batch"],
    ) -> tuple[Float[Tensor, "batch queries d_model"], State, Tensor | None]:
        """Read a piece; return the output, the new state, and the sum of the losses of what leaves memory."""
        x = self.attention_norm(h) if self.is_pre_norm else h
        length = self.shape.segment_length
        slot = torch.arange(length, device=h.device)
        from_first = slot - piece.first_slot[:, None]
        is_new = (from_first >= 0) & (from_first < piece.num_steps[:, None])
        segment = torch.where(
            is_new[..., None], take_steps(x, from_first.clamp(0, x.shape[1] - 1)), state["segment"].to(x.dtype)
        )
        slots = (piece.first_slot[:, None] + torch.arange(x.shape[1], device=h.device)).clamp(max=length - 1)
        attended = self._attend(x, torch.cat([self._past(state).to(x.dtype), segment], dim=1), slots, segments_read)
        new_state = state | {"segment": segment.detach().to(state["segment"].dtype)}
        loss = None
        lanes = piece.completes(length).nonzero()[:, 0]
        if len(lanes):
            remembered, old_mem, new_cmem = self.remember(
                segment[lanes], map_state(lambda tensor: tensor[lanes], state), None
            )
            new_state |= {name: state[name].index_copy(0, lanes, memory) for name, memory in remembered.items()}
            counted = self.pushes_out(segments_read)[lanes]
            if self.training and self.compressor is not None and counted.any():
                loss = self.compressor.loss(
                    self.attention, segment[lanes][counted], old_mem[counted], new_cmem[counted]
                )
                loss = None if loss is None else loss * counted.sum()
        return self._feed_forward(h, attended), new_state, loss

    def pushes_out(self, segments_read: Int[Tensor, " batch"]) -> Bool[Tensor, " batch"]:
        """Lanes in which something that was read leaves memory when the segment is full."""
        return (segments_read + 1) * self.shape.segment_length > self.shape.memory_length

    def _attend(
        self,
        x: Float[Tensor, "batch queries d_model"],
        context: Float[Tensor, "batch keys d_model"],
        slots: Int[Tensor, "batch queries"],
        segments_read: Int[Tensor, " batch"],
    ) -> Float[Tensor, "batch queries d_model"]:
        """Attend with queries in these slots over what they may see: no empty slot, no later one."""
        k, v = self.attention.keys_values(context.to(self._dtype))
        # Positions differ between lanes: to the attention all lanes' queries are those of one.
        q = self.attention.queries(x.flatten(0, 1)[None], self.positions.query_rotation[:, slots.flatten()])
        q = rearrange(q, "1 h (b q) e -> b h q e", b=len(x))
        is_begun = segments_read[:, None] >= self.begun_after
        seen_segment = torch.arange(self.shape.segment_length, device=x.device) <= slots[..., None]
        seen = torch.cat([is_begun[:, None].expand(-1, x.shape[1], -1), seen_segment], dim=-1)
        padded = F.pad(v, (0, k.shape[-1] - v.shape[-1]))
        out = F.scaled_dot_product_attention(q, k, padded, attn_mask=seen[:, None], scale=1.0)[..., : v.shape[-1]]
        return self.attention.output(rearrange(out, "b h q d -> b q (h d)"))


class CompressiveMemory(nn.Module):
    """Layers with memory and compressed memory that step through observations, an unroll of any length at a time.

    An unroll may be cut into others anywhere, also into single steps: outputs and state are the same. Gradients reach
    what was read in this unroll since a lane's segment began. Memories are constants, to which the projections of keys
    and values are applied anew, so that what to look for is learned over any distance that memory spans, however
    short the unrolls are (Rae et al. 2019, algorithm 1).

    An unroll of one step projects keys and values of all memories again; a GPU is waited for at every piece.

    Args:
        d_in: size of an observation.
        settings: the stack of layers, one head of keys and values for each query head; any compression function but
            most_used. What is about tokens (embedding, linear prediction, front, output) plays no part.

    Raises:
        InputError: if compression goes by use, or query heads share keys and values.
    """

    def __init__(self, *, d_in: int, settings: StackSettings) -> None:
        super().__init__()
        if settings.num_key_value_heads is not None:
            shared = settings.num_key_value_heads
            raise InputError(f"num_key_value_heads={shared}: heads of a memory cell share no keys; leave it out.")
        if settings.compression.counts_usage:
            raise InputError(
                "compression.function='most_used' counts attention by whole segments, which unrolls may cut; use "
                "another function."
            )
        self.shape = memory_shape(settings)
        self._compression = settings.compression
        self.observe = nn.Linear(d_in, settings.d_model)
        positions = ContextPositions(self.shape, settings.compressed_positions, settings.num_sinusoids)
        self.layers: Sequence[SteppingLayer] = nn.ModuleList(  # type: ignore[assignment]
            SteppingLayer(settings, positions) for _ in range(settings.num_layers)
        )
        self.final_norm = nn.LayerNorm(settings.d_model)

    def initial_state(
        self, batch_size: int, device: torch.device | str = "cpu", dtype: torch.dtype = torch.float32
    ) -> State:
        """The state of `batch_size` lanes at the start of an episode; see `audio_ct.models.stage`.

        "place" counts the slots of its segment that a lane has read, "segments_read" its whole segments.
        """
        counters = torch.zeros(batch_size, dtype=torch.int64, device=device)
        layers = {str(index): layer.initial_state(batch_size, device, dtype) for index, layer in enumerate(self.layers)}
        return {"place": counters, "segments_read": counters.clone(), "layers": layers}

    def auxiliary_parameters(self) -> list[nn.Parameter]:
        """Parameters that learn from auxiliary losses alone; their gradients are clipped by themselves."""
        return own_loss_parameters(self.layers)

    def forward(
        self,
        observations: Float[Tensor, "batch time d_in"],
        state: State,
        resets: Bool[Tensor, "batch time"] | None = None,
    ) -> MemoryOutput:
        """Read an unroll of every lane.

        Args:
            observations: [batch, time, d_in]; time is 1 or more.
            state: of the lanes, each at its own step; left as it was.
            resets: True where a lane's episode begins: what it reads before that step has no influence on outputs from
                there on. None for nowhere.

        Returns:
            Outputs [batch, time, d_model], the new state and auxiliary losses.
        """
        num_lanes, num_steps = observations.shape[:2]
        if resets is None:
            resets = torch.zeros(num_lanes, num_steps, dtype=torch.bool, device=observations.device)
        pieces, where = cut_unroll(state["place"], resets, self.shape.segment_length)
        h = self.observe(observations)
        segment = state["layers"]["0"]["segment"]
        initial = self.initial_state(num_lanes, segment.device, segment.dtype)
        outputs, losses, num_pushes = [], [], torch.zeros((), device=h.device)
        for piece in pieces:
            state = select_lanes(piece.begins_episode, initial, state)
            completes = piece.completes(self.shape.segment_length)
            num_pushes = num_pushes + (completes & self.layers[0].pushes_out(state["segments_read"])).sum()
            x, layers = take_steps(h, piece.steps), dict(state["layers"])
            for index, layer in enumerate(self.layers):
                x, layers[str(index)], loss = layer.read_piece(x, layers[str(index)], piece, state["segments_read"])
                losses.extend([] if loss is None else [loss])
            place = (piece.first_slot + piece.num_steps) % self.shape.segment_length
            state = {
                "place": torch.where(piece.num_steps > 0, place, state["place"]),
                "segments_read": state["segments_read"] + completes,
                "layers": layers,
            }
            outputs.append(x)
        auxiliary_losses: dict[str, Tensor] = {}
        if losses:
            num_terms = num_pushes if self._compression.loss_form == "norm" else num_pushes * len(self.layers)
            auxiliary_losses[self._compression.loss] = torch.stack(losses).sum() / num_terms
        outputs_of_steps = take_steps(self.final_norm(torch.cat(outputs, dim=1)), where)
        return MemoryOutput(outputs_of_steps, detached(state), auxiliary_losses)


def take_steps(
    x: Float[Tensor, "batch time channels"], steps: Int[Tensor, "batch taken"]
) -> Float[Tensor, "batch taken channels"]:
    """Take each lane's rows at its own steps."""
    return x.gather(1, steps[..., None].expand(-1, -1, x.shape[2]))
