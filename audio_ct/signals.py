"""Stop requests: SIGINT and SIGTERM counted, so that work can end where nothing is lost."""

import logging
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from types import FrameType
from typing import Literal

logger = logging.getLogger("audio_ct")


@dataclass
class Stop:
    """The number of requests to stop."""

    asked: int = 0


@contextmanager
def stop_on_signals(message: str, *, after_first: Literal["count", "restore"] = "count") -> Iterator[Stop]:
    """Count SIGINT and SIGTERM instead of ending the process; outside the main thread, change nothing.

    Args:
        message: Logged as a warning at each counted signal.
        after_first: "count" also counts the signals that follow; "restore" gives them their usual effect back.
    """
    stop = Stop()
    if threading.current_thread() is not threading.main_thread():
        yield stop
        return
    usual = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}

    def restore() -> None:
        for number, handler in usual.items():
            signal.signal(number, handler)

    def count(number: int, frame: FrameType | None) -> None:
        stop.asked += 1
        if after_first == "restore":
            restore()
        logger.warning(message)

    for number in usual:
        signal.signal(number, count)
    try:
        yield stop
    finally:
        restore()
