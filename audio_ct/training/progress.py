"""What a person sees of a run: a bar with bits, speed and time left; plain lines where there is no terminal."""

from types import TracebackType
from typing import Self

from rich.console import Console
from rich.progress import BarColumn, TextColumn, TimeRemainingColumn
from rich.progress import Progress as RichProgress


class Progress:
    """A progress display for the length of a `with` block.

    Args:
        name: of the run.
        num_steps: steps of the whole run.
        step: where it begins.
        tokens_per_step: to show tokens.
    """

    def __init__(self, name: str, num_steps: int, step: int, tokens_per_step: int) -> None:
        self._console = Console(stderr=True)
        self._name = name
        self._num_steps = num_steps
        self._tokens_per_step = tokens_per_step
        self._bar = RichProgress(
            TextColumn("{task.description}"),
            BarColumn(),
            TextColumn("{task.completed}/{task.total} steps · {task.fields[status]}"),
            TimeRemainingColumn(),
            console=self._console,
            disable=not self._console.is_terminal,
        )
        self._task = self._bar.add_task(name, total=num_steps, completed=step, status="")

    def __enter__(self) -> Self:
        self._bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._bar.stop()

    def advance(self, step: int) -> None:
        """Move to a step."""
        self._bar.update(self._task, completed=step)

    def show(self, step: int, metrics: dict[str, float | None]) -> None:
        """Show the newest figures."""
        bits, speed = metrics["training_bits_per_sample"], metrics["tokens_per_second"]
        status = f"{bits:.3f} bits · {speed:,.0f} tokens/s" if bits is not None and speed else "not finite"
        self._bar.update(self._task, status=status)
        if not self._console.is_terminal:
            left = (self._num_steps - step) * self._tokens_per_step / speed if speed else 0.0
            print(f"{self._name}: step {step}/{self._num_steps} · {status} · {left / 60:.1f} min left", flush=True)
