"""Tracking: a local record that is always complete, and an mlflow run that follows it.

The record (`audio_ct.record`) is written by the training process itself, a line a call. A background thread
(`audio_ct.training.sender`) reads it and sends it to mlflow. So a server that is absent, slow or dying costs training
nothing: the thread tries again, and what was missed is sent by a later process without doubles, that which resumes the
run or `audio-ct track replay` (`audio_ct.training.replay`).
"""

import os
import uuid
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Self

from audio_ct.recipe import TrackingRecipe
from audio_ct.record import Record

if TYPE_CHECKING:
    from audio_ct.training.sender import Sender

Scalar = str | int | float | bool | None


class Tracker:
    """The record of a run, local and in mlflow; no method waits for a server, and only `__init__` raises.

    As a context manager it ends the run as FINISHED, KILLED after a KeyboardInterrupt, or FAILED.

    Args:
        run_folder: the run's folder; made where it is missing.
        settings: where mlflow keeps the run. Without tracking only the local record is kept, and mlflow not imported.
        run_name: mlflow's name for the run.
        resume_step: the step of the checkpoint that training goes on from (0: from the start again). Metrics past it
            are cut, the mlflow run is opened again, and steps it already has are not sent twice. None: a new run.

    Raises:
        InputError: the folder already has a record and resume_step is None.
        AudioCTError: the record cannot be opened for writing.
    """

    def __init__(
        self, run_folder: Path, settings: TrackingRecipe, *, run_name: str, resume_step: int | None = None
    ) -> None:
        self._folder = Path(os.path.abspath(run_folder))
        self._record = Record(run_folder, resume_step=resume_step)
        # The first one's id is the run's: by it the mlflow run is found, also by who lost track of that.
        self._record.append_event("begun", id=uuid.uuid4().hex)
        self._is_closed = False
        self._sender = _sender(run_folder, settings, run_name) if settings.enabled else None

    def log_metrics(self, metrics: Mapping[str, float | None], *, step: int, tokens: int) -> None:
        """Add a line to the record, see `Record.append`."""
        self._record.append(metrics, step=step, tokens=tokens)

    def log_parameters(self, parameters: Mapping[str, Scalar]) -> None:
        """Add the run's parameters; in mlflow one that has another value already becomes a tag resumed.NAME."""
        self._record.append_event("parameters", values=_texts(parameters))

    def set_tags(self, tags: Mapping[str, Scalar]) -> None:
        """Set tags on the run, such as commit and version."""
        self._record.append_event("tags", values=_texts(tags))

    def log_dataset(self, name: str, digest: str, source: str) -> None:
        """Add the name, digest and place of the token store that the run reads."""
        self._record.append_event("dataset", **_texts({"name": name, "digest": digest, "source": source}))

    def log_artifact(self, path: Path, folder: str | None = None) -> None:
        """Add a file, which stays where it is, to `folder` of the run's artifacts."""
        absolute = Path(os.path.abspath(path))
        # So that it is found again where the run's folder is moved with its files.
        place = absolute.relative_to(self._folder) if absolute.is_relative_to(self._folder) else absolute
        self._record.append_event("artifact", path=str(place), folder=folder)

    def close(self, status: str = "FINISHED") -> None:
        """Send the rest and end the run as FINISHED, FAILED or KILLED; again does nothing.

        What cannot be sent within `CLOSING_SECONDS` is sent when the run is resumed or replayed.
        """
        if self._is_closed:
            return
        self._is_closed = True
        self._record.append_event("ended", status=status)
        self._record.close()
        if self._sender is not None:
            self._sender.finish(status)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, *error: object) -> None:
        self.close("FINISHED" if kind is None else "KILLED" if kind is KeyboardInterrupt else "FAILED")


def _sender(run_folder: Path, settings: TrackingRecipe, run_name: str) -> "Sender":
    # Training itself needs nothing of it.
    from audio_ct.training.sender import Sender

    return Sender(run_folder, settings, run_name)


def _texts(values: Mapping[str, Scalar]) -> dict[str, str]:
    """Values as mlflow keeps them; what is no Unicode, as the bytes of a file's name may be, is escaped."""
    return {name: str(value).encode(errors="backslashreplace").decode() for name, value in values.items()}
