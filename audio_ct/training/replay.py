"""What a run's mlflow store does not have yet, sent after the fact from the run's record."""

import logging
from pathlib import Path

from audio_ct.errors import AudioCTError, InputError, MissingError
from audio_ct.locks import hold
from audio_ct.recipe import load_recipe, refuse_passwords
from audio_ct.record import AFTERWARDS, EVENTS_FILE, METRICS_FILE, whole_lines
from audio_ct.training.mlflow_run import MlflowRun
from audio_ct.training.mlflow_store import as_line, without_password

logger = logging.getLogger("audio_ct")


def replay(run_folder: Path, uri: str | None = None) -> str:
    """Send what a store does not have of a run, however long it takes, and end the run there as it ended.

    A run whose record has no end, as after SIGKILL, ended as KILLED at the last line of its record.

    Args:
        run_folder: the run's folder.
        uri: address of the store; by default that of the run's recipe.

    Returns:
        A line that says what was sent and which mlflow run it is.

    Raises:
        MissingError: if the folder holds no run.
        InputError: if the run is being trained, its recipe wants no tracking and no store is named, or the address
            holds a password.
        AudioCTError: if the store fails; what was sent is not sent again.
    """
    run = mlflow_run(run_folder, uri)
    store = without_password(run.uri)
    with hold(run_folder, name=f"run {str(run_folder)!r}", use="being trained"):
        status, seconds = _end(run_folder)
        try:
            run.open()
            before = run.status
            run.send()
            run.end(status, milliseconds=round(1000 * seconds))
        # mlflow, its store and its transport can raise anything.
        except Exception as error:
            raise AudioCTError(
                f"{run_folder}: sending to {store} failed ({as_line(error)}); what was sent is not sent again: repeat "
                "the command once the store answers."
            ) from error
    sent = f"sent metric lines: {run.num_lines}, descriptions: {run.num_descriptions}, files: {run.num_files}"
    if not (run.num_lines or run.num_descriptions or run.num_files or before != status):
        sent = "nothing was left to send"
    return f"{run_folder}: {sent}, to {store}; mlflow run {run.id} is {status}"


def mlflow_run(run_folder: Path, uri: str | None = None) -> MlflowRun:
    """The mlflow run that follows the record of a run's folder, to be opened.

    Args:
        run_folder: the run's folder.
        uri: address of the store; by default that of the run's recipe.

    Raises:
        MissingError: if the folder holds no run.
        InputError: if the run's recipe wants no tracking and no store is named, or the address holds a password.
    """
    if not (run_folder / "recipe.yaml").is_file() or not (run_folder / EVENTS_FILE).is_file():
        raise MissingError(
            f"run {str(run_folder)!r} holds no recipe.yaml and {EVENTS_FILE}; name a folder that train --run-dir made."
        )
    recipe = load_recipe(run_folder / "recipe.yaml")
    if uri is None and not recipe.tracking.enabled:
        raise InputError(f"{run_folder}: tracking.enabled=False in its recipe.yaml; name a store with --uri.")
    settings = recipe.tracking.model_copy(update={} if uri is None else {"uri": uri})
    refuse_passwords(recipe.model_copy(update={"tracking": settings}))
    return MlflowRun(
        run_folder, settings, recipe.name, warn=lambda reason: logger.warning("%s: %s", run_folder, reason)
    )


def _end(run_folder: Path) -> tuple[str, float]:
    """How and when a run ended, which no process trains any more."""
    events = [event for _, event, _ in whole_lines(run_folder / EVENTS_FILE) if event["event"] not in AFTERWARDS]
    match events[-1:]:
        case [{"event": "ended", "status": str(status), "time": float(seconds)}]:
            return status, seconds
    times = [values["time"] for _, values, _ in whole_lines(run_folder / METRICS_FILE)]
    return "KILLED", max([event["time"] for event in events] + times, default=0.0)
