"""The token store: a folder of raw token shards, opened by memory map, whose every byte is covered by a hash.

A store holds `corpus.json` (format, settings, shards with counts and SHA-256), `corpus.json.sha256`, and per split
`recordings-<split>.jsonl` and shards `<split>-00000.bin` (one byte a token up to 8 bits, two little-endian above).
What a token stands for is the store's codec. In a store of bytes a recording is a stretch of a file.
`TokenStoreBuilder` writes stores.
"""

import hashlib
import os
from collections.abc import Sequence
from dataclasses import dataclass
from io import BufferedReader
from pathlib import Path
from typing import Annotated, Any, Self

import numpy as np
import numpy.typing as npt
import pydantic
import pydantic_core

from audio_ct.audio.mu_law import MAXIMUM_BITS
from audio_ct.durable import open_regular, sha256_of
from audio_ct.errors import DamagedError, InputError, MissingError
from audio_ct.tokens.codec import Codec, Encoding, make_codec

FORMAT = "audio-ct token store"
FORMAT_VERSION = 1
REMEDY = "prepare the store again"

StoredTokens = npt.NDArray[np.uint8] | npt.NDArray[np.uint16]


@dataclass(frozen=True)
class Recording:
    """A recording's place in its split's shards; offset and length are in tokens."""

    name: str
    speaker: str
    source: str
    text: str | None
    shard: int
    offset: int
    length: int


_Sha256 = Annotated[str, pydantic.Field(pattern=r"^[0-9a-f]{64}$")]
# No slash and no leading dot: a manifest cannot name anything outside its own folder.
_FileName = Annotated[str, pydantic.Field(pattern=r"^[a-z0-9][a-z0-9_-]*\.bin$")]
_SplitName = Annotated[str, pydantic.Field(pattern=r"^[a-z][a-z0-9_]*$")]


class ShardEntry(pydantic.BaseModel):
    """A shard in the manifest."""

    file: _FileName
    num_tokens: pydantic.PositiveInt
    sha256: _Sha256


class SplitEntry(pydantic.BaseModel):
    """A split in the manifest."""

    shards: list[ShardEntry] = pydantic.Field(min_length=1)
    num_tokens: pydantic.PositiveInt
    num_recordings: pydantic.PositiveInt
    recordings_sha256: _Sha256


class _Corpus(pydantic.BaseModel):
    # Absent where it is mu-law: stores from before there was another kind keep their digests.
    encoding: Encoding = "mu-law"
    sample_rate_hz: pydantic.PositiveInt | None
    bits: int = pydantic.Field(ge=1, le=MAXIMUM_BITS)
    splits: dict[_SplitName, SplitEntry] = pydantic.Field(min_length=1)

    def make_codec(self) -> Codec:
        return make_codec(self.encoding, sample_rate_hz=self.sample_rate_hz, bits=self.bits)

    @pydantic.model_validator(mode="after")
    def _encoding_fits(self) -> Self:
        self.make_codec()
        return self


_RECORDING = pydantic.TypeAdapter(Recording)


class TokenStore:
    """A store opened for reading; any number of readers may share one.

    Attributes:
        path: Its folder.
        corpus: The manifest as it stands in corpus.json.
        digest: SHA-256 of the manifest, which covers every other byte.
        codec: What its tokens stand for.
        splits: Their names.
    """

    def __init__(self, path: Path, corpus: dict[str, Any], digest: str) -> None:
        """Keep a checked manifest; use `TokenStore.open`."""
        checked = _Corpus.model_validate(corpus, strict=True)
        self.path = path
        self.corpus = corpus
        self.digest = digest
        self.codec = checked.make_codec()
        self.splits = tuple(checked.splits)
        self._entries = checked.splits
        self._maps: dict[str, np.memmap[Any, np.dtype[Any]]] = {}
        self._recordings = {split: self._read_recordings(split) for split in self.splits}

    @property
    def vocabulary_size(self) -> int:
        """Number of different tokens."""
        return self.codec.vocabulary_size

    @property
    def start_token(self) -> int:
        """The token that stands before the first one of a recording."""
        return self.codec.start_token

    @classmethod
    def open(cls, path: str | os.PathLike[str]) -> Self:
        """Open a store after checking its manifest, its tables and its shards' sizes.

        Args:
            path: The store's folder.

        Raises:
            MissingError: If there is no store.
            DamagedError: If the format is newer or another, the manifest is not what was written, or a shard is
                missing, of the wrong size, or not a regular file.
        """
        folder = Path(path)
        manifest = folder / "corpus.json"
        if not manifest.is_file():
            raise MissingError(f"{str(folder)!r} holds no corpus.json; name a token store or prepare one first.")
        content = _read(manifest)
        digest = hashlib.sha256(content).hexdigest()
        try:
            corpus = pydantic_core.from_json(content)
        except ValueError as error:
            raise DamagedError(f"{str(manifest)!r} is not JSON; {REMEDY}.") from error
        if not isinstance(corpus, dict) or corpus.get("format") != FORMAT:
            raise DamagedError(f"{str(manifest)!r}: format must be {FORMAT!r}; name a token store.")
        if corpus.get("format_version") != FORMAT_VERSION:
            raise DamagedError(
                f"{str(folder)!r}: format_version={corpus.get('format_version')!r}, but this version of audio-ct reads "
                f"{FORMAT_VERSION}; use the version that wrote it or {REMEDY}."
            )
        if _read(folder / "corpus.json.sha256").strip() != digest.encode():
            raise DamagedError(f"{str(manifest)!r} is not what was written; {REMEDY}.")
        try:
            store = cls(folder, corpus, digest)
        except pydantic.ValidationError as error:
            where = ".".join(map(str, error.errors()[0]["loc"])) or "encoding"
            rule = error.errors()[0]["msg"].rstrip(".")
            raise DamagedError(f"{str(manifest)!r}: {where}: {rule}; {REMEDY}.") from error
        for entry in store._entries.values():
            for shard in entry.shards:
                store._open_shard(shard).close()
        return store

    def recordings(self, split: str) -> tuple[Recording, ...]:
        """The recordings of a split in reading order, shard after shard.

        Raises:
            InputError: If there is no such split.
        """
        if split not in self._recordings:
            raise InputError(f"split={split!r} is not in {str(self.path)!r}; it has {', '.join(self.splits)}.")
        return self._recordings[split]

    def num_tokens(self, split: str) -> int:
        """The number of tokens in a split.

        Raises:
            InputError: If there is no such split.
        """
        return sum(recording.length for recording in self.recordings(split))

    def tokens(self, split: str, recording: Recording | int, start: int = 0, stop: int | None = None) -> StoredTokens:
        """Copy a recording's tokens from start to stop.

        Args:
            split: One of `splits`.
            recording: One of `recordings(split)` or its index.
            start: First token, counted from the recording's first.
            stop: One past the last token; None means the recording's end.

        Returns:
            Tokens [stop - start]: uint8 up to 8 bits, uint16 above.

        Raises:
            InputError: If the split or the span is not there.
            DamagedError: If the shard was shortened since the store was opened.
        """
        recordings = self.recordings(split)
        chosen = recordings[recording] if isinstance(recording, int) else recording
        stop = chosen.length if stop is None else stop
        if not 0 <= start <= stop <= chosen.length:
            raise InputError(
                f"start={start}, stop={stop} must lie in order within {chosen.name!r}'s {chosen.length} tokens."
            )
        shard = self._entries[split].shards[chosen.shard]
        if shard.file not in self._maps:
            with self._open_shard(shard) as file:
                self._maps[shard.file] = np.memmap(file, dtype=token_dtype(self.codec), mode="r")
        span = self._maps[shard.file][chosen.offset + start : chosen.offset + stop]
        return span.astype(np.uint8) if self.codec.bits <= 8 else span.astype(np.uint16)

    def verify(self) -> None:
        """Compare every shard with its hash.

        Raises:
            DamagedError: Naming the first shard that is not what was written.
        """
        for entry in self._entries.values():
            for shard in entry.shards:
                with self._open_shard(shard) as file:
                    if (found := sha256_of(file)) != shard.sha256:
                        raise DamagedError(
                            f"{str(self.path / shard.file)!r}: SHA-256 is {found[:12]}..., not the manifest's; "
                            f"{REMEDY}."
                        )

    def _open_shard(self, shard: ShardEntry) -> BufferedReader:
        file = _open(self.path / shard.file)
        size, expected = os.fstat(file.fileno()).st_size, shard.num_tokens * token_dtype(self.codec).itemsize
        if size != expected:
            file.close()
            raise DamagedError(
                f"{str(self.path / shard.file)!r} has {size} bytes, the manifest says {expected}; {REMEDY}."
            )
        return file

    def _read_recordings(self, split: str) -> tuple[Recording, ...]:
        entry = self._entries[split]
        path = self.path / f"recordings-{split}.jsonl"
        content = _read(path)
        if hashlib.sha256(content).hexdigest() != entry.recordings_sha256:
            raise DamagedError(f"{str(path)!r} is not what was written; {REMEDY}.")
        try:
            recordings = tuple(_RECORDING.validate_json(line, strict=True) for line in content.splitlines())
        except pydantic.ValidationError as error:
            raise DamagedError(f"{str(path)!r} holds no table of recordings; {REMEDY}.") from error
        counts = [shard.num_tokens for shard in entry.shards]
        if len(recordings) != entry.num_recordings or sum(counts) != entry.num_tokens or not cover(recordings, counts):
            raise DamagedError(f"{str(path)!r} does not cover its shards; {REMEDY}.")
        return recordings


def cover(recordings: Sequence[Recording], counts: Sequence[int]) -> bool:
    """Check that recordings, in order, fill shards of these token counts without gap or overlap."""
    filled = [0] * len(counts)
    shard = 0
    for recording in recordings:
        if not shard <= recording.shard < len(counts):
            return False
        shard = recording.shard
        if recording.offset != filled[shard] or recording.length < 1:
            return False
        filled[shard] += recording.length
    return filled == list(counts)


def token_dtype(codec: Codec) -> np.dtype[Any]:
    """The type of a token in a shard."""
    return np.dtype("u1" if codec.bits <= 8 else "<u2")


def _open(path: Path) -> BufferedReader:
    return open_regular(path, whole="token store", remedy=REMEDY)


def _read(path: Path) -> bytes:
    with _open(path) as file:
        return file.read()
