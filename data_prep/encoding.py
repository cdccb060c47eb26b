"""Recordings to shards of tokens: decoded, resampled and mu-law coded block by block, the unusable ones left out."""

import hashlib
import os
import stat
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path

import torch

from audio_ct.audio import files, mu_law
from audio_ct.errors import MissingError
from audio_ct.tokens.codec import MuLawCodec
from audio_ct.tokens.store import Recording, token_dtype
from data_prep import report
from data_prep.plan import Candidate, PrepOptions

MAXIMUM_TEXT_BYTES = 1 << 20
# Peak to peak, 60 dB below full scale: what stays within it is a noise floor, silence or a constant offset.
SILENCE_RANGE = 1e-3


@dataclass(frozen=True)
class Reject:
    """A source that was left out: a short reason to count by, and the whole line."""

    source: str
    reason: str
    detail: str


@dataclass
class ShardResult:
    """An encoded shard; the tokens themselves are in `file`."""

    split: str
    file: Path
    sha256: str = ""
    recordings: list[Recording] = field(default_factory=list)
    measures: list[report.Measures] = field(default_factory=list)
    rejects: list[Reject] = field(default_factory=list)


def encode_shard(split: str, candidates: list[Candidate], file: Path, options: PrepOptions) -> ShardResult:
    """Encode recordings end to end into one file; a recording that turns out unusable is taken back.

    Args:
        split: The shard's split.
        candidates: Its recordings.
        file: Where its tokens go.
        options: How to encode them.
    """
    result = ShardResult(split, file)
    digest = hashlib.sha256()
    codec = MuLawCodec(options.sample_rate_hz, options.bits)
    token_bytes = token_dtype(codec).itemsize
    num_threads = torch.get_num_threads()
    # Tokens on an interval's edge could depend on how threads cut a block; one thread is as fast here.
    torch.set_num_threads(1)
    try:
        with file.open("wb") as handle:
            offset = 0
            for candidate in candidates:
                kept = digest.copy()
                try:
                    meter = report.Meter()
                    for tokens in _token_blocks(candidate.path, meter, codec):
                        handle.write(tokens)
                        digest.update(tokens)
                    measures = _check_usable(candidate, meter, options)
                    text = _read_text(candidate.text_path)
                except (files.RejectedAudioError, MissingError) as error:
                    reason = error.reason if isinstance(error, files.RejectedAudioError) else "unreadable"
                    detail = str(error).replace(repr(os.fspath(candidate.path)), repr(candidate.source))
                    result.rejects.append(Reject(candidate.source, reason, detail))
                    handle.seek(offset * token_bytes)
                    handle.truncate()
                    digest = kept
                    continue
                length = handle.tell() // token_bytes - offset
                row = Recording(candidate.name, candidate.speaker, candidate.source, text, 0, offset, length)
                result.recordings.append(row)
                result.measures.append(replace(measures, seconds=length / options.sample_rate_hz))
                offset += length
    finally:
        torch.set_num_threads(num_threads)
    result.sha256 = digest.hexdigest()
    return result


def _token_blocks(path: Path, meter: report.Meter, codec: MuLawCodec) -> Iterator[bytes]:
    """Yield a recording's tokens as they stand in a shard; the meter hears the samples at their own rate."""
    meter.sample_rate_hz = files.rate_of(path)

    def heard() -> Iterator[files.Samples]:
        for block in files.decode_blocks(path):
            meter.update(block)
            yield block

    for block in files.resample_blocks(heard(), meter.sample_rate_hz, codec.sample_rate_hz):
        yield mu_law.encode(torch.from_numpy(block), codec.bits).numpy().astype(token_dtype(codec)).tobytes()


def _check_usable(candidate: Candidate, meter: report.Meter, options: PrepOptions) -> report.Measures:
    measures = meter.result()
    where = os.fspath(candidate.path)
    if measures.seconds < options.minimum_seconds or not round(measures.seconds * options.sample_rate_hz):
        rule = f"lasts {measures.seconds:.4g} s; minimum_seconds is {options.minimum_seconds:g}"
        raise files.RejectedAudioError(f"{where!r} {rule}.", "too short")
    if meter.highest - meter.lowest <= SILENCE_RANGE:
        raise files.RejectedAudioError(
            f"{where!r} is silent or a constant offset: its samples span less than {SILENCE_RANGE:g}.", "silent"
        )
    return measures


def _read_text(path: Path | None) -> str | None:
    """Read a text file's words as one line; what is no regular file of sensible size counts as no text."""
    if path is None:
        return None
    try:
        status = path.stat()
        if not stat.S_ISREG(status.st_mode) or status.st_size > MAXIMUM_TEXT_BYTES:
            return None
        return " ".join(path.read_text(encoding="utf-8", errors="replace").split()) or None
    except OSError as error:
        raise files.RejectedAudioError(
            f"{os.fspath(path)!r} cannot be read: {error.strerror}.", "unreadable"
        ) from error
