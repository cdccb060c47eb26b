"""The expected cost of a recipe before it is trained: parameters, memory, how far back it looks, and its speed here."""

import time
from dataclasses import dataclass

import torch

from audio_ct.device import choose_device, memory_bytes
from audio_ct.models.build import build_model
from audio_ct.models.footprint import GIB, outline
from audio_ct.models.settings import ModelSettings, WaveNetSettings
from audio_ct.models.token_model import num_parameters
from audio_ct.recipe import Recipe
from audio_ct.training.optimizer import clip_gradients, make_optimizer
from audio_ct.training.processes import Processes
from audio_ct.training.run import training_bytes

# Timing ends after so many windows, or so long.
TIMED_WINDOWS = 6
TIMED_SECONDS = 6.0


@dataclass(frozen=True)
class Estimate:
    """The size of a recipe's model and of its training."""

    num_parameters: int
    least_bytes: int
    """Of memory, to train in one process; what is not counted, such as attention's scores, only adds to it."""

    def __str__(self) -> str:
        return f"{self.num_parameters / 1e6:,.2f}M parameters, at least {self.least_bytes / GIB:,.2f} GiB to train"

    def fits(self, device: torch.device) -> bool:
        """Tell if a device has the memory."""
        return self.least_bytes <= memory_bytes(device)


def estimate(recipe: Recipe, vocabulary_size: int) -> Estimate:
    """Count parameters and memory from the shapes of a recipe's model; nothing is built."""
    model = outline(recipe.model, vocabulary_size)
    parts = training_bytes(model, recipe.training, Processes(rank=0, size=1, device=choose_device()))
    return Estimate(num_parameters(model), sum(parts.values()))


def temporal_range(model: ModelSettings) -> int:
    """Count the tokens that a layer sees at a time, at the most; linear prediction sees all of the past.

    A Transformer's layer sees its segment, its memory, and what its compressed entries were made of; information from
    before may still have come through the layers below. WaveNet sees its receptive field.
    """
    if isinstance(model, WaveNetSettings):
        return model.receptive_field
    entries = model.segment_length + model.memory_length + model.compressed_memory_length * model.compression_rate
    return entries * (1 if model.frames is None else model.frames.samples)


def tokens_per_second(recipe: Recipe, vocabulary_size: int, device: torch.device) -> float:
    """Time a few windows of training on random tokens, neither compiled nor in several processes: their mean."""
    training = recipe.training
    if training.num_threads:
        torch.set_num_threads(training.num_threads)
    model = build_model(recipe.model, vocabulary_size).to(device).train()
    optimizer = make_optimizer(model, recipe.optimizer)
    precision = getattr(torch, training.precision)
    state = model.initial_state(training.batch_size, device)
    tokens = torch.randint(vocabulary_size, (training.batch_size, training.window_length), device=device)
    is_warm, num_windows, began = False, 0, time.perf_counter()
    while num_windows < TIMED_WINDOWS and time.perf_counter() - began < TIMED_SECONDS:
        with torch.autocast(device.type, precision, enabled=precision != torch.float32):
            output = model(tokens, state)
        loss = model.head.nats(output.logits, tokens).mean() + sum(output.auxiliary_losses.values())
        loss.backward()
        clip_gradients(model, training.gradient_clip_norm)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        state = output.state
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        if is_warm:
            num_windows += 1
        else:
            # The first window also allocates.
            is_warm, began = True, time.perf_counter()
    return num_windows * training.tokens_per_step / (time.perf_counter() - began)
