"""Tracking: a local record that is always complete, and an mlflow run that follows it.

The record (`audio_ct.record`) is written by the training process itself, one line a call. A background thread reads it
and sends it to mlflow, noting in RUN/tracking.json how far it came. So a server that is absent, slow or dying costs
training nothing: the thread tries again, and what was missed is sent later, also by a later process, without doubles.

mlflow reports its own usage to its makers unless MLFLOW_DISABLE_TELEMETRY=true or DO_NOT_TRACK=true is set in the
environment. MLFLOW_HTTP_REQUEST_TIMEOUT and MLFLOW_HTTP_REQUEST_MAX_RETRIES are set here to 10 s and 0 unless the
environment says otherwise, since mlflow's own defaults would hold the thread for minutes.
"""

import json
import logging
import os
import re
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

from audio_ct.durable import write_whole
from audio_ct.recipe import TrackingRecipe
from audio_ct.record import METRICS_FILE, Record
from audio_ct.training.mlflow_database import database_path, ensure_database

if TYPE_CHECKING:
    from mlflow import MlflowClient

TRACKING_FILE = "tracking.json"
POLL_SECONDS = 1.0
CLOSING_SECONDS = 30.0
SYSTEM_METRICS_SECONDS = 10.0
MAX_RETRY_SECONDS = 60.0
MAX_METRICS_PER_BATCH = 900  # mlflow takes 1000
MAX_PARAMETERS_PER_BATCH = 100
# What a store that does not answer may keep waiting, such as files of samples: the first ones describe the run.
MAX_WAITING_CALLS = 1000

logger = logging.getLogger("audio_ct")

Scalar = str | int | float | bool | None
# What is sent once: the client and the id of the run are given when the store answers.
Call = Callable[["MlflowClient", str], object]


class Tracker:
    """The record of a run, local and in mlflow; no method waits for a server, and only `__init__` raises.

    As a context manager it ends the mlflow run as FINISHED, KILLED after a KeyboardInterrupt, or FAILED.

    Args:
        run_folder: the run's folder; made where it is missing.
        settings: where mlflow keeps the run. Without tracking only the local record is kept, and mlflow not imported.
        run_name: mlflow's name for the run.
        resume_step: the step of the checkpoint that training goes on from (0: from the start again). Lines past it are
            cut, the mlflow run is opened again, and steps it already has are not sent twice. None: a new run.

    Raises:
        InputError: the folder already has a record and resume_step is None.
        AudioCTError: the record cannot be opened for writing.
    """

    def __init__(
        self, run_folder: Path, settings: TrackingRecipe, *, run_name: str, resume_step: int | None = None
    ) -> None:
        self._record = Record(run_folder, resume_step=resume_step)
        self._sender: _Sender | None = None
        if settings.enabled:
            self._sender = _Sender(run_folder, settings, run_name, is_new=resume_step is None)

    def log_metrics(self, metrics: Mapping[str, float | None], *, step: int, tokens: int) -> None:
        """Add a line to the record, see `Record.append`."""
        self._record.append(metrics, step=step, tokens=tokens)

    def log_parameters(self, parameters: Mapping[str, Scalar]) -> None:
        """Send the run's parameters; one that the run already has with another value becomes a tag resumed.NAME."""
        self._enqueue(lambda client, run_id: _send_parameters(client, run_id, parameters))

    def set_tags(self, tags: Mapping[str, Scalar]) -> None:
        """Set tags on the run, such as commit and version."""
        self._enqueue(lambda client, run_id: _send_tags(client, run_id, tags))

    def log_dataset(self, name: str, digest: str, source: str) -> None:
        """Send the name, digest and place of the token store that the run reads."""
        self._enqueue(lambda client, run_id: _send_dataset(client, run_id, name, digest, source))

    def log_artifact(self, path: Path, folder: str | None = None) -> None:
        """Send a file that stays where it is until the run is closed, into `folder` of the run's artifacts."""
        self._enqueue(lambda client, run_id: client.log_artifact(run_id, str(path), folder))

    def close(self, status: str = "FINISHED") -> None:
        """Send the rest and end the mlflow run as FINISHED, FAILED or KILLED; again does nothing.

        After CLOSING_SECONDS the rest stays in the record, and is sent when the run is resumed.
        """
        self._record.close()
        if self._sender is not None:
            self._sender.finish(status)
            self._sender = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, *error: object) -> None:
        self.close("FINISHED" if kind is None else "KILLED" if kind is KeyboardInterrupt else "FAILED")

    def _enqueue(self, call: Call) -> None:
        if self._sender is not None:
            self._sender.enqueue(call)


class _Sender:
    """The thread that carries the record to mlflow, as often as it takes."""

    def __init__(self, run_folder: Path, settings: TrackingRecipe, run_name: str, *, is_new: bool) -> None:
        self._record_path = run_folder / METRICS_FILE
        self._progress_path = run_folder / TRACKING_FILE
        self._settings, self._run_name, self._is_new = settings, run_name, is_new
        self._uri = settings.uri or default_uri(run_folder)
        self._client: MlflowClient | None = None
        self._run_id = ""
        # How far the mlflow run and the reading of the record have come: a step, and the number of its lines.
        self._sent, self._seen = (-1, 0), (-1, 0)
        self._offset_bytes = 0
        self._calls: deque[Call] = deque()
        self._has_dropped = False
        self._monitors: list[Any] = []
        self._next_system_time = 0.0
        self._first_warning = threading.Lock()
        self._status = ""
        self._closing = threading.Event()
        self._thread = threading.Thread(target=self._work, name="tracking", daemon=True)
        self._thread.start()

    def enqueue(self, call: Call) -> None:
        """Send something in its turn; where MAX_WAITING_CALLS wait already, drop it, and say so the first time."""
        if len(self._calls) < MAX_WAITING_CALLS:
            self._calls.append(call)
        elif not self._has_dropped:
            self._has_dropped = True
            logger.warning(
                "tracking: %d tags and files wait for %s; what follows is left out there, and is in %s only",
                MAX_WAITING_CALLS,
                without_password(self._uri),
                self._record_path.parent,
            )

    def finish(self, status: str) -> None:
        self._status = status
        self._closing.set()
        self._thread.join(CLOSING_SECONDS)
        if self._thread.is_alive():
            self._warn(f"no answer within {CLOSING_SECONDS:g} s of closing")

    def _work(self) -> None:
        pause_seconds = POLL_SECONDS
        while True:
            # Read before sending, so that what was recorded before closing is in the last round.
            is_last = self._closing.is_set()
            try:
                self._send_all()
                if is_last and self._client is not None:
                    self._client.set_terminated(self._run_id, status=self._status)
                pause_seconds = POLL_SECONDS
            # mlflow, its store and its transport can raise anything, and none of it may reach training.
            except Exception as error:
                self._warn(f"{type(error).__name__}: {error}")
                pause_seconds = min(2 * pause_seconds, MAX_RETRY_SECONDS)
            if is_last:
                return
            self._closing.wait(pause_seconds)

    def _warn(self, reason: str) -> None:
        """Warn, the first time only."""
        if self._first_warning.acquire(blocking=False):
            line = without_password(" ".join(reason.split()))[:200]
            logger.warning(
                "tracking to %s failed (%s); training goes on, the record is in %s and is sent once the store answers",
                without_password(self._uri),
                line,
                self._record_path,
            )

    def _send_all(self) -> None:
        client = self._client or self._open()
        while self._calls:
            self._drop_if_refused(lambda: self._calls[0](client, self._run_id))
            self._calls.popleft()
        while self._send_lines(client):
            pass
        if time.monotonic() >= self._next_system_time:
            self._send_system_metrics(client)

    def _open(self) -> "MlflowClient":
        client = connect(self._uri)
        kept = {} if self._is_new else reopened_run(client, self._uri, self._progress_path)
        if kept:
            self._run_id = kept["run_id"]
            self._sent = kept.get("sent_step", -1), kept.get("sent_lines", 0)
        elif not self._run_id:
            experiment = experiment_id(client, self._settings.experiment, self._uri)
            self._run_id = client.create_run(experiment, run_name=self._run_name).info.run_id
            self._write_progress()
        if self._settings.parent_run_id is not None:
            client.set_tag(self._run_id, "mlflow.parentRunId", self._settings.parent_run_id)
        self._monitors = _system_monitors()
        self._client = client
        return client

    def _write_progress(self) -> None:
        sent_step, sent_lines = self._sent
        write_note(self._progress_path, self._uri, run_id=self._run_id, sent_step=sent_step, sent_lines=sent_lines)

    def _send_lines(self, client: "MlflowClient") -> bool:
        """Send the next whole lines that the run does not have yet; False once all lines were read."""
        from mlflow.entities import Metric

        metrics: list[Metric] = []
        offset_bytes, seen = self._offset_bytes, self._seen
        with self._record_path.open("rb") as file:
            file.seek(offset_bytes)
            while len(metrics) < MAX_METRICS_PER_BATCH and (line := file.readline()).endswith(b"\n"):
                offset_bytes += len(line)
                values = json.loads(line)
                step, milliseconds = values.pop("step"), round(1000 * values.pop("time"))
                seen = step, seen[1] + 1 if step == seen[0] else 1
                if seen > self._sent:
                    pairs = [(name, value) for name, value in values.items() if value is not None]
                    metrics += [Metric(name, value, milliseconds, step) for name, value in pairs]
        if metrics:
            # A line sent again after a kill at this very place has the same time, so that mlflow's store keeps one.
            self._drop_if_refused(lambda: client.log_batch(self._run_id, metrics=metrics))
        has_read = offset_bytes > self._offset_bytes
        self._offset_bytes, self._seen = offset_bytes, seen
        if seen > self._sent:
            self._sent = seen
            self._write_progress()
        return has_read

    def _send_system_metrics(self, client: "MlflowClient") -> None:
        from mlflow.entities import Metric

        self._next_system_time = time.monotonic() + SYSTEM_METRICS_SECONDS
        milliseconds, step = round(1000 * time.time()), max(self._seen[0], 0)
        metrics = []
        for monitor in self._monitors:
            monitor.collect_metrics()
            values = monitor.aggregate_metrics()
            monitor.clear_metrics()
            metrics += [Metric(f"system/{name}", value, milliseconds, step) for name, value in values.items()]
        if metrics:
            client.log_batch(self._run_id, metrics=metrics)

    def _drop_if_refused(self, call: Callable[[], object]) -> None:
        """Make a call; where the store answers that it never will take it, warn instead of trying for ever."""
        from mlflow.exceptions import MlflowException

        try:
            call()
        except FileNotFoundError as error:
            self._warn(f"{error.filename} is gone")
        except MlflowException as error:
            if error.error_code != "INVALID_PARAMETER_VALUE":
                raise
            self._warn(f"left out: {error.message}")


def _send_parameters(client: "MlflowClient", run_id: str, parameters: Mapping[str, Scalar]) -> None:
    from mlflow.entities import Param

    known = client.get_run(run_id).data.params
    new = [Param(name, str(value)) for name, value in parameters.items() if name not in known]
    for start in range(0, len(new), MAX_PARAMETERS_PER_BATCH):
        client.log_batch(run_id, params=new[start : start + MAX_PARAMETERS_PER_BATCH])
    changed = {name: value for name, value in parameters.items() if known.get(name, str(value)) != str(value)}
    _send_tags(client, run_id, {f"resumed.{name}": value for name, value in changed.items()})


def _send_tags(client: "MlflowClient", run_id: str, tags: Mapping[str, Scalar]) -> None:
    for name, value in tags.items():
        client.set_tag(run_id, name, value)


def _send_dataset(client: "MlflowClient", run_id: str, name: str, digest: str, source: str) -> None:
    from mlflow.entities import Dataset, DatasetInput

    place = json.dumps({"uri": source, "sha256": digest})
    # mlflow keeps up to 36 characters of a digest.
    dataset = Dataset(name=name, digest=digest[:36], source_type="token store", source=place)
    client.log_inputs(run_id, datasets=[DatasetInput(dataset=dataset, tags=[])])


def _system_monitors() -> list[Any]:
    """Make mlflow's own gatherers of processor, memory and, where there is a driver, GPU figures."""
    from mlflow.system_metrics.metrics.cpu_monitor import CPUMonitor
    from mlflow.system_metrics.metrics.gpu_monitor import GPUMonitor

    try:
        return [CPUMonitor(), GPUMonitor()]
    except (ImportError, RuntimeError):
        return [CPUMonitor()]


def default_uri(run_folder: Path) -> str:
    """The address of mlflow.db beside a run's folder."""
    return f"sqlite:///{run_folder.resolve().parent / 'mlflow.db'}"


def connect(uri: str) -> "MlflowClient":
    """Make mlflow's client of a store; it gives up on a server after 10 s unless the environment says otherwise.

    Where the store is a sqlite database that is not there, or that is broken, a new one is made.
    """
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "10")
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
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
            experiment, artifact_location=None if path is None else str(path.parent / "mlartifacts")
        )
    except MlflowException:
        # Another run may have made it in the meantime.
        known = client.get_experiment_by_name(experiment)
        if known is None:
            raise
        return str(known.experiment_id)


def write_note(path: Path, uri: str, **values: str | int) -> None:
    """Write a tracking.json: the store without its password, the run's id, and how far the run has come."""
    write_whole(path, json.dumps({"uri": without_password(uri), **values}).encode() + b"\n")


def reopened_run(client: "MlflowClient", uri: str, path: Path) -> dict[str, Any]:
    """Open the mlflow run again that an earlier process noted in the tracking.json at `path`.

    Returns:
        The note, with run_id; empty where there is none for this store, or where the store was made anew.
    """
    from mlflow.exceptions import MlflowException

    try:
        note = dict(json.loads(path.read_bytes()))
        if note["uri"] != without_password(uri):
            return {}
        run_id = str(note["run_id"])
    except (FileNotFoundError, ValueError, TypeError, KeyError):
        return {}
    try:
        client.update_run(run_id, status="RUNNING")
    except MlflowException as error:
        if error.error_code != "RESOURCE_DOES_NOT_EXIST":
            raise
        return {}
    return note


def without_password(text: str) -> str:
    """A text without the user and password of the addresses in it."""
    return re.sub(r"//[^/@\s]*@", "//", text)
