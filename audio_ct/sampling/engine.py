"""Ancestral sampling by cached steps: a batch of independent waveforms, handed out as they are made.

A step reads the last token of every waveform and draws the next one, all on the device and in tensors that stay where
they are: on a GPU it is captured once as a CUDA graph and replayed. Between steps the model folds caches into its state
and opens new ones (`TokenModel`), which are copied to where the step looks for them.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

import torch
from jaxtyping import Int
from torch import Tensor, nn

from audio_ct.models.interface import State, TokenModel, consume, place
from audio_ct.sampling.compiled import prepare
from audio_ct.sampling.filters import NO_FILTERS, Filters, draw, filtered_probabilities
from audio_ct.sampling.weights import Weights, with_weights

BLOCK_SAMPLES = 2048
THREADS_FROM_WAVEFORMS = 8


@dataclass(frozen=True)
class EngineOptions:
    """How steps are computed. Each option rounds in its own way, so that a seed gives other samples.

    Attributes:
        compiled: compile the step; on a GPU it is captured as well.
        weights: see `with_weights`.
        memory: type of what the state keeps of the past, keys and values included.
    """

    compiled: bool = False
    weights: Weights = "float32"
    memory: Literal["float32", "bfloat16"] = "float32"


PLAIN = EngineOptions()


class Stream:
    """A model going through waveforms: its state, with caches that stay at the same addresses.

    Args:
        model: any model.
        device: where.
        memory: type of what the state keeps of the past.

    Attributes:
        caches: what `model.read` works on, from the first `open` on.
    """

    def __init__(self, model: TokenModel, device: torch.device, memory: torch.dtype) -> None:
        self.model = model
        self.caches: State = {}
        self._device = device
        self._memory = memory
        self._state: State = {}
        self._offset = 0

    @property
    def room(self) -> int:
        """Return how many samples may be read before the next `open`."""
        return self.model.adapt_every - self._offset % self.model.adapt_every

    def begin(self, past: Int[Tensor, "num_waveforms time"]) -> None:
        """Stand after these tokens, which may be none."""
        self._state = self.model.initial_state(len(past), self._device, self._memory)
        if past.shape[1]:
            _, self._state = consume(self.model, past.to(self._device), self._state)
        self._offset = place(self._state)
        self._keep_addresses()

    def open(self) -> None:
        """Get ready for the next sample."""
        if self._offset % self.model.adapt_every == 0:
            self._state = self.model.open_cache(self._state, self._offset)
            self._keep_addresses()

    def close(self, num_samples: int = 1) -> None:
        """Count samples as read, up to `room`."""
        self._offset += num_samples
        if self._offset % self.model.adapt_every == 0:
            self._state = self.model.close_cache(self._state, self._offset)
            self._offset %= self.model.cache_length

    def _keep_addresses(self) -> None:
        for name, tensor in self._state.items():
            if name.startswith("cache.") and self.caches.setdefault(name, tensor) is not tensor:
                self._state[name] = self.caches[name].copy_(tensor)


class Sampler:
    """A model ready to make so many waveforms side by side, as often as asked, one after the other.

    Args:
        model: any model; a copy of it is used.
        num_waveforms: how many are made side by side.
        filters: what is done to predictions; nothing by default, which is what the likelihood speaks of.
        options: how steps are computed.
        device: where.
    """

    def __init__(
        self,
        model: TokenModel,
        *,
        num_waveforms: int,
        filters: Filters = NO_FILTERS,
        options: EngineOptions = PLAIN,
        device: torch.device | str = "cpu",
    ) -> None:
        self._device = torch.device(device)
        self._num_waveforms = num_waveforms
        self._compiled = options.compiled
        model = with_weights(model, options.weights).to(self._device)
        self._stream = Stream(model, self._device, getattr(torch, options.memory))
        self._step = _Step(model, filters)
        self._run: Callable[[], object] | None = None
        # What the step reads and writes, at the same addresses from the first to the last.
        integers: Any = {"dtype": torch.int64, "device": self._device}
        self._tokens = torch.zeros(num_waveforms, **integers)
        self._cursor = torch.zeros(1, **integers)
        self._uniforms = torch.zeros(BLOCK_SAMPLES, num_waveforms, device=self._device)
        self._block = torch.zeros(num_waveforms, BLOCK_SAMPLES, **integers)

    @property
    def bytes_per_step(self) -> int:
        """Return what a step reads: the weights but a learned embedding's once, and the caches of every waveform.

        Caches are there once something has been generated.
        """
        state = self._stream.model.state_dict()
        weights = sum(tensor.nbytes for name, tensor in state.items() if name != "embedding.weight")
        return weights + sum(tensor.nbytes for tensor in self._stream.caches.values())

    @torch.no_grad()
    def generate(
        self, *, num_samples: int, start_token: int, seed: int, prompt: Int[Tensor, " time"] | None = None
    ) -> Iterator[Int[Tensor, "num_waveforms time"]]:
        """Yield blocks of new tokens [num_waveforms, up to 2048], without the prompt.

        Waveform i draws from its own generator, seeded with seed + i.

        Args:
            num_samples: new samples of each waveform.
            start_token: what the model reads first, the code of silence.
            seed: of the first waveform.
            prompt: tokens to continue, the same for every waveform.
        """
        generators = [torch.Generator().manual_seed(seed + i) for i in range(self._num_waveforms)]
        past = begin_tokens(start_token, prompt, self._num_waveforms)
        self._stream.begin(past[:, :-1])
        self._tokens.copy_(past[:, -1])
        for begin in range(0, num_samples, BLOCK_SAMPLES):
            length = min(BLOCK_SAMPLES, num_samples - begin)
            drawn = [torch.rand(length, generator=generator) for generator in generators]
            self._uniforms[:length] = torch.stack(drawn, dim=1).to(self._device)
            self._cursor.zero_()
            with threads(self._num_waveforms):
                for _ in range(length):
                    self._stream.open()
                    if self._run is None:
                        self._run = self._prepared()
                    self._run()
                    self._stream.close()
            yield self._block[:, :length].cpu().clone()

    def _prepared(self) -> Callable[[], object]:
        arguments = (self._tokens, self._cursor, self._uniforms, self._block, self._stream.caches)
        if not self._compiled:
            return partial(self._step, *arguments)
        return prepare(self._step, arguments, restored=[self._tokens, self._cursor, self._stream.caches["cache.place"]])


class _Step(nn.Module):
    """Reads a token of every waveform and draws the next one, in place."""

    def __init__(self, model: TokenModel, filters: Filters) -> None:
        super().__init__()
        self.model = model
        self._filters = filters

    def forward(self, tokens: Tensor, cursor: Tensor, uniforms: Tensor, block: Tensor, caches: State) -> None:
        """Replace tokens by the next ones, drawn with the uniform numbers at the cursor, and put them into the block.

        Args:
            tokens: the last of each waveform [num_waveforms].
            cursor: place in the block [1]; moved on.
            uniforms: in [0, 1), [BLOCK_SAMPLES, num_waveforms].
            block: what was drawn [num_waveforms, BLOCK_SAMPLES].
            caches: of the model.
        """
        logits = self.model.read(tokens[:, None], caches)[:, 0]
        uniform = uniforms.index_select(0, cursor)[0]
        tokens.copy_(_drawn(self.model, logits, self._filters, uniform))
        block.index_copy_(1, cursor, tokens[:, None])
        cursor += 1


def _drawn(model: TokenModel, logits: Tensor, filters: Filters, uniform: Tensor) -> Tensor:
    if model.mixture is not None and filters == NO_FILTERS:
        # The same tokens as below, without the probabilities of all.
        return model.mixture.draw(logits, uniform)
    return draw(filtered_probabilities(model.distribution(logits), filters), uniform)


def generate(
    model: TokenModel,
    *,
    num_waveforms: int,
    num_samples: int,
    start_token: int,
    seed: int,
    prompt: Int[Tensor, " time"] | None = None,
    filters: Filters = NO_FILTERS,
    options: EngineOptions = PLAIN,
    device: torch.device | str = "cpu",
) -> Iterator[Int[Tensor, "num_waveforms time"]]:
    """Yield blocks of new tokens, once; see `Sampler` and its `generate`."""
    sampler = Sampler(model, num_waveforms=num_waveforms, filters=filters, options=options, device=device)
    return sampler.generate(num_samples=num_samples, start_token=start_token, seed=seed, prompt=prompt)


def begin_tokens(start_token: int, prompt: Tensor | None, num_waveforms: int) -> Int[Tensor, "num_waveforms time"]:
    """Return what comes before the first new token."""
    past = torch.full((num_waveforms, 1), start_token, dtype=torch.int64)
    return past if prompt is None else torch.cat([past, prompt.long().expand(num_waveforms, -1)], dim=1)


@contextmanager
def threads(num_waveforms: int) -> Iterator[None]:
    """Use one CPU thread for so few waveforms that threads cost more in meeting than they save."""
    before = torch.get_num_threads()
    torch.set_num_threads(before if num_waveforms >= THREADS_FROM_WAVEFORMS else 1)
    try:
        yield
    finally:
        torch.set_num_threads(before)
