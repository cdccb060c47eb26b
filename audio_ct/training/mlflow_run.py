"""The mlflow run that follows the record of a run folder, in one store.

A process may be killed anywhere here, and the next one doubles nothing. The run itself is found by the tag RECORD_TAG,
made with it. Metrics are sent in the order of the record, a name once a step: the latest step that the store has of a
name says how far it came. Events are sent again from the first that is not noted in RUN/tracking.json; sent twice,
they change nothing.
"""

import json
import math
from collections.abc import Callable, Mapping
from functools import partial
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

from audio_ct.errors import MissingError
from audio_ct.recipe import TrackingRecipe
from audio_ct.record import EVENTS_FILE, METRICS_FILE, whole_lines
from audio_ct.training.mlflow_database import database_path
from audio_ct.training.mlflow_store import (
    TRACKING_FILE,
    connect,
    default_uri,
    existing_run,
    experiment_id,
    read_note,
    without_password,
    write_note,
)

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Run

RECORD_TAG = "audio_ct.record"
PARENT_TAG = "mlflow.parentRunId"
MAX_LINES_AT_ONCE = 100
MAX_METRICS_PER_BATCH = 900  # mlflow takes 1000
MAX_PARAMETERS_PER_BATCH = 100


class MlflowRun:
    """The run in a store. Methods raise whatever mlflow, its store and its transport raise; then `open` comes first.

    Args:
        run_folder: holds the record.
        settings: name store and experiment.
        run_name: mlflow's name for the run.
        warn: called with a reason where something is left out for good, or cannot be noted.

    Attributes:
        id: of the mlflow run, once it is open; `status` is what the store says of it.
        num_lines: lines of metrics sent so far; `num_files` files, and `num_descriptions` of the other events.
        last_step: of the metrics read so far; -1 before the first.
    """

    def __init__(
        self, run_folder: Path, settings: TrackingRecipe, run_name: str, *, warn: Callable[[str], None]
    ) -> None:
        self.uri = settings.uri or default_uri(run_folder)
        self.id, self.status = "", ""
        self.num_lines = self.num_descriptions = self.num_files = 0
        self.last_step = -1
        self._folder, self._settings, self._name, self._warn = run_folder, settings, run_name, warn
        self._client: MlflowClient | None = None
        self._begun: dict[str, Any] = {}
        self._latest_steps: dict[str, int] = {}
        self._metrics_offset = self._events_offset = 0
        self._num_events_read = self._num_events_sent = 0

    def open(self, *, make: bool = True) -> None:
        """Find the run in the store, or make it, and ask how far it has come.

        Raises:
            MissingError: if the store has none, and is not to be given one.
        """
        database = database_path(self.uri)
        if not make and database is not None and not database.is_file():
            raise self._missing()
        self._begun = next((event for _, event, _ in whole_lines(self._folder / EVENTS_FILE)), {})
        if "id" not in self._begun:
            raise ValueError(f"{EVENTS_FILE} holds nothing yet")
        client, note = connect(self.uri), read_note(self._folder / TRACKING_FILE, self.uri)
        found = existing_run(client, note["run_id"]) if note.get("record") == self._begun["id"] else None
        num_sent = 0 if found is None else note["sent_events"]
        found = found or self._tagged(client) or (self._made(client) if make else None)
        if found is None:
            raise self._missing()
        parent = self._settings.parent_run_id
        if parent is not None and found.data.tags.get(PARENT_TAG) != parent:
            client.set_tag(found.info.run_id, PARENT_TAG, parent)
        self._client, self.status = client, found.info.status
        self._latest_steps = {metric.key: metric.step for metric in found.data.to_proto().metrics}
        if found.info.run_id != self.id:
            self.id, self._num_events_sent = found.info.run_id, num_sent
            self._metrics_offset = self._events_offset = self._num_events_read = 0
            self._note()

    def send(self) -> None:
        """Send all that the record holds now and the run does not; metrics first, for a file may fail for ever."""
        while self._send_lines() or self._send_event():
            pass

    def log_now(self, metrics: Mapping[str, float], *, milliseconds: int) -> None:
        """Send metrics that are not in the record, at the last step of those that are."""
        from mlflow.entities import Metric

        step = max(self.last_step, 0)
        points = [Metric(name, value, milliseconds, step) for name, value in metrics.items()]
        self.client.log_batch(self.id, metrics=points)

    def set_running(self) -> None:
        """Say that the run goes on, if the store says otherwise."""
        if self.status != "RUNNING":
            self.client.update_run(self.id, status="RUNNING")
            self.status = "RUNNING"

    def end(self, status: str, *, milliseconds: int | None = None) -> None:
        """Say that the run ended, at a time or now, if the store says otherwise."""
        if self.status != status:
            self.client.set_terminated(self.id, status=status, end_time=milliseconds)
            self.status = status

    @property
    def client(self) -> "MlflowClient":
        """The client of the store, once the run is open."""
        assert self._client is not None
        return self._client

    def _missing(self) -> MissingError:
        return MissingError(
            f"{self._folder}: {without_password(self.uri)} has no mlflow run of it; audio-ct track replay makes one."
        )

    def _tagged(self, client: "MlflowClient") -> "Run | None":
        """The run, if a process made it that was killed before it could note so, or whose note is gone."""
        experiment = client.get_experiment_by_name(self._settings.experiment)
        if experiment is None:
            return None
        record = f"tags.`{RECORD_TAG}` = '{self._begun['id']}'"
        return next(iter(client.search_runs([experiment.experiment_id], record, max_results=1)), None)

    def _made(self, client: "MlflowClient") -> "Run":
        experiment = experiment_id(client, self._settings.experiment, self.uri)
        tags = {RECORD_TAG: self._begun["id"]}
        start_time = round(1000 * self._begun["time"])
        return client.create_run(experiment, start_time=start_time, tags=tags, run_name=self._name)

    def _note(self) -> None:
        """Note how far the events came; without a note some are sent again."""
        values = {"run_id": self.id, "record": self._begun["id"], "sent_events": self._num_events_sent}
        try:
            write_note(self._folder / TRACKING_FILE, self.uri, **values)
        except OSError as error:
            self._warn(f"{TRACKING_FILE} cannot be written: {error.strerror}")

    def _send_event(self) -> bool:
        """Send the next event unless it was sent; False once all were read."""
        following = next(whole_lines(self._folder / EVENTS_FILE, self._events_offset), None)
        if following is None:
            return False
        _, event, offset = following
        if self._num_events_read >= self._num_events_sent:
            self._describe(event)
            self._num_events_sent = self._num_events_read + 1
            self._note()
        self._num_events_read, self._events_offset = self._num_events_read + 1, offset
        return True

    def _describe(self, event: dict[str, Any]) -> None:
        match event:
            case {"event": "parameters", "values": values}:
                self._unless_refused(partial(self._send_parameters, values))
            case {"event": "tags", "values": values}:
                self._unless_refused(partial(self._send_tags, values))
            case {"event": "dataset", "name": name, "digest": digest, "source": source}:
                self._unless_refused(partial(self._send_dataset, name, digest, source))
            case {"event": "evaluation", "checkpoint_step": step, "metrics": metrics, "time": seconds}:
                self._unless_refused(partial(self._send_evaluation, metrics, step, round(1000 * seconds)))
            case {"event": "artifact" | "page", "path": place, "folder": folder}:
                path = self._folder / place
                if not path.is_file():
                    self._warn(f"{path} is gone")
                    return
                self._unless_refused(partial(self.client.log_artifact, self.id, str(path), folder))
                self.num_files += 1
                return
            # Beginnings and ends of training: of these mlflow has the last only.
            case _:
                return
        self.num_descriptions += 1

    def _send_lines(self) -> bool:
        """Send the next lines of metrics that the run does not have yet; False once all were read."""
        from mlflow.entities import Metric

        lines = list(islice(whole_lines(self._folder / METRICS_FILE, self._metrics_offset), MAX_LINES_AT_ONCE))
        metrics: list[Metric] = []
        num_lines = 0
        for _, values, _ in lines:
            step, milliseconds = values.pop("step"), round(1000 * values.pop("time"))
            new = [
                Metric(name, value, milliseconds, step)
                for name, value in values.items()
                if value is not None and step > self._latest_steps.get(name, -1)
            ]
            self._latest_steps |= {metric.key: step for metric in new}
            metrics += new
            num_lines += bool(new)
            self.last_step = step
        for start in range(0, len(metrics), MAX_METRICS_PER_BATCH):
            batch = metrics[start : start + MAX_METRICS_PER_BATCH]
            self._unless_refused(partial(self.client.log_batch, self.id, metrics=batch))
        if lines:
            self._metrics_offset = lines[-1][2]
            self.num_lines += num_lines
        return bool(lines)

    def _send_parameters(self, parameters: Mapping[str, str]) -> None:
        """Send parameters; one that the run already has with another value becomes a tag."""
        from mlflow.entities import Param

        known = self.client.get_run(self.id).data.params
        new = [Param(name, value) for name, value in parameters.items() if name not in known]
        for start in range(0, len(new), MAX_PARAMETERS_PER_BATCH):
            self.client.log_batch(self.id, params=new[start : start + MAX_PARAMETERS_PER_BATCH])
        changed = {name: value for name, value in parameters.items() if known.get(name, value) != value}
        self._send_tags({f"resumed.{name}": value for name, value in changed.items()})

    def _send_tags(self, tags: Mapping[str, str]) -> None:
        for name, value in tags.items():
            self.client.set_tag(self.id, name, value)

    def _send_evaluation(self, metrics: Mapping[str, float | None], step: int, milliseconds: int) -> None:
        """Send figures that belong together: one that is unknown replaces an older one as no number."""
        from mlflow.entities import Metric

        points = [
            Metric(name, math.nan if value is None else value, milliseconds, step) for name, value in metrics.items()
        ]
        self.client.log_batch(self.id, metrics=points)

    def _send_dataset(self, name: str, digest: str, source: str) -> None:
        from mlflow.entities import Dataset, DatasetInput

        place = json.dumps({"uri": source, "sha256": digest})
        # mlflow keeps up to 36 characters of a digest.
        dataset = Dataset(name=name, digest=digest[:36], source_type="token store", source=place)
        self.client.log_inputs(self.id, datasets=[DatasetInput(dataset=dataset, tags=[])])

    def _unless_refused(self, call: Callable[[], object]) -> None:
        """Make a call; where the store answers that it never will take it, warn instead of trying for ever."""
        from mlflow.exceptions import MlflowException

        try:
            call()
        except MlflowException as error:
            # A run that was deleted there refuses all, and may be restored.
            is_alive = self.client.get_run(self.id).info.lifecycle_stage == "active"
            if error.error_code != "INVALID_PARAMETER_VALUE" or not is_alive:
                raise
            self._warn(f"left out: {error.message}")
