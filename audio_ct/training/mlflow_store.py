"""A store of mlflow: a client of it, its experiments, and tracking.json, the note of the runs it holds.

mlflow reports its own usage to its makers unless MLFLOW_DISABLE_TELEMETRY=true or DO_NOT_TRACK=true is set in the
environment. MLFLOW_HTTP_REQUEST_TIMEOUT and MLFLOW_HTTP_REQUEST_MAX_RETRIES are set here to 10 s and 0 unless the
environment says otherwise, since mlflow's own defaults would hold a thread for minutes; and it prints no addresses.
"""

import json
import os
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

from audio_ct.durable import write_whole
from audio_ct.training.mlflow_database import database_path, ensure_database

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Run

TRACKING_FILE = "tracking.json"
# mlflow's pages open such an experiment at its training runs; by itself one opens among pages for language models.
EXPERIMENT_TAGS = {"mlflow.experimentKind": "custom_model_development"}


def default_uri(run_folder: Path) -> str:
    """The address of mlflow.db beside a run's folder."""
    return f"sqlite:///{run_folder.resolve().parent / 'mlflow.db'}"


def connect(uri: str) -> "MlflowClient":
    """Make mlflow's client of a store; it gives up on a server after 10 s unless the environment says otherwise.

    Where the store is a sqlite database that is not there, or that is broken, a new one is made.
    """
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "10")
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    os.environ.setdefault("MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT", "true")
    if (path := database_path(uri)) is not None:
        ensure_database(path)
    from mlflow import MlflowClient

    return MlflowClient(tracking_uri=uri, registry_uri=uri)


def experiment_id(client: "MlflowClient", experiment: str, uri: str) -> str:
    """The id of mlflow's experiment of a name, made where it is missing; a sqlite store keeps artifacts beside it."""
    from mlflow.exceptions import MlflowException

    known = client.get_experiment_by_name(experiment)
    if known is not None:
        return str(known.experiment_id)
    path = database_path(uri)
    try:
        return client.create_experiment(
            experiment,
            artifact_location=None if path is None else str(path.parent / "mlartifacts"),
            tags=EXPERIMENT_TAGS,
        )
    except MlflowException:
        # Another run may have made it in the meantime.
        known = client.get_experiment_by_name(experiment)
        if known is None:
            raise
        return str(known.experiment_id)


def read_note(path: Path, uri: str) -> dict[str, Any]:
    """Read what the tracking.json at `path` says of a store, run_id among it; nothing where it cannot be read."""
    try:
        note = json.loads(path.read_bytes())[without_password(uri)]
    except (FileNotFoundError, ValueError, TypeError, KeyError):
        return {}
    return note if isinstance(note, dict) and isinstance(note.get("run_id"), str) else {}


def write_note(path: Path, uri: str, **values: str | int) -> None:
    """Write what is known of a store, its password left out; what the file says of other stores stays."""
    try:
        notes = dict(json.loads(path.read_bytes()))
    except (FileNotFoundError, ValueError, TypeError):
        notes = {}
    notes = {known: note for known, note in notes.items() if isinstance(note, dict)}
    write_whole(path, json.dumps(notes | {without_password(uri): values}, indent=1).encode() + b"\n")


def existing_run(client: "MlflowClient", run_id: str) -> "Run | None":
    """The run of an id; None where the store has none, as where it was made anew."""
    from mlflow.exceptions import MlflowException

    try:
        return client.get_run(run_id)
    except MlflowException as error:
        if error.error_code != "RESOURCE_DOES_NOT_EXIST":
            raise
        return None


def without_password(text: str) -> str:
    """A text without the user and password of the addresses in it."""
    return re.sub(r"//[^/@\s]*@", "//", text)


def as_line(error: Exception) -> str:
    """What went wrong, in a line without passwords."""
    return without_password(" ".join(f"{type(error).__name__}: {error}".split()))[:200]
