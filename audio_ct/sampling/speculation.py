"""Speculative sampling: a small model drafts a few samples, the model checks them in one pass; exact.

A round reads the last token and drafts k tokens from the draft's probabilities q. The model reads them all at once,
which gives its own probabilities p for each and for the one after. Token by token a draft x is kept with probability
min(1, p(x) / q(x)); at the first that isn't, a token is drawn from the part of p above q instead, and if all are kept
one more is drawn from p. What comes out is distributed as if the model had drawn every token itself. Both models take
back what they read too far.

Source: Leviathan et al. 2022, 2211.17192, algorithm 1; Chen et al. 2023, 2302.01318.
"""

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import torch
from jaxtyping import Int
from torch import Tensor, nn

from audio_ct.errors import InputError
from audio_ct.models.interface import READ_AHEAD, State, TokenModel
from audio_ct.sampling.compiled import prepare
from audio_ct.sampling.engine import BLOCK_SAMPLES, PLAIN, EngineOptions, Stream, begin_tokens, threads
from audio_ct.sampling.filters import NO_FILTERS, Filters, draw, filtered_probabilities
from audio_ct.sampling.weights import with_weights


class SpeculativeSampler:
    """A model and a draft of it, ready to make one waveform, as often as asked, one after the other.

    Args:
        model: the model whose distribution the samples follow.
        draft: a faster model of the same tokens.
        num_drafted: tokens drafted in a round.
        filters: what is done to predictions, the draft's as well.
        options: how both models' steps are computed.
        device: where.

    Attributes:
        num_rounds: rounds so far.
        num_judged: drafted tokens that were kept or refused in them; what was drafted behind a refused one is not.
        num_kept: drafted tokens that were kept.

    Raises:
        InputError: if the models do not speak of the same tokens, or for a number out of range.
    """

    def __init__(
        self,
        model: TokenModel,
        draft: TokenModel,
        *,
        num_drafted: int = 3,
        filters: Filters = NO_FILTERS,
        options: EngineOptions = PLAIN,
        device: torch.device | str = "cpu",
    ) -> None:
        if model.vocabulary_size != draft.vocabulary_size:
            raise InputError(
                f"draft: has {draft.vocabulary_size} token values, the model {model.vocabulary_size}; name a draft "
                "that was trained on the same corpus."
            )
        if not 1 <= num_drafted < READ_AHEAD:
            raise InputError(f"drafted={num_drafted} must be from 1 to {READ_AHEAD - 1}.")
        self.num_rounds = self.num_judged = self.num_kept = 0
        self._device = torch.device(device)
        self._num_drafted = num_drafted
        self._compiled = options.compiled
        model, draft = (with_weights(each, options.weights).to(self._device) for each in (model, draft))
        self._streams = [Stream(each, self._device, getattr(torch, options.memory)) for each in (model, draft)]
        self._round = _Round(model, draft, num_drafted, filters)
        self._run: Callable[[], object] | None = None
        integers: Any = {"dtype": torch.int64, "device": self._device}
        self._token = torch.zeros(1, **integers)
        self._at_most = torch.zeros(1, **integers)
        self._uniforms = torch.zeros(2 * num_drafted + 1, device=self._device)
        self._drawn = torch.zeros(num_drafted + 1, **integers)
        self._count = torch.zeros(1, **integers)
        self._kept = torch.zeros(1, **integers)

    @torch.no_grad()
    def generate(
        self, *, num_samples: int, start_token: int, seed: int, prompt: Int[Tensor, " time"] | None = None
    ) -> Iterator[Int[Tensor, "1 time"]]:
        """Yield blocks of new tokens [1, up to 2048], without the prompt; see `Sampler.generate`."""
        generator = torch.Generator().manual_seed(seed)
        past = begin_tokens(start_token, prompt, 1)
        for stream in self._streams:
            stream.begin(past[:, :-1])
        self._token.copy_(past[0, -1:])
        for begin in range(0, num_samples, BLOCK_SAMPLES):
            length = min(BLOCK_SAMPLES, num_samples - begin)
            block: list[int] = []
            with threads(1):
                while len(block) < length:
                    block += self._next(length - len(block), generator)
            yield torch.tensor([block])

    def _next(self, at_most: int, generator: torch.Generator) -> list[int]:
        """Return the tokens of one round."""
        for stream in self._streams:
            stream.open()
        at_most = min(at_most, *(stream.room for stream in self._streams))
        self._at_most.fill_(at_most)
        self._uniforms.copy_(torch.rand(len(self._uniforms), generator=generator))
        if self._run is None:
            self._run = self._prepared()
        self._run()
        count, kept = int(self._count), int(self._kept)
        for stream in self._streams:
            stream.close(count)
        self.num_rounds += 1
        self.num_judged += min(kept + 1, self._num_drafted, at_most)
        self.num_kept += kept
        return self._drawn[:count].tolist()

    def _prepared(self) -> Callable[[], object]:
        caches = [stream.caches for stream in self._streams]
        arguments = (self._token, self._at_most, self._uniforms, self._drawn, self._count, self._kept, *caches)
        if not self._compiled:
            return partial(self._round, *arguments)
        return prepare(self._round, arguments, restored=[self._token, *(each["cache.place"] for each in caches)])


class _Round(nn.Module):
    """Drafts, checks and draws, in place."""

    def __init__(self, model: TokenModel, draft: TokenModel, num_drafted: int, filters: Filters) -> None:
        super().__init__()
        self.model = model
        self.draft = draft
        self._num_drafted = num_drafted
        self._filters = filters

    def forward(
        self,
        token: Tensor,
        at_most: Tensor,
        uniforms: Tensor,
        drawn: Tensor,
        count: Tensor,
        kept: Tensor,
        caches: State,
        draft_caches: State,
    ) -> None:
        """Draw up to num_drafted + 1 tokens after the last one.

        Args:
            token: the last token [1]; becomes the last that was drawn.
            at_most: how many may be drawn [1]; predictions after as many mean nothing.
            uniforms: in [0, 1), [2 num_drafted + 1].
            drawn: gets the tokens [num_drafted + 1].
            count: gets how many of them there are [1].
            kept: gets how many of them were drafted [1].
            caches: of the model; it has then read the last token and all that were drawn but the last.
            draft_caches: of the draft, likewise.
        """
        place, draft_place = caches["cache.place"], draft_caches["cache.place"]
        before, draft_before = place.clone(), draft_place.clone()
        k = self._num_drafted
        tokens, probabilities = [token], []
        for i in range(k):
            q = self._probabilities(self.draft, self.draft.read(tokens[-1][:, None], draft_caches)[0])
            probabilities.append(q)
            tokens.append(draw(q, uniforms[i : i + 1]))
        # If all are kept, the draft too must have read the last of them.
        self.draft.read(tokens[-1][:, None], draft_caches)
        p = self._probabilities(self.model, self.model.read(torch.cat(tokens)[None], caches)[0])
        q = torch.cat(probabilities)
        drafted = torch.cat(tokens[1:])
        p_of, q_of = (each[:k].gather(1, drafted[:, None])[:, 0] for each in (p, q))
        num_kept = (uniforms[k : 2 * k] * q_of < p_of).long().cumprod(0).sum(0, keepdim=True)
        wanted = p.index_select(0, num_kept)
        # Nothing was drafted after the last; the part of p above 0 is p.
        rest = (wanted - torch.cat([q, torch.zeros_like(q[:1])]).index_select(0, num_kept)).clamp_min(0)
        # What rounding leaves of two equal distributions may be nothing.
        rest = torch.where(rest.sum(-1, keepdim=True) > 0, rest, wanted)
        last = draw(rest, uniforms[2 * k :])
        drawn.copy_(torch.where(torch.arange(k + 1, device=drawn.device) < num_kept, torch.cat([drafted, last]), last))
        kept.copy_(torch.minimum(num_kept, at_most))
        count.copy_(torch.minimum(num_kept + 1, at_most))
        token.copy_(drawn.index_select(0, count - 1))
        place.copy_(before + count)
        draft_place.copy_(draft_before + count)

    def _probabilities(self, model: TokenModel, logits: Tensor) -> Tensor:
        probabilities = filtered_probabilities(model.distribution(logits), self._filters)
        return probabilities / probabilities.sum(dim=-1, keepdim=True)
