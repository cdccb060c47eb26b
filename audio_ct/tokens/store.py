"""The token store: a folder of raw token shards, opened by memory map, whose every byte is covered by a hash.

A store holds `corpus.json` (format, settings, shards with counts and SHA-256), `corpus.json.sha256`, and per split
`recordings-<split>.jsonl` and shards `<split>-00000.bin` (one byte a token up to 8 bits, two little-endian above).
What a token stands for is the store's `encoding`. In a store of bytes a recording is a stretch of a file.
"""

import fcntl
import hashlib
import json
import os
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from types import TracebackType
from typing import Annotated, Any, Self

import numpy as np
import numpy.typing as npt
import pydantic
import pydantic_core

from audio_ct.durable import synchronise
from audio_ct.errors import DamagedError, InputError, MissingError
from audio_ct.tokens.encoding import Encoding, check_encoding, start_token

FORMAT = "audio-ct token store"
FORMAT_VERSION = 1
MAXIMUM_BITS = 16

Tokens = npt.NDArray[np.uint8] | npt.NDArray[np.uint16]


@dataclass(frozen=True)
class Recording:
    """One recording's place in its split's shards; offset and length are in tokens."""

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


class _Shard(pydantic.BaseModel):
    file: _FileName
    num_tokens: pydantic.PositiveInt
    sha256: _Sha256


class _Split(pydantic.BaseModel):
    shards: list[_Shard] = pydantic.Field(min_length=1)
    num_tokens: pydantic.PositiveInt
    num_recordings: pydantic.PositiveInt
    recordings_sha256: _Sha256


class _Corpus(pydantic.BaseModel):
    # Absent where it is mu-law: stores from before there was another kind keep their digests.
    encoding: Encoding = "mu-law"
    sample_rate_hz: pydantic.PositiveInt | None
    bits: int = pydantic.Field(ge=1, le=MAXIMUM_BITS)
    splits: dict[_SplitName, _Split] = pydantic.Field(min_length=1)

    @pydantic.model_validator(mode="after")
    def _encoding_fits(self) -> "_Corpus":
        check_encoding(self.encoding, sample_rate_hz=self.sample_rate_hz, bits=self.bits)
        return self


_RECORDING = pydantic.TypeAdapter(Recording)


class TokenStore:
    """A store opened for reading; any number of readers may share one."""

    def __init__(self, path: Path, corpus: dict[str, Any], digest: str) -> None:
        """Keep a checked manifest; use `TokenStore.open`."""
        self.path = path
        self.corpus = corpus
        self.digest = digest
        self._corpus = _Corpus.model_validate(corpus, strict=True)
        self.encoding = self._corpus.encoding
        self.sample_rate_hz = self._corpus.sample_rate_hz
        self.bits = self._corpus.bits
        self.start_token = start_token(self.encoding, self.bits)
        self.vocabulary_size = 2**self.bits
        self.splits = tuple(self._corpus.splits)
        self._dtype = _token_dtype(self.bits)
        self._maps: dict[tuple[str, int], np.memmap[Any, np.dtype[Any]]] = {}
        self._recordings = {split: self._read_recordings(split) for split in self.splits}

    def __reduce__(self) -> tuple[Any, ...]:
        """Pickle by path, so that a worker process maps the shards itself."""
        return TokenStore.open, (self.path,)

    @classmethod
    def open(cls, path: str | os.PathLike[str]) -> Self:
        """Return the store at a path, after checking its manifest, its tables and its shards' sizes.

        Args:
            path: The store's folder.

        Returns:
            The open store.

        Raises:
            MissingError: If there is no store.
            DamagedError: If the format is newer or another, the manifest is not what was written, or a shard is
                missing, of the wrong size, or not a regular file.
        """
        folder = Path(path)
        if not (folder / "corpus.json").is_file():
            raise MissingError(f"{str(folder)!r} holds no corpus.json; name a token store or prepare one first.")
        content = _read_regular(folder / "corpus.json")
        digest = hashlib.sha256(content).hexdigest()
        try:
            corpus = pydantic_core.from_json(content)
        except ValueError as error:
            raise DamagedError(f"{str(folder / 'corpus.json')!r} is not JSON; prepare the store again.") from error
        if not isinstance(corpus, dict) or corpus.get("format") != FORMAT:
            raise DamagedError(f"{str(folder / 'corpus.json')!r}: format must be {FORMAT!r}; name a token store.")
        if corpus.get("format_version") != FORMAT_VERSION:
            raise DamagedError(
                f"{str(folder)!r}: format_version={corpus.get('format_version')!r}, but this version of audio-ct reads "
                f"{FORMAT_VERSION}; use the version that wrote it or prepare the store again."
            )
        if _read_regular(folder / "corpus.json.sha256").strip() != digest.encode():
            raise DamagedError(f"{str(folder / 'corpus.json')!r} is not what was written; prepare the store again.")
        try:
            store = cls(folder, corpus, digest)
        except pydantic.ValidationError as error:
            where = ".".join(map(str, error.errors()[0]["loc"])) or "encoding"
            rule = error.errors()[0]["msg"].rstrip(".")
            raise DamagedError(f"{str(folder / 'corpus.json')!r}: {where}: {rule}; prepare the store again.") from error
        store.verify(full=False)
        return store

    def recordings(self, split: str) -> tuple[Recording, ...]:
        """Return a split's recordings in reading order.

        Args:
            split: One of `splits`.

        Returns:
            The recordings, shard after shard.

        Raises:
            InputError: If there is no such split.
        """
        if split not in self._recordings:
            raise InputError(f"split={split!r} is not in {str(self.path)!r}; it has {', '.join(self.splits)}.")
        return self._recordings[split]

    def num_tokens(self, split: str) -> int:
        """Return how many tokens a split holds.

        Args:
            split: One of `splits`.

        Returns:
            The count over all shards.

        Raises:
            InputError: If there is no such split.
        """
        return sum(recording.length for recording in self.recordings(split))

    def tokens(self, split: str, recording: Recording | int, start: int = 0, stop: int | None = None) -> Tokens:
        """Return a copy of a recording's tokens from start to stop.

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
        key = (split, chosen.shard)
        if key not in self._maps:
            self._check_size(split, chosen.shard)
            file = self.path / self._corpus.splits[split].shards[chosen.shard].file
            self._maps[key] = np.memmap(file, dtype=self._dtype, mode="r")
        span = self._maps[key][chosen.offset + start : chosen.offset + stop]
        return span.astype(np.uint8) if self.bits <= 8 else span.astype(np.uint16)

    def verify(self, full: bool = True) -> None:
        """Check every shard.

        Args:
            full: Compare SHA-256 hashes too; otherwise sizes only.

        Raises:
            DamagedError: Naming the first shard that is not what was written.
        """
        for split, description in self._corpus.splits.items():
            for index, shard in enumerate(description.shards):
                file = self._check_size(split, index)
                if full:
                    with file.open("rb") as handle:
                        found = hashlib.file_digest(handle, "sha256").hexdigest()
                    if found != shard.sha256:
                        raise DamagedError(
                            f"{str(file)!r}: SHA-256 is {found[:12]}..., not the manifest's; prepare again."
                        )

    def _check_size(self, split: str, index: int) -> Path:
        shard = self._corpus.splits[split].shards[index]
        file = self.path / shard.file
        expected = shard.num_tokens * self._dtype.itemsize
        if file.is_symlink() or not file.is_file():
            raise DamagedError(f"{str(file)!r} is missing or not a regular file; prepare the store again.")
        if (size := file.stat().st_size) != expected:
            raise DamagedError(
                f"{str(file)!r} has {size} bytes, the manifest says {expected}; prepare the store again."
            )
        return file

    def _read_recordings(self, split: str) -> tuple[Recording, ...]:
        description = self._corpus.splits[split]
        file = self.path / f"recordings-{split}.jsonl"
        content = _read_regular(file)
        if hashlib.sha256(content).hexdigest() != description.recordings_sha256:
            raise DamagedError(f"{str(file)!r} is not what was written; prepare the store again.")
        try:
            recordings = tuple(_RECORDING.validate_json(line, strict=True) for line in content.splitlines())
        except pydantic.ValidationError as error:
            raise DamagedError(f"{str(file)!r} holds no table of recordings; prepare the store again.") from error
        counts = [shard.num_tokens for shard in description.shards]
        if (
            len(recordings) != description.num_recordings
            or sum(counts) != description.num_tokens
            or not _covers(recordings, counts)
        ):
            raise DamagedError(f"{str(file)!r} does not cover its shards; prepare the store again.")
        return recordings


class TokenStoreBuilder:
    """Writes a store beside its final path and renames it into place: a store is whole or absent.

    The folder in the making is locked, so that a second builder of the same store is refused; a folder left by a
    process that died is taken over and emptied. Use as a context manager; leaving without `commit` removes everything.
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        *,
        sample_rate_hz: int | None,
        bits: int = 8,
        encoding: Encoding = "mu-law",
        overwrite: bool = False,
        metadata: Mapping[str, Any] | None = None,
    ) -> None:
        """Describe the store.

        Args:
            path: Where it shall stand.
            sample_rate_hz: Tokens per second; None for bytes.
            bits: Bits per token, 1 to 16.
            encoding: What a token stands for.
            overwrite: Replace a token store that stands there; nothing else is ever replaced.
            metadata: Further keys of corpus.json; may be changed through `metadata` until `commit`.

        Raises:
            InputError: If sample_rate_hz or bits is out of range or not of the encoding.
        """
        check_encoding(encoding, sample_rate_hz=sample_rate_hz, bits=bits)
        if not 1 <= bits <= MAXIMUM_BITS or (sample_rate_hz is not None and sample_rate_hz < 1):
            raise InputError(f"sample_rate_hz={sample_rate_hz}, bits={bits}: the rate must be positive, bits 1 to 16.")
        self.path = Path(os.path.abspath(path))
        self.folder = self.path.with_name(f".{self.path.name}.partial")
        # A name of its own: workers outliving a killed run cannot create files in the next run's folder.
        self.work_folder = self.folder / f"work-{os.getpid()}"
        self.sample_rate_hz = sample_rate_hz
        self.bits = bits
        self.encoding = encoding
        self.metadata: dict[str, Any] = dict(metadata or {})
        self._overwrite = overwrite
        self._replaced = self.path.with_name(f".{self.path.name}.replaced")
        self._dtype = _token_dtype(bits)
        self._shards: dict[str, list[_Shard]] = {}
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
                os.rename(self._replaced, self.path)
            self._refuse_existing()
            _empty(self.folder)
            self.work_folder.mkdir()
        except BaseException:
            self._release()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Remove what was not committed and unlock."""
        self._release()

    def add_shard(self, split: str, tokens: Tokens, recordings: Sequence[Recording]) -> None:
        """Write one more shard of a split.

        Args:
            split: Its name, such as "train".
            tokens: Tokens [time] of all its recordings, end to end.
            recordings: Their table; each starts where the one before ends. The builder numbers the shards.

        Raises:
            InputError: If a token is out of the vocabulary or the table does not cover the tokens.
        """
        if tokens.ndim != 1 or not len(tokens) or not 0 <= int(tokens.min()) <= int(tokens.max()) < 2**self.bits:
            raise InputError(
                f"shard of {split!r}: tokens must be [time], not empty, and lie in 0 to {2**self.bits - 1}."
            )
        file = self.work_folder / "shard.bin"
        content = tokens.astype(self._dtype).tobytes()
        file.write_bytes(content)
        self.add_shard_file(split, file, hashlib.sha256(content).hexdigest(), recordings)

    def add_shard_file(self, split: str, file: Path, sha256: str, recordings: Sequence[Recording]) -> None:
        """Take over a file of raw tokens as one more shard of a split.

        Args:
            split: Its name, such as "train".
            file: The file, written in `work_folder`; it is moved.
            sha256: The hash of its bytes.
            recordings: As for `add_shard`.

        Raises:
            InputError: If the table does not cover the file.
        """
        shards = self._shards.setdefault(split, [])
        numbered = [replace(recording, shard=len(shards)) for recording in recordings]
        num_tokens = file.stat().st_size // self._dtype.itemsize
        if not _covers([replace(recording, shard=0) for recording in recordings], [num_tokens]):
            raise InputError(f"shard of {split!r}: its recordings must cover its {num_tokens} tokens end to end.")
        name = f"{split}-{len(shards):05d}.bin"
        os.rename(file, self.folder / name)
        shards.append(_Shard(file=name, num_tokens=num_tokens, sha256=sha256))
        self._recordings.setdefault(split, []).extend(numbered)

    def commit(self) -> TokenStore:
        """Complete the store and rename it into place.

        Returns:
            The store, open.

        Raises:
            InputError: If there are no shards, or the disk is full.
        """
        if not self._shards:
            raise InputError(f"{str(self.path)!r} would hold no recordings; add at least one.")
        try:
            self._write_manifest()
            shutil.rmtree(self.work_folder)
            for file in sorted(self.folder.iterdir()):
                synchronise(file)
            synchronise(self.folder)
            if self._overwrite and self.path.exists():
                os.rename(self.path, self._replaced)
            os.rename(self.folder, self.path)
            synchronise(self.path.parent)
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
            splits[split] = _Split(
                shards=shards,
                num_tokens=sum(shard.num_tokens for shard in shards),
                num_recordings=len(rows),
                recordings_sha256=hashlib.sha256(content).hexdigest(),
            ).model_dump()
        corpus = self.metadata | {
            "format": FORMAT,
            "format_version": FORMAT_VERSION,
            "sample_rate_hz": self.sample_rate_hz,
            "bits": self.bits,
            "splits": splits,
        }
        if self.encoding != "mu-law":
            corpus["encoding"] = self.encoding
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
        if self._lock is None:
            return
        if self.folder.exists() and os.fstat(self._lock).st_ino == self.folder.stat().st_ino:
            shutil.rmtree(self.folder, ignore_errors=True)
        os.close(self._lock)
        self._lock = None


def _covers(recordings: Sequence[Recording], counts: Sequence[int]) -> bool:
    """Return whether recordings, in order, fill shards of the given token counts without gap or overlap."""
    shard, position = 0, 0
    for recording in recordings:
        if shard < len(counts) and position == counts[shard]:
            shard, position = shard + 1, 0
        if (recording.shard, recording.offset) != (shard, position) or recording.length < 1 or shard >= len(counts):
            return False
        position += recording.length
    return shard == len(counts) - 1 and position == counts[shard]


def _token_dtype(bits: int) -> np.dtype[Any]:
    return np.dtype("u1" if bits <= 8 else "<u2")


def _read_regular(file: Path) -> bytes:
    if file.is_symlink() or not file.is_file():
        raise DamagedError(f"{str(file)!r} is missing or not a regular file; prepare the store again.")
    return file.read_bytes()


def _empty(folder: Path) -> None:
    for entry in folder.iterdir():
        if entry.is_dir() and not entry.is_symlink():
            shutil.rmtree(entry)
        else:
            entry.unlink()
