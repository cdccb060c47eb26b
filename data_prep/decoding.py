"""Decoding in a process of its own, which is killed and replaced when a file makes it hang, crash or grow.

A process serves one recording after the other, so that its start is paid once and not for every file.
"""

import contextlib
import json
import os
import selectors
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Self

import numpy as np

from audio_ct.audio.files import RejectedAudioError, Samples

from .decoding_child import BLOCK, END, HEADER
from .measures import Measures

# A file may fall behind real time by so much: what decodes more slowly hangs or is made to waste time.
PATIENCE_SECONDS = 60.0
PIPE_BYTES = 1 << 20


class Decoder:
    """Decodes recordings one after the other; use as a context manager.

    Attributes:
        measures: Of the last recording whose blocks have all been read.
        truncated: What was missing of it, where truncated files are kept.
    """

    def __init__(self) -> None:
        self.measures: Measures | None = None
        self.truncated: str | None = None
        self._child: subprocess.Popen[bytes] | None = None
        self._selector: selectors.BaseSelector = selectors.DefaultSelector()
        self._idle = True

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self.end()

    def blocks(
        self,
        path: Path,
        *,
        sample_rate_hz: int,
        channel: int | None = None,
        spans: Sequence[tuple[float, float]] = (),
        keep_truncated: bool = False,
    ) -> Iterator[Samples]:
        """Yield a recording's samples at the wanted rate, mono float32, not clamped.

        Args:
            path: Of its file, on this machine.
            sample_rate_hz: The rate wanted.
            channel: The channel wanted, from 0; None for the mean of all.
            spans: (start, end) in seconds of the parts wanted; empty for all.
            keep_truncated: Keep what is there of a file that ends early.

        Raises:
            RejectedAudioError: As `AudioReader` does, or if decoding hangs, crashes or takes too much memory.
        """
        if not self._idle:
            # A recording before was not read to its end.
            self.end()
        child = self._child or self._start()
        assert child.stdin is not None
        request = {
            "path": os.fspath(path),
            "sample_rate_hz": sample_rate_hz,
            "channel": channel,
            "spans": spans,
            "keep_truncated": keep_truncated,
        }
        self._idle = False
        received_seconds = waited_seconds = 0.0
        try:
            child.stdin.write(json.dumps(request).encode() + b"\n")
            child.stdin.flush()
            while True:
                began = time.monotonic()
                patience = PATIENCE_SECONDS + received_seconds - waited_seconds
                kind, content = self._receive(began + patience)
                waited_seconds += time.monotonic() - began
                if kind != BLOCK:
                    break
                block = np.frombuffer(content, dtype=np.float32)
                received_seconds += len(block) / sample_rate_hz
                yield block
        except TimeoutError as error:
            self.end()
            detail = f"{os.fspath(path)!r} decodes {PATIENCE_SECONDS:g} s more slowly than it would be heard."
            raise RejectedAudioError(detail, "hangs") from error
        except (EOFError, BrokenPipeError) as error:
            self.end()
            detail = f"{os.fspath(path)!r} makes the decoder crash (exit status {child.returncode})."
            raise RejectedAudioError(detail, "crashes") from error
        self._idle = True
        answer = json.loads(content)
        if kind != END:
            raise RejectedAudioError(answer["detail"], answer["reason"])
        self.measures = Measures(**answer["measures"])
        self.truncated = answer["truncated"]

    def _start(self) -> subprocess.Popen[bytes]:
        environment = os.environ | {
            "PYTHONPATH": os.pathsep.join(sys.path),
            # It has one core and a limit on addresses, which threads' stacks count towards.
            "OPENBLAS_NUM_THREADS": "1",
            "OMP_NUM_THREADS": "1",
        }
        child = subprocess.Popen(
            [sys.executable, "-P", "-m", f"{__package__}.decoding_child"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            env=environment,
        )
        assert child.stdout is not None
        os.set_blocking(child.stdout.fileno(), False)
        with contextlib.suppress(OSError, ImportError, AttributeError):
            # Linux: a larger pipe, so that the two ends wait less for each other.
            import fcntl

            fcntl.fcntl(child.stdout.fileno(), fcntl.F_SETPIPE_SZ, PIPE_BYTES)
        self._selector.register(child.stdout, selectors.EVENT_READ)
        self._child, self._idle = child, True
        return child

    def end(self) -> None:
        """End the process; the next recording starts another."""
        child, self._child = self._child, None
        if child is None:
            return
        assert child.stdin is not None
        assert child.stdout is not None
        self._selector.unregister(child.stdout)
        child.kill()
        with contextlib.suppress(BrokenPipeError):
            child.stdin.close()
        child.stdout.close()
        child.wait()

    def _receive(self, until: float) -> tuple[bytes, bytearray]:
        kind, length = HEADER.unpack(self._read(HEADER.size, until))
        return kind, self._read(length, until)

    def _read(self, num_bytes: int, until: float) -> bytearray:
        """Read so many bytes from the child before a moment of the monotonic clock."""
        assert self._child is not None
        assert self._child.stdout is not None
        content = bytearray()
        while len(content) < num_bytes:
            if not self._selector.select(max(0.0, until - time.monotonic())):
                raise TimeoutError
            piece = os.read(self._child.stdout.fileno(), num_bytes - len(content))
            if not piece:
                raise EOFError
            content += piece
        return content
