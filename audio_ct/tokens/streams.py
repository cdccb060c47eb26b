"""Lanes: contiguous streams of tokens, cut into windows, whose model state is carried from window to window.

An epoch lays all recordings of a split end to end in an order drawn from (seed, epoch), one speaker's together, and
cuts the line into as many equal lanes as the batch has rows. Which tokens a lane reads at a step is a pure function of
(seed, step, lane), so a resumed run needs no position but the step.
"""

from dataclasses import dataclass
from functools import lru_cache
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Bool, Int
from torch import Tensor

from audio_ct.errors import InputError
from audio_ct.tokens.store import TokenStore

# Recordings of a lane whose shards are fetched before they are read, where the store is elsewhere.
RECORDINGS_AHEAD = 4


@dataclass(frozen=True)
class Window:
    """One training window of every lane.

    Attributes:
        inputs: [lanes, window_length] int64, what the model reads.
        targets: [lanes, window_length] int64, the token that follows each input.
        fresh: [lanes], true where the lane's state must be reset before this window.
    """

    inputs: Int[Tensor, "lanes window_length"]
    targets: Int[Tensor, "lanes window_length"]
    fresh: Bool[Tensor, " lanes"]


class Streams:
    """Windows of a split for training.

    Args:
        store: The token store.
        split: One of its splits.
        num_lanes: Rows of a batch.
        window_length: Tokens of a lane in a window.
        seed: Orders the recordings, with the epoch.
        reset_every_windows: A lane's state is reset after this many windows, staggered over the lanes, so that a cold
            start, as in sampling, stays familiar to the model; 0 for never.
        own_lanes: Those that are read here, where other processes read the others; all of them by default.

    Raises:
        InputError: If the split has fewer tokens than one window of every lane.
    """

    def __init__(
        self,
        store: TokenStore,
        split: str,
        *,
        num_lanes: int,
        window_length: int,
        seed: int,
        reset_every_windows: int,
        own_lanes: range | None = None,
    ) -> None:
        self._store = store
        self._split = split
        self._num_lanes = num_lanes
        self._own_lanes = range(num_lanes) if own_lanes is None else own_lanes
        self._window_length = window_length
        self._seed = seed
        self._reset_every = reset_every_windows
        self._lane_length = store.num_tokens(split) // num_lanes
        self.windows_per_epoch = self._lane_length // window_length
        if self.windows_per_epoch == 0:
            raise InputError(
                f"training.batch_size={num_lanes} x training.window_length={window_length} needs at least "
                f"{num_lanes * window_length} tokens, split {split!r} of {store.address} has "
                f"{store.num_tokens(split)}; lower one of them or prepare more."
            )
        self._order = lru_cache(maxsize=2)(self._order_of_epoch)
        self._ahead: dict[int, tuple[int, int]] = {}

    def window(self, step: int) -> Window:
        """Read the window of every own lane at a step, counted from 0 over all epochs."""
        epoch, index = divmod(step, self.windows_per_epoch)
        rows = np.stack([self._read(epoch, lane, index) for lane in self._own_lanes])
        fresh = torch.tensor([self._is_fresh(step, lane) for lane in self._own_lanes])
        inputs = torch.from_numpy(rows[:, :-1].astype(np.int64))
        inputs[fresh, 0] = self._store.start_token
        return Window(inputs, torch.from_numpy(rows[:, 1:].astype(np.int64)), fresh)

    def recordings_at(self, step: int) -> tuple[str, ...]:
        """The names of the recordings that all lanes read at a step, for messages."""
        epoch, index = divmod(step, self.windows_per_epoch)
        order = self._order(epoch)
        recordings = self._store.recordings(self._split)
        return tuple(
            recordings[int(order.recordings[order.at(self._place(lane, index))])].name
            for lane in range(self._num_lanes)
        )

    def _is_fresh(self, step: int, lane: int) -> bool:
        if step == 0:
            return True
        if not self._reset_every:
            return False
        stagger = lane * self._reset_every // self._num_lanes
        return (step + stagger) % self._reset_every == 0

    def _place(self, lane: int, index: int) -> int:
        return lane * self._lane_length + index * self._window_length

    def _order_of_epoch(self, epoch: int) -> "_Order":
        random = np.random.default_rng((self._seed, epoch))
        recordings = self._store.recordings(self._split)
        # Every speaker's recordings together, in the table's order; speaker i's are in groups[bounds[i]:bounds[i + 1]].
        groups = np.argsort(recordings.speaker_codes, kind="stable").astype(np.int32)
        bounds = np.concatenate([[0], np.cumsum(np.bincount(recordings.speaker_codes))])
        order = np.empty_like(groups)
        filled = 0
        for speaker in random.permutation(len(recordings.speakers)):
            group = groups[bounds[speaker] : bounds[speaker + 1]]
            order[filled : filled + len(group)] = group[random.permutation(len(group))]
            filled += len(group)
        ends = np.cumsum(recordings.lengths[order])
        return _Order(order, np.concatenate([[0], ends[:-1]]))

    def _read(self, epoch: int, lane: int, index: int) -> np.ndarray:
        """Read the window's tokens with the one before them in front: [window_length + 1]."""
        start = self._place(lane, index) - 1
        stop = start + 1 + self._window_length
        pieces = [np.array([self._store.start_token])] if start < 0 else []
        start = max(start, 0)
        order, lengths = self._order(epoch), self._store.recordings(self._split).lengths
        at = order.at(start)
        while start < stop:
            recording, begin = int(order.recordings[at]), int(order.starts[at])
            end = min(stop, begin + int(lengths[recording]))
            pieces.append(self._store.tokens(self._split, recording, start - begin, end - begin))
            start, at = max(start, end), at + 1
        self._fetch_ahead(epoch, lane, at)
        return np.concatenate(pieces)

    def _fetch_ahead(self, epoch: int, lane: int, at: int) -> None:
        """Have the store fetch what a lane reads next, once for each recording that it comes to."""
        if self._ahead.get(lane) != (epoch, at):
            self._ahead[lane] = (epoch, at)
            self._store.fetch_ahead(self._split, self._order(epoch).recordings[at : at + RECORDINGS_AHEAD])


class _Order(NamedTuple):
    """An epoch's recordings in order: their indices, and the place on the line where each begins."""

    recordings: Int[np.ndarray, " recordings"]
    starts: Int[np.ndarray, " recordings"]

    def at(self, place: int) -> int:
        """Which in the order is read at a place on the line."""
        return int(np.searchsorted(self.starts, place, side="right")) - 1
