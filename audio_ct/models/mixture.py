"""A head of logistics over a token's amplitude: its size does not grow with the vocabulary.

A softmax over the 65,536 tokens of 16 bits would be most of a model. Here the readout gives 3 K numbers, a weight, a
mean and a log scale for each of K logistics over amplitudes in [-1, 1], and a token's probability is what they have
between its edges. Means and scales are counted in units that fit the sound: with linear prediction from its forecast
on, in expected errors of it; without, by place on the mu-law scale, where a unit is as wide as the scale is there.

Source: Salimans et al. 2017 (PixelCNN++), 1701.05517, section 2.1; Parallel WaveNet, 1711.10433, has it for 16-bit
samples. Their bins are equal. Those of mu-law are not, so that the logistics stand on amplitudes, where a prediction's
error has one hump; on the scale of 16 bits, where a tenth of all tokens are closer to silence than one step of 16-bit
audio, it may have two.
"""

import math

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from audio_ct.models.heads import Head
from audio_ct.models.linear_prediction import Prediction
from audio_ct.models.scale import amplitude, amplitude_per_token

# Shared evenly by all tokens, so that none is impossible after a silence that was too sure of itself: at most 40 bits
# with 16-bit tokens. Rarer than any uniform number of sampling, which has 24 bits.
BACKGROUND = 2.0**-24
# Log scales of the components at the start of training: from first to last in expected errors, which are taken to be
# at least so large in the last; without a prediction, in units of the mu-law scale from -1 to 1.
PREDICTED_LOG_SCALES = (-3.0, 1.0)
WIDEST_LEAST_ERROR = 1e-4
FREE_LOG_SCALE = -2.5


class MixtureHead(Head):
    """Discretised logistics over the amplitudes of mu-law tokens.

    Its outputs are log weights, means and log scales, K each, as amplitudes, in float32 or more.

    Args:
        body: from summed skips to the readout.
        channels: of the body's output.
        vocabulary_size: number of mu-law tokens.
        num_components: logistics, K.
    """

    def __init__(self, body: nn.Module, channels: int, *, vocabulary_size: int, num_components: int = 10) -> None:
        super().__init__(body, channels, vocabulary_size=vocabulary_size, num_outputs=3 * num_components)
        self.num_components = num_components
        self._mu = vocabulary_size - 1
        # Width of the bin at amplitude 0.
        self._narrowest = 2 * math.log1p(self._mu) / self._mu**2

    def forward(
        self, skips: Float[Tensor, "batch time channels"], prediction: Prediction | None
    ) -> Float[Tensor, "batch time outputs"]:
        """Parameters of the mixture; see the base class. The readout is left out of autocast."""
        hidden = self.body(skips)
        with torch.autocast(hidden.device.type, enabled=False):
            raw = self.readout(hidden.to(self.readout.bias.dtype))
        raw = raw.to(torch.promote_types(raw.dtype, torch.float32))
        weights, places, widths = raw.chunk(3, dim=-1)
        if prediction is None:
            spread = torch.linspace(-1, 1, self.num_components + 2, dtype=raw.dtype, device=raw.device)[1:-1]
            means = amplitude(((places + spread).tanh() + 1) * self._mu / 2, self._mu)
            log_scales = widths + FREE_LOG_SCALE + (amplitude_per_token(means, self._mu) * self._mu / 2).log()
        else:
            predicted = amplitude(prediction.forecasts[..., :1] + self._mu / 2, self._mu)
            error = prediction.errors[..., :1] * amplitude_per_token(predicted, self._mu)
            least_errors = math.log(self._narrowest), math.log(WIDEST_LEAST_ERROR)
            spread, least = (
                torch.linspace(*ends, self.num_components, dtype=error.dtype, device=error.device)
                for ends in (PREDICTED_LOG_SCALES, least_errors)
            )
            # What follows a silence may be any number of expected errors away: some component must reach it.
            log_unit = torch.maximum(error.clamp_min(self._narrowest).log(), least)
            means = predicted + log_unit.exp() * places
            log_scales = widths + spread + log_unit
        log_scales = log_scales.clamp(math.log(self._narrowest) - 3, 3)
        return torch.cat([weights.log_softmax(dim=-1), means.to(raw.dtype), log_scales.to(raw.dtype)], dim=-1)

    def nats(
        self, outputs: Float[Tensor, "*#batch outputs"], targets: Int[Tensor, "*#batch"]
    ) -> Float[Tensor, "*#batch"]:
        """See the base class."""
        return self.nats_between(outputs, targets, targets)

    def nats_between(
        self, outputs: Float[Tensor, "*#batch outputs"], first: Int[Tensor, "*#batch"], last: Int[Tensor, "*#batch"]
    ) -> Float[Tensor, "*#batch"]:
        """See the base class.

        With edges a < b, in scales from a mean, a logistic has sigmoid(b) - sigmoid(a) between them, which is
        sigmoid(b) sigmoid(-a) (1 - exp(a - b)): three factors none of which cancels, however narrow or far the bin.
        What underflows is far below the background.
        """
        # Components first: tokens lie side by side, which is what a CPU is fast at.
        log_weights, means, log_scales = outputs.movedim(-1, 0).chunk(3)
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

    def distribution(self, outputs: Float[Tensor, "*batch outputs"]) -> Float[Tensor, "*batch vocabulary"]:
        """Log probabilities of all tokens: a few milliseconds of work for each prediction at 16 bits."""
        tokens = torch.arange(self.vocabulary_size, device=outputs.device)
        return -self.nats(outputs[..., None, :], tokens.expand(*outputs.shape[:-1], -1))

    def draw(self, outputs: Float[Tensor, "batch outputs"], uniform: Float[Tensor, " batch"]) -> Int[Tensor, " batch"]:
        """See the base class.

        The same tokens as from `distribution`, by some 500 values of the cumulated probability instead of 65,536: first
        in steps of about the square root of the vocabulary, then of one.
        """
        log_weights, means, log_scales = outputs.double()[:, None].chunk(3, dim=-1)
        part = math.isqrt(self._mu) + 1
        drawn = torch.zeros_like(uniform, dtype=torch.int64)
        for step in (part, 1):
            # The last token of each part but the last.
            token = drawn[:, None] + step * torch.arange(1, part, device=uniform.device) - 1
            z = (self._edge(token + 1)[..., None] - means) * (-log_scales).exp()
            cumulated = (log_weights.exp() * z.sigmoid()).sum(dim=-1) * (1 - BACKGROUND)
            cumulated = cumulated + (token + 1) * (BACKGROUND / self.vocabulary_size)
            is_passed = (cumulated <= uniform.double()[:, None]) & (token < self._mu)
            drawn = drawn + step * is_passed.sum(dim=-1)
        return drawn

    def _edge(self, token: Tensor) -> Tensor:
        """The amplitude at which tokens begin, float64."""
        return amplitude(token.double() - 0.5, self._mu)
