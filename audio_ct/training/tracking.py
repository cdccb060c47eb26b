"""Tracking: a local record that is always complete, and an mlflow run that follows it.

RUN/metrics.jsonl is written by the training process itself, one line a call. A background thread reads that record and
sends it to mlflow, remembering in RUN/tracking.json how far it came. So a server that is absent, slow or dying costs
training nothing: the thread tries again, and what was missed is sent later, also by a later process, without doubles.

mlflow reports its own usage to its makers unless MLFLOW_DISABLE_TELEMETRY=true or DO_NOT_TRACK=true is set in the
environment. MLFLOW_HTTP_REQUEST_TIMEOUT and MLFLOW_HTTP_REQUEST_MAX_RETRIES are set here to 10 s and 0 unless the
environment says otherwise, since mlflow's own defaults would hold the thread for minutes.
"""

import json
import logging
import math
import os
import re
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from audio_ct.durable import write_whole
from audio_ct.errors import AudioCTError, InputError

if TYPE_CHECKING:
    from mlflow import MlflowClient

METRICS_FILE = "metrics.jsonl"
TRACKING_FILE = "tracking.json"
POLL_SECONDS = 1.0
SYSTEM_METRICS_SECONDS = 10.0
MAX_RETRY_SECONDS = 60.0
MAX_QUEUED_CALLS = 1000
MAX_METRICS_PER_BATCH = 900  # mlflow takes 1000
MAX_PARAMETER_CHARACTERS = 6000  # mlflow cuts the rest

logger = logging.getLogger("audio_ct")

Scalar = str | int | float | bool | None


class Tracker:
    """The record of one run, local and in mlflow; no method waits for a server, and only `__init__` raises."""

    def __init__(
        self,
        run_folder: Path,
        *,
        experiment: str,
        run_name: str,
        uri: str | None,
        enabled: bool = True,
        resume_step: int | None = None,
        parent_run_id: str | None = None,
    ) -> None:
        """Open the record and start the thread that sends it.

        Args:
            run_folder: the run's folder; made where it is missing.
            experiment: mlflow's experiment, made where it is missing.
            run_name: mlflow's name for the run.
            uri: mlflow's store, a sqlite:/// or http(s):// address; None means mlflow.db beside the run's folder.
            enabled: False keeps the local record only, and never imports mlflow.
            resume_step: the step of the checkpoint that training goes on from (0: from the start again). Lines past
                it are cut, the mlflow run is opened again, and steps it already has are not sent twice. None: a new
                run.
            parent_run_id: the mlflow run under which this one is nested.

        Raises:
            InputError: the folder already has a record and resume_step is None.
            AudioCTError: the record cannot be opened for writing.
        """
        self._path = run_folder / METRICS_FILE
        try:
            run_folder.mkdir(parents=True, exist_ok=True)
            if resume_step is not None:
                _cut_record(self._path, resume_step)
            elif self._path.exists() and self._path.stat().st_size > 0:
                raise InputError(f"{self._path} already exists; resume that run or choose another folder")
            self._file = self._path.open("ab", buffering=0)
        except OSError as error:
            raise AudioCTError(
                f"{self._path}: opening the record failed: {error.strerror}; check the folder"
            ) from error
        self._unwritten = b""
        self._has_warned = False
        self._sender: _Sender | None = None
        if enabled:
            uri = uri or default_uri(run_folder)
            self._sender = _Sender(run_folder, experiment, run_name, uri, parent_run_id, is_new=resume_step is None)
            self._sender.start()

    def log_metrics(self, metrics: Mapping[str, float | None], step: int, tokens: int) -> None:
        """Add one line to the record; a value that is None or not finite becomes null there.

        Args:
            metrics: values by name; units in the names.
            step: optimiser steps done; never lower than in the line before.
            tokens: training tokens so far.
        """
        values = {
            name: value if value is not None and math.isfinite(value) else None for name, value in metrics.items()
        }
        line = json.dumps({"step": step, "tokens": tokens, "time": round(time.time(), 3), **values}) + "\n"
        self._write(line.encode())

    def log_parameters(self, parameters: Mapping[str, Scalar]) -> None:
        """Send the run's parameters; one that the run already has with another value becomes a tag resumed.NAME."""
        texts = {name: str(value) for name, value in parameters.items()}
        self._enqueue(lambda sender: sender.send_parameters(texts))

    def set_tags(self, tags: Mapping[str, Scalar]) -> None:
        """Set tags on the run, such as commit, dirty and version."""
        texts = {name: str(value) for name, value in tags.items()}
        self._enqueue(lambda sender: sender.send_tags(texts))

    def log_dataset(self, name: str, digest: str, source: str) -> None:
        """Say which token store the run reads: its name, digest and place."""
        self._enqueue(lambda sender: sender.send_dataset(name, digest, source))

    def log_artifact(self, path: Path, folder: str | None = None) -> None:
        """Send a file that stays where it is until the run is closed, into `folder` of the run's artifacts."""
        self._enqueue(lambda sender: sender.send_artifact(path, folder))

    def close(self, status: str = "FINISHED", timeout_seconds: float = 30.0) -> None:
        """Send what is left and end the mlflow run with `status`, in at most timeout_seconds; again does nothing.

        Args:
            status: FINISHED, FAILED or KILLED.
            timeout_seconds: what is not sent by then stays in the record, and is sent when the run is resumed.
        """
        if self._file.closed:
            return
        self._write(b"")
        self._file.close()
        if self._sender is not None:
            self._sender.finish(status, timeout_seconds)

    def _write(self, line: bytes) -> None:
        """Write the line after whatever an earlier call found no space for; a line cut in two is completed later."""
        self._unwritten += line
        reason = "disk full"
        try:
            self._unwritten = self._unwritten[self._file.write(self._unwritten) :]
        except OSError as error:
            reason = error.strerror or str(error)
        if self._unwritten and not self._has_warned:
            self._has_warned = True
            logger.warning("%s: writing the record failed: %s; training goes on, make space there", self._path, reason)

    def _enqueue(self, call: "Callable[[_Sender], None]") -> None:
        if self._sender is not None:
            self._sender.enqueue(call)


class _Sender:
    """The thread that carries the record to mlflow, as often as it takes."""

    def __init__(
        self, run_folder: Path, experiment: str, run_name: str, uri: str, parent_run_id: str | None, *, is_new: bool
    ) -> None:
        self._record_path = run_folder / METRICS_FILE
        self._progress_path = run_folder / TRACKING_FILE
        self._experiment, self._run_name, self._uri = experiment, run_name, uri
        self._public_uri = without_password(uri)
        self._parent_tags = {} if parent_run_id is None else {"mlflow.parentRunId": parent_run_id}
        self._is_new = is_new
        self._client: MlflowClient | None = None
        self._run_id = ""
        # How far the mlflow run has come: its last step, and how many lines of that step it has.
        self._sent_step, self._sent_lines = -1, 0
        self._offset_bytes = 0
        self._seen_step, self._seen_lines = -1, 0
        self._calls: deque[Callable[[_Sender], None]] = deque()
        self._monitors: list[Any] = []
        self._next_system_time = 0.0
        self._first_warning = threading.Lock()
        self._status = ""
        self._closing = threading.Event()
        self._thread = threading.Thread(target=self._work, name="tracking", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def enqueue(self, call: "Callable[[_Sender], None]") -> None:
        if len(self._calls) < MAX_QUEUED_CALLS:
            self._calls.append(call)
        else:
            self._warn(f"more than {MAX_QUEUED_CALLS} calls are waiting")

    def finish(self, status: str, timeout_seconds: float) -> None:
        self._status = status
        self._closing.set()
        self._thread.join(timeout_seconds)
        if self._thread.is_alive():
            self._warn(f"no answer within {timeout_seconds:g} s of closing")

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
        if self._first_warning.acquire(blocking=False):
            line = without_password(" ".join(reason.split()))[:200]
            message = (
                "tracking to %s failed (%s); training goes on, the record is in %s and is sent once the store answers"
            )
            logger.warning(message, self._public_uri, line, self._record_path)

    def _send_all(self) -> None:
        client = self._client or self._open()
        while self._calls:
            self._drop_if_refused(lambda: self._calls[0](self))
            self._calls.popleft()
        while self._send_lines(client):
            pass
        if time.monotonic() >= self._next_system_time:
            self._send_system_metrics(client)

    def _open(self) -> "MlflowClient":
        from mlflow.exceptions import MlflowException

        client = connect(self._uri)
        if not self._is_new:
            progress = self._read_progress()
            try:
                if progress:
                    client.update_run(progress["run_id"], status="RUNNING")
                    self._run_id = progress["run_id"]
                    self._sent_step, self._sent_lines = progress["sent_step"], progress["sent_lines"]
            except MlflowException as error:
                # The store was removed or made anew: a new run gets the whole record.
                if error.error_code != "RESOURCE_DOES_NOT_EXIST":
                    raise
        if not self._run_id:
            experiment = experiment_id(client, self._experiment, self._uri)
            run = client.create_run(experiment, run_name=self._run_name, tags=self._parent_tags)
            self._run_id = run.info.run_id
            self._write_progress()
        # A resumed run whose first process found no server has no parent yet.
        for name, value in self._parent_tags.items():
            client.set_tag(self._run_id, name, value)
        self._monitors = _system_monitors()
        self._client = client
        return client

    def _read_progress(self) -> dict[str, Any]:
        """Return what an earlier process left for this store, or an empty dict."""
        try:
            progress = json.loads(self._progress_path.read_bytes())
            is_ours = progress["uri"] == self._public_uri and {"run_id", "sent_step", "sent_lines"} <= progress.keys()
            return dict(progress) if is_ours else {}
        except (FileNotFoundError, ValueError, TypeError, KeyError):
            return {}

    def _write_progress(self) -> None:
        progress = {
            "uri": self._public_uri,
            "run_id": self._run_id,
            "sent_step": self._sent_step,
            "sent_lines": self._sent_lines,
        }
        write_whole(self._progress_path, json.dumps(progress).encode() + b"\n")

    def _send_lines(self, client: "MlflowClient") -> bool:
        """Send the next whole lines that the run does not have yet; return whether any line was read."""
        from mlflow.entities import Metric

        metrics: list[Metric] = []
        offset_bytes, seen_step, seen_lines = self._offset_bytes, self._seen_step, self._seen_lines
        with self._record_path.open("rb") as file:
            file.seek(offset_bytes)
            while len(metrics) < MAX_METRICS_PER_BATCH and (line := file.readline()).endswith(b"\n"):
                offset_bytes += len(line)
                values = json.loads(line)
                step, milliseconds = values.pop("step"), round(1000 * values.pop("time"))
                seen_lines = seen_lines + 1 if step == seen_step else 1
                seen_step = step
                if (step, seen_lines) > (self._sent_step, self._sent_lines):
                    pairs = [(name, value) for name, value in values.items() if value is not None]
                    metrics += [Metric(name, value, milliseconds, step) for name, value in pairs]
        if metrics:
            # A line sent again after a kill at this very place has the same time, so that mlflow's store keeps one.
            self._drop_if_refused(lambda: client.log_batch(self._run_id, metrics=metrics))
        has_read = offset_bytes > self._offset_bytes
        self._offset_bytes, self._seen_step, self._seen_lines = offset_bytes, seen_step, seen_lines
        if (seen_step, seen_lines) > (self._sent_step, self._sent_lines):
            self._sent_step, self._sent_lines = seen_step, seen_lines
            self._write_progress()
        return has_read

    def _send_system_metrics(self, client: "MlflowClient") -> None:
        from mlflow.entities import Metric

        self._next_system_time = time.monotonic() + SYSTEM_METRICS_SECONDS
        milliseconds = round(1000 * time.time())
        metrics = []
        for monitor in self._monitors:
            monitor.collect_metrics()
            values = monitor.aggregate_metrics()
            monitor.clear_metrics()
            metrics += [
                Metric(f"system/{name}", v, milliseconds, max(self._seen_step, 0)) for name, v in values.items()
            ]
        if metrics:
            client.log_batch(self._run_id, metrics=metrics)

    def send_parameters(self, parameters: dict[str, str]) -> None:
        from mlflow.entities import Param

        assert self._client is not None
        known = self._client.get_run(self._run_id).data.params
        new = [Param(name, value) for name, value in parameters.items() if name not in known]
        for start in range(0, len(new), 100):
            self._client.log_batch(self._run_id, params=new[start : start + 100])
        changed = {n: v for n, v in parameters.items() if n in known and v[:MAX_PARAMETER_CHARACTERS] != known[n]}
        self.send_tags({f"resumed.{name}": value for name, value in changed.items()})

    def send_tags(self, tags: dict[str, str]) -> None:
        assert self._client is not None
        for name, value in tags.items():
            self._client.set_tag(self._run_id, name, value)

    def send_dataset(self, name: str, digest: str, source: str) -> None:
        from mlflow.entities import Dataset, DatasetInput

        assert self._client is not None
        # mlflow keeps up to 36 characters of a digest.
        dataset = Dataset(
            name=name,
            digest=digest[:36],
            source_type="token store",
            source=json.dumps({"uri": source, "sha256": digest}),
        )
        self._client.log_inputs(self._run_id, datasets=[DatasetInput(dataset=dataset, tags=[])])

    def send_artifact(self, path: Path, folder: str | None) -> None:
        assert self._client is not None
        self._client.log_artifact(self._run_id, str(path), folder)

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


def _system_monitors() -> list[Any]:
    """Return mlflow's own gatherers of processor, memory and, where there is a driver, GPU figures."""
    from mlflow.system_metrics.metrics.cpu_monitor import CPUMonitor
    from mlflow.system_metrics.metrics.gpu_monitor import GPUMonitor

    try:
        return [CPUMonitor(), GPUMonitor()]
    except (ImportError, RuntimeError):
        return [CPUMonitor()]


def _cut_record(path: Path, resume_step: int) -> None:
    """Keep the record's whole lines up to resume_step; the file is replaced at once or not at all."""
    if not path.exists():
        return
    kept = []
    with path.open("rb") as file:
        for line in file:
            try:
                is_kept = line.endswith(b"\n") and json.loads(line)["step"] <= resume_step
            except (ValueError, TypeError, KeyError):
                # A line torn by a crash of the machine: what it said is computed again.
                is_kept = False
            if is_kept:
                kept.append(line)
    write_whole(path, b"".join(kept))


def default_uri(run_folder: Path) -> str:
    """Return the address of mlflow.db beside a run's folder."""
    return f"sqlite:///{run_folder.resolve().parent / 'mlflow.db'}"


def connect(uri: str) -> "MlflowClient":
    """Return mlflow's client of a store; it gives up on a server after 10 s unless the environment says otherwise."""
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "10")
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    from mlflow import MlflowClient

    return MlflowClient(tracking_uri=uri, registry_uri=uri)


def experiment_id(client: "MlflowClient", experiment: str, uri: str) -> str:
    """Return mlflow's experiment of a name, made where it is missing; a sqlite store keeps artifacts beside itself."""
    known = client.get_experiment_by_name(experiment)
    if known is not None:
        return str(known.experiment_id)
    location: str | None = None
    if uri.startswith("sqlite:///"):
        location = str(Path(uri.removeprefix("sqlite:///")).resolve().parent / "mlartifacts")
    return client.create_experiment(experiment, artifact_location=location)


def without_password(text: str) -> str:
    """Return a text without the user and password of the addresses in it."""
    return re.sub(r"//[^/@\s]*@", "//", text)
