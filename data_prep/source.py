"""Where recordings come from: a folder on this machine, or an address that fsspec reads, such as s3://bucket/corpus."""

import contextlib
import os
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from audio_ct.errors import InputError, MissingError


@dataclass(frozen=True, slots=True)
class SourceFile:
    """A file of a source: its path relative to the source, and its size."""

    path: str
    num_bytes: int


@dataclass(frozen=True)
class Unlisted:
    """A path that cannot be used, and why: a short reason to count by, and a line."""

    path: str
    reason: str
    detail: str


@dataclass(frozen=True)
class Source:
    """A folder of files, here or elsewhere. Paths are relative to it, with slashes.

    Args:
        address: A local path, or protocol://path.
    """

    address: str

    @property
    def is_local(self) -> bool:
        """On this machine's file system."""
        return "://" not in self.address

    @property
    def name(self) -> str:
        """The last part of its address."""
        return Path(self.address).resolve().name if self.is_local else PurePosixPath(self.address).name

    def check(self) -> None:
        """Refuse a source that is no folder.

        Raises:
            MissingError: If it is not there.
            InputError: If it is something else, or what reads its protocol is not installed.
        """
        if not self.is_local:
            filesystem, root = self._remote()
            if not filesystem.exists(root):
                raise MissingError(f"source={self.address!r} is not there; check the name.")
        elif not Path(self.address).exists():
            raise MissingError(f"source={self.address!r} is not there; check the name.")
        elif not Path(self.address).is_dir():
            raise InputError(f"source={self.address!r} must be a folder; put the recordings into one.")

    def exists(self, path: str) -> bool:
        """Whether a file or folder of this path is there."""
        if self.is_local:
            return Path(self.address, path).exists()
        filesystem, root = self._remote()
        return bool(filesystem.exists(f"{root}/{path}"))

    def folders(self, under: str = "") -> list[str]:
        """Names of the folders directly below one, sorted, hidden ones left out."""
        if self.is_local:
            entries = [entry.name for entry in os.scandir(Path(self.address, under)) if entry.is_dir()]
        else:
            filesystem, root = self._remote()
            listed = filesystem.ls(f"{root}/{under}".rstrip("/"), detail=True)
            entries = [PurePosixPath(each["name"]).name for each in listed if each["type"] == "directory"]
        return sorted(name for name in entries if not name.startswith("."))

    def files(self, under: str = "", *, suffixes: frozenset[str] | None = None) -> list[SourceFile]:
        """Files at any depth below a folder, sorted by path, hidden ones left out; see `walk` for what cannot be used.

        Args:
            under: A folder of the source.
            suffixes: Such as {".wav"}, in lower case; None for any.
        """
        return [each for each in self.walk(under, suffixes=suffixes) if isinstance(each, SourceFile)]

    def walk(self, under: str = "", *, suffixes: frozenset[str] | None = None) -> list[SourceFile | Unlisted]:
        """As `files`, with the folders that cannot be listed, links that lead nowhere, and files reached twice.

        A file or folder that is reached twice, through links, counts once: a recording in two splits would make the
        test split worthless.
        """
        walked = _walk_local(Path(self.address), under) if self.is_local else self._walk_remote(under)
        found = [
            each
            for each in walked
            if suffixes is None or isinstance(each, Unlisted) or os.path.splitext(each.path)[1].lower() in suffixes
        ]
        return sorted(found, key=lambda each: each.path)

    def read_text(self, path: str) -> str:
        """The text of a file, UTF-8 with or without a byte order mark.

        Raises:
            MissingError: If it is not there.
            InputError: If it cannot be read or is no UTF-8.
        """
        where = f"{self.address.rstrip('/')}/{path}"
        try:
            with self.local(path) as file:
                return file.read_text(encoding="utf-8-sig")
        except FileNotFoundError as error:
            raise MissingError(f"{where!r} is not there; name the corpus's own folder, unpacked whole.") from error
        except (OSError, UnicodeDecodeError) as error:
            raise InputError(f"{where!r} cannot be read as text: {error}; get a whole copy.") from error

    @contextlib.contextmanager
    def local(self, path: str) -> Iterator[Path]:
        """A file as one of this machine: itself, or a copy for the length of the block."""
        if self.is_local:
            yield Path(self.address, path)
            return
        filesystem, root = self._remote()
        with tempfile.TemporaryDirectory(prefix="audio-ct-source-") as folder:
            copy = Path(folder, "file").with_suffix(PurePosixPath(path).suffix)
            # What is missing is missed by whoever opens the copy.
            with contextlib.suppress(FileNotFoundError):
                filesystem.get_file(f"{root}/{path}", os.fspath(copy))
            yield copy

    def _remote(self) -> tuple[Any, str]:
        # fsspec's file systems are slow to import and wanted for remote sources alone.
        import fsspec

        try:
            filesystem, root = fsspec.core.url_to_fs(self.address)
        except (ImportError, ValueError) as error:
            raise InputError(f"source={self.address!r} cannot be read: {error}") from error
        return filesystem, root.rstrip("/")

    def _walk_remote(self, under: str) -> Iterator[SourceFile | Unlisted]:
        filesystem, root = self._remote()
        for name, entry in filesystem.find(f"{root}/{under}".rstrip("/"), detail=True).items():
            path = name.removeprefix(f"{root}/")
            if not any(part.startswith(".") for part in PurePosixPath(path).parts):
                yield SourceFile(path, int(entry["size"]))


def _walk_local(root: Path, under: str) -> Iterator[SourceFile | Unlisted]:
    unlisted: list[Unlisted] = []
    seen: set[tuple[int, int]] = set()

    # Paths as text: a corpus has a million of them.
    prefix = os.path.join(root, "")

    def relative(path: str) -> str:
        return path.removeprefix(prefix)

    def not_listed(error: OSError) -> None:
        unlisted.append(Unlisted(relative(error.filename), "unreadable", f"folder: {error.strerror}"))

    def originals_first(folder: str, names: list[str]) -> list[str]:
        shown = [name for name in names if not name.startswith(".")]
        return sorted(shown, key=lambda name: (os.path.islink(os.path.join(folder, name)), name))

    for folder, subfolders, names in os.walk(os.path.join(prefix, under), followlinks=True, onerror=not_listed):
        status = os.stat(folder)
        if (status.st_dev, status.st_ino) in seen:
            subfolders.clear()
            continue
        seen.add((status.st_dev, status.st_ino))
        subfolders[:] = originals_first(folder, subfolders)
        for name in originals_first(folder, names):
            path = os.path.join(folder, name)
            try:
                status = os.stat(path)
            except OSError as error:
                yield Unlisted(relative(path), "unreadable", f"cannot be reached: {error.strerror}.")
                continue
            if (status.st_dev, status.st_ino) in seen:
                yield Unlisted(relative(path), "duplicate", "is a link to another recording.")
                continue
            seen.add((status.st_dev, status.st_ino))
            yield SourceFile(relative(path), status.st_size)
    yield from unlisted


def printable(path: str) -> str:
    """A path as text that JSON and UTF-8 can hold, whatever bytes the name has."""
    return os.fsencode(path).decode("utf-8", "backslashreplace")
