"""Recordings to shards of tokens: decoded, processed and mu-law coded block by block, the unusable ones left out."""

import hashlib
import json
import os
import stat
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import IO, Any, Self

import numpy as np
import torch

from audio_ct.audio import mu_law
from audio_ct.audio.files import RejectedAudioError, Samples
from audio_ct.storage import LocalStorage, Storage
from audio_ct.tokens.codec import MuLawCodec
from audio_ct.tokens.store import token_dtype
from audio_ct.tokens.store_builder import WORK

from . import processing
from .corpus import Candidate, Encoded, Reject, plain
from .decoding import Decoder
from .options import PrepOptions
from .plan import Shard
from .source import Source, printable

MAXIMUM_TEXT_BYTES = 1 << 20
# Peak to peak, 60 dB below full scale: what stays within it is a noise floor, silence or a constant offset.
SILENCE_RANGE = 1e-3

_of_thread = threading.local()


@dataclass(frozen=True)
class Outcome:
    """What became of a shard; its tokens and the record of its recordings are in the store in the making.

    Attributes:
        name: Of the shard.
        split: Its split.
        num_recordings: That were encoded.
        rejected: Names of the candidates that could not be used.
        rejects: Why not, one for each.
    """

    name: str
    split: str
    num_recordings: int
    rejected: tuple[str, ...]
    rejects: tuple[Reject, ...]

    @classmethod
    def of(cls, shard: Shard, record: dict[str, Any]) -> Self:
        """What a shard's record says."""
        rejects = tuple(Reject(**each) for each in record["rejects"])
        return cls(shard.name, shard.split, len(record["recordings"]), tuple(record["rejected"]), rejects)


def record_name(shard_name: str) -> str:
    """The file, in the store in the making, with what was encoded into a shard."""
    return f"{WORK}/{shard_name}.json"


def encode_shard(shard: Shard, source: Source, storage: Storage, options: PrepOptions) -> Outcome:
    """Encode recordings end to end into one file of tokens, then write the record that says that it is whole.

    Args:
        shard: What to encode.
        source: Where its recordings are.
        storage: The store in the making.
        options: How to encode.
    """
    encoded: list[Encoded] = []
    rejects: list[Reject] = []
    rejected: list[str] = []
    here = storage.path / WORK if isinstance(storage, LocalStorage) else None
    with tempfile.TemporaryDirectory(prefix="shard-", dir=here) as folder, _one_thread():
        file = Path(folder, "tokens")
        with file.open("wb") as handle:
            tokens = _ShardFile(handle, MuLawCodec(options.sample_rate_hz, options.bits))
            for candidate in shard.candidates:
                try:
                    with tokens.whole_or_absent(), source.local(candidate.path) as path:
                        encoded += _encode(candidate, path, source, tokens, options)
                except RejectedAudioError as error:
                    rejects.append(Reject(printable(candidate.path), error.reason, str(error)))
                    rejected.append(candidate.name)
        record = {
            "key": shard.key,
            "sha256": tokens.digest.hexdigest(),
            "num_tokens": sum(each.length for each in encoded),
            "recordings": [plain(each) | {"measures": plain(each.measures)} for each in encoded],
            "rejects": [plain(reject) for reject in rejects],
            "rejected": rejected,
        }
        if encoded:
            storage.put(file, shard.name)
        storage.write(record_name(shard.name), json.dumps(record).encode())
    return Outcome.of(shard, record)


@dataclass
class _Piece:
    """A recording while it is encoded."""

    name: str
    length: int = 0
    num_limited: int = 0
    digest: "hashlib._Hash" = field(default_factory=hashlib.sha256)


def _encode(
    candidate: Candidate, path: Path, source: Source, shard: "_ShardFile", options: PrepOptions
) -> list[Encoded]:
    """Append a recording's tokens to a shard; cut into pieces, it becomes several recordings."""
    where = printable(candidate.path)
    decoder = _decoder()
    extremes = _Extremes()
    pieces: list[_Piece] = []
    decoded = decoder.blocks(
        path,
        sample_rate_hz=options.sample_rate_hz,
        channel=None if options.channel == "mean" else int(options.channel),
        spans=candidate.spans,
        keep_truncated=options.keep_truncated,
    )
    try:
        for number, samples in _pieces(extremes.watch(decoded), options):
            name = candidate.name if number is None else f"{candidate.name}-{number:04d}"
            if not pieces or pieces[-1].name != name:
                pieces.append(_Piece(name))
            shard.write(samples, pieces[-1])
    except RejectedAudioError as error:
        # The decoder names the file by its path on this machine.
        detail = str(error).replace(repr(os.fspath(path)), repr(where))
        raise RejectedAudioError(detail, error.reason) from error
    shortest = min((piece.length for piece in pieces), default=0)
    if not shortest or shortest < options.minimum_seconds * options.sample_rate_hz:
        seconds = shortest / options.sample_rate_hz
        rule = f"lasts {seconds:.4g} s; minimum_seconds is {options.minimum_seconds:g}"
        raise RejectedAudioError(f"{where!r} {rule}.", "too short")
    if extremes.highest - extremes.lowest <= SILENCE_RANGE:
        rule = f"is silent or a constant offset: its samples span less than {SILENCE_RANGE:g}"
        raise RejectedAudioError(f"{where!r} {rule}.", "silent")
    assert decoder.measures is not None
    is_whole = len(pieces) == 1
    return [
        Encoded(
            name=piece.name,
            speaker=candidate.speaker,
            source=where,
            # The text of a recording is not that of a piece of it.
            text=(candidate.text or _read_text(source, candidate.text_path)) if is_whole else None,
            length=piece.length,
            sha256=piece.digest.hexdigest(),
            measures=decoder.measures if is_whole else replace(decoder.measures, fingerprint=""),
            num_limited=piece.num_limited,
            truncated=decoder.truncated is not None,
        )
        for piece in pieces
    ]


class _ShardFile:
    """The file of a shard's tokens, from which a recording that turns out unusable is taken back."""

    def __init__(self, handle: IO[bytes], codec: MuLawCodec) -> None:
        self.digest = hashlib.sha256()
        self._handle = handle
        self._codec = codec
        self._dtype = token_dtype(codec)

    def write(self, samples: Samples, piece: _Piece) -> None:
        """Append samples, limited to full scale, as tokens."""
        content = mu_law.encode(torch.from_numpy(samples), self._codec.bits).numpy().astype(self._dtype).tobytes()
        self._handle.write(content)
        self.digest.update(content)
        piece.digest.update(content)
        piece.length += len(samples)
        piece.num_limited += int(np.count_nonzero(np.abs(samples) > 1))

    @contextmanager
    def whole_or_absent(self) -> Iterator[None]:
        """Take back what is written within the block if it ends with an error."""
        begin, kept = self._handle.tell(), self.digest.copy()
        try:
            yield
        except BaseException:
            self._handle.seek(begin)
            self._handle.truncate()
            self.digest = kept
            raise


def _pieces(blocks: Iterator[Samples], options: PrepOptions) -> Iterator[tuple[int | None, Samples]]:
    """Process a recording; yield its samples, with the number of the piece that they belong to if it is cut."""
    rate_hz = options.sample_rate_hz
    if options.remove_dc:
        blocks = processing.remove_offset(blocks, rate_hz)
    if options.loudness_lufs is not None:
        blocks = processing.level(blocks, rate_hz, options.loudness_lufs)
    if options.maximum_pause_seconds is not None:
        blocks = processing.shorten_pauses(blocks, rate_hz, options.maximum_pause_seconds)
    if options.pad_to_seconds is not None:
        blocks = processing.pad(blocks, round(options.pad_to_seconds * rate_hz))
    if options.maximum_seconds is not None:
        return processing.cut(blocks, rate_hz, options.maximum_seconds)
    return ((None, block) for block in blocks)


class _Extremes:
    """The lowest and the highest sample that passed."""

    def __init__(self) -> None:
        self.lowest, self.highest = np.inf, -np.inf

    def watch(self, blocks: Iterator[Samples]) -> Iterator[Samples]:
        """Pass blocks on."""
        for block in blocks:
            self.lowest = min(self.lowest, float(block.min()))
            self.highest = max(self.highest, float(block.max()))
            yield block


def end_decoder() -> None:
    """End the process that decodes for this thread, if there is one."""
    if (decoder := getattr(_of_thread, "decoder", None)) is not None:
        decoder.end()


def _decoder() -> Decoder:
    """The decoder of this thread: its process is kept from one shard to the next, and ends with this one."""
    if not hasattr(_of_thread, "decoder"):
        _of_thread.decoder = Decoder()
    decoder: Decoder = _of_thread.decoder
    return decoder


@contextmanager
def _one_thread() -> Iterator[None]:
    """Tokens on an interval's edge could depend on how threads cut a block; one thread is as fast here."""
    num_threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(num_threads)


def _read_text(source: Source, path: str | None) -> str | None:
    """Read a text file's words as one line; what is no regular file of sensible size counts as no text."""
    if path is None:
        return None
    try:
        with source.local(path) as file:
            status = file.stat()
            if not stat.S_ISREG(status.st_mode) or status.st_size > MAXIMUM_TEXT_BYTES:
                return None
            return " ".join(file.read_text(encoding="utf-8", errors="replace").split()) or None
    except OSError as error:
        raise RejectedAudioError(f"{printable(path)!r} cannot be read: {error.strerror}.", "unreadable") from error
