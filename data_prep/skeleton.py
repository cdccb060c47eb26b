"""The stages that every corpus goes through: gather, plan splits and shards, encode, report, commit.

A corpus file only gathers: it names the recordings.
"""

import json
import logging
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import joblib
from joblib.externals.loky.process_executor import TerminatedWorkerError

from audio_ct.errors import AudioCTError, InputError
from audio_ct.progress import Progress
from audio_ct.tokens.codec import Codec, MuLawCodec
from audio_ct.tokens.store import TokenStore
from audio_ct.tokens.store_builder import TokenStoreBuilder
from data_prep import report
from data_prep.encoding import Reject, ShardResult, encode_shard
from data_prep.plan import SPLITS, Candidate, PrepOptions, plan_shards

logger = logging.getLogger(__name__)


@dataclass
class Gathered:
    """The recordings of a corpus, as its file hands them to the stages."""

    candidates: list[Candidate]
    """In reading order."""
    rejects: list[Reject]
    sources: list[dict[str, Any]]
    """Name, address or description of what the recordings come from."""
    synthetic: bool = False


def build(
    gather: Callable[[Path], Gathered], out: Path, *, options: PrepOptions, corpus: str, progress: bool
) -> dict[str, Any]:
    """Prepare a token store from the recordings that `gather` names.

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

    codec = MuLawCodec(options.sample_rate_hz, options.bits)
    summary = write_store(fill, out, codec, options, corpus=corpus, preparation=options.preparation())
    return summary | {"times_real_time": round(summary["audio_seconds"] / max(summary["wall_seconds"], 0.01), 1)}


def write_store(
    fill: Callable[[TokenStoreBuilder], dict[str, Any]],
    out: Path,
    codec: Codec,
    options: PrepOptions,
    *,
    corpus: str,
    preparation: dict[str, Any],
) -> dict[str, Any]:
    """Write a token store, whole or not at all: the last stage of every corpus.

    Args:
        fill: Adds the shards and `report.json`; returns a summary, its warnings among it.
        out: Where the store shall stand.
        codec: What its tokens stand for.
        options: The sources' licence, and whether a token store that stands there is replaced.
        corpus: Name of the corpus file, kept in the store.
        preparation: The options that decide on the store's bytes, kept in the store.

    Returns:
        The summary, with out, digest, num_tokens and wall_seconds.

    Raises:
        InputError: If the store exists or is being prepared, or the disk is full.
    """
    started = time.monotonic()
    if not options.overwrite:
        _refuse_prepared(out, {"corpus": corpus} | preparation)
    try:
        with TokenStoreBuilder(out, codec, overwrite=options.overwrite) as builder:
            builder.metadata |= {"corpus": corpus, "preparation": preparation, "licence": options.licence}
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
        joblib.delayed(encode_shard)(split, batch, work_folder / f"{index:06d}.bin", options)
        for index, (split, batch) in enumerate(shards)
    )
    total = sum(len(batch) for _, batch in shards)
    results = []
    done = 0
    with Progress("encoding", total, unit="recordings", shown=progress, tenths=True) as bar:
        for result in parallel(tasks):
            results.append(result)
            done += len(result.recordings) + len(result.rejects)
            bar.update(done)
    return sorted(results, key=lambda result: result.file)


def _refuse_prepared(out: Path, wanted: dict[str, Any]) -> None:
    """Refuse a store that stands in the way, and name the options by which it differs."""
    if not (out / "corpus.json").is_file():
        return
    found = TokenStore.open(out).corpus
    there = {"corpus": found.get("corpus")} | found.get("preparation", {})
    changed = [f"{k}={there.get(k)!r} there, {v!r} here" for k, v in wanted.items() if there.get(k) != v]
    difference = f"other options ({'; '.join(changed)})" if changed else "the same options"
    raise InputError(f"{str(out)!r} exists already, prepared with {difference}; choose another place or overwrite.")
