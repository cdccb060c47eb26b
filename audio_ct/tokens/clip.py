"""One short clip as a whole corpus, for a model to learn by heart: the first check of anything new."""

from dataclasses import replace
from pathlib import Path
from typing import Self

import numpy as np

from audio_ct.errors import InputError
from audio_ct.tokens.store import Recording, StoredTokens, TokenStore


class ClipStore(TokenStore):
    """A token store that shows a single stretch of a training recording, the same in every split."""

    @classmethod
    def open_clip(cls, path: str | Path, seconds: float) -> Self:
        """Open a store cut to the loudest stretch of its first training recording that is long enough.

        Loudest by the mean distance of mu-law codes from silence: the beginnings of recordings are pauses, which are
        all alike.

        Args:
            path: The store's folder.
            seconds: Length of the clip.

        Raises:
            InputError: If every training recording is shorter, or the store holds bytes.
        """
        store = cls.open(path)
        rate_hz = store.codec.sample_rate_hz
        if rate_hz is None:
            raise InputError(
                f"corpus.clip_seconds={seconds}: {str(store.path)!r} holds bytes, which have no seconds; leave it out."
            )
        length = round(seconds * rate_hz)
        recording = next((each for each in store.recordings("train") if each.length >= length > 0), None)
        if recording is None:
            raise InputError(
                f"corpus.clip_seconds={seconds} must be above 0 and at most the longest training recording of "
                f"{str(store.path)!r}; lower it."
            )
        loudness = np.abs(store.tokens("train", recording).astype(np.int64) - store.start_token)
        total = np.concatenate([[0], np.cumsum(loudness)])
        start = int(np.argmax(total[length:] - total[:-length]))
        clip = replace(recording, offset=recording.offset + start, length=length)
        store._recordings = dict.fromkeys(store.splits, (clip,))
        store.digest = f"{store.digest}-clip-{length}"
        return store

    def tokens(self, split: str, recording: Recording | int, start: int = 0, stop: int | None = None) -> StoredTokens:
        """Copy the clip's tokens from start to stop; every split's are the training recording's."""
        return super().tokens("train", recording, start, stop)


def open_corpus(path: str | Path, clip_seconds: float | None) -> TokenStore:
    """Open a store, or a clip of it where a length is given."""
    return TokenStore.open(path) if clip_seconds is None else ClipStore.open_clip(path, clip_seconds)
