"""Functions of `import audio_ct` that put several rooms to work; other names come straight from their own modules.

Examples in docstrings are run by tests/test_front_door.py.
"""

import math
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Int
from torch import Tensor
from torch.nn import functional as F

from audio_ct.device import choose_device
from audio_ct.errors import InputError
from audio_ct.evaluation.likelihood import validate
from audio_ct.models import build
from audio_ct.models.token_model import TokenModel
from audio_ct.pretrained import Pretrained
from audio_ct.recipe import Recipe
from audio_ct.sampling.compiled import can_prepare, compiling_pays
from audio_ct.sampling.engine import EngineOptions, Sampler
from audio_ct.sampling.filters import Filters
from audio_ct.sampling.writing import samples_of_run
from audio_ct.tokens.clip import open_corpus
from audio_ct.tokens.codec import MuLawCodec
from audio_ct.training import loop

WINDOW_LENGTH = 4096


def build_model(recipe: Recipe, vocabulary_size: int | None = None) -> TokenModel:
    """Build a recipe's model with fresh weights.

    Args:
        recipe: its `model` section is read.
        vocabulary_size: number of token values; by default that of the recipe's token store.

    Raises:
        MissingError: if the store has to be asked and is not there.

    Example:
        >>> recipe = audio_ct.load_recipe("recipes/small/wavenet.yaml")
        >>> model = audio_ct.build_model(recipe, vocabulary_size=256)
        >>> output = model(torch.zeros(1, 160, dtype=torch.int64), model.initial_state(batch_size=1))
        >>> output.logits.shape
        torch.Size([1, 160, 256])
    """
    if vocabulary_size is None:
        corpus = recipe.corpus
        vocabulary_size = open_corpus(corpus.store, corpus.clip_seconds, cache_gib=corpus.cache_gib).vocabulary_size
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
        InputError: if the folder already holds a run, another process trains there, the resumed run's recipe or corpus
            is another, or the model does not fit into memory.
        MissingError: if there is nothing to resume.
        NotFiniteError: after too many losses or gradients in a row that are not finite, or where parameters or
            validation are not; no checkpoint is made of them.
        KeyboardInterrupt: after SIGINT or SIGTERM, once a checkpoint is written.

    Example:
        >>> recipe = audio_ct.load_recipe("recipes/small/wavenet.yaml", ["optimizer.learning_rate=1e-3"])
        >>> audio_ct.train(recipe, "runs/faster")
        PosixPath('runs/faster/checkpoints/step-...')
    """
    if recipe.training.sample_every_windows and recipe.sampling.compiled and not can_prepare(choose_device()):
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


def _generated(
    model: Pretrained, num: int, num_tokens: int, seed: int, prompt: Tensor | None, filters: Filters
) -> list[Any]:
    """Generate and decode in memory."""
    options = EngineOptions(compiled=compiling_pays(model.model, num_tokens))
    sampler = Sampler(model.model, num_waveforms=num, filters=filters, options=options)
    start_token = model.codec.start_token
    blocks = sampler.generate(num_samples=num_tokens, start_token=start_token, seed=seed, prompt=prompt)
    return [model.codec.decode(tokens) for tokens in torch.cat(list(blocks), dim=1)]


def _encoded(model: Pretrained, waveform: np.ndarray, sample_rate_hz: int) -> Int[Tensor, " time"]:
    """Turn a waveform into tokens of a model."""
    if not isinstance(model.codec, MuLawCodec):
        raise InputError(f"{model.label} is a model of bytes; name a model of audio.")
    if waveform.ndim != 1 or len(waveform) == 0:
        raise InputError(f"waveform of shape {waveform.shape} must be [time] and not empty; mix channels to one.")
    if not np.issubdtype(waveform.dtype, np.floating):
        raise InputError(f"waveform of type {waveform.dtype} must be of floats in [-1, 1]; divide by its full scale.")
    if sample_rate_hz < 1:
        raise InputError(f"sample_rate_hz={sample_rate_hz} must be positive.")
    tokens = model.codec.encode(waveform, sample_rate_hz)
    if not len(tokens):
        raise InputError(f"waveform of {len(waveform)} samples holds none at the model's rate; give a longer one.")
    return tokens
