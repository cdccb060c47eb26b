"""Any file as bytes, for corpora and prompts of bytes."""

import os
import stat
from pathlib import Path
from typing import BinaryIO

from audio_ct.errors import InputError, MissingError


def open_bytes(path: Path, *, name: str) -> tuple[BinaryIO, int]:
    """Return an open regular file that is not empty, and its size.

    Args:
        path: The file.
        name: What the user calls it, for messages.

    Returns:
        The file, to be closed by the caller, and how many bytes it holds now.

    Raises:
        MissingError: If there is no such file.
        InputError: If it is a folder, a pipe or a device, cannot be read, or is empty.
    """
    try:
        # Not blocking: a pipe that nobody writes into would be waited for.
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except FileNotFoundError as error:
        raise MissingError(f"{name}={str(path)!r} is not there; check the name.") from error
    except (OSError, ValueError) as error:
        why = getattr(error, "strerror", None) or error
        raise InputError(f"{name}={str(path)!r} cannot be read: {why}.") from error
    status = os.fstat(descriptor)
    if not stat.S_ISREG(status.st_mode) or status.st_size == 0:
        os.close(descriptor)
        kind = "a regular file that is not empty" if stat.S_ISREG(status.st_mode) else "a regular file"
        raise InputError(f"{name}={str(path)!r} must be {kind}; name a file of text or of any bytes.")
    return os.fdopen(descriptor, "rb"), status.st_size
