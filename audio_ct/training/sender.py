"""The thread that carries a run's record to mlflow while it is trained, as often as it takes."""

import logging
import shlex
import threading
import time
from pathlib import Path
from typing import Any

from audio_ct.recipe import TrackingRecipe
from audio_ct.training.mlflow_run import MlflowRun
from audio_ct.training.mlflow_store import as_line, without_password

POLL_SECONDS = 1.0
# torchrun gives a process that it stops 30 seconds in all.
CLOSING_SECONDS = 15.0
SYSTEM_METRICS_SECONDS = 10.0
MAX_RETRY_SECONDS = 60.0

logger = logging.getLogger("audio_ct")


class Sender:
    """A thread that reads the record in a run's folder and sends it; it waits for the store, nobody waits for it."""

    def __init__(self, run_folder: Path, settings: TrackingRecipe, run_name: str) -> None:
        self._folder = run_folder
        self._run = MlflowRun(run_folder, settings, run_name, warn=self._warn)
        self._monitors: list[Any] | None = None
        self._next_system_time = 0.0
        self._first_warning = threading.Lock()
        self._status = ""
        self._closing = threading.Event()
        self._thread = threading.Thread(target=self._work, name="tracking", daemon=True)
        self._thread.start()

    def finish(self, status: str) -> None:
        """Send the rest and end the run, within CLOSING_SECONDS."""
        self._status = status
        self._closing.set()
        self._thread.join(CLOSING_SECONDS)
        if self._thread.is_alive():
            self._warn(f"no answer within {CLOSING_SECONDS:g} s of closing")

    def _work(self) -> None:
        pause_seconds, is_open = POLL_SECONDS, False
        while True:
            # Read before sending, so that what was recorded before closing is in the last round.
            is_last = self._closing.is_set()
            try:
                if not is_open:
                    self._run.open()
                    self._run.set_running()
                    is_open = True
                self._run.send()
                if is_last:
                    self._run.end(self._status)
                elif time.monotonic() >= self._next_system_time:
                    self._send_system_metrics()
                pause_seconds = POLL_SECONDS
            # mlflow, its store and its transport can raise anything, and none of it may reach training.
            except Exception as error:
                is_open = False
                self._warn(as_line(error))
                pause_seconds = min(2 * pause_seconds, MAX_RETRY_SECONDS)
            if is_last:
                return
            self._closing.wait(pause_seconds)

    def _warn(self, reason: str) -> None:
        """Warn, the first time only."""
        if self._first_warning.acquire(blocking=False):
            logger.warning(
                "tracking to %s failed (%s); training goes on, and what is missing there is sent once the store "
                "answers, or by: audio-ct track replay %s",
                without_password(self._run.uri),
                reason,
                shlex.quote(str(self._folder)),
            )

    def _send_system_metrics(self) -> None:
        self._next_system_time = time.monotonic() + SYSTEM_METRICS_SECONDS
        milliseconds = round(1000 * time.time())
        self._monitors = self._monitors or _system_monitors()
        for monitor in self._monitors:
            monitor.collect_metrics()
            values = monitor.aggregate_metrics()
            monitor.clear_metrics()
            self._run.log_now({f"system/{name}": value for name, value in values.items()}, milliseconds=milliseconds)


def _system_monitors() -> list[Any]:
    """Make mlflow's own gatherers of processor, memory and, where there is a driver, GPU figures."""
    from mlflow.system_metrics.metrics.cpu_monitor import CPUMonitor
    from mlflow.system_metrics.metrics.gpu_monitor import GPUMonitor

    try:
        return [CPUMonitor(), GPUMonitor()]
    except (ImportError, RuntimeError):
        return [CPUMonitor()]
