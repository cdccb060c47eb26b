"""The local record of a run: a JSON line for each thing that happened.

RUN/metrics.jsonl has what was measured; it is cut where training goes on from an earlier checkpoint:
{"step": 20, "tokens": 10240, "time": 1764000000.123, "training_bits_per_sample": 5.31, ...}

RUN/events.jsonl has the rest: when training began, the run's parameters, tags, corpus and files, and how it ended:
{"event": "artifact", "time": 1764000000.123, "path": "samples/step-00001000-00.wav", "folder": "samples"}

Other commands add what they find out about its checkpoints, whoever trains there meanwhile.
"""

import json
import logging
import math
import os
import time
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from audio_ct.durable import write_whole
from audio_ct.errors import AudioCTError, InputError

METRICS_FILE = "metrics.jsonl"
EVENTS_FILE = "events.jsonl"
# What every line of these files has; one without was torn by a crash of the machine.
REQUIRED: dict[str, tuple[str, type]] = {METRICS_FILE: ("step", int), EVENTS_FILE: ("event", str)}
# Events that say nothing of the training itself.
AFTERWARDS = ("evaluation", "page")

logger = logging.getLogger("audio_ct")


class Record:
    """The record of a run that is being trained.

    Args:
        run_folder: the run's folder; made where it is missing.
        resume_step: the step of the checkpoint that training goes on from (0: from the start again): metrics past it
            are cut. None for a new run.

    Raises:
        InputError: the folder already has a record and resume_step is None.
        AudioCTError: the record cannot be opened for writing.
    """

    def __init__(self, run_folder: Path, *, resume_step: int | None = None) -> None:
        metrics, events = run_folder / METRICS_FILE, run_folder / EVENTS_FILE
        if resume_step is None and metrics.is_file() and metrics.stat().st_size > 0:
            raise InputError(f"{metrics} already exists; resume that run or choose another folder")
        self._metrics = _Log(metrics, [] if resume_step is None else _up_to(metrics, resume_step))
        # Of events all are kept, those too that another command adds at this moment.
        self._events = _Log(events, [] if resume_step is None else None)

    def append(self, metrics: Mapping[str, float | None], *, step: int, tokens: int) -> None:
        """Add a line of metrics; a value that is None or not finite becomes null there. A full disk is one warning.

        `step` counts windows trained so far, and is never lower than in the line before.
        """
        values = {
            name: value if value is not None and math.isfinite(value) else None for name, value in metrics.items()
        }
        self._metrics.append({"step": step, "tokens": tokens, "time": round(time.time(), 3), **values})

    def append_event(self, event: str, **values: str | Mapping[str, str] | None) -> None:
        """Add a line of another kind; a full disk is one warning."""
        self._events.append({"event": event, "time": round(time.time(), 3), **values})

    def close(self) -> None:
        """Write the lines that found no space until now, and close the files; again does nothing."""
        self._metrics.close()
        self._events.close()


class _Log:
    """A file that lines are added to: without waiting for the disk, and whether or not that has space.

    Args:
        path: the file; it and its folder are made where they are missing.
        kept: the lines that it begins with; None for whatever is there.
    """

    def __init__(self, path: Path, kept: Iterable[bytes] | None) -> None:
        self._path = path
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            if kept is not None:
                write_whole(path, b"".join(kept))
            self._file = path.open("ab", buffering=0)
            # A line that a crash has torn ends here.
            self._unwritten = b"" if _ends_whole(path) else b"\n"
        except OSError as error:
            raise AudioCTError(f"{path}: opening the record failed: {error.strerror}; check the folder") from error
        self._has_warned = False

    def append(self, values: Mapping[str, Any]) -> None:
        self._unwritten += json.dumps(values).encode() + b"\n"
        self._write()

    def close(self) -> None:
        if not self._file.closed:
            self._write()
            self._file.close()

    def _write(self) -> None:
        """Write all that is not written yet; a line cut in two by a full disk is completed later."""
        reason = "disk full"
        try:
            self._unwritten = self._unwritten[self._file.write(self._unwritten) :]
        except OSError as error:
            reason = error.strerror or str(error)
        if self._unwritten and not self._has_warned:
            self._has_warned = True
            logger.warning("%s: writing the record failed: %s; training goes on, make space there", self._path, reason)


def add_event(run_folder: Path, event: str, **values: Any) -> None:
    """Add an event to a run's record from another process than that which trains it.

    Raises:
        AudioCTError: the record cannot be opened for writing.
    """
    log = _Log(run_folder / EVENTS_FILE, None)
    log.append({"event": event, "time": round(time.time(), 3), **values})
    log.close()


def run_of(checkpoint: Path) -> Path | None:
    """The folder of the run that a checkpoint's folder lies in; None for a model that was handed on."""
    checkpoints = checkpoint.absolute().parent
    is_of_run = checkpoints.name == "checkpoints" and (checkpoints.parent / EVENTS_FILE).is_file()
    return checkpoints.parent if is_of_run else None


def whole_lines(path: Path, offset_bytes: int = 0) -> Iterator[tuple[bytes, dict[str, Any], int]]:
    """Yield each line of a record's file, its values and where it ends; none where there is no file.

    Lines that a crash of the machine has torn are left out, and so is the last one until all of it is written.
    """
    if not path.exists():
        return
    name, kind = REQUIRED[path.name]
    with path.open("rb") as file:
        file.seek(offset_bytes)
        while (line := file.readline()).endswith(b"\n"):
            try:
                values = json.loads(line)
            except ValueError:
                continue
            if isinstance(values, dict) and isinstance(values.get(name), kind):
                yield line, values, file.tell()


def read_record(run_folder: Path) -> list[dict[str, Any]]:
    """Read the whole lines of a run's record: step, tokens, time and measured values; none where there is no record.

    A validation has a line of its own.
    """
    return [values for _, values, _ in whole_lines(run_folder / METRICS_FILE)]


def learning_curve(path: Path) -> list[dict[str, float | None]]:
    """Read a run's bits per sample over training; `path` is the run's folder, or one of its checkpoints.

    Returns:
        Points {"tokens", "training_bits", "validation_bits"} in the order of training, of which one of the bits may be
        None; none where there is no record.
    """
    run_folder = path if (path / METRICS_FILE).is_file() else path.parent.parent
    points = []
    for line in read_record(run_folder):
        training, validation = line.get("training_bits_per_sample"), line.get("validation_bits_per_sample")
        if training is not None or validation is not None:
            points.append({"tokens": line["tokens"], "training_bits": training, "validation_bits": validation})
    return points


def _up_to(path: Path, step: int) -> list[bytes]:
    """The lines of metrics that a run goes on behind."""
    return [line for line, values, _ in whole_lines(path) if values["step"] <= step]


def _ends_whole(path: Path) -> bool:
    """False if a file's last line lacks its end."""
    with path.open("rb") as file:
        if file.seek(0, os.SEEK_END) == 0:
            return True
        file.seek(-1, os.SEEK_END)
        return file.read() == b"\n"
