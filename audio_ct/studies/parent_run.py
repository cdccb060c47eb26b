"""The mlflow run of a whole study, under which its training runs are nested."""

import json
import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from audio_ct.durable import write_whole
from audio_ct.training.tracking import TRACKING_FILE, connect, experiment_id, without_password

if TYPE_CHECKING:
    from mlflow import MlflowClient

logger = logging.getLogger("audio_ct")


class ParentRun:
    """A study's own mlflow run; whatever its server does costs one warning, and never raises.

    Its id is kept in OUT/tracking.json, so that a study that goes on is the same run.

    Args:
        out: the study's folder.
        name: mlflow's name for the run.
        experiment: mlflow's experiment, made where it is missing.
        uri: mlflow's store.
    """

    def __init__(self, out: Path, *, name: str, experiment: str, uri: str) -> None:
        self._path = out / TRACKING_FILE
        self._name, self._experiment, self._uri = name, experiment, uri
        self._client: MlflowClient | None = None
        self._run_id = ""

    def open(self, tags: Mapping[str, str]) -> str | None:
        """Return the run's id, new or from before; None where the server does not answer."""
        try:
            client = connect(self._uri)
            self._run_id = self._kept_run_id(client)
            if not self._run_id:
                run = client.create_run(experiment_id(client, self._experiment, self._uri), run_name=self._name)
                self._run_id = run.info.run_id
                kept = {"uri": without_password(self._uri), "run_id": self._run_id}
                write_whole(self._path, json.dumps(kept).encode() + b"\n")
            for key, value in tags.items():
                client.set_tag(self._run_id, key, value)
        # mlflow, its store and its transport can raise anything, and none of it may reach the study.
        except Exception as error:
            self._warn(error)
            return None
        self._client = client
        return self._run_id

    def close(self, status: str, metrics: Mapping[str, float], artifacts: Sequence[Path]) -> None:
        """Send the study's figures and files, and end the run; does nothing where it could not be opened.

        Args:
            status: FINISHED, FAILED or KILLED.
            metrics: values by name.
            artifacts: files.
        """
        if self._client is None:
            return
        try:
            for name, value in metrics.items():
                self._client.log_metric(self._run_id, name, value)
            for path in artifacts:
                self._client.log_artifact(self._run_id, str(path))
            self._client.set_terminated(self._run_id, status=status)
        except Exception as error:
            self._warn(error)

    def _kept_run_id(self, client: "MlflowClient") -> str:
        """Return the id that was kept, the run being there and open again, or ""."""
        from mlflow.exceptions import MlflowException

        try:
            kept = json.loads(self._path.read_bytes())
            run_id = str(kept["run_id"]) if kept["uri"] == without_password(self._uri) else ""
        except (FileNotFoundError, ValueError, TypeError, KeyError):
            return ""
        try:
            if run_id:
                client.update_run(run_id, status="RUNNING")
        except MlflowException as error:
            # The store was removed or made anew.
            if error.error_code != "RESOURCE_DOES_NOT_EXIST":
                raise
            return ""
        return run_id

    def _warn(self, error: Exception) -> None:
        line = without_password(" ".join(f"{type(error).__name__}: {error}".split()))[:200]
        logger.warning("tracking the study at %s failed (%s); it goes on without", without_password(self._uri), line)
