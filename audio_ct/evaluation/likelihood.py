"""Bits per sample of a model on recordings: every model is scored on exactly the same positions.

Each recording is read from a cold start, the codec's start token first. Its first samples, where a model has next to no
past, are scored apart, and every later sample once.
"""

import math
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from itertools import zip_longest
from pathlib import Path
from typing import Any, NamedTuple, Self

import numpy as np
import torch
from jaxtyping import Int
from torch import Tensor

from audio_ct.audio.mu_law import decode, encode
from audio_ct.errors import InputError
from audio_ct.evaluation.bootstrap import interval
from audio_ct.models.stage import State, select_lanes
from audio_ct.models.token_model import TokenModel
from audio_ct.pretrained import Pretrained
from audio_ct.recipe import Recipe
from audio_ct.tokens.store import Recording, TokenStore

GOLDEN_RATIO = (math.sqrt(5) - 1) / 2


@dataclass(frozen=True)
class Reading:
    """Sizes and number types with which recordings are read; the sizes do not change the bits beyond rounding."""

    batch_size: int
    """Recordings read side by side."""
    window_length: int
    """Tokens read at once, rounded up to whole segments."""
    precision: torch.dtype = torch.float32
    """Of autocast; float32 for none."""
    memory: torch.dtype = torch.float32
    """Of the states."""

    @classmethod
    def of(cls, recipe: Recipe, *, memory: torch.dtype = torch.float32) -> Self:
        """The reading that a recipe asks for."""
        precision = getattr(torch, recipe.training.precision)
        return cls(recipe.evaluation.batch_size, recipe.evaluation.window_length, precision, memory)


@dataclass(frozen=True)
class Selection:
    """Recordings of a split that are scored."""

    store: TokenStore
    split: str
    recordings: tuple[Recording, ...]

    def tokens(self, index: int, start: int = 0, stop: int | None = None) -> np.ndarray:
        """Tokens of a recording, whole or from sample `start` up to `stop`."""
        return self.store.tokens(self.split, self.recordings[index], start, stop)


class ScoredWindow(NamedTuple):
    """A part of a recording: the recording's index among those scored, the part's first sample, bits of each sample."""

    recording: int
    start: int
    bits: np.ndarray


@dataclass(frozen=True)
class Likelihood:
    """Total bits of each recording, in the store's order; arrays are [num_recordings]."""

    names: tuple[str, ...]
    bits: np.ndarray
    """Of the scored samples."""
    tokens: np.ndarray
    """Number of scored samples."""
    cold_bits: np.ndarray
    """Of the first samples, which are not in `bits`."""
    cold_tokens: np.ndarray
    tokens_per_second: float
    """Samples read by the wall clock, cold ones included."""
    store_digest: str
    """Of the store that the recordings are from."""

    @property
    def bits_per_sample(self) -> float:
        """Bits per scored sample over all recordings."""
        return float(self.bits.sum() / self.tokens.sum())

    @property
    def cold_start_bits_per_sample(self) -> float | None:
        """Bits per sample of the first samples, None where none were set apart."""
        return float(self.cold_bits.sum() / self.cold_tokens.sum()) if self.cold_tokens.any() else None


def choose_recordings(store: TokenStore, split: str, max_tokens: int | None) -> Selection:
    """Take a split's recordings, or whole ones spread over it until they hold `max_tokens`; in the store's order.

    They are taken by steps of the golden ratio through the split, so that any number of them is spread evenly.
    """
    recordings = store.recordings(split)
    if max_tokens is None:
        return Selection(store, split, tuple(recordings))
    turns = sorted(range(len(recordings)), key=lambda index: (index * GOLDEN_RATIO) % 1)
    held = np.cumsum(recordings.lengths[turns])
    enough = int(np.searchsorted(held, max_tokens)) + 1
    return Selection(store, split, tuple(recordings[index] for index in sorted(turns[:enough])))


def longer_than(selection: Selection, cold_start_samples: int) -> Selection:
    """Keep the recordings that have samples after their cold start.

    Raises:
        InputError: if there are none.
    """
    longer = tuple(recording for recording in selection.recordings if recording.length > cold_start_samples)
    if not longer:
        raise InputError(
            f"cold_start_samples={cold_start_samples} leaves nothing to score: no recording of split "
            f"{selection.split!r} is longer; lower it."
        )
    return replace(selection, recordings=longer)


@torch.no_grad()
def scored_windows(
    model: TokenModel,
    selection: Selection,
    reading: Reading,
    *,
    alter: Callable[[State], State] | None = None,
    cells: tuple[Tensor, Tensor] | None = None,
) -> Iterator[ScoredWindow]:
    """Read recordings from a cold start each and yield the cost of their samples, window by window.

    A lane takes the next recording as soon as its last one is done. The model is left in evaluation mode. `alter`
    changes the state that a window is predicted from; the state that is carried on stays as it was. With `cells`, see
    `coarser_cells`, the cost is that of the coarser cell that holds the token.
    """
    model.eval()
    device, recordings = next(model.parameters()).device, selection.recordings
    window = math.ceil(reading.window_length / model.segment_length) * model.segment_length
    # The longest first, so that the last lanes end at about the same time.
    waiting = iter(sorted(range(len(recordings)), key=lambda index: -recordings[index].length))

    def lane() -> Iterator[tuple[int, int, int]]:
        for index in waiting:
            length = recordings[index].length
            for start in range(0, length, window):
                yield index, start, min(start + window, length)

    num_lanes = min(reading.batch_size, len(recordings))
    initial = model.initial_state(num_lanes, device, reading.memory)
    state = initial
    for spans in zip_longest(*(lane() for _ in range(num_lanes))):
        inputs = np.zeros((num_lanes, window), dtype=np.int64)
        targets = np.full((num_lanes, window), -1, dtype=np.int64)
        reads = [(row, span) for row, span in enumerate(spans) if span is not None]
        for row, (index, start, stop) in reads:
            tokens = selection.tokens(index, max(start - 1, 0), stop).astype(np.int64)
            if start == 0:
                tokens = np.concatenate([[selection.store.start_token], tokens])
            inputs[row, : stop - start], targets[row, : stop - start] = tokens[:-1], tokens[1:]
        fresh = torch.tensor([span is not None and span[1] == 0 for span in spans])
        if fresh.any():
            state = select_lanes(fresh.to(device), initial, state)
        read = torch.from_numpy(inputs).to(device)
        with torch.autocast(device.type, reading.precision, enabled=reading.precision != torch.float32):
            output = model(read, state)
            logits = output.logits if alter is None else model(read, alter(state)).logits
        state = output.state
        bits = _bits(model, logits, torch.from_numpy(targets), cells).cpu().numpy()
        for row, (index, start, stop) in reads:
            yield ScoredWindow(index, start, bits[row, : stop - start])


def likelihood(
    model: TokenModel,
    selection: Selection,
    reading: Reading,
    *,
    cold_start_samples: int,
    cells: tuple[Tensor, Tensor] | None = None,
) -> Likelihood:
    """Score recordings, the first samples of each apart; see `scored_windows`.

    Raises:
        InputError: if no recording is longer than the cold start.
    """
    longer_than(selection, cold_start_samples)
    # Row 0 for the scored samples, row 1 for the cold ones.
    bits = np.zeros((2, len(selection.recordings)))
    counts = np.zeros_like(bits, dtype=np.int64)
    began = time.perf_counter()
    for window in scored_windows(model, selection, reading, cells=cells):
        cold = min(max(cold_start_samples - window.start, 0), len(window.bits))
        for row, part in enumerate((window.bits[cold:], window.bits[:cold])):
            bits[row, window.recording] += part.sum(dtype=np.float64)
            counts[row, window.recording] += len(part)
    seconds = time.perf_counter() - began
    names = tuple(recording.name for recording in selection.recordings)
    return Likelihood(
        names,
        bits[0],
        counts[0],
        bits[1],
        counts[1],
        tokens_per_second=float(counts.sum() / seconds),
        store_digest=selection.store.digest,
    )


def validate(recipe: Recipe, model: TokenModel, store: TokenStore) -> dict[str, float | None]:
    """Measure a model in training on the validation split, as its recipe says; metrics for the tracker."""
    selection = choose_recordings(store, "validation", recipe.evaluation.max_validation_tokens)
    cold_start_samples = recipe.evaluation.cold_start_samples
    found = likelihood(model, selection, Reading.of(recipe), cold_start_samples=cold_start_samples)
    return {
        "validation_bits_per_sample": found.bits_per_sample,
        "validation_cold_start_bits_per_sample": found.cold_start_bits_per_sample,
        "validation_tokens_per_second": found.tokens_per_second,
    }


def evaluate(
    model: Pretrained,
    *,
    split: str = "test",
    max_tokens: int | None = None,
    cold_start_samples: int = 1024,
    store: Path | str | None = None,
    memory: torch.dtype = torch.float32,
    at_bits: int | None = None,
) -> Likelihood:
    """Score a trained model on a split of its corpus.

    Args:
        model: the model.
        split: "train", "validation" or "test".
        max_tokens: whole recordings, spread over the split, until they hold so many samples; by default all.
        cold_start_samples: first samples of each recording, scored apart.
        store: the token store, where it is no longer where the recipe says, or another of the same tokens.
        memory: type of the states.
        at_bits: score the mu-law codes of so few bits that hold the tokens, so that models of finer and of coarser
            tokens can be compared; the model reads tokens as fine as ever.

    Raises:
        InputError: if the store holds other tokens than the model reads, has no such split or no finer mu-law tokens,
            or nothing is scored.

    Example:
        >>> model = audio_ct.load("runs/wavenet")
        >>> 0 < audio_ct.evaluate(model, split="test", cold_start_samples=256).bits_per_sample < 9
        True
    """
    opened, codec = model.open_store(store), model.codec
    if at_bits is not None and (codec.encoding != "mu-law" or not 1 <= at_bits <= codec.bits):
        raise InputError(
            f"at-bits={at_bits} must be from 1 to {codec.bits}, the bits of mu-law tokens; {model.label} is a model "
            f"of {codec.encoding} tokens; leave it out."
        )
    return likelihood(
        model.model,
        choose_recordings(opened, split, max_tokens),
        Reading.of(model.recipe, memory=memory),
        cold_start_samples=cold_start_samples,
        cells=None if at_bits is None else coarser_cells(codec.bits, at_bits),
    )


def summary(result: Likelihood, split: str, seed: int = 0) -> dict[str, Any]:
    """The figures that `audio-ct evaluate` prints of a likelihood; `seed` is of the bootstrap."""
    scored = result.tokens > 0
    return {
        "split": split,
        "bits_per_sample": result.bits_per_sample,
        "interval": interval(result.bits[scored], result.tokens[scored], seed=seed),
        "tokens": int(result.tokens.sum()),
        "recordings": int(scored.sum()),
        "cold_start_bits_per_sample": result.cold_start_bits_per_sample,
        "cold_start_tokens": int(result.cold_tokens.sum()),
        "evaluation_tokens_per_second": result.tokens_per_second,
    }


def coarser_cells(bits: int, at_bits: int) -> tuple[Int[Tensor, " vocabulary"], Int[Tensor, " vocabulary"]]:
    """For each mu-law token, the first and the last of the tokens that have the same code at fewer bits.

    Example: of 3 bits at 2, tokens 0 to 7 have the codes 0 1 1 1 2 2 2 3; those from 1 to 3 have first 1 and last 3.
    """
    codes = encode(decode(torch.arange(2**bits), bits), at_bits).long()
    counts = torch.bincount(codes, minlength=2**at_bits)
    ends = counts.cumsum(0)
    return (ends - counts)[codes], ends[codes] - 1


def _bits(model: TokenModel, logits: Tensor, targets: Tensor, cells: tuple[Tensor, Tensor] | None) -> Tensor:
    """-log2 of the probability of each target, or of its cell [batch, time]; 0 where a target is -1."""
    if cells is None:
        return model.head.nats(logits, targets.to(logits.device)) / math.log(2)
    first, last = (table[targets].masked_fill(targets < 0, -1).to(logits.device) for table in cells)
    return model.head.nats_between(logits, first, last) / math.log(2)
