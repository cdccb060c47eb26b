"""Where shards are encoded: in processes of this machine, which end with the one that they work for, or on a cluster.

Imports nothing heavy: a process of this machine imports this first, and watches from then on.
"""

import contextlib
import os
import threading
import time
from collections.abc import Callable, Generator, Iterator
from typing import Any

import joblib

from audio_ct.errors import InputError, MissingError

from .options import PrepOptions

PARENT_SECONDS = 0.5


@contextlib.contextmanager
def workers(options: PrepOptions) -> Iterator[Callable[[list[Any]], Generator[Any, None, None]]]:
    """Processes of this machine, or the workers of a Dask cluster.

    Yields:
        A function that carries out joblib's tasks and yields their results in any order.

    Raises:
        MissingError: If a cluster is wanted and Dask is not installed.
        InputError: If the cluster cannot be reached.
    """
    if options.cluster is None:
        yield _parallel(options.jobs, initializer=end_with, initargs=(os.getpid(),))
        return
    try:
        from distributed import Client
    except ImportError as error:
        raise MissingError("cluster needs dask[distributed]; pip install 'audio-ct[cluster]'.") from error
    with contextlib.ExitStack() as stack:
        try:
            stack.enter_context(Client(options.cluster, timeout="10s"))
        except OSError as error:
            raise InputError(
                f"cluster={options.cluster!r} cannot be reached: {error}; is a scheduler running there?"
            ) from error
        stack.enter_context(joblib.parallel_config(backend="dask"))
        yield _parallel(-1)


def end_with(parent: int) -> None:
    """End this process when the one that it works for is gone: a worker would wait for tasks for minutes."""

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(PARENT_SECONDS)
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


def _parallel(jobs: int, **of_processes: Any) -> joblib.Parallel:
    return joblib.Parallel(n_jobs=jobs, return_as="generator_unordered", pre_dispatch="2*n_jobs", **of_processes)
