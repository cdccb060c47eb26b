"""Writing token stores: whole or absent, one writer at a time."""

import fcntl
import hashlib
import json
import os
import shutil
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, Self

from audio_ct.durable import install
from audio_ct.errors import InputError
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


class TokenStoreBuilder:
    """Writes a store beside its final path and renames it into place.

    The folder in the making is locked, so that a second builder of the same store is refused; a folder left by a
    process that died is taken over and emptied. Use as a context manager; leaving without `commit` removes everything.

    Args:
        path: Where the store shall stand.
        codec: What its tokens stand for.
        overwrite: Replace a token store that stands there; nothing else is ever replaced.

    Attributes:
        metadata: Further keys of corpus.json, empty at first.
    """

    def __init__(self, path: str | os.PathLike[str], codec: Codec, *, overwrite: bool = False) -> None:
        self.path = Path(os.path.abspath(path))
        self.folder = self.path.with_name(f".{self.path.name}.partial")
        # A name of its own: workers outliving a killed run cannot create files in the next run's folder.
        self.work_folder = self.folder / f"work-{os.getpid()}"
        self.codec = codec
        self.metadata: dict[str, Any] = {}
        self._overwrite = overwrite
        self._replaced = self.path.with_name(f".{self.path.name}.replaced")
        self._shards: dict[str, list[ShardEntry]] = {}
        self._recordings: dict[str, list[Recording]] = {}
        self._lock: int | None = None

    def __enter__(self) -> Self:
        """Lock and empty the folder in the making.

        Raises:
            InputError: If the store exists, another process prepares it, or the place cannot be written.
        """
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            lock = os.open(self.folder, os.O_RDONLY)
        except OSError as error:
            raise InputError(
                f"{str(self.path)!r} cannot be made: {error.strerror}; choose a writable place."
            ) from error
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            # The former owner may have renamed or removed the folder between our open and our lock.
            if os.fstat(lock).st_ino != self.folder.stat().st_ino:
                raise BlockingIOError
        except OSError as error:
            os.close(lock)
            raise InputError(
                f"{str(self.path)!r} is being prepared by another process; wait for it or end it."
            ) from error
        self._lock = lock
        try:
            if self._replaced.exists() and not self.path.exists():
                self._replaced.rename(self.path)
            self._refuse_existing()
            # Emptied, not removed: the lock is the folder's own.
            for entry in self.folder.iterdir():
                if entry.is_dir() and not entry.is_symlink():
                    shutil.rmtree(entry)
                else:
                    entry.unlink()
            self.work_folder.mkdir()
        except BaseException:
            self._release()
            raise
        return self

    def __exit__(self, *error: object) -> None:
        self._release()

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
        shards = self._shards.setdefault(split, [])
        num_tokens = file.stat().st_size // token_dtype(self.codec).itemsize
        if not cover([replace(recording, shard=0) for recording in recordings], [num_tokens]):
            raise InputError(f"shard of {split!r}: its recordings must cover its {num_tokens} tokens end to end.")
        numbered = [replace(recording, shard=len(shards)) for recording in recordings]
        name = f"{split}-{len(shards):05d}.bin"
        file.rename(self.folder / name)
        shards.append(ShardEntry(file=name, num_tokens=num_tokens, sha256=sha256))
        self._recordings.setdefault(split, []).extend(numbered)

    def commit(self) -> TokenStore:
        """Complete the store, rename it into place and open it.

        Raises:
            InputError: If there are no shards, something else has taken the place, or the disk is full.
        """
        if not self._shards:
            raise InputError(f"{str(self.path)!r} would hold no recordings; add at least one.")
        self._refuse_existing()
        try:
            self._write_manifest()
            shutil.rmtree(self.work_folder)
            install(self.folder, self.path, replaced=self._replaced)
            if self._replaced.exists():
                shutil.rmtree(self._replaced)
        except OSError as error:
            raise InputError(f"{str(self.path)!r} cannot be written: {error.strerror}; free some space.") from error
        self._release()
        return TokenStore.open(self.path)

    def _write_manifest(self) -> None:
        splits = {}
        for split, shards in self._shards.items():
            rows = [json.dumps(asdict(recording)) + "\n" for recording in self._recordings[split]]
            content = "".join(rows).encode()
            (self.folder / f"recordings-{split}.jsonl").write_bytes(content)
            splits[split] = SplitEntry(
                shards=shards,
                num_tokens=sum(shard.num_tokens for shard in shards),
                num_recordings=len(rows),
                recordings_sha256=hashlib.sha256(content).hexdigest(),
            ).model_dump()
        corpus = self.metadata | {
            "format": FORMAT,
            "format_version": FORMAT_VERSION,
            "sample_rate_hz": self.codec.sample_rate_hz,
            "bits": self.codec.bits,
            "splits": splits,
        }
        if self.codec.encoding != "mu-law":
            corpus["encoding"] = self.codec.encoding
        content = (json.dumps(corpus, indent=2, allow_nan=False) + "\n").encode()
        (self.folder / "corpus.json").write_bytes(content)
        (self.folder / "corpus.json.sha256").write_text(hashlib.sha256(content).hexdigest() + "\n")

    def _refuse_existing(self) -> None:
        if not self.path.exists():
            return
        if not self._overwrite:
            raise InputError(f"{str(self.path)!r} exists already; choose another place or ask to overwrite.")
        if not self.path.is_dir() or (any(self.path.iterdir()) and not (self.path / "corpus.json.sha256").is_file()):
            raise InputError(f"{str(self.path)!r} exists and is no token store; only token stores are overwritten.")

    def _release(self) -> None:
        """Remove what was not committed and unlock."""
        if self._lock is None:
            return
        if self.folder.exists() and os.fstat(self._lock).st_ino == self.folder.stat().st_ino:
            shutil.rmtree(self.folder, ignore_errors=True)
        os.close(self._lock)
        self._lock = None
