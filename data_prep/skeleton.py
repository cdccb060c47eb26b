"""The stages that every corpus goes through: gather, plan splits and shards, encode, report, commit.

A corpus file only gathers: it names the recordings. One task encodes one shard, and the plan depends on the recordings
and the options alone, never on the number of jobs, so the same input gives the same bytes however it is prepared.
"""

import hashlib
import json
import logging
import os
import stat
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import Any

import joblib
import numpy.typing as npt
import torch
from joblib.externals.loky.process_executor import TerminatedWorkerError
from rich.console import Console
from rich.progress import Progress

from audio_ct.audio import files, mu_law
from audio_ct.errors import AudioCTError, InputError, MissingError
from audio_ct.tokens.encoding import Encoding
from audio_ct.tokens.store import Recording, TokenStore, TokenStoreBuilder
from data_prep import report

SPLITS = ("train", "validation", "test")
# A shard takes at most this much of the sources (64 MiB of FLAC are some 100 million tokens), and small corpora are cut
# finer, so that several jobs have work.
MAXIMUM_SHARD_BYTES = 64 << 20
MINIMUM_SHARD_BYTES = 1 << 20
SHARDS_OF_A_SMALL_CORPUS = 16
MAXIMUM_TEXT_BYTES = 1 << 20
# Peak to peak, 60 dB below full scale: what stays within it is a noise floor, silence or a constant offset.
SILENCE_RANGE = 1e-3

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class PrepOptions:
    """How a corpus becomes a token store."""

    sample_rate_hz: int = 24_000
    bits: int = 8
    jobs: int = 1
    validation_fraction: float = 0.05
    test_fraction: float = 0.05
    """Shares of the recordings, or of a file's bytes; validation and test get at least one each."""
    seed: int = 0
    """Chooses the recordings of each split, and the voices of a synthetic corpus."""
    overwrite: bool = False
    minimum_seconds: float = 0.1
    """Shorter recordings are rejected."""
    licence: str | None = None
    """The sources' licence, kept in the store."""

    def __post_init__(self) -> None:
        """Refuse values that no preparation can use.

        Raises:
            InputError: Naming the option, its value and the rule.
        """
        held_out = self.validation_fraction + self.test_fraction
        rules = {
            "sample_rate_hz": (files.MINIMUM_RATE_HZ <= self.sample_rate_hz <= files.MAXIMUM_RATE_HZ, "4000 to 768000"),
            "bits": (1 <= self.bits <= mu_law.MAXIMUM_BITS, "1 to 16; 8 is usual"),
            "jobs": (self.jobs >= 1, "at least 1"),
            "validation_fraction": (0 < self.validation_fraction < 1, "between 0 and 1"),
            "test_fraction": (self.test_fraction > 0 and held_out < 1, "above 0, and below 1 with validation_fraction"),
            "minimum_seconds": (0 <= self.minimum_seconds < float("inf"), "0 or more"),
        }
        for name, (holds, rule) in rules.items():
            if not holds:
                raise InputError(f"{name}={getattr(self, name)!r} must be {rule}.")

    def preparation(self) -> dict[str, Any]:
        """Return the options that decide on the store's bytes."""
        return {f.name: getattr(self, f.name) for f in fields(self) if f.name not in ("jobs", "overwrite", "licence")}


@dataclass(frozen=True)
class Candidate:
    """A recording to be encoded, as a corpus file names it."""

    path: Path
    name: str
    speaker: str
    source: str
    num_bytes: int
    text_path: Path | None = None


@dataclass(frozen=True)
class Reject:
    """A source that was left out: a short reason to count by, and the whole line."""

    source: str
    reason: str
    detail: str


@dataclass
class Gathered:
    """What a corpus file hands to the stages."""

    candidates: list[Candidate]
    """In reading order."""
    rejects: list[Reject]
    sources: list[dict[str, Any]]
    """Name, address or description of what the recordings come from."""
    synthetic: bool = False


@dataclass
class ShardResult:
    """What encoding one shard gave; the tokens themselves are in `file`."""

    split: str
    file: Path
    sha256: str = ""
    recordings: list[Recording] = field(default_factory=list)
    measures: list[report.Measures] = field(default_factory=list)
    rejects: list[Reject] = field(default_factory=list)


def build(
    gather: Callable[[Path], Gathered], out: Path, *, options: PrepOptions, corpus: str, progress: bool
) -> dict[str, Any]:
    """Prepare a token store from what `gather` names.

    Args:
        gather: Names the recordings; gets a folder for files that it makes, which is removed afterwards.
        out: Where the store shall stand.
        options: How to prepare it.
        corpus: Name of the corpus file, kept in the store.
        progress: Show progress on standard error.

    Returns:
        A summary: out, digest, num_recordings, num_tokens, audio_seconds, wall_seconds, times_real_time, num_rejects,
        rejects by reason, and warnings.

    Raises:
        InputError: If the store exists or is being prepared, fewer than three recordings are usable, or the disk is
            full.
    """

    def fill(builder: TokenStoreBuilder) -> dict[str, Any]:
        gathered = gather(builder.work_folder)
        results, rejects = _encode(gathered, builder.work_folder, options, progress)
        for result in results:
            builder.add_shard_file(result.split, result.file, result.sha256, result.recordings)
        builder.metadata |= {"sources": gathered.sources, "synthetic": gathered.synthetic}
        measures = [measure for result in results for measure in result.measures]
        lines = [json.dumps(asdict(reject)) + "\n" for reject in rejects]
        (builder.folder / "rejects.jsonl").write_text("".join(lines), encoding="utf-8")
        return report.write(measures, [reject.reason for reject in rejects], options.sample_rate_hz, builder.folder)

    summary = write_store(
        fill,
        out,
        corpus=corpus,
        preparation=options.preparation(),
        licence=options.licence,
        overwrite=options.overwrite,
        sample_rate_hz=options.sample_rate_hz,
        bits=options.bits,
    )
    return summary | {"times_real_time": round(summary["audio_seconds"] / max(summary["wall_seconds"], 0.01), 1)}


def write_store(
    fill: Callable[[TokenStoreBuilder], dict[str, Any]],
    out: Path,
    *,
    corpus: str,
    preparation: dict[str, Any],
    licence: str | None,
    overwrite: bool,
    sample_rate_hz: int | None,
    bits: int = 8,
    encoding: Encoding = "mu-law",
) -> dict[str, Any]:
    """Write a token store, whole or not at all: what every corpus ends in.

    Args:
        fill: Adds the shards and `report.json`; returns a summary, its warnings among it.
        out: Where the store shall stand.
        corpus: Name of the corpus file, kept in the store.
        preparation: The options that decide on the store's bytes, kept in the store.
        licence: The sources' licence, kept in the store.
        overwrite: Replace a token store that stands there.
        sample_rate_hz: Tokens per second; None for bytes.
        bits: Bits per token.
        encoding: What a token stands for.

    Returns:
        The summary, with out, digest, num_tokens and wall_seconds.

    Raises:
        InputError: If the store exists or is being prepared, or the disk is full.
    """
    started = time.monotonic()
    if not overwrite:
        _refuse_prepared(out, {"corpus": corpus} | preparation)
    builder = TokenStoreBuilder(
        out,
        sample_rate_hz=sample_rate_hz,
        bits=bits,
        encoding=encoding,
        overwrite=overwrite,
        metadata={"corpus": corpus, "preparation": preparation, "licence": licence},
    )
    try:
        with builder:
            summary = fill(builder)
            store = builder.commit()
    except TerminatedWorkerError as error:
        raise InputError("a worker process died; give fewer jobs, or more memory, and prepare again.") from error
    except OSError as error:
        if isinstance(error, AudioCTError):
            raise
        raise InputError(
            f"{str(out)!r} cannot be prepared: {error.strerror or error}; nothing was left behind."
        ) from error
    for warning in summary["warnings"]:
        logger.warning(warning)
    return summary | {
        "out": str(out),
        "digest": store.digest,
        "num_tokens": sum(store.num_tokens(split) for split in store.splits),
        "wall_seconds": round(time.monotonic() - started, 2),
    }


def plan_splits(names: Sequence[str], options: PrepOptions) -> dict[str, str]:
    """Return the split of every recording, by its rank among the hashes of seed and name.

    A rank, unlike a threshold on the hash, gives every split its share exactly, and at least one recording.

    Args:
        names: Names of the recordings, all different.
        options: The seed and the fractions.

    Returns:
        Split by name.

    Raises:
        InputError: If there are fewer than three recordings.
    """
    if len(names) < len(SPLITS):
        raise InputError(f"{len(names)} usable recordings; at least 3 are needed, one for each of {', '.join(SPLITS)}.")
    ranked = sorted(names, key=lambda name: hashlib.sha256(f"{options.seed}\0{name}".encode()).digest())
    num_validation, num_test = count_held_out(len(names), options)
    held_out = dict.fromkeys(ranked[:num_validation], "validation")
    held_out |= dict.fromkeys(ranked[num_validation : num_validation + num_test], "test")
    return {name: held_out.get(name, "train") for name in names}


def count_held_out(total: int, options: PrepOptions) -> tuple[int, int]:
    """Return how many of three things or more are for validation and for test: their shares, and at least one each.

    Args:
        total: How many there are.
        options: The fractions.
    """
    num_validation = min(max(1, round(options.validation_fraction * total)), total - 2)
    return num_validation, min(max(1, round(options.test_fraction * total)), total - 1 - num_validation)


def plan_shards(candidates: Sequence[Candidate], options: PrepOptions) -> list[tuple[str, list[Candidate]]]:
    """Return every shard's split and recordings, in reading order and cut by the sources' bytes.

    Args:
        candidates: In reading order.
        options: The seed and the fractions.

    Returns:
        (split, candidates) of every shard, split after split.

    Raises:
        InputError: If there are fewer than three candidates.
    """
    split_of = plan_splits([candidate.name for candidate in candidates], options)
    share = sum(candidate.num_bytes for candidate in candidates) // SHARDS_OF_A_SMALL_CORPUS
    shard_bytes = min(max(share, MINIMUM_SHARD_BYTES), MAXIMUM_SHARD_BYTES)
    shards: list[tuple[str, list[Candidate]]] = []
    for split in SPLITS:
        filled = shard_bytes
        for candidate in candidates:
            if split_of[candidate.name] != split:
                continue
            if filled + candidate.num_bytes > shard_bytes:
                shards.append((split, []))
                filled = 0
            shards[-1][1].append(candidate)
            filled += candidate.num_bytes
    return shards


def _encode(
    gathered: Gathered, work_folder: Path, options: PrepOptions, progress: bool
) -> tuple[list[ShardResult], list[Reject]]:
    """Encode all shards; where rejects leave a split empty, plan anew without them."""
    candidates, rejects = gathered.candidates, list(gathered.rejects)
    if not candidates:
        why = f" ({len(rejects)} rejected; the first: {rejects[0].detail})" if rejects else ""
        raise InputError(f"no audio files to prepare{why}; convert recordings to WAV, FLAC, OGG or MP3.")
    while True:
        try:
            shards = plan_shards(candidates, options)
        except InputError as error:
            why = f" {len(rejects)} were rejected, the first: {rejects[0].detail}" if rejects else ""
            raise InputError(f"{error}{why}") from None
        results = _run(shards, work_folder, options, progress)
        new = [reject for result in results for reject in result.rejects]
        rejects += new
        results = [result for result in results if result.recordings]
        if {result.split for result in results} == set(SPLITS):
            return results, rejects
        unusable = {reject.source for reject in new}
        candidates = [candidate for candidate in candidates if candidate.source not in unusable]


def _run(
    shards: list[tuple[str, list[Candidate]]], work_folder: Path, options: PrepOptions, progress: bool
) -> list[ShardResult]:
    """Encode shards in any order, by whatever backend joblib is configured for, and return them in the plan's order."""
    parallel = joblib.Parallel(n_jobs=options.jobs, return_as="generator_unordered", pre_dispatch="2*n_jobs")
    tasks = (
        joblib.delayed(_encode_shard)(split, batch, work_folder / f"{index:06d}.bin", options)
        for index, (split, batch) in enumerate(shards)
    )
    total = sum(len(batch) for _, batch in shards)
    results = []
    with ProgressLine("encoding", total, progress, unit="recordings") as bar:
        for result in parallel(tasks):
            results.append(result)
            bar.advance(len(result.recordings) + len(result.rejects))
    return sorted(results, key=lambda result: result.file)


def _encode_shard(split: str, candidates: list[Candidate], file: Path, options: PrepOptions) -> ShardResult:
    """Encode recordings end to end into one file; a recording that turns out unusable is taken back."""
    result = ShardResult(split, file)
    digest = hashlib.sha256()
    token_bytes = 1 if options.bits <= 8 else 2
    num_threads = torch.get_num_threads()
    # Tokens on an interval's edge could depend on how threads cut a block; one thread is as fast here.
    torch.set_num_threads(1)
    try:
        with file.open("wb") as handle:
            offset = 0
            for candidate in candidates:
                kept = digest.copy()
                try:
                    measures = report.Meter()
                    for tokens in _token_blocks(candidate.path, measures, options):
                        handle.write(tokens)
                        digest.update(tokens)
                    measured = _check_usable(candidate, measures, options)
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
                result.measures.append(replace(measured, seconds=length / options.sample_rate_hz))
                offset += length
    finally:
        torch.set_num_threads(num_threads)
    result.sha256 = digest.hexdigest()
    return result


def _token_blocks(path: Path, meter: report.Meter, options: PrepOptions) -> Iterator[bytes]:
    rate_hz = files.probe(path).sample_rate_hz
    meter.sample_rate_hz = rate_hz

    def measured() -> Iterator[files.Samples]:
        for block in files.decode_blocks(path):
            meter.update(block)
            yield block

    dtype: npt.DTypeLike = "u1" if options.bits <= 8 else "<u2"
    for block in files.resample_blocks(measured(), rate_hz, options.sample_rate_hz):
        yield mu_law.encode(torch.from_numpy(block), options.bits).numpy().astype(dtype).tobytes()


def _check_usable(candidate: Candidate, meter: report.Meter, options: PrepOptions) -> report.Measures:
    measured = meter.result()
    where = os.fspath(candidate.path)
    if measured.seconds < options.minimum_seconds or not round(measured.seconds * options.sample_rate_hz):
        rule = f"lasts {measured.seconds:.4g} s; minimum_seconds is {options.minimum_seconds:g}"
        raise files.RejectedAudioError(f"{where!r} {rule}.", "too short")
    if meter.highest - meter.lowest <= SILENCE_RANGE:
        raise files.RejectedAudioError(
            f"{where!r} is silent or a constant offset: its samples span less than {SILENCE_RANGE:g}.", "silent"
        )
    return measured


def _read_text(path: Path | None) -> str | None:
    """Return a text file's words on one line; what is no regular file of sensible size counts as no text."""
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


def _refuse_prepared(out: Path, wanted: dict[str, Any]) -> None:
    """Say whether a store that stands in the way was prepared from the same corpus file with the same options."""
    if not (out / "corpus.json").is_file():
        return
    found = TokenStore.open(out).corpus
    there = {"corpus": found.get("corpus")} | found.get("preparation", {})
    changed = [f"{k}={there.get(k)!r} there, {v!r} here" for k, v in wanted.items() if there.get(k) != v]
    difference = f"other options ({'; '.join(changed)})" if changed else "the same options"
    raise InputError(f"{str(out)!r} exists already, prepared with {difference}; choose another place or overwrite.")


class ProgressLine:
    """A bar on a terminal; elsewhere a plain line for every tenth."""

    def __init__(self, label: str, total: int, shown: bool, *, unit: str) -> None:
        self._label, self._total, self._shown, self._unit = label, total, shown, unit
        self._done = 0
        self._console = Console(stderr=True)
        self._bar = Progress(console=self._console) if shown and self._console.is_terminal else None

    def __enter__(self) -> "ProgressLine":
        if self._bar is not None:
            self._bar.start()
            self._task = self._bar.add_task(self._label, total=self._total)
        return self

    def __exit__(self, *_: object) -> None:
        if self._bar is not None:
            self._bar.stop()

    def advance(self, count: int) -> None:
        """Count so many more as done."""
        tenth = self._done * 10 // self._total
        self._done += count
        if self._bar is not None:
            self._bar.update(self._task, advance=count)
        elif self._shown and self._done * 10 // self._total > tenth:
            self._console.print(f"{self._label}: {self._done} of {self._total} {self._unit}")
