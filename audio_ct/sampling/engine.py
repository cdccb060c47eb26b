"""Ancestral sampling by cached steps: a batch of independent waveforms, handed out as they are made.

A step reads the last token of every waveform and draws the next one, on the device and in tensors that keep their
addresses: on a GPU it is captured once as a CUDA graph and replayed. Between steps the model moves its caches on. After
a stretch of steps it closes them and opens new ones, which are copied to the old addresses.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

import torch
from jaxtyping import Int
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from audio_ct.errors import InputError
from audio_ct.models.heads import draw_from
from audio_ct.models.stage import State, map_state
from audio_ct.models.token_model import TokenModel, consume, position
from audio_ct.recipe import MAX_WAVEFORMS
from audio_ct.sampling.compiled import prepare
from audio_ct.sampling.filters import NO_FILTERS, Filters, filtered_probabilities
from audio_ct.sampling.weights import Weights, with_weights

BLOCK_SAMPLES = 2048
MAX_SEED = 1 << 62
THREADS_FROM_WAVEFORMS = 8


@dataclass(frozen=True)
class EngineOptions:
    """The arithmetic of steps. Each option rounds in its own way, so that a seed gives other samples.

    Attributes:
        compiled: compile the step; on a GPU it is captured as well.
        weights: type that weights are rounded to, see `with_weights`.
        memory: type of what the state keeps of the past, keys and values included.
    """

    compiled: bool = False
    weights: Weights = "float32"
    memory: Literal["float32", "bfloat16"] = "float32"


PLAIN = EngineOptions()


class Sampler:
    """A model ready to make a number of waveforms side by side, again and again but not twice at the same time.

    Args:
        model: on the device where it shall run; a copy of it is used.
        num_waveforms: up to 4096.
        filters: changes to predictions; by default none, so that waveforms follow the distribution that likelihoods
            measure.

    Raises:
        InputError: if the number of waveforms is out of range.
    """

    def __init__(
        self, model: TokenModel, *, num_waveforms: int, filters: Filters = NO_FILTERS, options: EngineOptions = PLAIN
    ) -> None:
        if not 1 <= num_waveforms <= MAX_WAVEFORMS:
            raise InputError(f"num={num_waveforms} must be from 1 to {MAX_WAVEFORMS}; ask for more in several runs.")
        self._device = next(model.parameters()).device
        self._num_waveforms = num_waveforms
        self._compiled = options.compiled
        self._memory: torch.dtype = getattr(torch, options.memory)
        self._model = with_weights(model, options.weights)
        self._step = _Step(self._model, filters)
        self._run: Callable[[], object] | None = None
        self._caches: State = {}
        # The step's other arguments, which keep their addresses as the caches do.
        integers: Any = {"dtype": torch.int64, "device": self._device}
        self._tokens = torch.zeros(num_waveforms, **integers)
        self._cursor = torch.zeros(1, **integers)
        self._uniforms = torch.zeros(BLOCK_SAMPLES, num_waveforms, device=self._device)
        self._block = torch.zeros(num_waveforms, BLOCK_SAMPLES, **integers)
        self._numbers = torch.tensor(filters.numbers, device=self._device)

    @property
    def bytes_per_step(self) -> int:
        """Bytes that a step reads: weights but for a learned embedding's, and caches once something was generated."""
        weights = (tensor for name, tensor in self._model.state_dict().items() if name != "embedding.weight")
        return sum(tensor.nbytes for tensor in (*weights, *pytree.tree_leaves(self._caches)))

    @torch.no_grad()
    def generate(
        self, *, num_samples: int, start_token: int, seed: int, prompt: Int[Tensor, "*waveforms time"] | None = None
    ) -> Iterator[Int[Tensor, "num_waveforms time"]]:
        """Yield blocks of new tokens [num_waveforms, up to 2048], without the prompt.

        Waveform i draws from its own generator, seeded with seed + i.

        Args:
            num_samples: of each waveform, without the prompt.
            start_token: token that the model reads first, the codec's.
            seed: of the first waveform.
            prompt: tokens to continue, [time], the same for every waveform, or [num_waveforms, time].

        Raises:
            InputError: if the seed is out of range.
        """
        if not 0 <= seed <= MAX_SEED:
            raise InputError(f"seed={seed} must be from 0 to {MAX_SEED}.")
        generators = [torch.Generator().manual_seed(seed + i) for i in range(self._num_waveforms)]
        past = torch.full((self._num_waveforms, 1), start_token)
        if prompt is not None:
            past = torch.cat([past, prompt.expand(self._num_waveforms, -1)], dim=1)
        past = past.to(self._device)
        state = self._model.initial_state(self._num_waveforms, self._device, self._memory)
        if past.shape[1] > 1:
            _, state = consume(self._model, past[:, :-1], state)
        # Samples of the current stretch that have been read.
        offset = position(state)
        if offset:
            self._hold(state.pop("cache"))
        self._tokens.copy_(past[:, -1])
        for begin in range(0, num_samples, BLOCK_SAMPLES):
            length = min(BLOCK_SAMPLES, num_samples - begin)
            drawn = [torch.rand(length, generator=generator) for generator in generators]
            self._uniforms[:length] = torch.stack(drawn, dim=1).to(self._device)
            self._cursor.zero_()
            with _threads(self._num_waveforms):
                for _ in range(length):
                    if offset == 0:
                        self._hold(self._model.open_cache(state))
                    assert self._run is not None
                    self._run()
                    offset += 1
                    if offset == self._model.cache_length:
                        state, offset = self._model.close_cache(state, self._caches), 0
                    elif offset % self._model.period == 0:
                        self._model.advance(self._caches, offset)
            yield self._block[:, :length].cpu().clone()

    def _hold(self, caches: State) -> None:
        """Put the caches of a stretch where the step looks for them; the first ones stay where they are."""
        if self._caches:
            map_state(Tensor.copy_, self._caches, caches)
            return
        self._caches = caches
        arguments = (self._tokens, self._cursor, self._uniforms, self._block, self._numbers, caches)
        # Compiled code keeps to the number of threads that it is compiled under.
        with _threads(self._num_waveforms):
            self._run = prepare(self._step, arguments) if self._compiled else partial(self._step, *arguments)


class _Step(nn.Module):
    """Reads a token of every waveform and draws the next one, in place."""

    def __init__(self, model: TokenModel, filters: Filters) -> None:
        super().__init__()
        self.model = model
        self._filters = filters

    def forward(
        self, tokens: Tensor, cursor: Tensor, uniforms: Tensor, block: Tensor, numbers: Tensor, caches: State
    ) -> None:
        """Replace tokens [num_waveforms] by the next ones and put them into the block [num_waveforms, BLOCK_SAMPLES].

        They are drawn with the uniform numbers [BLOCK_SAMPLES, num_waveforms] at the cursor [1], which is moved on, by
        filters with these numbers.
        """
        logits = self.model.read(tokens, caches)
        tokens.copy_(self._draw(logits, uniforms.index_select(0, cursor)[0], numbers))
        block.index_copy_(1, cursor, tokens[:, None])
        cursor += 1

    def _draw(self, logits: Tensor, uniform: Tensor, numbers: Tensor) -> Tensor:
        # A head draws from its whole distribution without the probabilities of all tokens, where it can.
        if self._filters == NO_FILTERS:
            return self.model.head.draw(logits, uniform)
        probabilities = filtered_probabilities(self.model.head.distribution(logits), self._filters, numbers)
        return draw_from(probabilities, uniform)


@contextmanager
def _threads(num_waveforms: int) -> Iterator[None]:
    """Use one CPU thread for few waveforms, where threads would wait for one another longer than they save."""
    before = torch.get_num_threads()
    torch.set_num_threads(before if num_waveforms >= THREADS_FROM_WAVEFORMS else 1)
    try:
        yield
    finally:
        torch.set_num_threads(before)
