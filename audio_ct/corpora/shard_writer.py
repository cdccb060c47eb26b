"""Recordings of token stores into the shards of a new one: whole shards as they are, others written anew."""

import hashlib
import os
import shutil
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from audio_ct.tokens.store import Recording, TokenStore, token_dtype
from audio_ct.tokens.store_builder import TokenStoreBuilder
from audio_ct.tokens.store_files import StoredFile

TOKENS_AT_ONCE = 1 << 22
# Of shards that are written anew, in tokens.
SHARD_TOKENS = 64 << 20


@dataclass
class Part:
    """Some recordings of a split of a store.

    Attributes:
        store: The store.
        split: One of its splits.
        keep: Which of the recordings.
        prefix: Stands before their names.
    """

    store: TokenStore
    split: str
    keep: npt.NDArray[np.bool_]
    prefix: str = ""

    @classmethod
    def whole(cls, store: TokenStore, split: str, prefix: str = "") -> "Part":
        """All recordings of a split."""
        return cls(store, split, np.ones(len(store.recordings(split)), dtype=np.bool_), prefix)

    def num_tokens(self) -> int:
        """The number of tokens of the recordings that are kept."""
        return int(self.store.recordings(self.split).lengths[self.keep].sum())

    def row(self, index: int) -> Recording:
        """A recording under its name in the new store."""
        recording = self.store.recordings(self.split)[index]
        return replace(recording, name=f"{self.prefix}{recording.name}")

    def blocks(self, index: int) -> Iterator[bytes]:
        """Yield the tokens of a recording as they stand in a shard."""
        length = self.store.recordings(self.split).place(index).length
        for start in range(0, length, TOKENS_AT_ONCE):
            tokens = self.store.tokens(self.split, index, start, min(start + TOKENS_AT_ONCE, length))
            yield tokens.astype(token_dtype(self.store.codec)).tobytes()


def write_parts(builder: TokenStoreBuilder, parts: Mapping[str, list[Part]]) -> None:
    """Write the parts of every split of a new store, in order. Every shard that is read is verified first.

    Raises:
        DamagedError: If a shard is not what was written.
    """
    for split, its_parts in parts.items():
        writer = _ShardWriter(builder, split)
        for part in its_parts:
            shards = part.store.recordings(part.split).shards
            for number, shard in enumerate(part.store.shards(part.split)):
                first, last = np.searchsorted(shards, [number, number + 1])
                kept = [int(index) for index in np.flatnonzero(part.keep[first:last]) + first]
                if not kept:
                    continue
                part.store.files.verify(shard)
                if len(kept) == last - first:
                    writer.add_shard(part, shard, kept)
                else:
                    for index in kept:
                        writer.add_recording(part, index)
        writer.end_shard()


class _ShardWriter:
    """Adds recordings to a split of a builder; those of shards that are cut are gathered in shards of their own."""

    def __init__(self, builder: TokenStoreBuilder, split: str) -> None:
        self._builder, self._split = builder, split
        self._cut = builder.work_folder / "cut.bin"
        self._begin()

    def _begin(self) -> None:
        self._rows: list[Recording] = []
        self._num_tokens = 0
        self._hash = hashlib.sha256()

    def add_shard(self, part: Part, shard: StoredFile, indices: list[int]) -> None:
        """Take a whole shard over: a hard link where it can be had, which takes no space, or else a copy."""
        self.end_shard()
        target = self._builder.work_folder / "whole.bin"
        with part.store.files.open(shard) as source:
            try:
                os.link(part.store.files.path(shard), target)
            # Another file system, or another's file.
            except OSError:
                with target.open("wb") as copy:
                    shutil.copyfileobj(source, copy)
        self._builder.add_shard_file(self._split, target, shard.sha256, [part.row(index) for index in indices])

    def add_recording(self, part: Part, index: int) -> None:
        """Write a recording behind the last one."""
        row = part.row(index)
        if self._rows and self._num_tokens + row.length > SHARD_TOKENS:
            self.end_shard()
        with self._cut.open("ab") as file:
            for block in part.blocks(index):
                file.write(block)
                self._hash.update(block)
        self._rows.append(replace(row, offset=self._num_tokens))
        self._num_tokens += row.length

    def end_shard(self) -> None:
        """Hand over what has been gathered."""
        if self._rows:
            self._builder.add_shard_file(self._split, self._cut, self._hash.hexdigest(), self._rows)
        self._begin()
