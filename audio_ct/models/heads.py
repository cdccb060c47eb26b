"""Heads turn what the stages leave into probabilities of tokens; who scores or samples asks the head, never how.

The head reads the sum of the stages' skips through its *body* and a linear readout. What it returns are its *outputs*:
logits of a softmax, or the parameters of another distribution.
"""

import math
from abc import ABC, abstractmethod

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn import functional as F

from audio_ct.models.linear_prediction import Prediction


class SkipBody(nn.Module):
    """WaveNet's way from summed skips to the readout: ReLU, 1x1, ReLU.

    Source: van den Oord et al. 2016, 1609.03499, section 2.4.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.hidden = nn.Linear(channels, channels)

    def forward(self, skips: Float[Tensor, "batch time channels"]) -> Float[Tensor, "batch time channels"]:
        """Prepare skips for the readout."""
        return F.relu(self.hidden(F.relu(skips)))


class Head(nn.Module, ABC):
    """The end of a model.

    Args:
        body: from summed skips to the readout.
        channels: of the body's output.
        vocabulary_size: number of tokens.
        num_outputs: numbers that the readout gives for each sample.
    """

    def __init__(self, body: nn.Module, channels: int, *, vocabulary_size: int, num_outputs: int) -> None:
        super().__init__()
        self.vocabulary_size = vocabulary_size
        self.body = body
        self.readout = nn.Linear(channels, num_outputs)

    @abstractmethod
    def forward(
        self, skips: Float[Tensor, "batch time channels"], prediction: Prediction | None
    ) -> Float[Tensor, "batch time outputs"]:
        """Outputs for the token that follows each sample.

        Args:
            skips: sum over the stages.
            prediction: the linear prediction of the next token; None in models without it.
        """

    @abstractmethod
    def nats(self, outputs: Float[Tensor, "*batch outputs"], targets: Int[Tensor, "*batch"]) -> Float[Tensor, "*batch"]:
        """-log of each target's probability; 0 where a target is -1."""

    @abstractmethod
    def nats_between(
        self, outputs: Float[Tensor, "*batch outputs"], first: Int[Tensor, "*batch"], last: Int[Tensor, "*batch"]
    ) -> Float[Tensor, "*batch"]:
        """-log of the probability of all tokens from `first` to `last`; 0 where the first is -1."""

    @abstractmethod
    def distribution(self, outputs: Float[Tensor, "*batch outputs"]) -> Float[Tensor, "*batch vocabulary"]:
        """Logits whose softmax is the distribution of tokens."""

    @abstractmethod
    def draw(self, outputs: Float[Tensor, "batch outputs"], uniform: Float[Tensor, " batch"]) -> Int[Tensor, " batch"]:
        """Draw tokens: those at which the cumulated probability passes a uniform number in [0, 1)."""


class SoftmaxHead(Head):
    """A softmax over all tokens; with a linear prediction also by their distances from its forecasts."""

    def __init__(self, body: nn.Module, channels: int, *, vocabulary_size: int) -> None:
        super().__init__(body, channels, vocabulary_size=vocabulary_size, num_outputs=vocabulary_size)

    def forward(
        self, skips: Float[Tensor, "batch time channels"], prediction: Prediction | None
    ) -> Float[Tensor, "batch time vocabulary"]:
        """Logits of the next token; see the base class."""
        hidden = self.body(skips)
        logits = self.readout(hidden)
        return logits if prediction is None else logits + prediction.logits(hidden)

    def nats(self, outputs: Float[Tensor, "*batch outputs"], targets: Int[Tensor, "*batch"]) -> Float[Tensor, "*batch"]:
        """See the base class."""
        rows = outputs.float().flatten(0, -2)
        return F.cross_entropy(rows, targets.flatten(), ignore_index=-1, reduction="none").view_as(targets)

    def nats_between(
        self, outputs: Float[Tensor, "*batch outputs"], first: Int[Tensor, "*batch"], last: Int[Tensor, "*batch"]
    ) -> Float[Tensor, "*batch"]:
        """See the base class."""
        tokens = torch.arange(self.vocabulary_size, device=outputs.device)
        is_within = (tokens >= first[..., None]) & (tokens <= last[..., None])
        nats = -outputs.float().log_softmax(dim=-1).masked_fill(~is_within, -math.inf).logsumexp(dim=-1)
        return nats.masked_fill(first < 0, 0)

    def distribution(self, outputs: Float[Tensor, "*batch outputs"]) -> Float[Tensor, "*batch vocabulary"]:
        """The logits themselves."""
        return outputs

    def draw(self, outputs: Float[Tensor, "batch outputs"], uniform: Float[Tensor, " batch"]) -> Int[Tensor, " batch"]:
        """See the base class."""
        return draw_from(outputs.float().softmax(dim=-1), uniform)


def draw_from(
    probabilities: Float[Tensor, "batch vocabulary"], uniform: Float[Tensor, " batch"]
) -> Int[Tensor, " batch"]:
    """Draw the token at which each row's cumulated probability passes its uniform number in [0, 1).

    Rows need not sum to 1.
    """
    cumulated = probabilities.double().cumsum(dim=-1)
    tokens = torch.searchsorted(cumulated, uniform.double()[:, None] * cumulated[:, -1:], right=True)
    # Rounding may leave a number at the very end, past the last token that has any probability.
    last = probabilities.shape[-1] - 1 - (probabilities.flip(-1) > 0).int().argmax(dim=-1)
    return torch.minimum(tokens[:, 0], last)
