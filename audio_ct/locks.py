"""One process at a time in a folder: the system's own lock, which ends with its process, and says whose it is."""

import contextlib
import json
import logging
import os
import shutil
import socket
import time
from collections.abc import Iterator
from pathlib import Path

from filelock import lock_descriptor

from audio_ct.errors import InputError

LOCK_FILE = ".lock"
# A lock that is just being given back, or whose owner has not written its name yet, is asked for again until then.
PATIENCE_SECONDS = 0.5
POLL_SECONDS = 0.05
MAX_OWNER_BYTES = 1000

logger = logging.getLogger("audio_ct")


@contextlib.contextmanager
def hold(folder: Path, *, name: str, use: str = "in use") -> Iterator[int]:
    """Make a folder where it is missing, and be the one process that works in it.

    The lock is on the file .lock in the folder: on network drives a folder itself cannot be locked. The file stays, for
    a lock on a file that was removed keeps nobody out; a folder that holds nothing else in the end is removed.

    Args:
        folder: What is held; it may be renamed meanwhile, and its new place then has the file.
        name: Of the folder, for messages, such as "--run-dir 'runs/wavenet'".
        use: What holding it means, for messages.

    Yields:
        The lock's descriptor: a child process that inherits it holds the folder on when this process has ended.

    Raises:
        InputError: If another process holds it, or the folder cannot be made or written.
    """
    lock = _acquired(folder, name, use)
    try:
        yield lock
    finally:
        try:
            _remove_empty(folder, lock)
        finally:
            os.close(lock)


def is_held(folder: Path) -> bool:
    """Tell if a process holds a folder now; nothing is made, and who wants it meanwhile asks again."""
    try:
        lock = os.open(folder / LOCK_FILE, os.O_RDWR | os.O_NOFOLLOW)
    except OSError:
        # Never held, or not by somebody whose files may be written here.
        return False
    try:
        return not lock_descriptor(lock, blocking=False)
    except OSError:
        return False
    finally:
        os.close(lock)


def clear(folder: Path) -> None:
    """Remove all that is in a folder that is held, but not its lock."""
    for entry in list(folder.iterdir()):
        if entry.is_dir() and not entry.is_symlink():
            shutil.rmtree(entry)
        elif entry.name != LOCK_FILE:
            entry.unlink()


def _acquired(folder: Path, name: str, use: str) -> int:
    """Lock a folder and write down whose the lock is; return its descriptor."""
    path = folder / LOCK_FILE
    deadline = time.monotonic() + PATIENCE_SECONDS
    while True:
        try:
            folder.mkdir(parents=True, exist_ok=True)
            lock = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o666)
        except OSError as error:
            # Its former owner may have removed the folder, which held nothing, behind our back.
            if isinstance(error, FileNotFoundError) and time.monotonic() < deadline:
                time.sleep(POLL_SECONDS)
                continue
            raise InputError(f"{name} cannot be made or written: {error.strerror}; choose a writable place.") from error
        try:
            if _is_locked(lock, name) and _is_at(path, lock):
                owner = json.dumps({"pid": os.getpid(), "host": socket.gethostname()})
                # On a full disk the lock holds, but does not say whose it is.
                with contextlib.suppress(OSError):
                    os.ftruncate(lock, 0)
                    os.pwrite(lock, owner.encode(), 0)
                return lock
            holder = _holder(lock)
        except BaseException:
            os.close(lock)
            raise
        os.close(lock)
        if time.monotonic() > deadline:
            raise InputError(f"{name} is {use} by {holder}; wait for its end or choose another place.")
        time.sleep(POLL_SECONDS)


def _remove_empty(folder: Path, lock: int) -> None:
    """Remove a folder that holds nothing but its lock; renamed, it may have made way for that of another process."""
    with contextlib.suppress(OSError):
        if _is_at(folder / LOCK_FILE, lock) and os.listdir(folder) == [LOCK_FILE]:
            (folder / LOCK_FILE).unlink()
            folder.rmdir()


def _is_locked(lock: int, name: str) -> bool:
    """Lock a file, unless another process has; where its file system has no locks, warn that nobody is kept out."""
    try:
        return lock_descriptor(lock, blocking=False)
    except OSError as error:
        logger.warning("%s cannot be locked there (%s); let no other process write to it", name, error.strerror)
        return True


def _is_at(path: Path, lock: int) -> bool:
    """False if the former owner has removed the file, or renamed its folder, since we opened it."""
    try:
        return os.path.samestat(path.stat(), os.fstat(lock))
    except FileNotFoundError:
        return False


def _holder(lock: int) -> str:
    """The process that wrote a lock's file."""
    try:
        owner = json.loads(os.pread(lock, MAX_OWNER_BYTES, 0))
        return f"process {int(owner['pid'])} on {owner['host']}, or by a command that it started"
    except (ValueError, TypeError, KeyError):
        return "another process"
