"""A look at the machine: what audio-ct finds there, whether it works, and what to do where it does not."""

import importlib.metadata
import io
import logging
import os
import platform
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stderr
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import soundfile
import torch

from audio_ct import api, pretrained
from audio_ct.device import choose_device, emulates_bfloat16, memory_bytes
from audio_ct.errors import AudioCTError
from audio_ct.locks import hold
from audio_ct.recipe import parse_recipe
from audio_ct.record import read_record
from audio_ct.sampling.compiled import can_compile
from audio_ct.tokens.codec import MuLawCodec
from audio_ct.tokens.shard_cache import cache_folder
from audio_ct.tokens.store import Recording
from audio_ct.tokens.store_builder import TokenStoreBuilder

LIBRARIES = ("torch", "torchaudio", "librosa", "soundfile", "mlflow", "numpy")
FORMATS = ("WAV", "FLAC", "OGG", "MP3")
GIB = 1 << 30
LOW_GIB = 5
RATE_HZ = 8_000

RECIPE = """
name: self-test
corpus: {{store: {store}}}
model: {{kind: compressive_transformer, num_layers: 1, d_model: 32, num_heads: 2, d_ff: 64, segment_length: 32,
  memory_length: 32, compressed_memory_length: 16, front_dilations: [1, 2, 4]}}
optimizer: {{learning_rate: 3e-3, warmup_steps: 5}}
training: {{batch_size: 8, window_length: 64, max_tokens: 30720, precision: {precision}, log_every_windows: 20}}
evaluation: {{window_length: 4096, max_validation_tokens: 4000}}
tracking: {{enabled: false}}
"""


@dataclass(frozen=True)
class Finding:
    """What was found about one thing.

    Attributes:
        name: of the thing.
        value: what was found.
        remedy: what to do, where something is missing or slow; empty where all is well.
        is_broken: whether audio-ct cannot do its work because of it.
    """

    name: str
    value: str
    remedy: str = ""
    is_broken: bool = False


def examine() -> Iterator[Finding]:
    """Yield what is found, one thing after another; the last one trains a small model for some seconds and samples."""
    yield Finding("system", f"{platform.platform()}, Python {platform.python_version()}")
    for name in ("audio-ct", *LIBRARIES):
        yield _version(name)
    yield from _devices()
    for check in (_compiler, _formats, _disk, _locks, _tracking, _self_test):
        yield _checked(check)


def _version(name: str) -> Finding:
    try:
        return Finding(name, importlib.metadata.version(name))
    except importlib.metadata.PackageNotFoundError:
        return Finding(name, "missing", "pip install audio-ct", is_broken=True)


def _devices() -> Iterator[Finding]:
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    cpu = torch.device("cpu")
    remedy = ""
    if (threads := torch.get_num_threads()) > cores:
        remedy = f"{threads} threads on {cores} cores wait for each other: set OMP_NUM_THREADS={cores}"
    yield Finding("processor", f"{cores} cores, {threads} threads, {memory_bytes(cpu) / GIB:.0f} GiB", remedy)
    if not torch.cuda.is_available():
        slow = "no bfloat16 instructions: use training.precision=float32" if emulates_bfloat16() else ""
        yield Finding("GPU", f"none that torch {torch.__version__} can use; models run on the CPU", slow)
    for index in range(torch.cuda.device_count()):
        properties = torch.cuda.get_device_properties(index)
        old = "" if torch.cuda.is_bf16_supported() else "no bfloat16 there: use training.precision=float16"
        yield Finding(f"GPU {index}", f"{properties.name}, {properties.total_memory / GIB:.0f} GiB", old)


def _compiler() -> Finding:
    if can_compile(choose_device()):
        return Finding("compiler", "found; sampling compiles its step from 12,000 samples on")
    return Finding("compiler", "none; sampling is five to eight times slower", "install g++")


def _formats() -> Finding:
    known = soundfile.available_formats()
    missing = [name for name in FORMATS if name not in known]
    value = f"libsndfile {soundfile.__libsndfile_version__} reads {', '.join(known)}"
    return Finding("audio files", value, f"no {', '.join(missing)}: pip install --upgrade soundfile" if missing else "")


def _disk() -> Finding:
    places = {"here": Path.cwd(), "temporary files": Path(tempfile.gettempdir()), "cache": cache_folder()}
    free = {}
    for name, place in places.items():
        there = next(each for each in (place, *place.parents) if each.exists())
        free[name] = shutil.disk_usage(there).free / GIB
    low = [name for name, gib in free.items() if gib < LOW_GIB]
    value = ", ".join(f"{name} {gib:,.0f} GiB" for name, gib in free.items())
    return Finding("free disk", value, f"make room: {', '.join(low)}" if low else "")


def _locks() -> Finding:
    with tempfile.TemporaryDirectory(dir=Path.cwd()) as folder, hold(Path(folder, "held"), name="a folder here"):
        return Finding("this folder", "can be written and locked")


def _tracking() -> Finding:
    if uri := os.environ.get("MLFLOW_TRACKING_URI"):
        return Finding(
            "tracking", f"MLFLOW_TRACKING_URI={uri} is not read", "name it in recipes: --set tracking.uri=..."
        )
    telemetry = os.environ.get("MLFLOW_DISABLE_TELEMETRY", os.environ.get("DO_NOT_TRACK", "")).lower() in ("true", "1")
    value = "mlflow.db beside a run folder, unless tracking.uri says otherwise; mlflow's telemetry "
    return Finding("tracking", value + ("off" if telemetry else "on: MLFLOW_DISABLE_TELEMETRY=true switches it off"))


def _self_test() -> Finding:
    """Train on one tone in noise, and sample."""
    device, began = choose_device(), time.monotonic()
    precision = "bfloat16" if device.type == "cuda" else "float32"
    with tempfile.TemporaryDirectory() as folder:
        recipe = parse_recipe(RECIPE.format(store=_tone(Path(folder, "store")), precision=precision))
        run = Path(folder, "run")
        with _silence():
            api.train(recipe, run)
        bits = [line["training_bits_per_sample"] for line in read_record(run) if "training_bits_per_sample" in line]
        speed = read_record(run)[-2]["tokens_per_second"]
        [waveform] = api.sample(pretrained.load(run), seconds=0.02)
    value = (
        f"trained a small model on {device.type}, {speed:,.0f} tokens/s, {bits[0]:.2f} to {bits[-1]:.2f} bits, sampled"
    )
    if not (bits[-1] < bits[0] and np.isfinite(waveform).all()):
        return Finding("self-test", value, "report it, with `audio-ct doctor --json`", is_broken=True)
    return Finding("self-test", f"{value}, in {time.monotonic() - began:.0f} s")


def _tone(place: Path) -> Path:
    codec, random = MuLawCodec(RATE_HZ, 8), np.random.default_rng(0)
    time_seconds = np.arange(RATE_HZ) / RATE_HZ
    wave = 0.4 * np.sin(2 * np.pi * 150 * time_seconds) + 0.01 * random.standard_normal(RATE_HZ)
    tokens = codec.encode(wave.astype(np.float32), RATE_HZ).numpy().astype(np.uint8)
    with TokenStoreBuilder(place, codec) as builder:
        for split in ("train", "validation"):
            row = Recording(f"{split}/tone", "tone", "tone.wav", None, 0, 0, len(tokens))
            builder.add_shard(split, tokens, [row])
        builder.commit()
    return place


@contextmanager
def _silence() -> Iterator[None]:
    """Without the lines of training on standard error."""
    logging.disable(logging.INFO)
    try:
        with redirect_stderr(io.StringIO()):
            yield
    finally:
        logging.disable(logging.NOTSET)


def _checked(check: Callable[[], Finding]) -> Finding:
    """A check that fails is itself a finding."""
    try:
        return check()
    except (AudioCTError, OSError, RuntimeError) as error:
        name = check.__name__.strip("_").replace("_", "-")
        return Finding(name, " ".join(str(error).split())[:300], "mend that", is_broken=True)
