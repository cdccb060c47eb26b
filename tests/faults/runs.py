"""Tiny training runs by the real command, in children of a process that has loaded torch: one starts in 0.1 seconds."""

import contextlib
import multiprocessing
import os
import signal
import sys
import time
from collections.abc import Callable, Sequence
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import numpy as np
import torch

from audio_ct import checkpoint
from audio_ct.models.stage import flatten
from audio_ct.record import read_record
from audio_ct.tokens.codec import MuLawCodec
from audio_ct.tokens.store import Recording, TokenStore
from audio_ct.tokens.store_builder import TokenStoreBuilder

PATIENCE_SECONDS = 120.0
# Of a whole run; an epoch of the store has some 17.
NUM_WINDOWS = 24
WINDOW, LANES = 32, 2

COMPRESSIVE = """
  kind: compressive_transformer
  num_layers: 1
  d_model: 16
  num_heads: 2
  d_ff: 32
  segment_length: 16
  memory_length: 16
  compressed_memory_length: 8
  compression_rate: 4
  front_dilations: [1, 2]
"""
WAVENET = """
  kind: wavenet
  num_stacks: 1
  layers_per_stack: 4
  residual_channels: 16
  skip_channels: 16
"""

_children = multiprocessing.get_context("forkserver")
# Where pytest runs the tests in its first process, children import it.
_children.set_forkserver_preload(["audio_ct.cli", "audio_ct.api", "librosa.core.spectrum", "pytest"])


def build_store(path: Path) -> TokenStore:
    """A store of short recordings: ten for training, two for validation; the process that children fork from starts."""
    assert exit_status(start(path.with_suffix(".log"), "--version")) == 0
    random = np.random.default_rng(0)
    with TokenStoreBuilder(path, MuLawCodec(24_000, 8)) as builder:
        for split, num_recordings in (("train", 10), ("validation", 2), ("test", 1)):
            lengths = random.integers(90, 130, num_recordings)
            places = zip(np.cumsum(lengths) - lengths, lengths, strict=True)
            rows = [
                Recording(f"{split}/{i}", "anna", f"{i}.wav", None, 0, int(offset), int(length))
                for i, (offset, length) in enumerate(places)
            ]
            builder.add_shard(split, random.integers(0, 256, lengths.sum()).astype(np.uint8), rows)
        return builder.commit()


def write_recipe(path: Path, store: Path, model: str, **training: object) -> Path:
    """A recipe whose run checkpoints every third window, validates every sixth and logs every second."""
    settings: dict[str, object] = {
        "batch_size": LANES,
        "window_length": WINDOW,
        "max_tokens": NUM_WINDOWS * LANES * WINDOW,
        "precision": "float32",
        "num_threads": 1,
        "reset_every_windows": 5,
        "log_every_windows": 2,
        "evaluate_every_windows": 6,
        "checkpoint_every_windows": 3,
    }
    lines = "".join(f"  {key}: {value}\n" for key, value in (settings | training).items())
    path.write_text(
        f"name: tiny\nseed: 3\ncorpus: {{store: '{store}'}}\nmodel: {model}\n"
        "optimizer: {learning_rate: 1e-2, warmup_steps: 3, decay: cosine}\n"
        f"training:\n{lines}"
        "evaluation: {batch_size: 2, window_length: 64, cold_start_samples: 16}\ntracking: {enabled: false}\n"
    )
    return path


def start(log: Path, *arguments: object, before: str = "") -> BaseProcess:
    """Start `audio-ct ARGUMENTS`, after some Python; what it prints goes to the end of a file."""
    process = _children.Process(target=_run, args=(str(log), before, ["audio-ct", *map(str, arguments)]))
    process.start()
    return process


def train(recipe: Path, run: Path, *, log: Path | None = None) -> BaseProcess:
    """Begin a run, or go on where one was begun; by default its log stands beside it."""
    resume = ["--resume"] if run.is_dir() else []
    return start(log or run.with_suffix(".log"), "train", recipe, "--run-dir", run, *resume)


def send(process: BaseProcess, number: int) -> None:
    """Send a signal, unless the process has ended."""
    assert process.pid is not None
    if process.is_alive():
        with contextlib.suppress(ProcessLookupError):
            os.kill(process.pid, number)


def exit_status(process: BaseProcess) -> int:
    """Wait for the end; a process that a signal ended has its number, negated."""
    process.join(PATIENCE_SECONDS)
    assert process.exitcode is not None, "hangs"
    return process.exitcode


def wait_until(condition: Callable[[], bool], process: BaseProcess) -> None:
    """Wait for something that a process does, or for its end."""
    deadline = time.monotonic() + PATIENCE_SECONDS
    while not condition() and process.is_alive():
        assert time.monotonic() < deadline, "hangs"
        time.sleep(0.0005)


def being_written(run: Path) -> set[str]:
    """The names of checkpoints that are being written or exchanged."""
    folder = run / "checkpoints"
    return {name for name in os.listdir(folder) if ".tmp-" in name} if folder.is_dir() else set()


def checkpoints(run: Path) -> list[Path]:
    """A run's checkpoints, the oldest first, each of them whole."""
    folder = run / "checkpoints"
    paths = sorted(folder.glob("step-*")) if folder.is_dir() else []
    for path in paths:
        checkpoint.read_manifest(path)
    return paths


def last_checkpoint(run: Path) -> Path:
    return run / f"checkpoints/step-{NUM_WINDOWS:08d}"


def assert_same_runs(a: Path, b: Path) -> None:
    """Checkpoints and records are the same, bit for bit; only times and speeds may differ."""
    one, other = _content(a), _content(b)
    assert one.keys() == other.keys()
    for name, tensor in one.items():
        assert tensor.dtype == other[name].dtype, name
        assert torch.equal(tensor, other[name]), name
    manifests = [checkpoint.read_manifest(last_checkpoint(run)) for run in (a, b)]
    assert len({(each.step, each.tokens, each.validation_bits_per_sample) for each in manifests}) == 1
    assert _lines(a) == _lines(b)


def _content(run: Path) -> dict[str, torch.Tensor]:
    assert checkpoint.find(run) == last_checkpoint(run)
    loaded = checkpoint.load(last_checkpoint(run))
    assert loaded.state is not None
    assert loaded.training is not None
    for name in ("seconds", "seconds_of_sums"):
        del loaded.training["figures"][name]
    return flatten({"weights": loaded.weights, "state": loaded.state, "training": loaded.training})


def _lines(run: Path) -> list[dict[str, Any]]:
    of_the_machine = ("time", "tokens_per_second", "validation_tokens_per_second", "times_real_time", "memory_bytes")
    return [{key: value for key, value in line.items() if key not in of_the_machine} for line in read_record(run)]


def _run(log: str, before: str, arguments: Sequence[str]) -> None:
    # Where a shell started the tests in its background, SIGINT would do nothing.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    descriptor = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    for stream in (1, 2):
        os.dup2(descriptor, stream)
    exec(before, {})
    sys.argv = list(arguments)
    from audio_ct.cli import main

    main()
