"""Token stores in object storage: shards are fetched whole when they are read, and kept in a folder of this machine.

The folder is ~/.cache/audio-ct/stores, or the same under XDG_CACHE_HOME. Its files are named by their SHA-256, so that
stores share what they have in common. Any number of processes may use it: a file appears in it whole, by a rename, and
whichever has not been used for longest goes when space is needed. A file that is removed while it is mapped stays
readable until nobody maps it.
"""

import contextlib
import os
import threading
import time
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator
from io import BufferedReader
from pathlib import Path, PurePosixPath
from typing import TypeVar

from audio_ct.durable import open_regular, sha256_of
from audio_ct.errors import AudioCTError, DamagedError, InputError, MissingError
from audio_ct.storage import open_storage
from audio_ct.tokens.store_files import REMEDY, StoredFile, check_hash, check_size

# Between the tries of a fetch that fails.
WAITS_SECONDS = (1.0, 3.0, 9.0)
# A fetch that has written nothing for so long was killed.
ABANDONED_SECONDS = 3600.0

Result = TypeVar("Result")


def cache_folder() -> Path:
    """The folder of this machine in which fetched shards are kept."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path("~/.cache").expanduser(), "audio-ct", "stores")


class RemoteFiles:
    """The files of a store in object storage; see `StoreFiles`.

    Args:
        address: Such as s3://bucket/store.
        cache_gib: The most that the cache may hold, of all stores together, in GiB. Beyond it, it holds no more than
            what is being read.
    """

    def __init__(self, address: str, cache_gib: float) -> None:
        self._storage = open_storage(address)
        self.address = self._storage.address
        self.name = PurePosixPath(self.address).name
        self._folder = cache_folder()
        self._max_bytes = int(cache_gib * (1 << 30))
        self._fetching: defaultdict[str, threading.Lock] = defaultdict(threading.Lock)
        self._ahead: list[StoredFile] = []
        self._thread: threading.Thread | None = None

    def read_manifest(self) -> bytes:
        """See `StoreFiles`."""
        try:
            return self._patiently("corpus.json", lambda: self._storage.read("corpus.json"))
        except FileNotFoundError as error:
            raise MissingError(
                f"{self.address!r} holds no corpus.json; name a token store or prepare one first."
            ) from error

    def read(self, name: str) -> bytes:
        """See `StoreFiles`."""
        with self._as_damage(name):
            return self._patiently(name, lambda: self._storage.read(name))

    def check_sizes(self, files: Iterable[StoredFile]) -> None:
        """Compare sizes with the storage's list; nothing is fetched."""
        sizes = self._patiently("", self._storage.sizes)
        for file in files:
            if file.name not in sizes:
                raise self._missing(file.name)
            check_size(sizes[file.name], file, f"{self.address}/{file.name}")

    def open(self, file: StoredFile) -> BufferedReader:
        """Open the file in the cache; fetch it first where it is not there."""
        # Of two threads that want one file, the second finds it in the cache.
        with self._fetching[file.sha256]:
            if (kept := self._open_kept(file)) is not None:
                return kept
            with self._as_damage(file.name):
                return self._fetch(file)

    def verify(self, file: StoredFile) -> None:
        """Fetch a file, or hash the one that is kept; one that is damaged here is fetched again."""
        with self.open(file) as opened:
            if sha256_of(opened) == file.sha256:
                return
        self.path(file).unlink(missing_ok=True)
        self.open(file).close()

    def path(self, file: StoredFile) -> Path:
        """See `StoreFiles`."""
        return self._folder / f"{file.sha256}.bin"

    def fetch_ahead(self, files: Iterable[StoredFile]) -> None:
        """Fetch files into the cache in a thread, one after the other."""
        self._ahead += [file for file in files if file not in self._ahead and not self.path(file).exists()]
        if self._ahead and not (self._thread and self._thread.is_alive()):
            self._thread = threading.Thread(target=self._fetch_all_ahead, daemon=True)
            self._thread.start()

    def _fetch_all_ahead(self) -> None:
        # What is asked for while the last file is being closed waits for the next call.
        while self._ahead:
            # Whoever needs the file fetches it again, and says what is wrong.
            with contextlib.suppress(AudioCTError, OSError):
                self.open(self._ahead[0]).close()
            del self._ahead[0]

    def _open_kept(self, file: StoredFile) -> BufferedReader | None:
        path = self.path(file)
        if not path.exists():
            return None
        try:
            opened = open_regular(path, whole="cache")
        except DamagedError:
            # Removed meanwhile by a process that needed the space.
            return None
        if os.fstat(opened.fileno()).st_size != file.num_bytes:
            opened.close()
            return None
        # The time of last use, by which files are removed.
        with contextlib.suppress(OSError):
            os.utime(opened.fileno())
        return opened

    def _fetch(self, file: StoredFile) -> BufferedReader:
        self._folder.mkdir(parents=True, exist_ok=True)
        self._make_room(file.num_bytes)
        temporary = self._folder / f"{file.sha256}.{os.getpid()}-{threading.get_ident()}.tmp"
        place = f"{self.address}/{file.name}"

        def fetch() -> None:
            self._storage.get(file.name, temporary)
            check_size(temporary.stat().st_size, file, place)
            check_hash(sha256_of(temporary), file, place)

        try:
            self._patiently(file.name, fetch)
            # Before others can see the file, and remove it.
            opened = temporary.open("rb")
            temporary.replace(self.path(file))
        finally:
            temporary.unlink(missing_ok=True)
        return opened

    def _make_room(self, num_bytes: int) -> None:
        """Remove what has not been used for longest, until so many bytes more are within the bound."""
        kept = []
        for path in self._folder.iterdir():
            # Other processes remove files too.
            with contextlib.suppress(FileNotFoundError):
                status = path.stat()
                kept.append((status.st_mtime, status.st_size, path))
        too_many = sum(size for _, size, _ in kept) + num_bytes - self._max_bytes
        for last_use, size, path in sorted(kept):
            if too_many <= 0:
                break
            # Another process is fetching it.
            if path.suffix == ".tmp" and last_use > time.time() - ABANDONED_SECONDS:
                continue
            path.unlink(missing_ok=True)
            too_many -= size

    def _patiently(self, name: str, action: Callable[[], Result]) -> Result:
        """What an action on a file gives; it is tried again where it fails by what may pass.

        Raises:
            FileNotFoundError: If the file is not there.
            DamagedError: If another file is there, as often as it is fetched.
            InputError: If it cannot be reached.
        """
        where = f"{self.address}/{name}".rstrip("/")
        for wait_seconds in (*WAITS_SECONDS, None):
            try:
                return action()
            except (FileNotFoundError, InputError):
                raise
            # Every protocol's package has errors of its own.
            except Exception as error:
                if wait_seconds is not None and not isinstance(error, PermissionError):
                    time.sleep(wait_seconds)
                    continue
                if isinstance(error, DamagedError):
                    raise
                words = " ".join(f"{type(error).__name__}: {error}".split())[:300]
                raise InputError(
                    f"{where!r} cannot be fetched: {words}; check the connection, the access, and the space in "
                    f"{str(self._folder)!r}."
                ) from error
        raise AssertionError("the last try returns or raises")

    @contextlib.contextmanager
    def _as_damage(self, name: str) -> Iterator[None]:
        """Raise DamagedError in place of FileNotFoundError."""
        try:
            yield
        except FileNotFoundError as error:
            raise self._missing(name) from error

    def _missing(self, name: str) -> DamagedError:
        return DamagedError(f"{self.address}/{name}: missing from the token store; {REMEDY}")
