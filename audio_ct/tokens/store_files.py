"""The files of a token store where they are: here, in a folder. `shard_cache` has those that are elsewhere."""

import os
from collections.abc import Iterable
from io import BufferedReader
from pathlib import Path
from typing import NamedTuple, Protocol

from audio_ct.durable import open_regular, sha256_of
from audio_ct.errors import DamagedError, MissingError

REMEDY = "prepare the store again"
# By default, the most that is kept on this machine of stores from elsewhere.
CACHE_GIB = 64.0


class StoredFile(NamedTuple):
    """A file as the manifest has it."""

    name: str
    num_bytes: int
    sha256: str


class StoreFiles(Protocol):
    """The files of a store, by name.

    Attributes:
        address: A path of this machine, or protocol://path.
        name: Its last part.
    """

    address: str
    name: str

    def read_manifest(self) -> bytes:
        """The content of corpus.json; MissingError if there is none."""

    def read(self, name: str) -> bytes:
        """The content of a small file; DamagedError if it is missing or not a regular one."""

    def check_sizes(self, files: Iterable[StoredFile]) -> None:
        """Raise DamagedError for a file that is missing, of another size, or not a regular one."""

    def open(self, file: StoredFile) -> BufferedReader:
        """Open a file of the right size; DamagedError if it is not. One from elsewhere is fetched, hash and all."""

    def verify(self, file: StoredFile) -> None:
        """Raise DamagedError for a file whose SHA-256 is another."""

    def path(self, file: StoredFile) -> Path:
        """The place on this machine of a file that has been opened."""

    def fetch_ahead(self, files: Iterable[StoredFile]) -> None:
        """Begin to fetch files that will be opened soon, if they are elsewhere, and do not wait for them."""


class LocalFiles:
    """The files of a store in a folder of this machine; see `StoreFiles`."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self.address = str(folder)
        self.name = folder.name

    def read_manifest(self) -> bytes:
        """See `StoreFiles`."""
        if not (self._folder / "corpus.json").is_file():
            raise MissingError(f"{self.address!r} holds no corpus.json; name a token store or prepare one first.")
        return self.read("corpus.json")

    def read(self, name: str) -> bytes:
        """See `StoreFiles`."""
        with self._open(name) as file:
            return file.read()

    def check_sizes(self, files: Iterable[StoredFile]) -> None:
        """See `StoreFiles`."""
        for file in files:
            self.open(file).close()

    def open(self, file: StoredFile) -> BufferedReader:
        """See `StoreFiles`."""
        opened = self._open(file.name)
        try:
            check_size(os.fstat(opened.fileno()).st_size, file, self.path(file))
        except DamagedError:
            opened.close()
            raise
        return opened

    def verify(self, file: StoredFile) -> None:
        """See `StoreFiles`."""
        with self.open(file) as opened:
            check_hash(sha256_of(opened), file, self.path(file))

    def path(self, file: StoredFile) -> Path:
        """See `StoreFiles`."""
        return self._folder / file.name

    def fetch_ahead(self, files: Iterable[StoredFile]) -> None:
        """Nothing: they are here."""

    def _open(self, name: str) -> BufferedReader:
        return open_regular(self._folder / name, whole="token store", remedy=REMEDY)


def check_size(num_bytes: int, file: StoredFile, place: Path | str) -> None:
    """Raise DamagedError unless the file at a place has the size that the manifest says."""
    if num_bytes != file.num_bytes:
        raise DamagedError(f"{str(place)!r} has {num_bytes} bytes, the manifest says {file.num_bytes}; {REMEDY}.")


def check_hash(sha256: str, file: StoredFile, place: Path | str) -> None:
    """Raise DamagedError unless the file at a place has the hash that the manifest says."""
    if sha256 != file.sha256:
        raise DamagedError(f"{str(place)!r}: SHA-256 is {sha256[:12]}..., not the manifest's; {REMEDY}.")
