"""Memory: growth of training over a thousand windows, and on a GPU the most that a step takes.

    python -m benchmarks.memory --windows 1000
    python -m benchmarks.memory --recipes recipes/paper             # on a GPU

`audio-ct train` runs as a process of its own on a tiny model, and its resident memory is watched from outside. Growth
is the difference of two medians: of the last tenth of the windows, and of the second tenth, when all is warm.
"""

import argparse
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import psutil
import torch

from audio_ct.recipe import Recipe, load_recipe
from audio_ct.record import read_record
from benchmarks import measure
from benchmarks.bars import judge
from benchmarks.measure import Row
from benchmarks.prep import make_recordings
from benchmarks.train import Training, changed, recipes_of
from data_prep.folder import CORPUS
from data_prep.options import PrepOptions
from data_prep.skeleton import prepare

RECIPE = Path("recipes/small/compressive_transformer.yaml")
TINY = [
    *("model.num_layers=2", "model.d_model=32", "model.num_heads=2", "model.d_ff=64", "model.front_dilations=[1,2,4]"),
    *("training.batch_size=4", "training.window_length=128", "training.reset_every_windows=16"),
]
POLL_SECONDS = 0.02


def watch_training(recipe: Recipe, *, windows: int) -> Row:
    """Measure the growth of `audio-ct train` in resident memory over so many windows, and judge it."""
    with tempfile.TemporaryDirectory(prefix="audio-ct-bench-") as temporary:
        source, store, run = (Path(temporary, name) for name in ("recordings", "store", "run"))
        make_recordings(source, minutes=1, seconds_each=3, rate_hz=24_000)
        prepare(CORPUS, source, store, options=PrepOptions(split_by="recording", licence="CC0"))
        recipe = changed(
            recipe,
            corpus__store=store,
            training__max_tokens=windows * recipe.training.batch_size * recipe.training.window_length,
            training__log_every_windows=1,
            training__evaluate_every_windows=windows,
            training__checkpoint_every_windows=windows,
            training__sample_every_windows=0,
            tracking__enabled=False,
        )
        path = Path(temporary, "recipe.yaml")
        path.write_text(recipe.to_yaml(), encoding="utf-8")
        command = [sys.executable, "-m", "audio_ct", "train", str(path), "--run-dir", str(run)]
        seen = watch(command, Path(temporary))
        # The last line's time ends the last window: what validation and checkpoint take afterwards is not growth.
        ends = [line["time"] for line in read_record(run) if "gradient_norm" in line]
    spans = {"early": (len(ends) // 10, len(ends) // 5), "late": (len(ends) - 1 - len(ends) // 10, len(ends) - 1)}
    early, late = (
        statistics.median(size for moment, size in seen if ends[begin] <= moment <= ends[end])
        for begin, end in spans.values()
    )
    row = {
        "name": recipe.name,
        "windows": len(ends),
        "early_bytes": early,
        "late_bytes": late,
        "growth_bytes": late - early,
        "growth_bytes_per_window": (late - early) / (0.85 * len(ends)),
        "peak_bytes": max(size for _, size in seen),
    }
    columns = {"name": "recipe", "windows": "windows", "early_bytes": "early bytes", "late_bytes": "late bytes"}
    measure.show("Resident memory of training", [row], columns | {"growth_bytes": "growth", "peak_bytes": "peak"})
    return {"rows": [row], "bars": [judge("memory_growth", late - early, f"{len(ends):,} windows of a tiny model")]}


def watch(command: Sequence[str], folder: Path) -> list[tuple[float, int]]:
    """Run a command to its end and return (time, resident bytes) all along."""
    seen = []
    with (folder / "output.txt").open("w+", encoding="utf-8") as output:
        process = psutil.Popen(command, stdout=output, stderr=subprocess.STDOUT)
        while process.poll() is None:
            try:
                seen.append((time.time(), process.memory_info().rss))
            except psutil.NoSuchProcess:
                break
            time.sleep(POLL_SECONDS)
        if process.wait():
            output.seek(0)
            raise RuntimeError(f"audio-ct train ended with status {process.returncode}: {output.read()[-500:]}")
    return [(moment, size) for moment, size in seen if size]


def gpu_peaks(recipes: Sequence[Recipe], device: torch.device, *, steps: int) -> Row:
    """Measure the peak of a GPU's memory in training, and the growth of what is allocated over so many steps."""
    rows = []
    for recipe in recipes:
        torch.compiler.reset()
        torch.cuda.empty_cache()
        training = Training(recipe, device)
        for _ in range(3):
            training()
        torch.cuda.synchronize(device)
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        for _ in range(steps):
            training()
        torch.cuda.synchronize(device)
        growth = torch.cuda.memory_allocated(device) - before
        peak = torch.cuda.max_memory_allocated(device)
        rows.append({"name": recipe.name, "steps": steps, "peak_bytes": peak, "growth_bytes": growth})
        del training
    columns = {"name": "recipe", "steps": "steps", "peak_bytes": "peak bytes", "growth_bytes": "growth"}
    measure.show("GPU memory of training", rows, columns)
    return {"rows": rows, "bars": []}


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the benchmark, print tables, write JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--windows", type=int, default=1000, help="at least 50 (%(default)s)")
    parser.add_argument("--recipe", type=Path, default=RECIPE, help="whose training is watched (%(default)s)")
    parser.add_argument("--set", nargs="*", default=TINY, metavar="KEY=VALUE", help="changes to it (a tiny model)")
    parser.add_argument("--recipes", type=Path, default=Path("recipes/small"), help="for a GPU's peaks (%(default)s)")
    parser.add_argument("--steps", type=int, default=20, help="for a GPU's peaks (%(default)s)")
    measure.add_common(parser, "memory")
    options = parser.parse_args(arguments)
    if options.windows < 50:
        parser.error(f"--windows {options.windows} must be at least 50, so that early and late lie apart")
    device = torch.device(options.device)
    result: Row = {"benchmark": "memory", "machine": measure.machine(device)}
    parts = {"growth": watch_training(load_recipe(options.recipe, options.set), windows=options.windows)}
    if device.type == "cuda":
        parts["gpu"] = gpu_peaks(recipes_of(options.recipes), device, steps=options.steps)
    measure.finish(result, parts, options.out)


if __name__ == "__main__":
    main()
