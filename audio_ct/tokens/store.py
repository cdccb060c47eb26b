"""The token store: a folder of raw token shards, opened by memory map, whose every byte is covered by a hash.

A store holds `corpus.json` (format, settings, shards with counts and SHA-256), `corpus.json.sha256`, and per split
`recordings-<split>.jsonl` and shards `<split>-00000.bin` (one byte a token up to 8 bits, two little-endian above).
What a token stands for is the store's codec. In a store of bytes a recording is a stretch of a file.
`TokenStoreBuilder` writes stores.
"""

import hashlib
import os
from functools import lru_cache
from pathlib import Path
from typing import Annotated, Any, Self

import numpy as np
import numpy.typing as npt
import pydantic
import pydantic_core

from audio_ct.audio.mu_law import MAXIMUM_BITS
from audio_ct.errors import DamagedError, InputError
from audio_ct.storage import is_remote
from audio_ct.tokens.codec import Codec, Encoding, make_codec
from audio_ct.tokens.recordings import Place, Recording, Recordings, cover
from audio_ct.tokens.store_files import CACHE_GIB, REMEDY, LocalFiles, StoredFile, StoreFiles

FORMAT = "audio-ct token store"
FORMAT_VERSION = 1
# Each map holds a file descriptor, of which a process may have no more than 1,024 on many machines.
MAX_MAPS = 128

StoredTokens = npt.NDArray[np.uint8] | npt.NDArray[np.uint16]


_Sha256 = Annotated[str, pydantic.Field(pattern=r"^[0-9a-f]{64}$")]
# No slash and no leading dot: a manifest cannot name anything outside its own folder.
_ShardName = Annotated[str, pydantic.Field(pattern=r"^[a-z0-9][a-z0-9_-]*\.bin$")]
_FileName = Annotated[str, pydantic.Field(pattern=r"^[a-z0-9][a-z0-9_.-]*$")]
_SplitName = Annotated[str, pydantic.Field(pattern=r"^[a-z][a-z0-9_]*$")]


class ShardEntry(pydantic.BaseModel):
    """A shard in the manifest."""

    file: _ShardName
    # Bounded, so that sums of places fit into 64 bits.
    num_tokens: int = pydantic.Field(gt=0, lt=1 << 60)
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
    files: dict[_FileName, _Sha256] = {}

    def make_codec(self) -> Codec:
        return make_codec(self.encoding, sample_rate_hz=self.sample_rate_hz, bits=self.bits)

    @pydantic.model_validator(mode="after")
    def _encoding_fits(self) -> Self:
        self.make_codec()
        return self


def printable(value: Any) -> str:
    """A value of a manifest in a line: names and texts of a corpus may hold anything, line breaks too."""
    return str(value) if str(value).isprintable() else repr(value)


class TokenStore:
    """A store opened for reading; any number of readers may share one.

    Attributes:
        address: Its folder, or its address in object storage.
        name: The last part of it.
        files: Its files.
        corpus: The manifest as it stands in corpus.json.
        digest: SHA-256 of the manifest, which covers every other byte.
        codec: What its tokens stand for.
        splits: Their names.
    """

    def __init__(self, files: StoreFiles, corpus: dict[str, Any], digest: str) -> None:
        """Keep a checked manifest; use `TokenStore.open`."""
        checked = _Corpus.model_validate(corpus, strict=True)
        self.files = files
        self.address, self.name = files.address, files.name
        self.corpus = corpus
        self.digest = digest
        self.codec = checked.make_codec()
        self.splits = tuple(checked.splits)
        self._others = checked.files
        bytes_per_token = token_dtype(self.codec).itemsize
        self._shards = {
            split: tuple(StoredFile(each.file, each.num_tokens * bytes_per_token, each.sha256) for each in entry.shards)
            for split, entry in checked.splits.items()
        }
        self._recordings = {split: self._read_recordings(split, entry) for split, entry in checked.splits.items()}
        self._map = lru_cache(maxsize=MAX_MAPS)(self._open_map)

    @property
    def vocabulary_size(self) -> int:
        """Number of different tokens."""
        return self.codec.vocabulary_size

    @property
    def warnings(self) -> list[str]:
        """What the preparation warned of, a printable line each."""
        warnings = self.corpus.get("warnings")
        return [printable(each) for each in warnings] if isinstance(warnings, list) else []

    @property
    def start_token(self) -> int:
        """The token that stands before the first one of a recording."""
        return self.codec.start_token

    @classmethod
    def open(cls, address: str | os.PathLike[str], *, cache_gib: float = CACHE_GIB) -> Self:
        """Open a store after checking its manifest, its tables and its shards' sizes.

        Args:
            address: The store's folder, or an address that fsspec reads, such as s3://bucket/store. Shards from there
                are fetched when they are read, and kept; see `audio_ct.tokens.shard_cache`.
            cache_gib: The most that is kept of stores from elsewhere, in GiB.

        Raises:
            MissingError: If there is no store.
            DamagedError: If the format is newer or another, the manifest is not what was written, or a shard is
                missing, of the wrong size, or not a regular file.
            InputError: If the address cannot be reached.
        """
        files = _files_at(address, cache_gib)
        content = files.read_manifest()
        manifest = f"{files.address}/corpus.json"
        digest = hashlib.sha256(content).hexdigest()
        try:
            corpus = pydantic_core.from_json(content)
        except ValueError as error:
            raise DamagedError(f"{manifest!r} is not JSON; {REMEDY}.") from error
        if not isinstance(corpus, dict) or corpus.get("format") != FORMAT:
            raise DamagedError(f"{manifest!r}: format must be {FORMAT!r}; name a token store.")
        if corpus.get("format_version") != FORMAT_VERSION:
            raise DamagedError(
                f"{files.address!r}: format_version={corpus.get('format_version')!r}, but this version of audio-ct "
                f"reads {FORMAT_VERSION}; use the version that wrote it or {REMEDY}."
            )
        if files.read("corpus.json.sha256").strip() != digest.encode():
            raise DamagedError(f"{manifest!r} is not what was written; {REMEDY}.")
        try:
            store = cls(files, corpus, digest)
        except pydantic.ValidationError as error:
            where = ".".join(map(str, error.errors()[0]["loc"])) or "encoding"
            rule = error.errors()[0]["msg"].rstrip(".")
            raise DamagedError(f"{manifest!r}: {where}: {rule}; {REMEDY}.") from error
        files.check_sizes(shard for split in store.splits for shard in store.shards(split))
        return store

    def recordings(self, split: str) -> Recordings:
        """The recordings of a split in reading order, shard after shard.

        Raises:
            InputError: If there is no such split.
        """
        if split not in self._recordings:
            raise InputError(f"split={split!r} is not in {self.address!r}; it has {', '.join(self.splits)}.")
        return self._recordings[split]

    def shards(self, split: str) -> tuple[StoredFile, ...]:
        """The shards of a split, in order."""
        return self._shards[split]

    def num_tokens(self, split: str) -> int:
        """The number of tokens in a split.

        Raises:
            InputError: If there is no such split.
        """
        return int(self.recordings(split).lengths.sum())

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
            InputError: If the split or the span is not there, or the store is elsewhere and cannot be reached.
            DamagedError: If the shard was shortened since the store was opened, or a token is none of the codec's.
        """
        recordings = self.recordings(split)
        place: Place | Recording = recording if isinstance(recording, Recording) else recordings.place(recording)
        stop = place.length if stop is None else stop
        if not 0 <= start <= stop <= place.length:
            name = (recording if isinstance(recording, Recording) else recordings[recording]).name
            raise InputError(f"start={start}, stop={stop} must lie in order within {name!r}'s {place.length} tokens.")
        shard = self._shards[split][place.shard]
        span = self._map(shard)[place.offset + start : place.offset + stop]
        self._refuse_other_tokens(span, shard)
        return span.astype(np.uint8) if self.codec.bits <= 8 else span.astype(np.uint16)

    def fetch_ahead(self, split: str, recordings: npt.NDArray[Any]) -> None:
        """Begin to fetch the shards of recordings that will be read soon, if the store is elsewhere; do not wait."""
        shards = dict.fromkeys(self._recordings[split].shards[recordings].tolist())
        self.files.fetch_ahead(self._shards[split][shard] for shard in shards)

    def verify(self) -> None:
        """Compare every file with its hash, and tokens with the codec; a store that is elsewhere is fetched for it.

        Raises:
            DamagedError: Naming the first one that is not what was written, or holds tokens that the codec has not.
        """
        for split in self.splits:
            for shard in self._shards[split]:
                self.files.verify(shard)
                self._refuse_other_tokens(self._map(shard), shard)
        for name, sha256 in self._others.items():
            self._read_whole(name, sha256)

    def _open_map(self, shard: StoredFile) -> np.memmap[Any, np.dtype[Any]]:
        with self.files.open(shard) as file:
            return np.memmap(file, dtype=token_dtype(self.codec), mode="r")

    def _refuse_other_tokens(self, tokens: npt.NDArray[Any], shard: StoredFile) -> None:
        """Raise DamagedError for tokens beyond the vocabulary, where their type has room for such."""
        is_full = self.vocabulary_size == 1 << 8 * tokens.itemsize
        if not is_full and len(tokens) and (largest := int(tokens.max())) >= self.vocabulary_size:
            raise DamagedError(
                f"{f'{self.address}/{shard.name}'!r} holds the token {largest}, bits={self.codec.bits} go up to "
                f"{self.vocabulary_size - 1}; {REMEDY}."
            )

    def _read_whole(self, name: str, sha256: str) -> bytes:
        content = self.files.read(name)
        if hashlib.sha256(content).hexdigest() != sha256:
            raise DamagedError(f"{f'{self.address}/{name}'!r} is not what was written; {REMEDY}.")
        return content

    def _read_recordings(self, split: str, entry: SplitEntry) -> Recordings:
        name = f"recordings-{split}.jsonl"
        content = self._read_whole(name, entry.recordings_sha256)
        try:
            recordings = Recordings.from_jsonl(content, entry.num_recordings)
        except ValueError as error:
            raise DamagedError(f"{f'{self.address}/{name}'!r} holds no table of recordings; {REMEDY}.") from error
        counts = [shard.num_tokens for shard in entry.shards]
        if sum(counts) != entry.num_tokens or not cover(recordings, counts):
            raise DamagedError(f"{f'{self.address}/{name}'!r} does not cover its shards; {REMEDY}.")
        return recordings


def _files_at(address: str | os.PathLike[str], cache_gib: float) -> StoreFiles:
    if not is_remote(address):
        return LocalFiles(Path(address))
    # Most stores are here, and do not need it.
    from audio_ct.tokens.shard_cache import RemoteFiles

    return RemoteFiles(os.fspath(address), cache_gib)


def token_dtype(codec: Codec) -> np.dtype[Any]:
    """The type of a token in a shard."""
    return np.dtype("u1" if codec.bits <= 8 else "<u2")
