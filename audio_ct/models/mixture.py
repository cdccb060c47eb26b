"""A mixture of logistics over a token's amplitude: an output whose size does not grow with the vocabulary.

A softmax over the 65,536 tokens of 16 bits would be most of a model. Here the model says 3 K numbers, a weight, a mean
and a log scale for each of K logistics over amplitudes in [-1, 1], and a token's probability is what they have between
its edges. Means and scales are told in units that fit the sound: with linear prediction from its prediction on, in
expected errors of it; without, by place on the mu-law scale, where a unit is as wide as the scale is there.

Source: Salimans et al. 2017 (PixelCNN++), 1701.05517, section 2.1; Parallel WaveNet, 1711.10433, has it for 16-bit
samples. Their bins are equal. Those of mu-law are not, so that the logistics stand on amplitudes, where a prediction's
error has one hump; on the scale of 16 bits, where a tenth of all tokens are closer to silence than one step of 16-bit
audio, it may have two.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from audio_ct.models.scale import amplitude, amplitude_per_token

# Shared evenly by all tokens, so that none is impossible after a silence that was too sure of itself: at most 40 bits
# with 16-bit tokens, for nothing. Rarer than any uniform number of sampling, which has 24 bits.
BACKGROUND = 2.0**-24
# Log scales of the components at the start of training: from first to last in expected errors, which are taken to be
# at least so large in the last; without a prediction, in units of the mu-law scale from -1 to 1.
PREDICTED_LOG_SCALES = (-3.0, 1.0)
WIDEST_LEAST_ERROR = 1e-4
FREE_LOG_SCALE = -2.5


@dataclass(frozen=True)
class MixtureOfLogistics:
    """Discretised logistics over the amplitudes of mu-law tokens.

    It has no parameters: the model's readout stays a linear map, which sampling lays out and rounds as it does others.

    Attributes:
        vocabulary_size: number of mu-law tokens.
        num_components: logistics, K.
    """

    vocabulary_size: int
    num_components: int = 10

    @property
    def num_outputs(self) -> int:
        """Numbers that a readout gives for each sample, 3 K."""
        return 3 * self.num_components

    def parameters(
        self,
        readout: Callable[[Tensor], Tensor],
        hidden: Float[Tensor, "*batch channels"],
        centre: Float[Tensor, "*batch 2"] | None,
    ) -> Float[Tensor, "*batch outputs"]:
        """Return log weights, means and log scales, K each, as amplitudes; outside of autocast, in float32 or more.

        Args:
            readout: from `hidden` to `num_outputs` numbers.
            hidden: what the model has to say.
            centre: the linear prediction, in tokens from the middle of the scale, and its expected error in tokens;
                None for none.
        """
        with torch.autocast(hidden.device.type, enabled=False):
            raw = readout(hidden.to(readout.bias.dtype))  # type: ignore[attr-defined]
        raw = raw.to(torch.promote_types(raw.dtype, torch.float32))
        weights, places, widths = raw.chunk(3, dim=-1)
        if centre is None:
            spread = torch.linspace(-1, 1, self.num_components + 2, dtype=raw.dtype, device=raw.device)[1:-1]
            means = amplitude(((places + spread).tanh() + 1) * self._mu / 2, self._mu)
            log_scales = widths + FREE_LOG_SCALE + (amplitude_per_token(means, self._mu) * self._mu / 2).log()
        else:
            predicted = amplitude(centre[..., :1] + self._mu / 2, self._mu)
            error = centre[..., 1:] * amplitude_per_token(predicted, self._mu)
            ends = PREDICTED_LOG_SCALES, (math.log(self._narrowest), math.log(WIDEST_LEAST_ERROR))
            spread, least = (
                torch.linspace(*each, self.num_components, dtype=error.dtype, device=error.device) for each in ends
            )
            # What follows a silence may be any number of expected errors away: some component must reach it.
            log_unit = torch.maximum(error.clamp_min(self._narrowest).log(), least)
            means = predicted + log_unit.exp() * places
            log_scales = widths + spread + log_unit
        log_scales = log_scales.clamp(math.log(self._narrowest) - 3, 3)
        return torch.cat([weights.log_softmax(dim=-1), means.to(raw.dtype), log_scales.to(raw.dtype)], dim=-1)

    def nats(
        self, parameters: Float[Tensor, "*#batch outputs"], targets: Int[Tensor, "*#batch"]
    ) -> Float[Tensor, "*#batch"]:
        """Return -log of each target's probability; 0 where a target is -1."""
        return self.nats_between(parameters, targets, targets)

    def nats_between(
        self, parameters: Float[Tensor, "*#batch outputs"], first: Int[Tensor, "*#batch"], last: Int[Tensor, "*#batch"]
    ) -> Float[Tensor, "*#batch"]:
        """Return -log of the probability of all tokens from `first` to `last`; 0 where the first is -1.

        With edges a < b, in scales from a mean, a logistic has sigmoid(b) - sigmoid(a) between them, which is
        sigmoid(b) sigmoid(-a) (1 - exp(a - b)): three factors none of which cancels, however narrow or far the bin.
        What underflows is far below the background.
        """
        # Components first: tokens lie side by side, which is what a CPU is fast at.
        log_weights, means, log_scales = parameters.movedim(-1, 0).chunk(3)
        lower, upper = (self._edge(token) for token in (first.clamp_min(0), last.clamp_min(0) + 1))
        per_scale = (-log_scales).exp()
        a, b = ((edge.to(means.dtype) - means) * per_scale for edge in (lower, upper))
        # The outermost bins are open.
        above_a = torch.where(first <= 0, 1, torch.sigmoid(-a))
        below_b = torch.where(last >= self._mu, 1, torch.sigmoid(b))
        inside = -torch.expm1((lower - upper).to(means.dtype) * per_scale)
        inside = torch.where((first <= 0) | (last >= self._mu), 1, inside)
        mixed = (log_weights.exp() * above_a * below_b * inside).sum(dim=0)
        background = ((last - first + 1) / self.vocabulary_size).to(mixed.dtype)
        nats = -((1 - BACKGROUND) * mixed + BACKGROUND * background).log()
        return torch.where(first < 0, 0, nats)

    def distribution(self, parameters: Float[Tensor, "*batch outputs"]) -> Float[Tensor, "*batch vocabulary"]:
        """Return every token's log probability: a few milliseconds of work for each prediction at 16 bits."""
        tokens = torch.arange(self.vocabulary_size, device=parameters.device)
        tokens = tokens.expand(*parameters.shape[:-1], -1)
        return -self.nats(parameters[..., None, :], tokens)

    def draw(
        self, parameters: Float[Tensor, "batch outputs"], uniform: Float[Tensor, " batch"]
    ) -> Int[Tensor, " batch"]:
        """Return the token at which the cumulated probability passes a uniform number in [0, 1).

        The same as from `distribution`, by some 500 values of the cumulated probability instead of 65,536: first in
        steps of about the square root of the vocabulary, then of one.
        """
        log_weights, means, log_scales = parameters.double()[:, None].chunk(3, dim=-1)
        part = math.isqrt(self.vocabulary_size - 1) + 1
        drawn = torch.zeros_like(uniform, dtype=torch.int64)
        for step in (part, 1):
            # The last token of each part but the last.
            token = drawn[:, None] + step * torch.arange(1, part, device=uniform.device) - 1
            z = (self._edge(token + 1)[..., None] - means) * (-log_scales).exp()
            cumulated = (log_weights.exp() * z.sigmoid()).sum(dim=-1) * (1 - BACKGROUND)
            cumulated = cumulated + (token + 1) * (BACKGROUND / self.vocabulary_size)
            is_passed = (cumulated <= uniform.double()[:, None]) & (token < self.vocabulary_size - 1)
            drawn = drawn + step * is_passed.sum(dim=-1)
        return drawn

    @property
    def _mu(self) -> int:
        return self.vocabulary_size - 1

    @property
    def _narrowest(self) -> float:
        """Width of the bin at amplitude 0."""
        return 2 * math.log1p(self._mu) / self._mu**2

    def _edge(self, token: Tensor) -> Tensor:
        """Return the amplitude at which tokens begin, float64."""
        return amplitude(token.double() - 0.5, self._mu)
