"""A local page that speaks: a model's waveforms, heard while they are made.

    GET  /          the page
    GET  /status    what is being done, and how many wait, as JSON
    POST /sample    ?seconds=2&temperature=1&seed=0&top_p=0.95, its body a recording to continue, or empty; answers with
                    WAV, block by block, and with a line of text where it refuses

By default nobody but this machine can ask. One waveform is made at a time, few may wait, and lengths and uploads have
limits. An upload is read as audio and gone with its request.
"""

import ipaddress
import itertools
import json
import logging
import math
import secrets
import signal
import socket
import struct
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from http import HTTPStatus

# The standard library's server: a page for a person or two needs no framework, and none is one dependency less to keep
# safe. It has a thread a connection, and what is slow here holds one lock.
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl, urlsplit

import numpy as np
from jaxtyping import Int
from torch import Tensor

from audio_ct.audio.files import AudioReader, resample_blocks
from audio_ct.errors import AudioCTError, InputError
from audio_ct.html import render
from audio_ct.pretrained import Pretrained
from audio_ct.sampling.compiled import compiling_pays
from audio_ct.sampling.engine import MAX_SEED, EngineOptions, Sampler
from audio_ct.sampling.filters import Filters
from audio_ct.tokens.codec import MuLawCodec

TEMPLATE = Path(__file__).with_name("serving.html.jinja")
MAX_UPLOAD_BYTES = 20 << 20
MAX_PROMPT_SECONDS = 10.0
MAX_WAITING = 2
# Of a client that says nothing; and of a block in the making, which takes seconds where the step is not compiled.
SILENCE_SECONDS, ENDING_SECONDS = 30.0, 20.0
WAV_HEADER = struct.Struct("<4sI4s4sIHHIIHH4sI")

logger = logging.getLogger("audio_ct")


class RefusedError(Exception):
    """A request that is answered with a line and a status other than 200."""

    def __init__(self, status: HTTPStatus, line: str) -> None:
        super().__init__(line)
        self.status = status


@dataclass(frozen=True)
class Wish:
    """What is asked for: a waveform's length in samples, its seed, and the filters."""

    num_samples: int
    seed: int
    filters: Filters


class Maker:
    """A model that makes one waveform at a time, for whoever asked first; the others wait, and too many are refused.

    Args:
        model: of audio.
        max_seconds: the longest waveform.

    Raises:
        InputError: for a model of bytes.
    """

    def __init__(self, model: Pretrained, max_seconds: float) -> None:
        if not isinstance(model.codec, MuLawCodec):
            raise InputError(f"{model.label} is a model of bytes, and this page is for sound; use audio-ct sample.")
        self.model, self.codec, self.max_seconds = model, model.codec, max_seconds
        self.doing = "nothing"
        self._places = threading.BoundedSemaphore(1 + MAX_WAITING)
        self._turn = threading.Lock()
        self._asking: list[Wish] = []
        self._is_ending = threading.Event()
        # A sampler is used again while its options stay.
        self._kept: tuple[tuple[Filters, bool], Sampler] | None = None

    @property
    def num_waiting(self) -> int:
        """Requests that wait for their turn."""
        return max(0, len(self._asking) - 1)

    def wish(self, values: Mapping[str, str]) -> Wish:
        """Read what is asked for; InputError for what is unknown, no number, or out of range."""
        numbers: dict[str, float] = {"seconds": 2.0, "temperature": 1.0, "seed": 0, "top_p": 1.0}
        for name, text in values.items():
            if name not in numbers:
                raise InputError(f"{name}={text!r} is unknown here; there are {', '.join(numbers)}.")
            try:
                numbers[name] = int(text) if name == "seed" else float(text)
            except ValueError as error:
                raise InputError(f"{name}={text!r} must be a number.") from error
        if not 0 < numbers["seconds"] <= self.max_seconds:
            raise InputError(f"seconds={numbers['seconds']} must be above 0 and at most {self.max_seconds:g} here.")
        if not 0 <= numbers["seed"] <= MAX_SEED:
            raise InputError(f"seed={numbers['seed']} must be from 0 to {MAX_SEED}.")
        top_p = numbers["top_p"]
        filters = Filters(temperature=numbers["temperature"], top_p=None if top_p == 1 else top_p)
        return Wish(self.codec.num_tokens(seconds=numbers["seconds"]), int(numbers["seed"]), filters)

    def read_prompt(self, content: bytes) -> Int[Tensor, " time"]:
        """Read the beginning of an uploaded recording, 10 s at the most.

        Raises:
            InputError: if it is no audio that can be read.
        """
        # The reader wants a file; this one has no meaning as a name, and is gone with the block.
        with tempfile.TemporaryDirectory(prefix="audio-ct-") as folder:
            path = Path(folder, "prompt")
            path.write_bytes(content)
            with AudioReader(path) as reader:
                blocks = itertools.islice(reader.blocks(block_seconds=1.0), math.ceil(MAX_PROMPT_SECONDS))
                at_rate = list(resample_blocks(blocks, reader.sample_rate_hz, self.codec.sample_rate_hz))
        waveform = np.concatenate([*at_rate, np.zeros(0, np.float32)])
        tokens = self.codec.encode(waveform[: round(MAX_PROMPT_SECONDS * self.codec.sample_rate_hz)])
        if not len(tokens):
            raise InputError("the recording holds no samples at the model's rate; give a longer one.")
        return tokens

    def make(self, wish: Wish, prompt: Int[Tensor, " time"] | None) -> Iterator[np.ndarray]:
        """Wait for a turn, then yield float32 blocks of a waveform [time], its prompt first.

        Raises:
            RefusedError: if too many wait, or the server ends.
        """
        if not self._places.acquire(blocking=False):
            line = f"one waveform is being made and {MAX_WAITING} wait; ask again when one of them is done."
            raise RefusedError(HTTPStatus.SERVICE_UNAVAILABLE, line)
        self._asking.append(wish)
        self._turn.acquire()
        try:
            began, num_made = time.monotonic(), 0
            for block in self._blocks(wish, prompt):
                yield block
                num_made += len(block)
                if self._is_ending.is_set():
                    raise RefusedError(HTTPStatus.SERVICE_UNAVAILABLE, "the server is ending.")
            seconds = num_made / self.codec.sample_rate_hz
            logger.info("made %.1f s in %.1f s, seed %d", seconds, time.monotonic() - began, wish.seed)
        finally:
            self.doing = "nothing"
            self._asking.remove(wish)
            self._turn.release()
            self._places.release()

    def end(self) -> None:
        """Let what is being made end after its block, and wait for that."""
        self._is_ending.set()
        self._turn.acquire(timeout=ENDING_SECONDS)

    def _blocks(self, wish: Wish, prompt: Int[Tensor, " time"] | None) -> Iterator[np.ndarray]:
        compiled = compiling_pays(self.model.model, wish.num_samples)
        self.doing = "getting the step compiled, half a minute the first time" if compiled else "beginning"
        key = wish.filters, compiled
        if self._kept is None or self._kept[0] != key:
            options = EngineOptions(compiled=compiled)
            self._kept = key, Sampler(self.model.model, num_waveforms=1, filters=wish.filters, options=options)
        blocks = self._kept[1].generate(
            num_samples=wish.num_samples, start_token=self.codec.start_token, seed=wish.seed, prompt=prompt
        )
        first = next(blocks)
        self.doing = "making"
        if prompt is not None:
            yield self.codec.decode(prompt)
        for block in itertools.chain([first], blocks):
            yield self.codec.decode(block[0])


class Server(ThreadingHTTPServer):
    """The page of one model, at an address of this machine.

    Args:
        maker: makes the waveforms.
        host: a name or an address; others than loopback let other machines in.
        port: 0 for any that is free.

    Raises:
        InputError: if the address cannot be had.
    """

    daemon_threads = True
    # Of connections that nobody has answered yet.
    request_queue_size = 16

    def __init__(self, maker: Maker, host: str, port: int) -> None:
        self.maker = maker
        self.nonce = secrets.token_urlsafe(16)
        try:
            # An IPv6 address needs a socket of its family.
            self.address_family = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0][0]
            super().__init__((host, port), Handler)
        except (OSError, OverflowError) as error:
            why = getattr(error, "strerror", None) or error
            raise InputError(f"host={host!r}, port={port}: {why}; choose others by --host and --port.") from error
        self.is_local = ipaddress.ip_address(str(self.server_address[0]).partition("%")[0]).is_loopback
        self._names = {"localhost"} if self.is_local else {"localhost", host.lower(), socket.gethostname().lower()}

    @property
    def address(self) -> str:
        """The page's address."""
        host, port = str(self.server_address[0]), self.server_address[1]
        return f"http://{f'[{host}]' if ':' in host else host}:{port}/"

    def knows(self, host: str | None) -> bool:
        """Tell if a Host header names this server as its own machine would.

        A page elsewhere may let its own name stand for this address, so that a browser takes both for one ("DNS
        rebinding"). Such a name is neither an address nor ours.
        """
        try:
            parts = urlsplit(f"//{host or ''}")
            name, port = parts.hostname or "", parts.port or 80
        except ValueError:
            return False
        if port != self.server_address[1] or parts.username is not None or parts.path:
            return False
        try:
            return ipaddress.ip_address(name).is_loopback or not self.is_local
        except ValueError:
            return name in self._names


class Handler(BaseHTTPRequestHandler):
    """Answers one connection."""

    server: Server
    protocol_version = "HTTP/1.1"
    _has_begun = False
    server_version, sys_version = "audio-ct", ""
    timeout = SILENCE_SECONDS

    def do_GET(self) -> None:
        """Answer with the page, or with what is being done."""
        maker = self.server.maker
        with self._refusals():
            self._check_who_asks()
            if (path := urlsplit(self.path).path) == "/":
                codec = maker.codec
                values = {
                    "label": maker.model.label,
                    "rate_hz": codec.sample_rate_hz,
                    "max_seconds": maker.max_seconds,
                    "max_prompt_seconds": MAX_PROMPT_SECONDS,
                    "nonce": self.server.nonce,
                    "is_local": self.server.is_local,
                }
                self._answer(HTTPStatus.OK, "text/html; charset=utf-8", render(TEMPLATE, **values))
            elif path == "/status":
                state = {"doing": maker.doing, "waiting": maker.num_waiting}
                self._answer(HTTPStatus.OK, "application/json", json.dumps(state).encode())
            else:
                raise RefusedError(HTTPStatus.NOT_FOUND, f"{path} is not here; the page is /.")

    def do_POST(self) -> None:
        """Answer with a waveform."""
        maker = self.server.maker
        with self._refusals():
            self._check_who_asks()
            address = urlsplit(self.path)
            if address.path != "/sample":
                raise RefusedError(HTTPStatus.NOT_FOUND, f"{address.path} is not here; waveforms are at /sample.")
            content = self._body()
            wish = maker.wish(dict(parse_qsl(address.query, keep_blank_values=True, max_num_fields=8)))
            prompt = maker.read_prompt(content) if content else None
            blocks = maker.make(wish, prompt)
            try:
                # Until there is a block, it can still be refused.
                first = next(blocks)
                num_samples = wish.num_samples + (0 if prompt is None else len(prompt))
                self._head(HTTPStatus.OK, "audio/wav", WAV_HEADER.size + 2 * num_samples)
                self.wfile.write(_wav_header(maker.codec.sample_rate_hz, num_samples))
                for block in itertools.chain([first], blocks):
                    self.wfile.write((block * 32767).round().clip(-32768, 32767).astype("<i2").tobytes())
            finally:
                # Who went away lets the next one begin.
                blocks.close()  # type: ignore[attr-defined]

    def log_message(self, format: str, *arguments: Any) -> None:
        """Leave out the lines of the standard library: what was made has lines of its own."""

    def _body(self) -> bytes:
        if self.headers.get("Transfer-Encoding"):
            raise RefusedError(HTTPStatus.LENGTH_REQUIRED, "send the recording with a Content-Length.")
        length = self.headers.get("Content-Length", "0")
        if not length.isascii() or not length.isdigit():
            raise RefusedError(HTTPStatus.BAD_REQUEST, f"Content-Length={length!r} must be a number of bytes.")
        if int(length) > MAX_UPLOAD_BYTES:
            line = f"the recording has {int(length):,} bytes; the limit is {MAX_UPLOAD_BYTES:,}: send its beginning."
            raise RefusedError(HTTPStatus.REQUEST_ENTITY_TOO_LARGE, line)
        content = self.rfile.read(int(length))
        if len(content) < int(length):
            raise RefusedError(HTTPStatus.BAD_REQUEST, "the recording ended early.")
        return content

    @contextmanager
    def _refusals(self) -> Iterator[None]:
        """Turn errors of a request into its answer, a line; where the answer has begun, only end the connection."""
        self._has_begun = False
        try:
            yield
        except RefusedError as error:
            status, line = error.status, str(error)
        except AudioCTError as error:
            status, line = HTTPStatus.BAD_REQUEST, str(error)
        except (ConnectionError, TimeoutError):
            # Who asked is gone.
            self.close_connection = True
            return
        except (OSError, RuntimeError) as error:
            status, line = HTTPStatus.INTERNAL_SERVER_ERROR, " ".join(str(error).split())[:300]
            logger.warning("failed: %s", line)
        else:
            return
        self.close_connection = True
        if not self._has_begun:
            with suppress(ConnectionError, TimeoutError):
                self._answer(status, "text/plain; charset=utf-8", f"{line}\n".encode())

    def _check_who_asks(self) -> None:
        """Refuse what a page from elsewhere lets a browser ask, under a name of its own or under ours."""
        host, origin = self.headers.get("Host"), self.headers.get("Origin")
        if not self.server.knows(host):
            line = f"Host={host!r} is no name of this server; its address is {self.server.address}."
            raise RefusedError(HTTPStatus.MISDIRECTED_REQUEST, line)
        if origin not in (None, f"http://{host}"):
            raise RefusedError(
                HTTPStatus.FORBIDDEN, f"Origin={origin!r} must not ask here; open {self.server.address}."
            )

    def _answer(self, status: HTTPStatus, kind: str, content: bytes) -> None:
        self._head(status, kind, len(content))
        self.wfile.write(content)

    def _head(self, status: HTTPStatus, kind: str, length: int) -> None:
        self._has_begun = True
        own = f"'nonce-{self.server.nonce}'"
        self.send_response(status)
        for name, value in {
            "Content-Type": kind,
            "Content-Length": str(length),
            "Cache-Control": "no-store",
            "Content-Security-Policy": f"default-src 'none'; script-src {own}; style-src {own}; connect-src 'self'; "
            "media-src blob:; img-src data:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
            "Cross-Origin-Resource-Policy": "same-origin",
            "Referrer-Policy": "no-referrer",
            "X-Content-Type-Options": "nosniff",
        }.items():
            self.send_header(name, value)
        if status == HTTPStatus.SERVICE_UNAVAILABLE:
            self.send_header("Retry-After", "10")
        if status != HTTPStatus.OK:
            # What was sent may not have been read.
            self.close_connection = True
            self.send_header("Connection", "close")
        self.end_headers()


def serve(server: Server, *, when_ready: Callable[[], None]) -> None:
    """Answer until SIGINT or SIGTERM, from `when_ready` on, and end when the block in the making is done."""
    before = signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        when_ready()
        server.serve_forever(poll_interval=0.1)
    except KeyboardInterrupt:
        logger.info("ending")
    finally:
        server.server_close()
        server.maker.end()
        signal.signal(signal.SIGTERM, before)


def _wav_header(sample_rate_hz: int, num_samples: int) -> bytes:
    """The header of a mono WAV file of 16 bits."""
    num_bytes = 2 * num_samples
    # RIFF, its size, WAVE; fmt, its size, PCM, channels, rate, bytes a second, bytes a frame, bits; data, its size.
    form = (b"fmt ", 16, 1, 1, sample_rate_hz, 2 * sample_rate_hz, 2, 16)
    return WAV_HEADER.pack(b"RIFF", WAV_HEADER.size - 8 + num_bytes, b"WAVE", *form, b"data", num_bytes)
