"""A run as it stands, from its record alone: figures, curves of characters, and whether somebody trains there now."""

import json
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import plotext
from rich.console import Console, Group
from rich.live import Live
from rich.table import Table
from rich.text import Text

from audio_ct.errors import AudioCTError, MissingError
from audio_ct.locks import is_held
from audio_ct.recipe import load_recipe
from audio_ct.record import AFTERWARDS, EVENTS_FILE, METRICS_FILE, whole_lines

State = Literal["training", "finished", "stopped", "failed", "killed"]
# What a run's last word says of its state; without one, it was killed.
STATES: dict[str, State] = {"FINISHED": "finished", "KILLED": "stopped", "FAILED": "failed"}
REFRESH_SECONDS = 2.0
PLOT_HEIGHT = 18
PLAIN_WIDTH = 100
# Of validations, which are few: a letter a run. Training is dots between characters.
MARKERS = "oxv#"
COLOURS = ("blue+", "red+", "green+", "orange+")
# The first losses are far above all others, and would press those flat.
SHARE_LEFT_OUT = 0.1
NUM_SAMPLES = 2
GIB = 1 << 30

Point = tuple[float, float]


@dataclass(frozen=True)
class Status:
    """How a run stands; what is not known is None.

    Attributes:
        run: its folder.
        state: "training" while a process holds the folder; "killed" where a run ended without a word.
        step: windows trained so far, of `num_steps`.
        tokens: trained so far.
        training_bits: a sample, or a byte, in the newest windows.
        validation_bits: the newest.
        best_validation_bits: the lowest.
        tokens_per_second: in the newest windows, as the next three.
        times_real_time: seconds of audio trained in a second.
        gradient_norm: before clipping.
        learning_rate: of the last update.
        memory_bytes: of the device's memory, or the process's on a CPU.
        updates_left_out: not finite, or spikes, over the whole run.
        seconds_left: at the newest speed, without validations; None where nobody trains.
        seconds_silent: since the record's last line.
        samples: the newest files that it made, relative to the folder.
    """

    run: str
    state: State
    step: int
    num_steps: int | None
    tokens: int
    training_bits: float | None
    validation_bits: float | None
    best_validation_bits: float | None
    tokens_per_second: float | None
    times_real_time: float | None
    gradient_norm: float | None
    learning_rate: float | None
    memory_bytes: float | None
    updates_left_out: int
    seconds_left: float | None
    seconds_silent: float | None
    samples: list[str]


class Watched:
    """A run whose record is read on from where it was read to.

    Args:
        folder: the run's.

    Raises:
        MissingError: if there is no record.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        if not any((folder / name).is_file() for name in (METRICS_FILE, EVENTS_FILE)):
            raise MissingError(f"{folder}: no record of a run there; name the folder that --run-dir named.")
        self._metrics, self._events = _Tail(folder / METRICS_FILE), _Tail(folder / EVENTS_FILE)
        self._num_steps: int | None = None
        self._tokens_per_step: int | None = None

    def status(self) -> Status:
        """Read what was added, and say how the run stands."""
        metrics = self._metrics.lines()
        events = [event for event in self._events.lines() if event["event"] not in AFTERWARDS]
        self._read_recipe()
        newest: dict[str, Any] = {}
        for line in metrics:
            newest |= {name: value for name, value in line.items() if value is not None}
        state, step, speed = self._state(events), newest.get("step", 0), newest.get("tokens_per_second")
        left = None
        if state == "training" and speed and self._num_steps is not None and self._tokens_per_step is not None:
            left = (self._num_steps - step) * self._tokens_per_step / speed
        times = [line["time"] for line in (*metrics[-1:], *events[-1:]) if "time" in line]
        left_out = sum(newest.get(name, 0) for name in ("updates_not_finite", "updates_of_spikes"))
        return Status(
            run=str(self.folder),
            state=state,
            step=step,
            num_steps=self._num_steps,
            tokens=newest.get("tokens", 0),
            training_bits=newest.get("training_bits_per_sample"),
            validation_bits=newest.get("validation_bits_per_sample"),
            best_validation_bits=min((bits for _, bits in self.curve("validation")), default=None),
            tokens_per_second=speed,
            times_real_time=newest.get("times_real_time"),
            gradient_norm=newest.get("gradient_norm"),
            learning_rate=newest.get("learning_rate"),
            memory_bytes=newest.get("memory_bytes"),
            updates_left_out=int(left_out),
            seconds_left=left,
            seconds_silent=max(0.0, time.time() - max(times)) if times else None,
            samples=_samples(events),
        )

    def curve(self, which: Literal["training", "validation"]) -> list[Point]:
        """Points (tokens, bits) as they were read for the last status."""
        name = f"{which}_bits_per_sample"
        return [(line["tokens"], line[name]) for line in self.lines() if line.get(name) is not None]

    def lines(self) -> list[dict[str, Any]]:
        """The record's measured lines as they were read for the last status."""
        return self._metrics.read

    def _state(self, events: Sequence[dict[str, Any]]) -> State:
        if is_held(self.folder):
            return "training"
        words = [line for line in events if line["event"] in ("begun", "ended")]
        return STATES.get(words[-1].get("status", ""), "killed") if words else "killed"

    def _read_recipe(self) -> None:
        """Take from the run's recipe, which resuming may change, how long it will be."""
        path = self.folder / "recipe.yaml"
        try:
            training = load_recipe(path).training
        except AudioCTError:
            # Not written yet, or of another version: figures are shown all the same.
            return
        self._num_steps, self._tokens_per_step = training.num_steps, training.tokens_per_step


class _Tail:
    """The lines of a record's file, read once each; all anew where it was replaced, as resuming does."""

    def __init__(self, path: Path) -> None:
        self.read: list[dict[str, Any]] = []
        self._path = path
        self._inode, self._offset = 0, 0

    def lines(self) -> list[dict[str, Any]]:
        if self._path.exists() and (inode := self._path.stat().st_ino) != self._inode:
            self.read, self._inode, self._offset = [], inode, 0
        for _, values, end in whole_lines(self._path, self._offset):
            self.read.append(values)
            self._offset = end
        return self.read


def watch(folders: Sequence[Path], *, once: bool = False) -> None:
    """Show runs on standard output: as long as one of them trains, or once where that is asked for or no terminal.

    Raises:
        MissingError: if a folder has no record.
    """
    runs = [Watched(folder) for folder in folders]
    console = Console(width=None if sys.stdout.isatty() else PLAIN_WIDTH)
    if once or not console.is_terminal:
        console.print(_shown(runs, [run.status() for run in runs], console))
        return
    with Live(console=console, auto_refresh=False) as live:
        while True:
            states = [run.status() for run in runs]
            live.update(_shown(runs, states, console), refresh=True)
            if not any(each.state == "training" for each in states):
                return
            time.sleep(REFRESH_SECONDS)


def as_json(folders: Sequence[Path]) -> str:
    """How runs stand, as a JSON list of what `Status` has.

    Raises:
        MissingError: if a folder has no record.
    """
    return json.dumps([asdict(Watched(folder).status()) for folder in folders], indent=1)


def _shown(runs: Sequence[Watched], states: Sequence[Status], console: Console) -> Group:
    parts = [_plot(runs, console)] if any(run.curve("training") for run in runs) else []
    table = Table(box=None, pad_edge=False, header_style="bold")
    table.add_column("")
    for each in states:
        table.add_column(each.run, overflow="fold")
    for name, values in zip(
        _figures(states[0]), zip(*(_figures(each).values() for each in states), strict=True), strict=True
    ):
        if any(values):
            table.add_row(name, *values)
    return Group(*parts, table)


def _figures(status: Status) -> dict[str, str]:
    """The lines of the table; an empty one is not known."""
    share = f" ({100 * status.step / status.num_steps:.0f} %)" if status.num_steps else ""
    of = f" of {status.num_steps:,}" if status.num_steps else ""
    best = status.best_validation_bits
    silent = status.seconds_silent
    return {
        "state": status.state + ("" if silent is None else f", last heard of {_duration(silent)} ago"),
        "step": f"{status.step:,}{of}{share}",
        "tokens": f"{status.tokens / 1e6:,.2f}M",
        "time left": "" if status.seconds_left is None else _duration(status.seconds_left),
        "training bits": _number(status.training_bits, ".4f"),
        "validation bits": _number(status.validation_bits, ".4f") + ("" if best is None else f" (best {best:.4f})"),
        "tokens/s": _number(status.tokens_per_second, ",.0f"),
        "times real time": _number(status.times_real_time, ".2f"),
        "gradient norm": _number(status.gradient_norm, ".3g"),
        "learning rate": _number(status.learning_rate, ".2e"),
        "memory": "" if status.memory_bytes is None else f"{status.memory_bytes / GIB:,.2f} GiB",
        "updates left out": f"{status.updates_left_out:,}" if status.updates_left_out else "",
        "last samples": "\n".join(status.samples),
    }


def _number(value: float | None, how: str) -> str:
    return "" if value is None else format(value, how)


def _duration(seconds: float) -> str:
    for least, size, unit in ((7200, 3600, "h"), (120, 60, "min")):
        if seconds >= least:
            return f"{seconds / size:,.1f} {unit}"
    return f"{seconds:.0f} s"


def _plot(runs: Sequence[Watched], console: Console) -> Text:
    """Bits over millions of tokens, in characters."""
    figure = plotext.figure
    figure.clear()
    figure.theme("simple")
    figure.plot_size(min(console.width, 2 * PLAIN_WIDTH), PLOT_HEIGHT)
    figure.label("million tokens")
    figure.title("bits")
    shown: list[float] = []
    for place, run in enumerate(runs):
        colour, name = COLOURS[place % len(COLOURS)], run.folder.name if len(runs) > 1 else ""
        training = _thinned(run.curve("training"), 2 * console.width)
        for label, points, marker in (
            ("training", training, "braille"),
            ("validation", run.curve("validation"), MARKERS[place % len(MARKERS)]),
        ):
            if points:
                tokens, bits = zip(*((tokens / 1e6, bits) for tokens, bits in points), strict=True)
                signal = figure.signal(tokens, bits, marker=plotext.marker(marker, colour))
                figure.draw(signal.lines(label == "training").label(f"{name} {label}".strip()))
                left_out = SHARE_LEFT_OUT * tokens[-1]
                shown += [bit for token, bit in zip(tokens, bits, strict=True) if token >= left_out]
    low, high = min(shown), max(shown)
    margin = 0.05 * (high - low) or 0.1
    figure.ruler("y").lim(low - margin, high + margin)
    # Curves fall: on the right there is room above them.
    last = max(line["tokens"] for run in runs for line in run.lines()) / 1e6
    figure.legend(x=last, y=high + margin, ha="right", va="top", relative=True)
    return Text.from_ansi(str(figure.build()))


def _thinned(points: list[Point], at_most: int) -> list[Point]:
    """The means of so many equal parts of a long curve."""
    size = -(-len(points) // at_most) or 1
    parts = [points[start : start + size] for start in range(0, len(points), size)]
    return [(part[-1][0], sum(bits for _, bits in part) / len(part)) for part in parts]


def _samples(events: Sequence[dict[str, Any]]) -> list[str]:
    """The newest of the files that a run made of itself, without their pictures."""
    paths = [str(line["path"]) for line in events if line["event"] == "artifact" and line.get("folder") == "samples"]
    return [path for path in dict.fromkeys(paths) if not path.endswith(".png")][-NUM_SAMPLES:]
