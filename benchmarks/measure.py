"""The common part of all benchmarks: machine, timing, ceilings, tables and JSON.

Machines are noisy, so whatever is to be compared is timed in turns, A B A B, and only ratios within one run count.
"""

import argparse
import json
import os
import platform
import statistics
import sys
import time
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any

import psutil
import torch

from audio_ct import __version__
from audio_ct.device import choose_device, emulates_bfloat16
from audio_ct.provenance import commit

RESULTS = Path("benchmarks/results")

Row = dict[str, Any]
Build = Callable[[], Callable[[], object]]
"""Makes a subject ready to be timed; the subject is called once for each piece of work."""


def machine(device: torch.device) -> Row:
    """Describe the machine, on which figures depend besides the code's options."""
    is_gpu = device.type == "cuda"
    return {
        "processor": _processor(),
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "memory_bytes": psutil.virtual_memory().total,
        "device": torch.cuda.get_device_name(device) if is_gpu else "cpu",
        "device_memory_bytes": torch.cuda.get_device_properties(device).total_memory if is_gpu else None,
        "platform": platform.platform(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "cuda": torch.version.cuda if is_gpu else None,
        "threads": torch.get_num_threads(),
        "load_average": round(os.getloadavg()[0], 2),
        "version": __version__,
        "commit": commit(),
        "created": datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
    }


def _processor() -> str:
    information = Path("/proc/cpuinfo")
    if information.is_file():
        for line in information.read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def synchronise(device: torch.device) -> None:
    """Wait until the device has done what was asked of it."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


@dataclass
class Timing:
    """The timing of one subject among others in turns.

    Attributes:
        subject: the callable; None if it failed.
        seconds: of each repeat, for one call.
        failure: the reason in words why there are no seconds.
    """

    subject: Any = None
    seconds: list[float] = field(default_factory=list)
    failure: str | None = None

    @property
    def median_seconds(self) -> float | None:
        """The median over the repeats, None if the subject failed."""
        return None if self.failure else statistics.median(self.seconds)


def time_in_turns(
    builds: Mapping[str, Build],
    *,
    repeats: int,
    warm_up: int = 2,
    calls: int = 1,
    may_fail: Collection[str] = (),
    device: torch.device = torch.device("cpu"),  # noqa: B008 - never changed
) -> dict[str, Timing]:
    """Build all subjects, then time one after the other, again and again; return their timings by name.

    Args:
        builds: of the subjects, by name.
        repeats: timings of each subject.
        warm_up: calls of each subject before that, not timed.
        calls: of the subject in one timing. On a GPU one more, not timed, goes ahead of every timing, since another
            subject may have had the memory in between.
        may_fail: names whose errors are kept as words; those of the others are raised.
        device: that does the work.
    """
    timings = {name: Timing() for name in builds}
    for name, build in builds.items():
        with _failure_in_words(timings[name], name in may_fail):
            timings[name].subject = build()
    for repeat in range(-warm_up, repeats):
        for name, timing in timings.items():
            if timing.failure:
                continue
            with _failure_in_words(timing, name in may_fail):
                if device.type == "cuda" and repeat >= 0:
                    timing.subject()
                synchronise(device)
                began = time.perf_counter()
                for _ in range(calls if repeat >= 0 else 1):
                    timing.subject()
                synchronise(device)
                if repeat >= 0:
                    timing.seconds.append((time.perf_counter() - began) / calls)
    return timings


@contextmanager
def _failure_in_words(timing: Timing, allowed: bool) -> Iterator[None]:
    try:
        yield
    except Exception as error:
        if not allowed:
            raise
        timing.failure, timing.subject = in_words(error), None


def in_words(error: Exception) -> str:
    """An error as one line of text."""
    return f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"


def ceilings(device: torch.device, *, matmul_sizes: Sequence[int] = (), copied_bytes: int = 0) -> Row:
    """Measure the most that a device reaches: FLOP/s of matrix products by precision, bytes/s of copying memory.

    Args:
        device: that is measured.
        matmul_sizes: rows of the square matrices, the best counts; by default 1024 and 2048, on a GPU 4096 and 8192.
        copied_bytes: size of the copy; by default 256 MiB, on a GPU 1 GiB. Each byte is read and written.
    """
    is_gpu = device.type == "cuda"
    matmul_sizes = matmul_sizes or ((4096, 8192) if is_gpu else (1024, 2048))
    copied_bytes = copied_bytes or (1 << 30 if is_gpu else 256 << 20)
    result: Row = {}
    for precision in precisions(device):
        best, dtype = 0.0, getattr(torch, precision)
        for size in matmul_sizes:
            a, b = (torch.randn(size, size, device=device).to(dtype) for _ in range(2))
            best = max(best, 2 * size**3 / _least_seconds(partial(torch.matmul, a, b), device))
        result[f"{precision}_flops_per_second"] = best
    source = torch.ones(copied_bytes, dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    result["copy_bytes_per_second"] = 2 * copied_bytes / _least_seconds(partial(target.copy_, source), device)
    return result


def precisions(device: torch.device) -> list[str]:
    """The precisions that a device computes in, the fastest first; emulated ones are not worth a figure."""
    return ["float32"] if device.type == "cpu" and emulates_bfloat16() else ["bfloat16", "float32"]


def _least_seconds(work: Callable[[], object], device: torch.device, repeats: int = 7) -> float:
    seconds = []
    for _ in range(repeats + 2):
        synchronise(device)
        began = time.perf_counter()
        work()
        synchronise(device)
        seconds.append(time.perf_counter() - began)
    return min(seconds[2:])


def show(title: str, rows: Sequence[Row], columns: Mapping[str, str]) -> None:
    """Print rows as a table, and their notes below it.

    Args:
        title: of the table.
        rows: values by key; a missing one is shown as "-".
        columns: heading by key, in order; the first is aligned left.
    """
    cells = [list(columns.values()), *([_text(row.get(key)) for key in columns] for row in rows)]
    widths = [max(len(line[i]) for line in cells) for i in range(len(columns))]
    print(f"\n{title}")
    for first, *others in cells:
        line = [first.ljust(widths[0]), *(cell.rjust(width) for cell, width in zip(others, widths[1:], strict=True))]
        print("  " + "  ".join(line))
    for row in rows:
        if row.get("note"):
            print(f"  {row[next(iter(columns))]}: {row['note']}")
    sys.stdout.flush()


def show_bars(bars: Sequence[Row]) -> None:
    """Print which bars are met, if there are any."""
    if not bars:
        return
    lines = [bar | {"bar": f"{bar['comparison']} {bar['bar']:,.4g}"} for bar in bars]
    show("Bars", lines, {"name": "what", "value": "value", "bar": "bar", "met": "met"})


def _text(value: object) -> str:
    if value is None:
        return "-"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.3g}"
    return f"{value:,}" if isinstance(value, int) else str(value)


def add_common(parser: argparse.ArgumentParser, benchmark: str) -> None:
    """Add the options that every benchmark has."""
    parser.add_argument("--device", choices=["cpu", "cuda"], default=choose_device().type, help="(%(default)s)")
    parser.add_argument("--out", type=Path, default=RESULTS / f"{benchmark}.json", help="(%(default)s)")


def finish(result: Row, parts: Mapping[str, Row], out: Path) -> None:
    """Print the bars of a result's parts, and write all as JSON, the bars together in one list.

    A GPU's bars are not judged by a CPU, nor the other way round.
    """
    others = "gpu_" if result["machine"]["device"] == "cpu" else "cpu_"
    bars = [bar for part in parts.values() for bar in part["bars"] if not bar["key"].startswith(others)]
    show_bars(bars)
    write(result | {name: {k: v for k, v in part.items() if k != "bars"} for name, part in parts.items()}, bars, out)
    print(f"\n{out}", flush=True)


def write(result: Row, bars: Sequence[Row], out: Path) -> None:
    """Write a result and its bars as JSON."""
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(json.dumps(result | {"bars": list(bars)}, indent=1) + "\n", encoding="utf-8")
