"""What is found out about a run's checkpoints after their training, in the run's record and in its mlflow run.

Where there is no mlflow run, as without tracking, the record alone has it; a model that was handed on has no run.
Whatever fails is a warning.
"""

import json
import logging
import math
import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from audio_ct.errors import AudioCTError, MissingError
from audio_ct.locks import hold, is_held
from audio_ct.pretrained import Pretrained
from audio_ct.recipe import load_recipe
from audio_ct.record import EVENTS_FILE, add_event, run_of, whole_lines
from audio_ct.training.mlflow_store import as_line, without_password
from audio_ct.training.replay import mlflow_run

logger = logging.getLogger("audio_ct")


def leave_evaluation(model: Pretrained, figures: Mapping[str, Any], store_digest: str) -> None:
    """Leave a model's bits per sample on a split, with their interval, with the run that trained it; say where.

    Args:
        model: as it was trained.
        figures: its split, bits_per_sample, interval and tokens.
        store_digest: of the store that was scored; of another than the model's nothing is left.
    """
    run_folder = run_of(model.path)
    if run_folder is not None and store_digest == model.manifest.store_digest:
        _leave(run_folder, [_evaluation(model, figures)], f"{figures['split']} bits of {model.path.name}")


def leave_comparison(models: Sequence[Pretrained], page: Path) -> None:
    """Leave a comparison's page, and what it measured of each model, with the runs that trained them; say where.

    Args:
        models: in the order of the page.
        page: as `audio_ct.compare` returns it.
    """
    comparison = json.loads(page.with_name("comparison.json").read_bytes())
    added: dict[Path, list[dict[str, Any]]] = {}
    for model, entry in zip(models, comparison["models"], strict=True):
        if (run_folder := run_of(model.path)) is None:
            continue
        events = added.setdefault(run_folder, [])
        if comparison["store_digest"] == model.manifest.store_digest:
            events.append(_evaluation(model, comparison | entry))
    place = page.absolute()
    for run_folder, events in added.items():
        shown = {"event": "page", "path": str(place), "folder": f"comparisons/{place.parent.name}"}
        _leave(run_folder, [*events, shown], f"{comparison['split']} bits and {page}")


def _evaluation(model: Pretrained, figures: Mapping[str, Any]) -> dict[str, Any]:
    """An event of the record, with metrics as mlflow names them."""
    low, high = figures["interval"]
    values = {
        "bits_per_sample": figures["bits_per_sample"],
        "interval_low": low,
        "interval_high": high,
        "tokens": figures["tokens"],
    }
    # Without a "/", by which mlflow would draw them above all curves, and none of the names of training. Of a
    # single recording the interval is unknown: null, and no number in mlflow.
    metrics = {
        f"{figures['split']}_split_{name}": value if value is not None and math.isfinite(value) else None
        for name, value in values.items()
    }
    return {"event": "evaluation", "checkpoint_step": model.manifest.step, "metrics": metrics}


def _leave(run_folder: Path, events: Sequence[dict[str, Any]], what: str) -> None:
    """Add events that are new to a run's record, send the record to its mlflow run, and say what was put where."""
    record = run_folder / EVENTS_FILE
    try:
        for event in events:
            if event["event"] == "page" or not _is_newest(record, event):
                add_event(run_folder, **event)
    except (AudioCTError, OSError) as error:
        logger.warning("%s: not in its run's record: %s", what, error)
        return
    try:
        logger.info("%s: in %s%s", what, record, _sent(run_folder))
    # mlflow, its store and its transport can raise anything.
    except Exception as error:
        logger.warning(
            "%s: in %s, but sending it to mlflow failed (%s); it is made up for by: audio-ct track replay %s",
            what,
            record,
            as_line(error),
            shlex.quote(str(run_folder)),
        )


def _is_newest(record: Path, evaluation: Mapping[str, Any]) -> bool:
    """Tell if a record's latest evaluation of the checkpoint on the split found the very same."""
    latest: Mapping[str, Any] = {}
    for _, event, _ in whole_lines(record):
        if event["event"] == "evaluation" and event["checkpoint_step"] == evaluation["checkpoint_step"]:
            latest = event["metrics"] if event["metrics"].keys() == evaluation["metrics"].keys() else latest
    return latest == evaluation["metrics"]


def _sent(run_folder: Path) -> str:
    """Send a run's record to its mlflow run, unless whoever trains there does; return where it went."""
    if not load_recipe(run_folder / "recipe.yaml").tracking.enabled:
        return ""
    if is_held(run_folder):
        return "; whoever trains there sends it to mlflow"
    run = mlflow_run(run_folder)
    with hold(run_folder, name=f"run {str(run_folder)!r}", use="being trained"):
        try:
            run.open(make=False)
        except MissingError:
            return f"; {without_password(run.uri)} has no mlflow run of it"
        run.send()
    return f" and in mlflow run {run.id}, {without_password(run.uri)}"
