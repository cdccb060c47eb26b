"""The mlflow run of a whole study, under which its training runs are nested.

A server that fails costs the study one warning, and nothing else.
"""

import logging
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

from audio_ct.training.mlflow_store import (
    TRACKING_FILE,
    as_line,
    connect,
    existing_run,
    experiment_id,
    read_note,
    without_password,
    write_note,
)

logger = logging.getLogger("audio_ct")


def open_parent_run(out: Path, *, name: str, experiment: str, uri: str, tags: Mapping[str, str]) -> str | None:
    """Open the run of the study in `out` and return its id; None where the server does not answer.

    The id is kept in OUT/tracking.json, so that a study that goes on is the same run.
    """
    opened: str | None = None
    with _failure_as_warning(uri):
        client, path = connect(uri), out / TRACKING_FILE
        note = read_note(path, uri)
        if note and existing_run(client, note["run_id"]) is not None:
            run_id = note["run_id"]
            client.update_run(run_id, status="RUNNING")
        else:
            run_id = client.create_run(experiment_id(client, experiment, uri), run_name=name).info.run_id
            write_note(path, uri, run_id=run_id)
        for key, value in tags.items():
            client.set_tag(run_id, key, value)
        opened = run_id
    return opened


def close_parent_run(
    uri: str, run_id: str, *, status: str, metrics: Mapping[str, float], artifacts: Sequence[Path]
) -> None:
    """Send the study's figures and files, and end its run as FINISHED, FAILED or KILLED."""
    with _failure_as_warning(uri):
        client = connect(uri)
        for name, value in metrics.items():
            client.log_metric(run_id, name, value)
        for path in artifacts:
            client.log_artifact(run_id, str(path))
        client.set_terminated(run_id, status=status)


@contextmanager
def _failure_as_warning(uri: str) -> Iterator[None]:
    try:
        yield
    # mlflow, its store and its transport can raise anything, and none of it may reach the study.
    except Exception as error:
        logger.warning(
            "tracking the study at %s failed (%s); it goes on without", without_password(uri), as_line(error)
        )
