"""The stages that every corpus goes through: inventory, plan, encode, finalise, report.

A corpus file only gathers: it names the recordings. The inventory of what it named and a record of every encoded shard
are kept in the store in the making, so that a preparation that was stopped anywhere goes on there, and gives the same
bytes as one that never was.
"""

import contextlib
import json
import logging
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from types import FrameType
from typing import Any

import joblib
from joblib.externals.loky.process_executor import TerminatedWorkerError

from audio_ct.errors import AudioCTError, InputError, MissingError
from audio_ct.progress import Progress
from audio_ct.storage import Storage
from audio_ct.tokens.codec import Codec, MuLawCodec
from audio_ct.tokens.store import TokenStore, token_dtype
from audio_ct.tokens.store_builder import WORK, TokenStoreBuilder

from . import inventory
from .corpus import SPLITS, Corpus, Gathered, Reject, options_for
from .download import fetch
from .encoding import Outcome, encode_shard, end_decoder, record_name
from .finalising import finalise
from .options import PrepOptions
from .plan import Shard, plan_shards
from .report import Report
from .source import Source
from .workers import workers

logger = logging.getLogger("audio_ct")


class UnusableError(InputError):
    """A corpus has too few usable recordings."""


def prepare(
    corpus: Corpus,
    source: str | os.PathLike[str] | None,
    out: str | os.PathLike[str],
    *,
    options: PrepOptions | None = None,
    progress: bool = False,
) -> dict[str, Any]:
    """Prepare a token store from a corpus; where that was begun and stopped, go on.

    Args:
        corpus: As its file declares it.
        source: The folder that holds it, or an address that fsspec reads; None if the corpus makes its own recordings.
        out: Where the store shall stand: a path, or an address.
        options: How to prepare it; by default the corpus's own.
        progress: Show progress on standard error.

    Returns:
        A summary: out, digest, num_recordings, num_tokens, audio_seconds, wall_seconds, times_real_time, num_rejects,
        rejects by reason, and warnings.

    Raises:
        InputError: If the store exists or is being prepared, an unfinished one has other options, fewer than three
            recordings are usable, or the disk is full.
        MissingError: If the source is not there, or a package that an option needs.
    """
    options = options or options_for(corpus)
    if (source is None) != (corpus.make is not None):
        raise InputError(
            f"source={os.fspath(source)!r}: {corpus.name} makes its own recordings; leave the source out."
            if source is not None
            else f"{corpus.name} needs a source: the folder that holds the corpus."
        )
    found = None if source is None else Source(os.fspath(source))
    if found is not None:
        found.check()
        if found.is_local and _contains(out, found.address):
            raise InputError(f"out={os.fspath(out)!r} contains the source; choose a place outside it.")
    codec = MuLawCodec(options.sample_rate_hz, options.bits)

    def fill(builder: TokenStoreBuilder) -> dict[str, Any]:
        folder = builder.work_folder / "recordings"
        wanted = {
            "corpus": corpus.name,
            "source": None if found is None else os.path.abspath(found.address) if found.is_local else found.address,
        }
        wanted |= options.preparation()
        if options.overwrite:
            with contextlib.suppress(FileNotFoundError):
                if not inventory.is_of(builder.storage, wanted):
                    builder.empty()
        place = found or Source(os.fspath(folder))

        def gather() -> Gathered:
            if corpus.make is not None:
                builder.storage.remove(f"{WORK}/recordings")
                corpus.make(folder, options)
            return corpus.gather(place, options)

        gathered, before = inventory.take(builder.storage, wanted, gather)
        if before:
            logger.info(f"going on with the unfinished {os.fspath(out)!r}: {len(gathered.candidates)} recordings")
        official = any(candidate.split for candidate in gathered.candidates)
        report = Report(corpus, options, options.sample_rate_hz, official_splits=official)
        try:
            shards, rejected = _encode(gathered, place, builder.storage, options, progress)
        except UnusableError:
            # To be gathered anew once recordings have been added.
            builder.empty()
            raise
        for reject in (*gathered.rejects, *rejected):
            report.reject(reject)
        for note in gathered.notes:
            report.note(note)
        builder.metadata |= {
            "title": corpus.title,
            "citation": corpus.citation,
            "address": corpus.address,
            "sources": [{"name": place.name if found else corpus.title}],
            "synthetic": corpus.synthetic,
        }
        summary = finalise(builder, shards, report)
        # Whoever trains on the store is told, too.
        builder.metadata["warnings"] = summary["warnings"]
        return summary

    licence = options.licence or corpus.licence
    summary = write_store(
        fill,
        out,
        codec,
        corpus=corpus.name,
        licence=licence,
        preparation=options.preparation(),
        overwrite=options.overwrite,
        resumable=True,
    )
    return summary | {"times_real_time": round(summary["audio_seconds"] / max(summary["wall_seconds"], 0.01), 1)}


def write_store(
    fill: Callable[[TokenStoreBuilder], dict[str, Any]],
    out: str | os.PathLike[str],
    codec: Codec,
    *,
    corpus: str,
    licence: str | None,
    preparation: dict[str, Any],
    overwrite: bool,
    resumable: bool = False,
) -> dict[str, Any]:
    """Write a token store, whole or not at all.

    Args:
        fill: Adds the shards and the report; returns a summary, its warnings among it.
        out: Where the store shall stand.
        codec: What its tokens stand for.
        corpus: Name of the corpus file, kept in the store.
        licence: The sources', kept in the store.
        preparation: The options that decide on the store's bytes, kept in the store.
        overwrite: Replace a token store that stands there.
        resumable: Keep what is there when it is stopped.

    Returns:
        The summary, with out, digest, num_tokens and wall_seconds.

    Raises:
        InputError: If the store exists or is being prepared, or the disk is full.
    """
    started = time.monotonic()
    where = os.fspath(out)
    goes_on = "what is encoded is kept: the same command goes on" if resumable else "nothing was left behind"
    if not overwrite:
        _refuse_prepared(where, {"corpus": corpus} | preparation)
    try:
        with (
            _interrupted_by_sigterm(),
            TokenStoreBuilder(out, codec, overwrite=overwrite, resumable=resumable) as builder,
        ):
            builder.metadata |= {"corpus": corpus, "preparation": preparation, "licence": licence}
            summary = fill(builder)
            store = builder.commit()
    except TerminatedWorkerError as error:
        raise InputError(f"a worker process died, for want of memory perhaps; give fewer jobs. {goes_on}.") from error
    except KeyboardInterrupt:
        logger.warning(f"stopped; {goes_on}.")
        raise
    except OSError as error:
        if isinstance(error, AudioCTError):
            raise
        raise InputError(f"{where!r} cannot be prepared: {error.strerror or error}; {goes_on}.") from error
    for warning in summary["warnings"]:
        logger.warning(warning)
    return summary | {
        "out": where,
        "digest": store.digest,
        "num_tokens": sum(store.num_tokens(split) for split in store.splits),
        "wall_seconds": round(time.monotonic() - started, 2),
    }


def download(corpus: Corpus, folder: Path, options: PrepOptions, *, progress: bool = False) -> None:
    """Download and unpack the archives of a corpus, or of its chosen subsets, into a folder, where they are not there.

    Raises:
        InputError: If a download fails or is not what was published, or the disk is too small.
    """
    subsets = options.subsets or corpus.default_subsets or tuple(corpus.archives)
    chosen = [archive for subset in ("", *subsets) for archive in corpus.archives.get(subset, ())]
    fetch(list(dict.fromkeys(chosen)), folder, progress=progress)


@contextlib.contextmanager
def _interrupted_by_sigterm() -> Iterator[None]:
    """Let SIGTERM end the work as Ctrl-C does: workers are ended and locks given back."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def interrupt(number: int, frame: FrameType | None) -> None:
        raise KeyboardInterrupt

    usual = signal.signal(signal.SIGTERM, interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, usual)


def _encode(
    gathered: Gathered, source: Source, storage: Storage, options: PrepOptions, progress: bool
) -> tuple[list[Shard], list[Reject]]:
    """Encode all shards that are not there; where rejects leave a split empty, plan anew without them."""
    candidates = gathered.candidates
    if not candidates:
        found = gathered.rejects
        why = f" ({len(found)} rejected; the first: {found[0].detail})" if found else ""
        raise UnusableError(f"no audio files to prepare{why}; convert recordings to WAV, FLAC, OGG or MP3.")
    rejects: dict[str, Reject] = {}
    while True:
        try:
            shards = plan_shards(candidates, options)
        except InputError as error:
            first = next(iter(rejects.values()), None)
            why = f" {len(rejects)} were rejected, the first: {first.detail}" if first else ""
            raise UnusableError(f"{error}{why}") from None
        outcomes = _run(shards, source, storage, options, progress)
        for outcome in outcomes:
            rejects |= dict(zip(outcome.rejected, outcome.rejects, strict=True))
        if {outcome.split for outcome in outcomes if outcome.num_recordings} == set(SPLITS):
            return shards, list(rejects.values())
        left = [candidate for candidate in candidates if candidate.name not in rejects]
        if len(left) == len(candidates):
            empty = sorted(set(SPLITS) - {outcome.split for outcome in outcomes if outcome.num_recordings})
            raise UnusableError(f"too few recordings: nothing is left for {', '.join(empty)}; add some.")
        candidates = left


def _run(
    shards: Sequence[Shard], source: Source, storage: Storage, options: PrepOptions, progress: bool
) -> list[Outcome]:
    """Encode the shards that are not there, in any order, and return what became of each, in the plan's order."""
    outcomes = _already_there(shards, storage, options)
    waiting = [shard for shard in shards if shard.name not in outcomes]
    total = sum(len(shard.candidates) for shard in shards)
    done = total - sum(len(shard.candidates) for shard in waiting)
    with (
        Progress("encoding", total, unit="recordings", done=done, shown=progress, tenths=True) as bar,
        workers(options) as run,
    ):
        tasks = [joblib.delayed(encode_shard)(shard, source, storage, options) for shard in waiting]
        try:
            with contextlib.closing(run(tasks)) as results:
                for outcome in results:
                    outcomes[outcome.name] = outcome
                    done += outcome.num_recordings + len(outcome.rejected)
                    bar.update(min(done, total))
        finally:
            end_decoder()
    return [outcomes[shard.name] for shard in shards]


def _already_there(shards: Sequence[Shard], storage: Storage, options: PrepOptions) -> dict[str, Outcome]:
    """What became of the shards that were encoded before, as their records say."""
    sizes = storage.sizes()
    itemsize = token_dtype(MuLawCodec(options.sample_rate_hz, options.bits)).itemsize
    found = {}
    for shard in shards:
        if record_name(shard.name) not in sizes:
            continue
        record = json.loads(storage.read(record_name(shard.name)))
        whole = sizes.get(shard.name, 0) == record["num_tokens"] * itemsize
        if record["key"] == shard.key and whole:
            found[shard.name] = Outcome.of(shard, record)
    return found


def _contains(out: str | os.PathLike[str], source: str) -> bool:
    return Path(source).resolve().is_relative_to(Path(out).resolve())


def _refuse_prepared(out: str, wanted: dict[str, Any]) -> None:
    """Refuse a store that stands in the way, and name the options by which it differs."""
    try:
        found = TokenStore.open(out).corpus
    except MissingError:
        return
    there = {"corpus": found.get("corpus")} | found.get("preparation", {})
    changed = [f"{k}={there.get(k)!r} there, {v!r} here" for k, v in wanted.items() if there.get(k) != v]
    difference = f"other options ({'; '.join(changed)})" if changed else "the same options"
    raise InputError(f"{out!r} exists already, prepared with {difference}; choose another place or overwrite.")
