"""The progress of long work: a bar on a terminal, plain lines elsewhere."""

import logging
import sys
from collections.abc import Iterator
from typing import Self, TextIO

from rich.console import Console, RenderableType
from rich.progress import BarColumn, TextColumn, TimeRemainingColumn
from rich.progress import Progress as RichProgress
from rich.text import Text


class _Bar(RichProgress):
    """A bar with the newest figures in a line beneath it: beside it, they would leave no room for it."""

    status = ""

    def get_renderables(self) -> Iterator[RenderableType]:
        yield self.make_tasks_table(self.tasks)
        if self.status:
            yield Text(f"  {self.status}", style="dim")


class Progress:
    """A progress display on standard error, for the length of a `with` block.

    Args:
        name: Of the work.
        total: How many units there are to do.
        unit: Their name in the plural, such as "steps".
        done: How many were done before.
        shown: Show anything at all.
        tenths: Where there is no terminal, print a line whenever a further tenth is done.
    """

    def __init__(
        self, name: str, total: int, *, unit: str, done: int = 0, shown: bool = True, tenths: bool = False
    ) -> None:
        self._name, self._total, self._unit, self._done = name, total, unit, done
        console = Console(stderr=True)
        self._prints_lines = shown and not console.is_terminal
        self._tenths = tenths
        self._redirected: list[logging.StreamHandler[TextIO]] = []
        self._bar = _Bar(
            TextColumn("{task.description}"),
            BarColumn(),
            TextColumn(f"{{task.completed:,}} of {{task.total:,}} {unit}"),
            TimeRemainingColumn(),
            console=console,
            disable=not (shown and console.is_terminal),
        )
        self._task = self._bar.add_task(name, total=total, completed=done)

    def __enter__(self) -> Self:
        before = sys.stderr
        self._bar.start()
        # A shown bar puts a writer of its own there, which prints above it; what is logged takes that way too.
        for handler in logging.getLogger().handlers:
            if isinstance(handler, logging.StreamHandler) and handler.stream is before:
                handler.setStream(sys.stderr)
                self._redirected.append(handler)
        return self

    def __exit__(self, *error: object) -> None:
        self._bar.stop()
        while self._redirected:
            self._redirected.pop().setStream(sys.stderr)

    def update(self, done: int, status: str | None = None) -> None:
        """Move the bar to the units done by now; newest figures, where given, replace those beneath it."""
        if status is not None:
            self._bar.status = status
        self._bar.update(self._task, completed=done)
        if self._tenths and done * 10 // self._total > self._done * 10 // self._total:
            self.line(f"{self._name}: {done} of {self._total} {self._unit}")
        self._done = done

    def line(self, text: str) -> None:
        """Print a line where there is no terminal."""
        if self._prints_lines:
            print(text, file=sys.stderr, flush=True)
