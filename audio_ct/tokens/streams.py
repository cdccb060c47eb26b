"""Lanes: contiguous streams of tokens, cut into windows, whose model state is carried from window to window.

An epoch lays all recordings of a split end to end in an order drawn from (seed, epoch), one speaker's together, and
cuts the line into as many equal lanes as the batch has rows. Which tokens a lane reads at a step is a pure function of
(seed, step, lane), so a resumed run needs no position but the step.
"""

import bisect
from collections import defaultdict
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import torch
from jaxtyping import Bool, Int
from torch import Tensor

from audio_ct.errors import InputError
from audio_ct.tokens.store import Recording, TokenStore


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
    ) -> None:
        self._store = store
        self._split = split
        self._num_lanes = num_lanes
        self._window_length = window_length
        self._seed = seed
        self._reset_every = reset_every_windows
        self._lane_length = store.num_tokens(split) // num_lanes
        self.windows_per_epoch = self._lane_length // window_length
        if self.windows_per_epoch == 0:
            raise InputError(
                f"training.batch_size={num_lanes} x training.window_length={window_length} needs at least "
                f"{num_lanes * window_length} tokens, split {split!r} of {store.path} has {store.num_tokens(split)}; "
                "lower one of them or prepare more."
            )
        self._order = lru_cache(maxsize=2)(self._order_of_epoch)

    def window(self, step: int) -> Window:
        """Read the window of every lane at a step, counted from 0 over all epochs."""
        epoch, index = divmod(step, self.windows_per_epoch)
        rows = np.stack([self._read(epoch, lane, index) for lane in range(self._num_lanes)])
        fresh = torch.tensor([self._is_fresh(step, lane) for lane in range(self._num_lanes)])
        inputs = torch.from_numpy(rows[:, :-1].astype(np.int64))
        inputs[fresh, 0] = self._store.start_token
        return Window(inputs, torch.from_numpy(rows[:, 1:].astype(np.int64)), fresh)

    def recordings_at(self, step: int) -> tuple[str, ...]:
        """The names of the recordings that the lanes read at a step, for messages."""
        epoch, index = divmod(step, self.windows_per_epoch)
        recordings, starts = self._order(epoch)
        places = [self._place(lane, index) for lane in range(self._num_lanes)]
        return tuple(recordings[bisect.bisect_right(starts, place) - 1].name for place in places)

    def _is_fresh(self, step: int, lane: int) -> bool:
        if step == 0:
            return True
        if not self._reset_every:
            return False
        stagger = lane * self._reset_every // self._num_lanes
        return (step + stagger) % self._reset_every == 0

    def _place(self, lane: int, index: int) -> int:
        return lane * self._lane_length + index * self._window_length

    def _order_of_epoch(self, epoch: int) -> tuple[list[Recording], list[int]]:
        """The epoch's recordings in order, and the place on the line where each begins."""
        random = np.random.default_rng((self._seed, epoch))
        by_speaker: dict[str, list[Recording]] = defaultdict(list)
        for recording in self._store.recordings(self._split):
            by_speaker[recording.speaker].append(recording)
        speakers = sorted(by_speaker)
        recordings = [
            by_speaker[speakers[speaker]][i]
            for speaker in random.permutation(len(speakers))
            for i in random.permutation(len(by_speaker[speakers[speaker]]))
        ]
        starts = np.concatenate([[0], np.cumsum([recording.length for recording in recordings])[:-1]])
        return recordings, starts.tolist()

    def _read(self, epoch: int, lane: int, index: int) -> np.ndarray:
        """Read the window's tokens with the one before them in front: [window_length + 1]."""
        start = self._place(lane, index) - 1
        stop = start + 1 + self._window_length
        pieces = [np.array([self._store.start_token])] if start < 0 else []
        start = max(start, 0)
        recordings, starts = self._order(epoch)
        at = bisect.bisect_right(starts, start) - 1
        while start < stop:
            recording, begin = recordings[at], starts[at]
            end = min(stop, begin + recording.length)
            pieces.append(self._store.tokens(self._split, recording, start - begin, end - begin))
            start, at = max(start, end), at + 1
        return np.concatenate(pieces)
