"""The functions that `import audio_ct` offers. Their examples are run by tests/test_front_door.py."""

import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from jaxtyping import Int
from torch import Tensor
from torch.nn import functional as F

from audio_ct import pretrained
from audio_ct import recipe as recipes
from audio_ct.errors import InputError
from audio_ct.models import build
from audio_ct.models.token_model import TokenModel
from audio_ct.pretrained import Pretrained, choose_device
from audio_ct.recipe import Recipe
from audio_ct.sampling.compiled import can_compile, compiling_pays
from audio_ct.sampling.engine import EngineOptions, generate
from audio_ct.sampling.filters import Filters
from audio_ct.tokens.clip import open_corpus
from audio_ct.tokens.codec import MuLawCodec
from audio_ct.tokens.store import TokenStore

__all__ = [
    "TokenStore",
    "bits_per_sample",
    "build_model",
    "compare",
    "continue_waveform",
    "evaluate",
    "load",
    "load_recipe",
    "sample",
    "train",
]

WINDOW_LENGTH = 4096


def load(path: str | Path, device: torch.device | str | None = None) -> Pretrained:
    """Load the model of a checkpoint, or of a run's best checkpoint.

    Args:
        path: folder of the checkpoint or of the run.
        device: place of the model; by default a GPU where there is one.

    Raises:
        MissingError: if there is no checkpoint.
        DamagedError: if the checkpoint is not what was written.

    Example:
        >>> model = audio_ct.load("runs/wavenet")
        >>> model.codec.sample_rate_hz
        24000
    """
    return pretrained.load(Path(path), device or choose_device())


def load_recipe(path: str | Path, overrides: Sequence[str] = ()) -> Recipe:
    """Read a recipe, the whole description of a run, and check it.

    Args:
        path: a YAML file.
        overrides: "section.key=value" texts; a value is read as YAML.

    Raises:
        MissingError: if there is no such file.
        InputError: for every fault of the recipe at once, a line each.

    Example:
        >>> recipe = audio_ct.load_recipe("recipes/demo/wavenet.yaml", ["optimizer.learning_rate=1e-3"])
        >>> recipe.optimizer.learning_rate
        0.001
    """
    return recipes.load_recipe(Path(path), overrides)


def build_model(recipe: Recipe, vocabulary_size: int | None = None) -> TokenModel:
    """Build a recipe's model with fresh weights.

    Args:
        recipe: its `model` section is read.
        vocabulary_size: number of token values; by default that of the recipe's token store.

    Raises:
        MissingError: if the store has to be asked and is not there.

    Example:
        >>> recipe = audio_ct.load_recipe("recipes/demo/wavenet.yaml")
        >>> model = audio_ct.build_model(recipe, vocabulary_size=256)
        >>> output = model(torch.zeros(1, 160, dtype=torch.int64), model.initial_state(batch_size=1))
        >>> output.logits.shape
        torch.Size([1, 160, 256])
    """
    if vocabulary_size is None:
        vocabulary_size = open_corpus(recipe.corpus.store, recipe.corpus.clip_seconds).vocabulary_size
    return build.build_model(recipe.model, vocabulary_size)


def train(recipe: Recipe, run_folder: str | Path, *, resume: bool = False) -> Path:
    """Train a recipe's model.

    Args:
        recipe: the whole description of the run.
        run_folder: gets recipe.yaml, metrics.jsonl, checkpoints/ and samples/.
        resume: go on from the newest whole checkpoint of the folder, or from the start where it has none.

    Returns:
        The last checkpoint.

    Raises:
        InputError: if the folder already holds a run, or the resumed run's recipe or corpus is another.
        NotFiniteError: after too many losses or gradients in a row that are not finite.
        KeyboardInterrupt: after SIGINT or SIGTERM, once a checkpoint is written.

    Example:
        >>> recipe = audio_ct.load_recipe("recipes/demo/wavenet.yaml", ["optimizer.learning_rate=1e-3"])
        >>> audio_ct.train(recipe, "runs/faster")
        PosixPath('runs/faster/checkpoints/step-...')
    """
    from audio_ct.evaluation.likelihood import validate
    from audio_ct.sampling.writing import samples_of_run
    from audio_ct.training import loop

    if recipe.training.sample_every_windows and recipe.sampling.compiled and not can_compile(choose_device()):
        raise InputError("sampling.compiled=True: there is no compiler here; install g++, or set it to false.")
    return loop.train(recipe, Path(run_folder), resume=resume, validate=validate, make_samples=samples_of_run)


def sample(
    model: Pretrained,
    *,
    num: int = 1,
    seconds: float | None = None,
    num_bytes: int | None = None,
    seed: int = 0,
    temperature: float = 1.0,
    top_k: int | None = None,
    top_p: float | None = None,
) -> list[Any]:
    """Make new waveforms, or texts of a model of bytes.

    Args:
        model: a loaded model.
        num: waveforms, made side by side.
        seconds: length of each; by default 1.
        num_bytes: length of each text of a model of bytes instead; by default 1024.
        seed: of the first waveform; the next ones take the following numbers.
        temperature: divides the logits; 1 is the model's own distribution.
        top_k: keep the k likeliest tokens.
        top_p: keep the likeliest tokens up to this probability.

    Returns:
        float32 waveforms [time] at the model's rate, or bytes.

    Raises:
        InputError: for a value out of range.

    Example:
        >>> model = audio_ct.load("runs/wavenet")
        >>> first, second = audio_ct.sample(model, num=2, seconds=0.01, seed=7)
        >>> first.shape
        (240,)
    """
    num_tokens = model.codec.num_tokens(seconds=seconds, num_bytes=num_bytes)
    return _generated(model, num, num_tokens, seed, None, Filters(temperature, top_k, top_p))


def continue_waveform(
    model: Pretrained,
    waveform: np.ndarray,
    sample_rate_hz: int,
    *,
    num: int = 1,
    seconds: float = 1.0,
    seed: int = 0,
    temperature: float = 1.0,
    top_k: int | None = None,
    top_p: float | None = None,
) -> list[np.ndarray]:
    """Let a model continue a waveform.

    Args:
        model: a loaded model of audio.
        waveform: mono samples [time], full scale 1.
        sample_rate_hz: rate of the waveform; the model hears it at its own.
        num: continuations, made side by side.
        seconds: length of each.
        seed: of the first continuation; the next ones take the following numbers.
        temperature: divides the logits; 1 is the model's own distribution.
        top_k: keep the k likeliest tokens.
        top_p: keep the likeliest tokens up to this probability.

    Returns:
        float32 waveforms [time] at the model's rate, without what they continue.

    Raises:
        InputError: for a value out of range, a waveform that is empty or not finite, or a model of bytes.

    Example:
        >>> model = audio_ct.load("runs/wavenet")
        >>> tone = 0.3 * np.sin(2 * np.pi * 200 * np.arange(1600) / 16_000)
        >>> [continuation] = audio_ct.continue_waveform(model, tone, 16_000, seconds=0.01)
        >>> continuation.shape
        (240,)
    """
    prompt = _encoded(model, waveform, sample_rate_hz)
    num_tokens = model.codec.num_tokens(seconds=seconds)
    return _generated(model, num, num_tokens, seed, prompt, Filters(temperature, top_k, top_p))


@torch.no_grad()
def bits_per_sample(model: Pretrained, waveform: np.ndarray, sample_rate_hz: int) -> float:
    """Measure the bits per sample that a waveform costs under a model, from a cold start.

    Args:
        model: a loaded model of audio.
        waveform: mono samples [time], full scale 1.
        sample_rate_hz: rate of the waveform; it is scored at the model's, sample for sample.

    Raises:
        InputError: for a waveform that is empty or not finite, or a model of bytes.

    Example:
        >>> model = audio_ct.load("runs/wavenet")
        >>> tone = 0.3 * np.sin(2 * np.pi * 200 * np.arange(1600) / 16_000)
        >>> 0 < audio_ct.bits_per_sample(model, tone, 16_000) < 16
        True
    """
    tokens = _encoded(model, waveform, sample_rate_hz)
    network = model.model
    device = next(network.parameters()).device
    targets = F.pad(tokens, (0, -len(tokens) % network.segment_length), value=-1).to(device)
    inputs = F.pad(targets[:-1], (1, 0), value=model.codec.start_token).clamp_min(0)
    window_length = math.ceil(WINDOW_LENGTH / network.segment_length) * network.segment_length
    state, nats = network.initial_state(1, device), 0.0
    for window in zip(inputs.split(window_length), targets.split(window_length), strict=True):
        output = network(window[0][None], state)
        nats += float(network.head.nats(output.logits, window[1][None]).double().sum())
        state = output.state
    return nats / math.log(2) / len(tokens)


def evaluate(
    model: Pretrained,
    *,
    split: str = "test",
    max_tokens: int | None = None,
    cold_start_samples: int = 1024,
    store: str | Path | None = None,
    memory: Literal["float32", "bfloat16"] = "float32",
    at_bits: int | None = None,
) -> dict[str, Any]:
    """Measure bits per sample on a split of the corpus that a model was trained on.

    Args:
        model: a loaded model.
        split: "train", "validation" or "test".
        max_tokens: score whole recordings, spread over the split, until they hold so many samples; by default all.
        cold_start_samples: first samples of each recording, scored apart.
        store: the token store, where it is no longer where the recipe says.
        memory: type of what the model keeps of the past.
        at_bits: score the tokens' codes at so many bits instead, to compare with models of coarser tokens.

    Returns:
        Bits per sample with a 95 % interval over recordings, and the counts and speed behind them.

    Raises:
        InputError: if the store is another, has no such split, or nothing of it is scored.

    Example:
        >>> model = audio_ct.load("runs/wavenet")
        >>> figures = audio_ct.evaluate(model, split="test", cold_start_samples=256)
        >>> 0 < figures["bits_per_sample"] < 9
        True
    """
    from audio_ct.evaluation import likelihood

    _, measured = likelihood.evaluate(
        model,
        split=split,
        max_tokens=max_tokens,
        cold_start_samples=cold_start_samples,
        store=None if store is None else Path(store),
        memory=getattr(torch, memory),
        at_bits=at_bits,
    )
    return likelihood.summary(measured, split)


def compare(
    checkpoints: Sequence[str | Path],
    out: str | Path,
    *,
    split: str = "test",
    max_tokens: int | None = None,
    cold_start_samples: int = 1024,
    num_waveforms: int = 4,
    seconds: float = 1.0,
    seed: int = 0,
    store: str | Path | None = None,
    title: str = "Comparison of models of raw speech",
    report: Callable[[str], None] = lambda line: None,
) -> Path:
    """Put models side by side on one page, to read and to hear.

    Args:
        checkpoints: checkpoints or run folders, of models trained on one store.
        out: gets index.html, comparison.json and samples/.
        split: scored split of the corpus.
        max_tokens: score whole recordings, spread over the split, until they hold so many samples; by default all.
        cold_start_samples: first samples of each recording, scored apart.
        num_waveforms: waveforms of each model.
        seconds: length of each.
        seed: of the first waveform and of the bootstrap.
        store: the token store, where it is no longer where the recipes say.
        title: of the page.
        report: called with a line for each thing done.

    Returns:
        The page, index.html.

    Raises:
        InputError: if a value is out of range, models were trained on different corpora or on bytes, or `out` cannot be
            written.

    Example:
        >>> runs = ["runs/wavenet", "runs/faster"]
        >>> audio_ct.compare(runs, "comparison", cold_start_samples=256, num_waveforms=1, seconds=0.1)
        PosixPath('comparison/index.html')
    """
    if num_waveforms < 1:
        raise InputError(f"num={num_waveforms} must be at least 1.")
    if not 0 < seconds < math.inf:
        raise InputError(f"seconds={seconds} must be above 0.")
    from audio_ct.evaluation import comparison

    options = comparison.ComparisonOptions(
        split=split,
        max_tokens=max_tokens,
        cold_start_samples=cold_start_samples,
        num_waveforms=num_waveforms,
        seconds=seconds,
        seed=seed,
        store=None if store is None else Path(store),
        title=title,
    )
    paths = [Path(path) for path in checkpoints]
    return comparison.compare(paths, Path(out), options, device=choose_device(), report=report)


def _generated(
    model: Pretrained, num: int, num_tokens: int, seed: int, prompt: Tensor | None, filters: Filters
) -> list[Any]:
    """Generate and decode in memory."""
    blocks = generate(
        model.model,
        num_waveforms=num,
        num_samples=num_tokens,
        start_token=model.codec.start_token,
        seed=seed,
        prompt=prompt,
        filters=filters,
        options=EngineOptions(compiled=compiling_pays(model.model, num_tokens)),
    )
    return [model.codec.decode(tokens) for tokens in torch.cat(list(blocks), dim=1)]


def _encoded(model: Pretrained, waveform: np.ndarray, sample_rate_hz: int) -> Int[Tensor, " time"]:
    """Turn a waveform into tokens of a model."""
    if not isinstance(model.codec, MuLawCodec):
        raise InputError(f"{model.label} is a model of bytes; name a model of audio.")
    if waveform.ndim != 1 or len(waveform) == 0:
        raise InputError(f"waveform of shape {waveform.shape} must be [time] and not empty; mix channels to one.")
    return model.codec.encode(waveform, sample_rate_hz)
