"""A study from its folder to its table, in the order in which it happens."""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import replace
from pathlib import Path

import torch

from audio_ct.errors import AudioCTError, InputError
from audio_ct.locks import hold
from audio_ct.models.build import build_model
from audio_ct.models.token_model import num_parameters
from audio_ct.provenance import NOTE_TAG, source_tags
from audio_ct.signals import stop_on_signals
from audio_ct.studies.parent_run import close_parent_run, open_parent_run
from audio_ct.studies.plan import Study, StudyOptions, read_study
from audio_ct.studies.report import REPORT_FILES, summarise, write_figures, write_table
from audio_ct.studies.runs import Commands, Outcome, carry_out, outcome, refusals
from audio_ct.tokens.clip import open_corpus

STOPPING = "stopping once running commands have written checkpoints; signal again to end them at once"


def run_study(folder: Path, out: Path, options: StudyOptions, *, report: Callable[[str], None] = print) -> bool:
    """Train and score each run of a study that has not been yet, and write table and figures.

    Args:
        folder: of recipes; see `audio_ct.studies.plan.read_study`.
        out: gets VARIANT/seed-N/, study.json, table.md, figure.png and curves.png.
        options: how the study is run.
        report: called with a line for each run that has ended.

    Returns:
        False if a run failed; the table says which and why.

    Raises:
        MissingError: if the folder, its recipes or the token store are not there.
        InputError: if recipes have faults, or `out` holds runs of other recipes: all of them at once, before any run;
            or if another study works in `out`.
        KeyboardInterrupt: after SIGINT or SIGTERM, once running commands have written their checkpoints.
    """
    study = read_study(folder, out, options)
    corpus = study.baseline.recipe.corpus
    store = open_corpus(corpus.store, corpus.clip_seconds, cache_gib=corpus.cache_gib)
    # Raises where the corpus has no such split.
    store.recordings(options.split)
    parameters = _parameters(study, store.vocabulary_size)
    # Commands that outlive this process hold the folder on.
    with hold(out, name=f"--out {str(out)!r}") as lock, stop_on_signals(STOPPING) as stop:
        if faults := [fault for run in study.runs for fault in refusals(run, store.digest)]:
            raise InputError("\n".join(faults))
        study = _track(study)
        outcomes = {run.name: outcome(run, options) for run in study.runs}
        commands = Commands(stop, lock, options.jobs)
        with ThreadPoolExecutor(options.jobs) as pool:
            futures = [pool.submit(carry_out, run, options, commands) for run in study.selected]
            for done, future in enumerate(as_completed(futures), start=1):
                result = future.result()
                outcomes[result.run.name] = result
                report(f"{_line(result, store.codec.unit)}   ({done} of {len(futures)})")
                write_table(summarise(study, outcomes, store, parameters), out)
        summary = summarise(study, outcomes, store, parameters)
        write_table(summary, out)
        write_figures(summary, out)
        has_failed = any(outcomes[run.name].state == "failed" for run in study.selected)
        tracking = study.runs[0].recipe.tracking
        if tracking.uri is not None and tracking.parent_run_id is not None:
            means = {variant["name"]: variant["bits_per_sample"] for variant in summary["variants"]}
            close_parent_run(
                tracking.uri,
                tracking.parent_run_id,
                status="KILLED" if stop.asked else "FAILED" if has_failed else "FINISHED",
                metrics={
                    f"{options.split}_bits_per_sample/{name}": mean for name, mean in means.items() if mean is not None
                },
                artifacts=[out / name for name in REPORT_FILES],
            )
    if stop.asked:
        raise KeyboardInterrupt
    return not has_failed


def _parameters(study: Study, vocabulary_size: int) -> dict[str, int]:
    """The size of every variant's model, by name.

    Raises:
        InputError: naming every variant whose model cannot be built for the vocabulary.
    """
    parameters, faults = {}, []
    for variant in study.variants:
        try:
            with torch.device("meta"):
                parameters[variant.name] = num_parameters(build_model(variant.recipe.model, vocabulary_size))
        except AudioCTError as error:
            faults += [f"{variant.name}: {line}" for line in str(error).splitlines()]
    if faults:
        raise InputError("\n".join(faults))
    return parameters


def _track(study: Study) -> Study:
    """Nest a study's runs under its own mlflow run, where they are tracked at all."""
    tracking = study.runs[0].recipe.tracking
    if not tracking.enabled:
        return study
    assert tracking.uri is not None
    lines = [f"- **{variant.name}**: {variant.description}" for variant in study.variants]
    tags = source_tags("audio-ct study") | {"command": study.options.command, NOTE_TAG: "\n".join(lines)}
    parent = open_parent_run(study.out, name=study.name, experiment=tracking.experiment, uri=tracking.uri, tags=tags)
    nested = tracking.model_copy(update={"parent_run_id": parent})
    runs = [replace(run, recipe=run.recipe.model_copy(update={"tracking": nested})) for run in study.runs]
    return replace(study, runs=tuple(runs))


def _line(result: Outcome, unit: str) -> str:
    if result.figures is None:
        return f"{result.run.name}: {result.state}" + (f": {result.error}" if result.error else "")
    speed = result.figures["training_tokens_per_second"]
    trained = "" if speed is None else f", trained at {speed:,.0f} tokens/s"
    return f"{result.run.name}: {result.figures['bits_per_sample']:.4f} bits per {unit}{trained}"
