"""Train, evaluate and sample again and again in one process, and see what grows.

    python -m benchmarks.soak recipes/demo/compressive_transformer.yaml --minutes 30 --out soak.json

A round resumes the run, trains some more windows, tracked in mlflow, scores a part of the validation split and makes a
sample. After each round, once glibc has given back what is free, memory, open files and threads are counted.
The first half of the rounds warms up; growth is the slope of a straight line through the rest, from its first round to
its last.
"""

import argparse
import ctypes
import gc
import json
import logging
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import psutil
import torch

import audio_ct
from audio_ct.device import choose_device
from audio_ct.recipe import Recipe
from benchmarks.measure import machine

WINDOWS_A_ROUND = 20
MIB = 1 << 20
# What a round may add to memory: allocators keep pages, a fault of one tensor or record a round is far more.
MAX_KIB_A_ROUND = 64


def main() -> None:
    """Run the script; exit status 1 where something grew."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("recipe", type=Path)
    parser.add_argument("--set", action="append", default=[], dest="settings", metavar="KEY=VALUE")
    parser.add_argument("--minutes", type=float, default=30.0)
    parser.add_argument("--out", type=Path, help="Gets the figures as JSON.")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        counts = soak(arguments.recipe, arguments.settings, Path(folder), minutes=arguments.minutes)
    found = growth(counts)
    if arguments.out is not None:
        about = {"machine": machine(choose_device()), "growth": found, "rounds": counts}
        arguments.out.write_text(json.dumps(about, indent=1) + "\n", encoding="utf-8")
    print(describe(found))
    raise SystemExit(0 if has_not_grown(found) else 1)


def soak(recipe_path: Path, settings: Sequence[str], folder: Path, *, minutes: float) -> list[dict[str, float]]:
    """Go on for so many minutes, and return the counts after each round, of which there are four at least."""
    logging.getLogger("audio_ct").setLevel(logging.WARNING)
    began, counts = time.monotonic(), list[dict[str, float]]()
    while len(counts) < 4 or time.monotonic() - began < 60 * minutes:
        recipe = _lengthened(recipe_path, settings, rounds=len(counts) + 1)
        audio_ct.train(recipe, folder / "run", resume=bool(counts))
        model = audio_ct.load(folder / "run")
        audio_ct.evaluate(model, split="validation", max_tokens=2 * model.codec.sample_rate_hz // 10)
        audio_ct.sample(model, seconds=0.005)
        del model
        counts.append({"seconds": round(time.monotonic() - began, 1)} | count())
    return counts


def _lengthened(path: Path, settings: Sequence[str], *, rounds: int) -> Recipe:
    recipe = audio_ct.load_recipe(path, settings)
    tokens = rounds * WINDOWS_A_ROUND * recipe.training.tokens_per_step
    changes = {
        "training.max_tokens": tokens,
        "training.log_every_windows": 1,
        "training.sample_every_windows": 0,
        "evaluation.max_validation_tokens": 4 * recipe.evaluation.window_length,
    }
    return audio_ct.load_recipe(path, [*settings, *(f"{key}={value}" for key, value in changes.items())])


def count() -> dict[str, float]:
    """What the process holds now: memory in MiB, open files, threads."""
    gc.collect()
    if hasattr(libc := ctypes.CDLL(None), "malloc_trim"):
        libc.malloc_trim(0)
    process = psutil.Process()
    on_gpu = {"gpu_mib": torch.cuda.memory_allocated() / MIB} if torch.cuda.is_available() else {}
    return {
        "memory_mib": process.memory_info().rss / MIB,
        "open_files": process.num_fds(),
        "threads": process.num_threads(),
        **on_gpu,
    }


def growth(counts: Sequence[dict[str, float]]) -> dict[str, float]:
    """By how much each count grew over the second half of the rounds, and how many those are."""
    rest = counts[len(counts) // 2 :]
    names = [name for name in rest[0] if name != "seconds"]
    slopes = {name: float(np.polyfit(range(len(rest)), [each[name] for each in rest], 1)[0]) for name in names}
    return {"rounds": len(rest)} | {name: round(slope * (len(rest) - 1), 3) for name, slope in slopes.items()}


def has_not_grown(found: dict[str, float]) -> bool:
    """True where files and threads stayed as many, and memory within what an allocator keeps."""
    allowed = MAX_KIB_A_ROUND / 1024 * found["rounds"]
    counted = found["open_files"] < 1 and found["threads"] < 1
    return counted and found["memory_mib"] <= allowed and found.get("gpu_mib", 0.0) <= allowed


def describe(found: dict[str, float]) -> str:
    """One line."""
    memory = f"memory {found['memory_mib']:+.1f} MiB"
    return (
        f"{found['rounds']:g} rounds: {memory}, open files {found['open_files']:+.1f}, threads {found['threads']:+.1f}"
    )


if __name__ == "__main__":
    main()
