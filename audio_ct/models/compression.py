"""How memory is compressed, and what teaches it."""

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Literal

import torch
from einops import rearrange, reduce
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from audio_ct.errors import InputError

Function = Literal["convolution", "mean_pooling", "max_pooling", "dilated_convolution", "most_used"]
Loss = Literal["attention_reconstruction", "auto_encoding", "task", "none"]
LossForm = Literal["mean_square", "norm"]

LEARNED = ("convolution", "dilated_convolution")
DILATIONS = (1, 2, 4)


@dataclass(frozen=True)
class CompressionSettings:
    """What compresses, and what it learns from.

    Attributes:
        function: which compression function.
        loss: "attention_reconstruction" and "auto_encoding" teach it by a loss of its own; "task" by the task's,
            through the segments of a training window; "none" teaches nothing, as functions without parameters need.
        loss_form: "mean_square" is DeepMind's code, averaged over layers; "norm" is printed in the paper, summed.
        bias: of convolutions; without one (DeepMind's code) empty memory stays empty.
    """

    function: Function = "convolution"
    loss: Loss = "attention_reconstruction"
    loss_form: LossForm = "mean_square"
    bias: bool = False

    def __post_init__(self) -> None:
        """Refuse a loss that has nothing to teach.

        Raises:
            InputError: naming the value and the rule.
        """
        if self.function not in LEARNED and self.loss != "none":
            raise InputError(
                f"model.compression.loss={self.loss!r} has nothing to teach: {self.function} has no parameters; "
                "use none."
            )


class Compression(nn.Module, ABC):
    """A function from entries that leave a memory to one for each `rate` of them.

    Where the rate does not divide their number, the newest of them, the remainder, are dropped, as in DeepMind's code
    (a convolution that is not padded).

    Example: rate 3 on entries 1 to 8 keeps something of [1 2 3] and of [4 5 6], and nothing of 7 and 8.

    Source: Rae et al. 2019, section 3.2.
    """

    def __init__(self, rate: int) -> None:
        super().__init__()
        self.rate = rate

    @abstractmethod
    def forward(
        self, old_mem: Float[Tensor, "batch entries d_model"], usage: Float[Tensor, "batch entries"] | None = None
    ) -> Float[Tensor, "batch compressed d_model"]:
        """Return floor(entries / rate) entries, in order.

        Args:
            old_mem: what left the memory, oldest first.
            usage: attention that each entry received on average while it was in memory, for what goes by it.
        """

    def spans(self, old_mem: Float[Tensor, "batch entries d_model"]) -> Float[Tensor, "batch compressed rate d_model"]:
        """Return the entries in spans of `rate`, without the remainder."""
        whole = old_mem.shape[1] // self.rate * self.rate
        return rearrange(old_mem[:, :whole], "b (s r) d -> b s r d", r=self.rate)


class ConvolutionCompression(Compression):
    """A convolution over time whose kernel and stride are the rate: a linear map of `rate` entries side by side."""

    def __init__(self, d_model: int, rate: int, *, bias: bool = False) -> None:
        super().__init__(rate)
        self.project = nn.Linear(rate * d_model, d_model, bias=bias)

    def forward(self, old_mem: Tensor, usage: Tensor | None = None) -> Tensor:
        """See the base class."""
        return self.project(self.spans(old_mem).flatten(2))


class DilatedConvolutionCompression(Compression):
    """Convolutions of width 2 and dilations 1, 2, 4, ReLU after each, then the strided convolution.

    They look back over 7 older entries; what lies before the first is zero.
    """

    def __init__(self, d_model: int, rate: int, *, bias: bool = False) -> None:
        super().__init__(rate)
        self.layers = nn.ModuleList(nn.Linear(2 * d_model, d_model, bias=bias) for _ in DILATIONS)
        self.strided = ConvolutionCompression(d_model, rate, bias=bias)

    def forward(self, old_mem: Tensor, usage: Tensor | None = None) -> Tensor:
        """See the base class."""
        h = old_mem
        for dilation, layer in zip(DILATIONS, self.layers, strict=True):
            delayed = F.pad(h, (0, 0, dilation, 0))[:, : h.shape[1]]
            h = F.relu(layer(torch.cat([delayed, h], dim=-1)))
        return self.strided(h)


class PoolingCompression(Compression):
    """The mean or the maximum of every span, channel by channel."""

    def __init__(self, rate: int, *, by: Literal["mean", "max"]) -> None:
        super().__init__(rate)
        self.by = by

    def forward(self, old_mem: Tensor, usage: Tensor | None = None) -> Tensor:
        """See the base class."""
        return reduce(self.spans(old_mem), "b s r d -> b s d", self.by)


class MostUsedCompression(Compression):
    """The entries that received the most attention while they were in memory, as they are, in their order.

    Example: rate 2, usage [.1 .4 .3 .2] keeps the second and the third of four entries.
    """

    def forward(self, old_mem: Tensor, usage: Tensor | None = None) -> Tensor:
        """See the base class."""
        assert usage is not None
        kept = usage.topk(old_mem.shape[1] // self.rate, dim=1).indices.sort(dim=1).values
        return old_mem.gather(1, kept[..., None].expand(-1, -1, old_mem.shape[2]))


def make_compression(settings: CompressionSettings, *, d_model: int, rate: int) -> Compression:
    """Return a fresh compression function."""
    match settings.function:
        case "convolution":
            return ConvolutionCompression(d_model, rate, bias=settings.bias)
        case "dilated_convolution":
            return DilatedConvolutionCompression(d_model, rate, bias=settings.bias)
        case "mean_pooling":
            return PoolingCompression(rate, by="mean")
        case "max_pooling":
            return PoolingCompression(rate, by="max")
        case "most_used":
            return MostUsedCompression(rate)


class Decoder(nn.Module):
    """The auto-encoding loss's transposed convolution: each compressed entry back into `rate` entries."""

    def __init__(self, d_model: int, rate: int) -> None:
        super().__init__()
        self.rate = rate
        self.expand = nn.Linear(d_model, rate * d_model, bias=False)

    def forward(self, compressed: Float[Tensor, "batch compressed d_model"]) -> Float[Tensor, "batch entries d_model"]:
        """Return `rate` entries for each."""
        return rearrange(self.expand(compressed), "b s (r d) -> b (s r) d", r=self.rate)


def difference(a: Float[Tensor, "batch *rest"], b: Float[Tensor, "batch *rest"], form: LossForm) -> Float[Tensor, ""]:
    """Return how far two tensors are apart: their mean square difference, or its norm for each lane, averaged.

    Source: Rae et al. 2019, algorithm 2 prints the norm; DeepMind's code has the mean square, whose size depends on
    neither batch nor length.
    """
    precise = torch.promote_types(a.dtype, torch.float32)
    apart = a.to(precise) - b.to(precise)
    if form == "mean_square":
        return apart.square().mean()
    return torch.linalg.vector_norm(apart.flatten(1), dim=1).mean()
