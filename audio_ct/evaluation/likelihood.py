"""Bits per sample of a model on recordings: every model is scored on exactly the same positions.

Each recording is read from a cold start, the code of silence first. Its first samples, where a model has next to no
past, are scored apart, and every later sample once.
"""

import math
import time
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from jaxtyping import Int
from torch import Tensor

from audio_ct.audio.mu_law import decode, encode
from audio_ct.errors import InputError
from audio_ct.models.interface import State, TokenModel, select_lanes
from audio_ct.tokens.store import Recording, TokenStore

GOLDEN_RATIO = (math.sqrt(5) - 1) / 2


@dataclass(frozen=True)
class Likelihood:
    """Total bits of each recording, one entry a recording in the store's order.

    Attributes:
        names: of the recordings.
        bits: of the scored samples.
        tokens: how many samples were scored.
        cold_bits: of the first samples, which are not in `bits`.
        cold_tokens: how many those are.
        tokens_per_second: samples read by the wall clock, cold ones included.
    """

    names: tuple[str, ...]
    bits: np.ndarray
    tokens: np.ndarray
    cold_bits: np.ndarray
    cold_tokens: np.ndarray
    tokens_per_second: float

    @property
    def bits_per_sample(self) -> float:
        """Bits per scored sample over all recordings."""
        return float(self.bits.sum() / self.tokens.sum())

    @property
    def cold_start_bits_per_sample(self) -> float | None:
        """Bits per sample of the first samples, None where none were set apart."""
        return float(self.cold_bits.sum() / self.cold_tokens.sum()) if self.cold_tokens.any() else None


def choose_recordings(store: TokenStore, split: str, max_tokens: int | None) -> tuple[Recording, ...]:
    """Return a split's recordings, or whole ones spread over it until they hold `max_tokens`; in the store's order.

    They are taken by steps of the golden ratio through the split, so that any number of them is spread evenly.
    """
    recordings = store.recordings(split)
    if max_tokens is None:
        return recordings
    turns = sorted(range(len(recordings)), key=lambda index: (index * GOLDEN_RATIO) % 1)
    held = np.cumsum([recordings[index].length for index in turns])
    enough = int(np.searchsorted(held, max_tokens)) + 1
    return tuple(recordings[index] for index in sorted(turns[:enough]))


@dataclass(frozen=True)
class ScoredWindow:
    """A part of a recording and what its samples cost.

    Attributes:
        recording: its index among those that are scored.
        start: the part's first sample in the recording.
        bits: of each sample [samples], float32.
    """

    recording: int
    start: int
    bits: np.ndarray


@torch.no_grad()
def scored_windows(
    model: TokenModel,
    store: TokenStore,
    split: str,
    recordings: tuple[Recording, ...],
    *,
    start_token: int,
    batch_size: int,
    window_length: int,
    device: torch.device,
    precision: torch.dtype,
    memory: torch.dtype = torch.float32,
    alter: Callable[[State], State] | None = None,
    cells: tuple[Tensor, Tensor] | None = None,
) -> Iterator[ScoredWindow]:
    """Read recordings from a cold start each and yield what their samples cost, window by window.

    A batch row takes the next recording as soon as its last one is done. Neither batch_size nor window_length changes
    the bits beyond rounding.

    Args:
        model: any model; left in evaluation mode.
        store: the token store.
        split: which of its splits.
        recordings: which of the split's recordings.
        start_token: stands before the first token of each recording.
        batch_size: recordings read side by side.
        window_length: tokens read at once, rounded up to whole segments.
        device: where the model is.
        precision: of autocast; float32 for none.
        memory: type of the states.
        alter: what is done to the state that a window is predicted from; what is carried on stays as it was.
        cells: score the coarser cell that holds each token instead of the token, see `coarser_cells`.
    """
    model.eval()
    window = math.ceil(window_length / model.segment_length) * model.segment_length
    num_lanes = min(batch_size, len(recordings))
    # The longest first, so that the last rows end at about the same time.
    waiting = deque(sorted(range(len(recordings)), key=lambda index: -recordings[index].length))
    reading: list[tuple[int, int] | None] = [(waiting.popleft(), 0) for _ in range(num_lanes)]
    initial = model.initial_state(num_lanes, device, memory)
    state = initial
    while any(reading):
        inputs = np.zeros((num_lanes, window), dtype=np.int64)
        targets = np.full((num_lanes, window), -1, dtype=np.int64)
        fresh = torch.zeros(num_lanes, dtype=torch.bool)
        for lane, place in enumerate(reading):
            if place is None:
                continue
            index, start = place
            fresh[lane] = start == 0
            recording = recordings[index]
            stop = min(start + window, recording.length)
            tokens = store.tokens(split, recording, max(start - 1, 0), stop).astype(np.int64)
            if start == 0:
                tokens = np.concatenate([[start_token], tokens])
            inputs[lane, : stop - start], targets[lane, : stop - start] = tokens[:-1], tokens[1:]
        if fresh.any():
            state = select_lanes(fresh.to(device), initial, state)
        with torch.autocast(device.type, precision, enabled=precision != torch.float32):
            output = model(torch.from_numpy(inputs).to(device), state)
            if alter is not None:
                output = replace(model(torch.from_numpy(inputs).to(device), alter(state)), state=output.state)
        state = output.state
        window_bits = _bits(model, output.logits, torch.from_numpy(targets), cells).cpu().numpy()
        for lane, place in enumerate(reading):
            if place is None:
                continue
            index, start = place
            stop = min(start + window, recordings[index].length)
            yield ScoredWindow(index, start, window_bits[lane, : stop - start])
            if stop < recordings[index].length:
                reading[lane] = (index, stop)
            else:
                reading[lane] = (waiting.popleft(), 0) if waiting else None


def likelihood(
    model: TokenModel,
    store: TokenStore,
    split: str,
    recordings: tuple[Recording, ...],
    *,
    cold_start_samples: int,
    **reading: Any,
) -> Likelihood:
    """Score recordings of a split under a model.

    Args:
        model: any model; left in evaluation mode.
        store: the token store.
        split: which of its splits.
        recordings: which of the split's recordings.
        cold_start_samples: first samples of each recording that are scored apart.
        reading: how they are read, see `scored_windows`.

    Raises:
        InputError: if no recording is longer than the cold start.
    """
    if not any(recording.length > cold_start_samples for recording in recordings):
        raise InputError(
            f"evaluation.cold_start_samples={cold_start_samples} leaves nothing to score: no recording of split "
            f"{split!r} is longer; lower it."
        )
    bits = np.zeros((2, len(recordings)))
    counts = np.zeros((2, len(recordings)), dtype=np.int64)
    began = time.perf_counter()
    for window in scored_windows(model, store, split, recordings, **reading):
        cold = min(max(cold_start_samples - window.start, 0), len(window.bits))
        for row, part in enumerate((window.bits[cold:], window.bits[:cold])):
            bits[row, window.recording] += part.sum(dtype=np.float64)
            counts[row, window.recording] += len(part)
    seconds = time.perf_counter() - began
    return Likelihood(
        names=tuple(recording.name for recording in recordings),
        bits=bits[0],
        tokens=counts[0],
        cold_bits=bits[1],
        cold_tokens=counts[1],
        tokens_per_second=float(counts.sum() / seconds),
    )


def coarser_cells(bits: int, at_bits: int) -> tuple[Int[Tensor, " vocabulary"], Int[Tensor, " vocabulary"]]:
    """Return the first and the last of the tokens that have the same code at fewer bits, for each mu-law token.

    Example: of 3 bits at 2, tokens 0 to 7 have the codes 0 1 1 1 2 2 2 3; those from 1 to 3 have first 1 and last 3.
    """
    codes = encode(decode(torch.arange(2**bits), bits), at_bits).long()
    counts = torch.bincount(codes, minlength=2**at_bits)
    ends = counts.cumsum(0)
    return (ends - counts)[codes], ends[codes] - 1


def _bits(model: TokenModel, logits: Tensor, targets: Tensor, cells: tuple[Tensor, Tensor] | None) -> Tensor:
    """Return -log2 of the probability of each target, or of its cell [batch, time]; 0 where a target is -1."""
    if cells is None:
        return model.nats(logits, targets.to(logits.device)) / math.log(2)
    first, last = (table[targets].masked_fill(targets < 0, -1).to(logits.device) for table in cells)
    return model.nats_between(logits, first, last) / math.log(2)
