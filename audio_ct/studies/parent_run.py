"""The mlflow run of a whole study, under which its training runs are nested."""

import logging
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

from audio_ct.training.tracking import (
    TRACKING_FILE,
    connect,
    experiment_id,
    reopened_run,
    without_password,
    write_note,
)

logger = logging.getLogger("audio_ct")


class ParentRun:
    """A study's own mlflow run. A server that fails costs one warning; no method raises.

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
        self._run_id: str | None = None

    def open(self, tags: Mapping[str, str]) -> str | None:
        """Return the run's id, new or from before; None where the server does not answer."""
        with self._failure_as_warning():
            client = connect(self._uri)
            run_id = reopened_run(client, self._uri, self._path).get("run_id")
            if run_id is None:
                experiment = experiment_id(client, self._experiment, self._uri)
                run_id = client.create_run(experiment, run_name=self._name).info.run_id
                write_note(self._path, self._uri, run_id=run_id)
            for key, value in tags.items():
                client.set_tag(run_id, key, value)
            self._run_id = run_id
        return self._run_id

    def close(self, status: str, metrics: Mapping[str, float], artifacts: Sequence[Path]) -> None:
        """Send the study's figures and files, and end the run; does nothing where it could not be opened.

        Args:
            status: FINISHED, FAILED or KILLED.
            metrics: values by name.
            artifacts: files.
        """
        if self._run_id is None:
            return
        with self._failure_as_warning():
            client = connect(self._uri)
            for name, value in metrics.items():
                client.log_metric(self._run_id, name, value)
            for path in artifacts:
                client.log_artifact(self._run_id, str(path))
            client.set_terminated(self._run_id, status=status)

    @contextmanager
    def _failure_as_warning(self) -> Iterator[None]:
        try:
            yield
        # mlflow, its store and its transport can raise anything, and none of it may reach the study.
        except Exception as error:
            line = without_password(" ".join(f"{type(error).__name__}: {error}".split()))[:200]
            logger.warning(
                "tracking the study at %s failed (%s); it goes on without", without_password(self._uri), line
            )
