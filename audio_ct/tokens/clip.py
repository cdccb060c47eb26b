"""A recipe's corpus: a store, or a short clip of it for a model to learn by heart, the first check of anything new."""

import hashlib
import logging
import os
from dataclasses import replace
from pathlib import Path
from typing import Self

import numpy as np

from audio_ct.errors import AudioCTError, InputError
from audio_ct.storage import is_remote
from audio_ct.tokens.recordings import Recordings
from audio_ct.tokens.store import Recording, StoredTokens, TokenStore
from audio_ct.tokens.store_files import CACHE_GIB, LocalFiles

# Between the digest of a store and the length of a clip of it.
CLIP = "-clip-"

logger = logging.getLogger("audio_ct")


class ClipStore(TokenStore):
    """A token store that shows a single stretch of a training recording, the same in every split."""

    @classmethod
    def open_clip(cls, address: str | os.PathLike[str], seconds: float, *, cache_gib: float = CACHE_GIB) -> Self:
        """Open a store cut to the loudest stretch of its first training recording that is long enough.

        Loudest by the mean distance of mu-law codes from silence: the beginnings of recordings are pauses, which are
        all alike.

        Args:
            address: The store's folder or address; see `TokenStore.open`.
            seconds: Length of the clip.
            cache_gib: The most that is kept of a store from elsewhere.

        Raises:
            InputError: If every training recording is shorter, or the store holds bytes.
        """
        store = cls.open(address, cache_gib=cache_gib)
        rate_hz = store.codec.sample_rate_hz
        if rate_hz is None:
            raise InputError(
                f"corpus.clip_seconds={seconds}: {store.address!r} holds bytes, which have no seconds; leave it out."
            )
        length = round(seconds * rate_hz)
        recordings = store.recordings("train")
        long_enough = np.flatnonzero(recordings.lengths >= length)
        if length < 1 or not len(long_enough):
            raise InputError(
                f"corpus.clip_seconds={seconds} must be above 0 and at most the longest training recording of "
                f"{store.address!r}; lower it."
            )
        recording = recordings[int(long_enough[0])]
        loudness = np.abs(store.tokens("train", recording).astype(np.int64) - store.start_token)
        total = np.concatenate([[0], np.cumsum(loudness)])
        start = int(np.argmax(total[length:] - total[:-length]))
        clip = replace(recording, offset=recording.offset + start, length=length)
        store._recordings = dict.fromkeys(store.splits, Recordings.from_rows([clip]))
        store.digest = f"{store.digest}{CLIP}{length}"
        return store

    def tokens(self, split: str, recording: Recording | int, start: int = 0, stop: int | None = None) -> StoredTokens:
        """Copy the clip's tokens from start to stop; every split's are the training recording's."""
        return super().tokens("train", recording, start, stop)


def open_corpus(
    address: str | os.PathLike[str], clip_seconds: float | None, *, cache_gib: float = CACHE_GIB
) -> TokenStore:
    """Open a store, or a clip of it where a length is given."""
    if clip_seconds is None:
        return TokenStore.open(address, cache_gib=cache_gib)
    return ClipStore.open_clip(address, clip_seconds, cache_gib=cache_gib)


def find_again(address: str, *, digest: str, checkpoint: Path) -> str:
    """The address of the corpus that a checkpoint was trained on, seen from the current folder.

    A relative path is looked for from the current folder, then from each folder above the checkpoint, links on that way
    followed or not. Only a store of the digest is taken.

    Args:
        address: As in the checkpoint's recipe.
        digest: As in its manifest.
        checkpoint: Its folder.

    Returns:
        The first such place, or the address as it was where there is none, or where it is in object storage.
    """
    if is_remote(address):
        return address
    # Where a project's runs lie on another disk, its stores are beside the link to it.
    above = (*checkpoint.resolve().parents, *checkpoint.absolute().parents)
    for place in (Path(address), *(folder / address for folder in above)):
        if _manifest_digest(place) == digest.partition(CLIP)[0]:
            if place != Path(address):
                logger.info("corpus.store=%r: %s is taken, on which %s was trained", address, place, checkpoint)
            return str(place)
    return address


def _manifest_digest(folder: Path) -> str | None:
    """The digest of a store; None where none can be read."""
    try:
        return hashlib.sha256(LocalFiles(folder).read_manifest()).hexdigest()
    except (AudioCTError, OSError):
        return None
