"""Writing so that a file is whole or absent, whatever happens to the process or the machine."""

import os
from pathlib import Path


def synchronise(path: Path) -> None:
    """Return once a file's content, or a folder's list of names, is on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def write_whole(path: Path, content: bytes) -> None:
    """Put content in the place of a file: write under a temporary name beside it, synchronise, rename.

    Raises:
        OSError: if it cannot be written; what was there before is untouched, unless the folder alone failed at the end.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        temporary.write_bytes(content)
        synchronise(temporary)
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    synchronise(path.parent)
