"""The local record of a run's figures, RUN/metrics.jsonl: a JSON line for each time that something was measured.

{"step": 20, "tokens": 10240, "time": 1764000000.123, "training_bits_per_sample": 5.31, ...}
"""

import json
import logging
import math
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from audio_ct.durable import write_whole
from audio_ct.errors import AudioCTError, InputError

METRICS_FILE = "metrics.jsonl"

logger = logging.getLogger("audio_ct")


class Record:
    """The record of a run that is being trained.

    Args:
        run_folder: the run's folder; made where it is missing.
        resume_step: the step of the checkpoint that training goes on from (0: from the start again): lines past it are
            cut. None for a new run.

    Raises:
        InputError: the folder already has a record and resume_step is None.
        AudioCTError: the record cannot be opened for writing.
    """

    def __init__(self, run_folder: Path, *, resume_step: int | None = None) -> None:
        self._path = run_folder / METRICS_FILE
        try:
            run_folder.mkdir(parents=True, exist_ok=True)
            if resume_step is not None:
                kept = [line for line, values in _whole_lines(self._path) if values["step"] <= resume_step]
                write_whole(self._path, b"".join(kept))
            elif self._path.exists() and self._path.stat().st_size > 0:
                raise InputError(f"{self._path} already exists; resume that run or choose another folder")
            self._file = self._path.open("ab", buffering=0)
        except OSError as error:
            raise AudioCTError(
                f"{self._path}: opening the record failed: {error.strerror}; check the folder"
            ) from error
        self._unwritten = b""
        self._has_warned = False

    def append(self, metrics: Mapping[str, float | None], *, step: int, tokens: int) -> None:
        """Add a line; a value that is None or not finite becomes null there. A full disk is one warning.

        `step` counts windows trained so far, and is never lower than in the line before.
        """
        values = {
            name: value if value is not None and math.isfinite(value) else None for name, value in metrics.items()
        }
        line = json.dumps({"step": step, "tokens": tokens, "time": round(time.time(), 3), **values}) + "\n"
        self._unwritten += line.encode()
        self._write()

    def close(self) -> None:
        """Write the lines that found no space until now, and close the file; again does nothing."""
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


def read_record(run_folder: Path) -> list[dict[str, Any]]:
    """Read the whole lines of a run's record: step, tokens, time and measured values; none where there is no record.

    A validation has a line of its own.
    """
    return [values for _, values in _whole_lines(run_folder / METRICS_FILE)]


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


def _whole_lines(path: Path) -> Iterator[tuple[bytes, dict[str, Any]]]:
    """Yield a record's lines and their values, without those that a crash of the machine has torn."""
    if not path.exists():
        return
    with path.open("rb") as file:
        for line in file:
            try:
                values = json.loads(line)
            except ValueError:
                continue
            if line.endswith(b"\n") and isinstance(values, dict) and isinstance(values.get("step"), int):
                yield line, values
