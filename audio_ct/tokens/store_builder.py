"""Writing token stores: whole or absent, one writer at a time, on this machine or in object storage."""

import hashlib
import json
import os
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import asdict, replace
from pathlib import Path
from typing import IO, Any, Self

from audio_ct.durable import install
from audio_ct.errors import InputError
from audio_ct.locks import LOCK_FILE, clear, hold
from audio_ct.storage import LocalStorage, ObjectStorage, is_remote
from audio_ct.tokens.codec import Codec
from audio_ct.tokens.store import (
    FORMAT,
    FORMAT_VERSION,
    Recording,
    ShardEntry,
    SplitEntry,
    StoredTokens,
    TokenStore,
    cover,
    token_dtype,
)
from audio_ct.tokens.store_lock import lock_object

MANIFEST = "corpus.json"
# What is only there while the store is made.
WORK = "work"


class TokenStoreBuilder:
    """Writes a token store.

    On this machine it is written beside its place and renamed into it. In object storage, where nothing can be renamed,
    its manifest is written last: without it there is no store. A second builder of the same store is refused. Use as a
    context manager; leaving without `commit` removes everything, unless the store is resumable.

    Args:
        path: Where the store shall stand: a path, or an address such as s3://bucket/store.
        codec: What its tokens stand for.
        overwrite: Replace a token store that stands there; nothing else is ever replaced.
        resumable: Find what a former builder that was stopped left in the making, and leave it so when stopped.

    Attributes:
        storage: Of the store in the making. What is below `WORK` is removed in the end.
        metadata: Further keys of corpus.json, empty at first.
    """

    def __init__(
        self, path: str | os.PathLike[str], codec: Codec, *, overwrite: bool = False, resumable: bool = False
    ) -> None:
        self.codec = codec
        self.metadata: dict[str, Any] = {}
        self.address = os.fspath(path) if is_remote(path) else os.path.abspath(path)
        self._overwrite = overwrite
        self._resumable = resumable
        self._committed = False
        self._held = ExitStack()
        self._shards: dict[str, list[ShardEntry]] = {}
        self._tables: dict[str, _Table] = {}
        self._files: dict[str, str] = {}
        self._remote = ObjectStorage(self.address) if is_remote(path) else None
        place = Path(self.address)
        self._folder = place.with_name(f".{place.name}.partial")
        self._replaced = place.with_name(f".{place.name}.replaced")
        self.storage = self._remote or LocalStorage(self._folder)

    @property
    def work_folder(self) -> Path:
        """A folder of this machine for files in the making, on the store's file system where that is here."""
        if self._remote is None:
            folder = self._folder / WORK
            folder.mkdir(exist_ok=True)
            return folder
        return self._scratch

    def __enter__(self) -> Self:
        """Lock the store in the making, and empty it if it is not resumable.

        Raises:
            InputError: If the store exists, another process prepares it, or the place cannot be written.
        """
        with ExitStack() as held:
            scratch = held.enter_context(tempfile.TemporaryDirectory(prefix="audio-ct-store-"))
            self._scratch = Path(scratch)
            if self._remote is not None:
                held.enter_context(lock_object(self._remote, f"{WORK}/lock.json"))
            else:
                held.enter_context(hold(self._folder, name=repr(self.address), use="being prepared"))
                if self._replaced.exists() and not Path(self.address).exists():
                    self._replaced.rename(self.address)
            self._refuse_existing()
            if not self._resumable:
                self.empty()
            self._held = held.pop_all()
        return self

    def __exit__(self, *error: object) -> None:
        for table in self._tables.values():
            # What is left of a table after an error may find no room either.
            with suppress(OSError):
                table.file.close()
        try:
            if not self._committed and not self._resumable:
                self.empty()
        finally:
            self._held.close()

    def empty(self) -> None:
        """Remove all that is in the making."""
        if self._remote is None:
            clear(self._folder)
            return
        for name in self._remote.sizes():
            if name != f"{WORK}/lock.json":
                self._remote.remove(name)

    def add_shard(self, split: str, tokens: StoredTokens, recordings: Sequence[Recording]) -> None:
        """Write tokens [time] of recordings, end to end, as one more shard of a split; see `add_shard_file`.

        Raises:
            InputError: If a token is out of the vocabulary or the table does not cover the tokens.
        """
        highest = self.codec.vocabulary_size - 1
        if tokens.ndim != 1 or not len(tokens) or not 0 <= int(tokens.min()) <= int(tokens.max()) <= highest:
            raise InputError(f"shard of {split!r}: tokens must be [time], not empty, and lie in 0 to {highest}.")
        file = self.work_folder / "shard.bin"
        content = tokens.astype(token_dtype(self.codec)).tobytes()
        with self._disk_errors():
            file.write_bytes(content)
        self.add_shard_file(split, file, hashlib.sha256(content).hexdigest(), recordings)

    def add_shard_file(self, split: str, file: Path, sha256: str, recordings: Sequence[Recording]) -> None:
        """Take over a file of raw tokens as one more shard of a split.

        Args:
            split: Its name, such as "train".
            file: The file, written in `work_folder`; it is moved.
            sha256: The hash of its bytes.
            recordings: Their table; each starts where the one before ends. The builder numbers the shards.

        Raises:
            InputError: If the table does not cover the file.
        """
        num_tokens = file.stat().st_size // token_dtype(self.codec).itemsize
        name = f"{split}-{len(self._shards.get(split, [])):05d}.bin"
        self._enter_shard(split, ShardEntry(file=name, num_tokens=num_tokens, sha256=sha256), recordings)
        self.storage.put(file, name)

    def add_placed_shard(
        self, split: str, name: str, *, num_tokens: int, sha256: str, recordings: Sequence[Recording]
    ) -> None:
        """Take up a file of raw tokens that stands in `storage` already as one more shard; see `add_shard_file`.

        Args:
            split: Its split.
            name: Of the file in `storage`.
            num_tokens: That it holds.
            sha256: The hash of its bytes.
            recordings: Their table.
        """
        self._enter_shard(split, ShardEntry(file=name, num_tokens=num_tokens, sha256=sha256), recordings)

    def add_file(self, file: Path) -> None:
        """Move a file that describes the corpus, such as report.json, into the store; the manifest has its hash."""
        self._files[file.name] = hashlib.sha256(file.read_bytes()).hexdigest()
        self.storage.put(file, file.name)

    def commit(self) -> TokenStore:
        """Complete the store and open it.

        Raises:
            InputError: If there are no shards, something else has taken the place, or the disk is full.
        """
        if not self._shards:
            raise InputError(f"{self.address!r} would hold no recordings; add at least one.")
        self._refuse_existing()
        with self._disk_errors():
            manifest = self._write_tables()
            self.storage.write(f"{MANIFEST}.sha256", (hashlib.sha256(manifest).hexdigest() + "\n").encode())
            if self._remote is not None:
                kept = {f"{MANIFEST}.sha256", *self._names(), f"{WORK}/lock.json"}
                for name in self._remote.sizes():
                    if name not in kept:
                        self._remote.remove(name)
            self.storage.write(MANIFEST, manifest)
            if self._remote is None:
                self.storage.remove(WORK)
                for name in set(self.storage.sizes()) - {MANIFEST, f"{MANIFEST}.sha256", LOCK_FILE, *self._names()}:
                    self.storage.remove(name)
                install(self._folder, Path(self.address), replaced=self._replaced)
                # It has come along. Removed before, it would let another builder into the folder.
                Path(self.address, LOCK_FILE).unlink()
                LocalStorage(self._replaced.parent).remove(self._replaced.name)
        self._committed = True
        return TokenStore.open(self.address)

    def _enter_shard(self, split: str, shard: ShardEntry, recordings: Sequence[Recording]) -> None:
        if not cover([replace(recording, shard=0) for recording in recordings], [shard.num_tokens]):
            raise InputError(f"shard of {split!r}: its recordings must cover its {shard.num_tokens} tokens end to end.")
        shards = self._shards.setdefault(split, [])
        with self._disk_errors():
            if split not in self._tables:
                self._tables[split] = _Table(self.work_folder / f"recordings-{split}.jsonl")
            self._tables[split].add(replace(recording, shard=len(shards)) for recording in recordings)
        shards.append(shard)

    @contextmanager
    def _disk_errors(self) -> Iterator[None]:
        """Turn an error of the system into one line that names the store."""
        try:
            yield
        except OSError as error:
            raise InputError(
                f"{self.address!r} cannot be written: {error.strerror or error}; free some space."
            ) from error

    def _names(self) -> set[str]:
        """Names of the store's files, without those of the manifest."""
        tables = {f"recordings-{split}.jsonl" for split in self._shards}
        return {shard.file for shards in self._shards.values() for shard in shards} | tables | set(self._files)

    def _write_tables(self) -> bytes:
        """Put the tables of recordings into their places and return the manifest's content."""
        splits = {}
        for split, shards in self._shards.items():
            table = self._tables[split]
            table.file.close()
            splits[split] = SplitEntry(
                shards=shards,
                num_tokens=sum(shard.num_tokens for shard in shards),
                num_recordings=table.num_recordings,
                recordings_sha256=table.digest.hexdigest(),
            ).model_dump()
            self.storage.put(table.path, f"recordings-{split}.jsonl")
        corpus = self.metadata | {
            "format": FORMAT,
            "format_version": FORMAT_VERSION,
            "sample_rate_hz": self.codec.sample_rate_hz,
            "bits": self.codec.bits,
            "splits": splits,
        }
        if self._files:
            corpus["files"] = self._files
        if self.codec.encoding != "mu-law":
            corpus["encoding"] = self.codec.encoding
        return (json.dumps(corpus, indent=2, allow_nan=False) + "\n").encode()

    def _refuse_existing(self) -> None:
        if self._remote is not None:
            if MANIFEST in self._remote.sizes():
                raise InputError(f"{self.address!r} exists already; choose another place or remove it.")
            return
        place = Path(self.address)
        if not place.exists():
            return
        if not self._overwrite:
            raise InputError(f"{self.address!r} exists already; choose another place or ask to overwrite.")
        if not place.is_dir() or (any(place.iterdir()) and not (place / f"{MANIFEST}.sha256").is_file()):
            raise InputError(f"{self.address!r} exists and is no token store; only token stores are overwritten.")


class _Table:
    """The table of a split's recordings, written as it grows."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.file: IO[bytes] = path.open("wb")
        self.digest = hashlib.sha256()
        self.num_recordings = 0

    def add(self, recordings: Iterable[Recording]) -> None:
        """Write a line for each recording."""
        for recording in recordings:
            line = (json.dumps(asdict(recording)) + "\n").encode()
            self.file.write(line)
            self.digest.update(line)
            self.num_recordings += 1
