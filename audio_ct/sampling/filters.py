"""Changes to a prediction before a token is drawn from it; by default none."""

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from audio_ct.errors import InputError
from audio_ct.recipe import MAX_TEMPERATURE


@dataclass(frozen=True)
class Filters:
    """Changes to every prediction, in this order.

    Attributes:
        temperature: divides the logits; 0 puts everything on the likeliest token.
        top_k: keep the k likeliest tokens; more than there are keeps all.
        top_p: keep the fewest likeliest tokens whose probabilities reach p together (nucleus sampling).
    """

    temperature: float = 1.0
    top_k: int | None = None
    top_p: float | None = None

    @property
    def numbers(self) -> tuple[float, float]:
        """Temperature and top-p, 1 where there is none."""
        return self.temperature, 1.0 if self.top_p is None else self.top_p

    def __post_init__(self) -> None:
        """Refuse values out of range."""
        if not 0 <= self.temperature <= MAX_TEMPERATURE:
            raise InputError(
                f"temperature={self.temperature} must be between 0 (the likeliest token) and {MAX_TEMPERATURE}; 1 is "
                "unchanged."
            )
        if self.top_k is not None and self.top_k < 1:
            raise InputError(f"top-k={self.top_k} must be at least 1; leave it out to keep every token.")
        if self.top_p is not None and not 0 < self.top_p <= 1:
            raise InputError(f"top-p={self.top_p} must be above 0 and at most 1; leave it out to keep every token.")


NO_FILTERS = Filters()


def filtered_probabilities(
    logits: Float[Tensor, "*batch vocabulary"],
    filters: Filters = NO_FILTERS,
    numbers: Float[Tensor, "2"] | None = None,
) -> Float[Tensor, "*batch vocabulary"]:
    """Turn logits into the probabilities to draw from, in float32; with top-p they do not sum to 1.

    Args:
        logits: of every token.
        filters: changes to them.
        numbers: the filters' own `numbers` on the device: compiled code then serves other numbers as well.

    Source: top-p is Holtzman et al. 2019, 1904.09751: the token that crosses p is kept, so one always is.
    """
    temperature, top_p = filters.numbers if numbers is None else numbers.unbind()
    logits = logits.float()
    if filters.temperature == 0:
        likeliest = logits.argmax(dim=-1, keepdim=True)
        return torch.zeros_like(logits).scatter_(-1, likeliest, 1.0)
    # Counted from the likeliest token, so that no logit overflows however small the temperature.
    probabilities = torch.softmax((logits - logits.amax(dim=-1, keepdim=True)) / temperature, dim=-1)
    if filters.top_k is not None and filters.top_k < probabilities.shape[-1]:
        kept = probabilities.topk(filters.top_k, dim=-1)
        probabilities = torch.zeros_like(probabilities).scatter_(-1, kept.indices, kept.values)
        probabilities = probabilities / probabilities.sum(dim=-1, keepdim=True)
    if filters.top_p is not None and filters.top_p < 1:
        ordered, order = probabilities.sort(dim=-1, descending=True)
        before = ordered.cumsum(dim=-1) - ordered
        probabilities = torch.zeros_like(probabilities).scatter_(-1, order, ordered * (before < top_p))
    return probabilities
