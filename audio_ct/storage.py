"""A place for files by name: a folder on this machine, or object storage through fsspec, such as s3://bucket/place."""

import contextlib
import os
import shutil
from pathlib import Path, PurePosixPath
from typing import Any, Protocol

from audio_ct.durable import synchronise, write_whole
from audio_ct.errors import InputError


def is_remote(address: str | os.PathLike[str]) -> bool:
    """Whether an address names object storage and not a path of this machine."""
    return "://" in os.fspath(address)


class Storage(Protocol):
    """Files by name, with slashes; each is whole or absent."""

    address: str

    def read(self, name: str) -> bytes:
        """The content of a file; FileNotFoundError if it is not there."""

    def write(self, name: str, content: bytes) -> None:
        """Put content in the place of a file."""

    def put(self, file: Path, name: str) -> None:
        """Move a file of this machine into the place of a file."""

    def get(self, name: str, file: Path) -> None:
        """Copy a file to this machine; FileNotFoundError if it is not there."""

    def sizes(self, under: str = "") -> dict[str, int]:
        """Names, relative to the place, and sizes in bytes of all files below a folder; empty if there is none."""

    def remove(self, name: str) -> None:
        """Remove a file, or a folder with all that it holds; nothing happens if it is not there."""


class LocalStorage:
    """A folder of this machine, or of a file system that several machines share."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.address = str(path)

    def read(self, name: str) -> bytes:
        """See `Storage`."""
        return (self.path / name).read_bytes()

    def write(self, name: str, content: bytes) -> None:
        """See `Storage`."""
        (self.path / name).parent.mkdir(parents=True, exist_ok=True)
        write_whole(self.path / name, content)

    def put(self, file: Path, name: str) -> None:
        """See `Storage`; a file of another file system is copied beside its place first."""
        target = self.path / name
        target.parent.mkdir(parents=True, exist_ok=True)
        beside = target.with_name(f".{target.name}.{os.getpid()}.tmp")
        try:
            shutil.move(file, beside)
            synchronise(beside)
            beside.replace(target)
        except BaseException:
            beside.unlink(missing_ok=True)
            raise
        synchronise(target.parent)

    def get(self, name: str, file: Path) -> None:
        """See `Storage`."""
        shutil.copyfile(self.path / name, file)

    def sizes(self, under: str = "") -> dict[str, int]:
        """See `Storage`."""
        found = {}
        for folder, _, names in os.walk(self.path / under):
            for name in names:
                path = Path(folder, name)
                # A file may be renamed or removed while others are listed.
                with contextlib.suppress(FileNotFoundError):
                    found[path.relative_to(self.path).as_posix()] = path.stat().st_size
        return found

    def remove(self, name: str) -> None:
        """See `Storage`."""
        path = self.path / name
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        else:
            path.unlink(missing_ok=True)


class ObjectStorage:
    """A place in object storage, where a file appears once all of it has been sent.

    Raises:
        InputError: If what speaks its protocol is not installed.
    """

    def __init__(self, address: str) -> None:
        self.address = address.rstrip("/")
        self._connected: tuple[Any, str] | None = None

    def __getstate__(self) -> dict[str, Any]:
        """Without the connection: every process makes its own."""
        return {"address": self.address, "_connected": None}

    @property
    def _files(self) -> tuple[Any, str]:
        if self._connected is None:
            # Slow to import, and wanted for object storage alone.
            import fsspec

            try:
                self._connected = fsspec.core.url_to_fs(self.address)
            except (ImportError, ValueError) as error:
                raise InputError(f"{self.address!r} cannot be reached: {error}") from error
        return self._connected

    def _path(self, name: str) -> str:
        root = self._files[1].rstrip("/")
        return f"{root}/{name}" if name else root

    def read(self, name: str) -> bytes:
        """See `Storage`."""
        return bytes(self._files[0].cat_file(self._path(name)))

    def write(self, name: str, content: bytes) -> None:
        """See `Storage`."""
        self._files[0].pipe_file(self._path(name), content)

    def create(self, name: str, content: bytes) -> bool:
        """Write a file if there is none of that name, in one step; False if there is one."""
        try:
            self._files[0].pipe_file(self._path(name), content, mode="create")
        except FileExistsError:
            return False
        return True

    def put(self, file: Path, name: str) -> None:
        """See `Storage`."""
        self._files[0].put_file(os.fspath(file), self._path(name))
        file.unlink()

    def get(self, name: str, file: Path) -> None:
        """See `Storage`."""
        self._files[0].get_file(self._path(name), os.fspath(file))

    def sizes(self, under: str = "") -> dict[str, int]:
        """See `Storage`."""
        files, _ = self._files
        files.invalidate_cache()
        found = files.find(self._path(under), detail=True)
        root = PurePosixPath(self._path(""))
        return {PurePosixPath(path).relative_to(root).as_posix(): int(each["size"]) for path, each in found.items()}

    def remove(self, name: str) -> None:
        """See `Storage`."""
        with contextlib.suppress(FileNotFoundError):
            self._files[0].rm(self._path(name), recursive=True)


def open_storage(address: str | os.PathLike[str]) -> Storage:
    """The place of an address: a path of this machine, or protocol://path."""
    return ObjectStorage(os.fspath(address)) if is_remote(address) else LocalStorage(Path(address))
