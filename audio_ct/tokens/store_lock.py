"""A lock on a store in the making in object storage, so that two preparations of one store do not mix."""

import contextlib
import json
import os
import socket
import threading
import time
from collections.abc import Iterator

from audio_ct.errors import InputError
from audio_ct.storage import ObjectStorage

RENEW_SECONDS = 60.0
# An owner that has not been heard of for so long is taken for dead.
STALE_SECONDS = 300.0


@contextlib.contextmanager
def lock_object(storage: ObjectStorage, name: str) -> Iterator[None]:
    """Hold a lock in object storage: an object that names its owner, is created by one only, and is renewed.

    Args:
        storage: Where the store is made.
        name: Of the object.

    Raises:
        InputError: If another process holds it.
    """
    owner = {"host": socket.gethostname(), "pid": os.getpid()}

    def content() -> bytes:
        return json.dumps(owner | {"time": time.time()}).encode()

    if not storage.create(name, content()):
        found = json.loads(storage.read(name))
        silent_seconds = time.time() - found["time"]
        if silent_seconds < STALE_SECONDS:
            raise InputError(
                f"{storage.address!r} is being prepared by process {found['pid']} on {found['host']}, heard of "
                f"{silent_seconds:.0f} s ago; wait for it, or for {STALE_SECONDS:.0f} s after its end."
            )
        storage.remove(name)
        if not storage.create(name, content()):
            raise InputError(f"{storage.address!r} is being prepared by another process; wait for it or end it.")
    ended = threading.Event()

    def renew() -> None:
        while not ended.wait(RENEW_SECONDS):
            # A renewal that fails is tried again; only five in a row are taken for the owner's death.
            with contextlib.suppress(OSError):
                storage.write(name, content())

    thread = threading.Thread(target=renew, daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()
        storage.remove(name)
