"""Files and folders that are whole or absent, whatever happens to the process or the machine."""

import hashlib
import os
import stat
from io import BufferedReader
from pathlib import Path

from audio_ct.errors import DamagedError, InputError


def make_folder(out: Path) -> None:
    """Make a folder for results where it is missing.

    Raises:
        InputError: If it cannot be made.
    """
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"out={str(out)!r} cannot be made: {error.strerror}; choose a writable place.") from error


def synchronise(path: Path) -> None:
    """Wait until a file's content, or a folder's list of names, is on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def write_whole(path: Path, content: bytes) -> None:
    """Put content in the place of a file: write under a temporary name beside it, synchronise, rename.

    Raises:
        OSError: With the file's name, if it cannot be written; what was there before is untouched, unless the folder
            alone failed at the end.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        temporary.write_bytes(content)
        synchronise(temporary)
        temporary.replace(path)
        synchronise(path.parent)
    except OSError as error:
        # Where writing fails, not opening, the system names no file.
        raise OSError(error.errno, error.strerror, str(path)) from error
    finally:
        temporary.unlink(missing_ok=True)


def install(temporary: Path, target: Path, *, replaced: Path | None = None) -> None:
    """Synchronise a folder of files and rename it into place.

    A folder cannot be renamed onto another, so one that stands at the target is moved aside first. It stays there: a
    process killed in between must find it again, and the caller removes it once the new one is known to be good.

    Args:
        temporary: The folder, on the file system of the target.
        target: Its place.
        replaced: Where a folder that stands there goes; by default the target's name with ".replaced" behind it.
    """
    for file in sorted(temporary.iterdir()):
        synchronise(file)
    synchronise(temporary)
    if target.exists():
        target.rename(replaced or target.with_name(f"{target.name}.replaced"))
    temporary.rename(target)
    synchronise(target.parent)


def open_regular(path: Path, *, whole: str, remedy: str | None = None) -> BufferedReader:
    """Open a regular file for reading: a link could lead anywhere, and a pipe would wait for ever.

    Args:
        path: The file.
        whole: A word for what it is a part of, such as "checkpoint".
        remedy: What a user can do; by default, use another whole.

    Raises:
        DamagedError: If it is missing, a link, or not a regular file.
    """
    remedy = remedy or f"use another {whole}"
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    except FileNotFoundError as error:
        raise DamagedError(f"{path}: missing from the {whole}; {remedy}") from error
    except OSError as error:
        if path.is_symlink():
            raise DamagedError(f"{path}: a symbolic link; a {whole} holds regular files only") from error
        raise
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise DamagedError(f"{path}: not a regular file; a {whole} holds regular files only")
    return os.fdopen(descriptor, "rb")


def sha256_of(file: Path | BufferedReader) -> str:
    """SHA-256 in hexadecimal of a file, from its beginning or from where an open one is read."""
    if isinstance(file, Path):
        with file.open("rb") as opened:
            return sha256_of(opened)
    return hashlib.file_digest(file, "sha256").hexdigest()
