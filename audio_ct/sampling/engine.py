"""Ancestral sampling by the cached step: a batch of independent waveforms, handed out as they are made."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from jaxtyping import Int
from torch import Tensor

from audio_ct.models.interface import TokenModel, consume
from audio_ct.sampling.filters import check_filters, draw, filtered_probabilities

BLOCK_SAMPLES = 2048


@torch.no_grad()
def generate(
    model: TokenModel,
    *,
    num_waveforms: int,
    num_samples: int,
    start_token: int,
    seed: int,
    prompt: Int[Tensor, " time"] | None = None,
    temperature: float = 1.0,
    top_k: int | None = None,
    top_p: float | None = None,
    device: torch.device | str = "cpu",
) -> Iterator[Int[Tensor, "num_waveforms time"]]:
    """Yield blocks of new tokens [num_waveforms, up to 2048], without the prompt.

    Waveform i draws from its own generator, seeded with seed + i, so it depends on neither the batch's size nor the
    block's. Ancestral sampling (no filter) is the default: it is what the likelihood speaks of.

    Args:
        model: any model; left in evaluation mode.
        num_waveforms: how many are made side by side.
        num_samples: new samples of each.
        start_token: what the model reads first, the code of silence.
        seed: of the first waveform.
        prompt: tokens to continue, the same for every waveform.
        temperature: see `filtered_probabilities`.
        top_k: see `filtered_probabilities`.
        top_p: see `filtered_probabilities`.
        device: where the model is.

    Raises:
        InputError: for a filter's value out of range.
    """
    check_filters(temperature=temperature, top_k=top_k, top_p=top_p)
    model.eval()
    generators = [torch.Generator().manual_seed(seed + i) for i in range(num_waveforms)]
    start = torch.full((num_waveforms, 1), start_token, dtype=torch.int64)
    past = start if prompt is None else torch.cat([start, prompt.long().expand(num_waveforms, -1)], dim=1)
    logits, state = consume(model, past.to(device), model.initial_state(num_waveforms, device))
    for begin in range(0, num_samples, BLOCK_SAMPLES):
        length = min(BLOCK_SAMPLES, num_samples - begin)
        uniforms = torch.stack([torch.rand(length, generator=generator) for generator in generators], dim=1).to(device)
        block = torch.empty(num_waveforms, length, dtype=torch.int64, device=device)
        with _one_thread():
            for t in range(length):
                probabilities = filtered_probabilities(logits, temperature=temperature, top_k=top_k, top_p=top_p)
                block[:, t] = draw(probabilities, uniforms[t])
                if begin + t + 1 < num_samples:
                    logits, state = model.step(block[:, t], state)
        yield block.cpu()


@contextmanager
def _one_thread() -> Iterator[None]:
    """Use one CPU thread: a step's matrices are so small that threads cost more in meeting than they save."""
    num_threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(num_threads)
