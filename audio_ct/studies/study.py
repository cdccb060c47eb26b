"""A study from its folder to its table, in the order in which it happens."""

import fcntl
import logging
import signal
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from types import FrameType
from typing import IO

import torch

from audio_ct import __version__
from audio_ct.errors import AudioCTError, InputError
from audio_ct.models.interface import num_parameters
from audio_ct.provenance import commit
from audio_ct.recipe import build_model
from audio_ct.studies.parent_run import ParentRun
from audio_ct.studies.plan import Run, Study, StudyOptions, read_study
from audio_ct.studies.report import Corpus, report_paths, summarise, write_figures, write_table
from audio_ct.studies.runs import Outcome, Stop, carry_out, outcome, refusals
from audio_ct.tokens.clip import open_corpus
from audio_ct.tokens.encoding import unit

LOCK_FILE = "study.lock"

logger = logging.getLogger("audio_ct")


def run_study(folder: Path, out: Path, options: StudyOptions, *, report: Callable[[str], None] = print) -> bool:
    """Train and score each run of a study that has not been, write table and figures, and say whether all went well.

    Args:
        folder: of recipes; see `audio_ct.studies.plan.read_study`.
        out: gets VARIANT/seed-N/, study.json, table.md, figure.png and curves.png.
        options: what to do.
        report: called with a line for each thing done.

    Returns:
        False if a run failed; the table says which and why.

    Raises:
        MissingError: if the folder, its recipes or the token store are not there.
        InputError: if recipes have faults, or `out` holds runs of other recipes: all of them at once, before any run.
        KeyboardInterrupt: after SIGINT or SIGTERM, once running commands have written their checkpoints.
    """
    study = read_study(folder, out, options)
    corpus = _check_against_corpus(study)
    out.mkdir(parents=True, exist_ok=True)
    with _locked(out) as lock, _signals() as stop:
        if faults := [fault for run in study.runs for fault in refusals(run, corpus.digest)]:
            raise InputError("\n".join(faults))
        study, parent = _track(study)
        outcomes = {run.name: outcome(run, options) for run in study.runs}
        with ThreadPoolExecutor(options.jobs) as pool:
            futures = [pool.submit(carry_out, run, options, stop, lock) for run in study.selected]
            for done, future in enumerate(as_completed(futures), start=1):
                result = future.result()
                outcomes[result.run.name] = result
                report(f"{_line(result, corpus.unit)}   ({done} of {len(futures)})")
                write_table(summarise(study, outcomes, corpus), out)
        summary = summarise(study, outcomes, corpus)
        write_table(summary, out)
        write_figures(summary, out)
        has_failed = any(outcomes[run.name].state == "failed" for run in study.selected)
        if parent is not None:
            means = {each["name"]: each["bits_per_sample"] for each in summary["variants"]}
            parent.close(
                "KILLED" if stop.asked else "FAILED" if has_failed else "FINISHED",
                {f"{options.split}_bits_per_sample/{name}": mean for name, mean in means.items() if mean is not None},
                report_paths(out),
            )
    if stop.asked:
        raise KeyboardInterrupt
    return not has_failed


def _check_against_corpus(study: Study) -> Corpus:
    """Return what is told of the corpus, once it has the split and every variant's model can be built for it.

    Raises:
        MissingError: if the store is not there.
        InputError: naming every variant whose sizes do not fit together.
    """
    recipe = study.variants[0].recipe
    store = open_corpus(recipe.corpus.store, recipe.corpus.clip_seconds)
    store.recordings(study.options.split)
    parameters, faults = {}, []
    for variant in study.variants:
        try:
            with torch.device("meta"):
                parameters[variant.name] = num_parameters(build_model(variant.recipe.model, store.vocabulary_size))
        except AudioCTError as error:
            faults += [f"{variant.name}: {line}" for line in str(error).splitlines()]
    if faults:
        raise InputError("\n".join(faults))
    return Corpus(store.path.name, store.digest, unit(store.encoding), parameters)


def _track(study: Study) -> tuple[Study, ParentRun | None]:
    """Return the study, its runs nested under the study's own mlflow run where they are tracked at all."""
    tracking = study.runs[0].recipe.tracking
    if not tracking.enabled:
        return study, None
    assert tracking.uri is not None
    parent = ParentRun(study.out, name=study.name, experiment=tracking.experiment, uri=tracking.uri)
    tags = {"commit": commit() or "unknown", "version": __version__, "command": study.options.command}
    run_id = parent.open(tags)
    return replace(study, runs=tuple(_nested(run, run_id) for run in study.runs)), parent


def _nested(run: Run, parent_run_id: str | None) -> Run:
    tracking = run.recipe.tracking.model_copy(update={"parent_run_id": parent_run_id})
    return replace(run, recipe=run.recipe.model_copy(update={"tracking": tracking}))


def _line(result: Outcome, one: str) -> str:
    if result.figures is None:
        return f"{result.run.name}: {result.state}" + (f": {result.error}" if result.error else "")
    speed = result.figures["training_tokens_per_second"]
    trained = "" if speed is None else f", trained at {speed:,.0f} tokens/s"
    return f"{result.run.name}: {result.figures['bits_per_sample']:.4f} bits per {one}{trained}"


@contextmanager
def _locked(out: Path) -> Iterator[IO[bytes]]:
    """Hold a study's folder; commands that outlive this process hold it on.

    Raises:
        InputError: if another process does.
    """
    with (out / LOCK_FILE).open("ab") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise InputError(
                f"--out {str(out)!r} is in use by another study, or by a run that one left behind; wait for its end."
            ) from error
        yield file


@contextmanager
def _signals() -> Iterator[Stop]:
    """Ask for an end at SIGINT and SIGTERM."""
    stop = Stop()

    def request(number: int, frame: FrameType | None) -> None:
        stop.ask()
        logger.warning("stopping once running commands have written checkpoints; signal again to end them at once")

    old = {number: signal.signal(number, request) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield stop
    finally:
        for number, handler in old.items():
            signal.signal(number, handler)
