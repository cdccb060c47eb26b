"""The progress of long work: a bar on a terminal, plain lines elsewhere."""

import sys
from typing import Self

from rich.console import Console
from rich.progress import BarColumn, TextColumn, TimeRemainingColumn
from rich.progress import Progress as RichProgress


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
        self._status = ""
        self._bar = RichProgress(
            TextColumn("{task.description}"),
            BarColumn(),
            TextColumn(f"{{task.completed:,}} of {{task.total:,}} {unit} {{task.fields[status]}}"),
            TimeRemainingColumn(),
            console=console,
            disable=not (shown and console.is_terminal),
        )
        self._task = self._bar.add_task(name, total=total, completed=done, status="")

    def __enter__(self) -> Self:
        self._bar.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._bar.stop()

    def update(self, done: int, status: str | None = None) -> None:
        """Move the bar to the units done by now; newest figures, where given, replace those beside it."""
        if status is not None:
            self._status = f"· {status}"
        self._bar.update(self._task, completed=done, status=self._status)
        if self._tenths and done * 10 // self._total > self._done * 10 // self._total:
            self.line(f"{self._name}: {done} of {self._total} {self._unit}")
        self._done = done

    def line(self, text: str) -> None:
        """Print a line where there is no terminal."""
        if self._prints_lines:
            print(text, file=sys.stderr, flush=True)
