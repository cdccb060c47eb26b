"""Compression functions of the paper, and the losses that teach them."""

from typing import Literal

import torch
from einops import rearrange, reduce
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from audio_ct.models.attention import RelativeAttention, attend_by_content
from audio_ct.models.settings import CompressionSettings, LossForm

DILATIONS = (1, 2, 4)


def spans(old_mem: Float[Tensor, "batch entries d_model"], rate: int) -> Float[Tensor, "batch spans rate d_model"]:
    """Cut entries that left a memory, oldest first, into spans of `rate`.

    Where the rate does not divide their number, the newest of them, the remainder, are dropped, as in DeepMind's code
    (a convolution that is not padded).

    Example: rate 3 on entries 1 to 8 gives [1 2 3] and [4 5 6], and nothing of 7 and 8.
    """
    whole = old_mem.shape[1] // rate * rate
    return rearrange(old_mem[:, :whole], "b (s r) d -> b s r d", r=rate)


class ConvolutionCompression(nn.Module):
    """A convolution over time whose kernel and stride are the rate: a linear map of `rate` entries side by side.

    It has no bias (DeepMind's code), so that empty memory stays empty.
    """

    def __init__(self, d_model: int, rate: int) -> None:
        super().__init__()
        self.rate = rate
        self.project = nn.Linear(rate * d_model, d_model, bias=False)

    def forward(self, old_mem: Float[Tensor, "batch entries d_model"]) -> Float[Tensor, "batch spans d_model"]:
        """Compress every span."""
        return self.project(spans(old_mem, self.rate).flatten(2))


class DilatedConvolutionCompression(nn.Module):
    """Convolutions of width 2 and dilations 1, 2, 4, ReLU after each, then the strided convolution.

    They look back over 7 older entries; what lies before the first is zero.
    """

    def __init__(self, d_model: int, rate: int) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(2 * d_model, d_model, bias=False) for _ in DILATIONS)
        self.strided = ConvolutionCompression(d_model, rate)

    def forward(self, old_mem: Float[Tensor, "batch entries d_model"]) -> Float[Tensor, "batch spans d_model"]:
        """Compress every span."""
        h = old_mem
        for dilation, layer in zip(DILATIONS, self.layers, strict=True):
            delayed = F.pad(h, (0, 0, dilation, 0))[:, : h.shape[1]]
            h = F.relu(layer(torch.cat([delayed, h], dim=-1)))
        return self.strided(h)


class PoolingCompression(nn.Module):
    """The mean or the maximum of every span, channel by channel."""

    def __init__(self, rate: int, *, by: Literal["mean", "max"]) -> None:
        super().__init__()
        self.rate = rate
        self.by = by

    def forward(self, old_mem: Float[Tensor, "batch entries d_model"]) -> Float[Tensor, "batch spans d_model"]:
        """Compress every span."""
        return reduce(spans(old_mem, self.rate), "b s r d -> b s d", self.by)


class MostUsedCompression(nn.Module):
    """The entries that received the most attention while they were in memory, as they are, in their order.

    Example: rate 2, usage [.1 .4 .3 .2] keeps the second and the third of four entries.
    """

    def __init__(self, rate: int) -> None:
        super().__init__()
        self.rate = rate

    def forward(
        self, old_mem: Float[Tensor, "batch entries d_model"], usage: Float[Tensor, "batch entries"]
    ) -> Float[Tensor, "batch kept d_model"]:
        """Keep entries by the attention that they received on average while they were in memory."""
        kept = usage.topk(old_mem.shape[1] // self.rate, dim=1).indices.sort(dim=1).values
        return old_mem.gather(1, kept[..., None].expand(-1, -1, old_mem.shape[2]))


def make_compression(settings: CompressionSettings, *, d_model: int, rate: int) -> nn.Module:
    """Make a fresh compression function, from entries that left memory to one for each `rate` of them.

    Source: Rae et al. 2019, section 3.2.
    """
    match settings.function:
        case "convolution":
            return ConvolutionCompression(d_model, rate)
        case "dilated_convolution":
            return DilatedConvolutionCompression(d_model, rate)
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
        """Expand every entry."""
        return rearrange(self.expand(compressed), "b s (r d) -> b (s r) d", r=self.rate)


class Compressor(nn.Module):
    """A layer's compression function with the loss that teaches it.

    Args:
        settings: function, loss and the loss's form.
        d_model: size of entries.
        rate: entries that become one.

    Attributes:
        counts_usage: the function wants to know the attention that entries received.
        has_own_loss: `loss` returns one.
    """

    def __init__(self, settings: CompressionSettings, *, d_model: int, rate: int) -> None:
        super().__init__()
        self.function = make_compression(settings, d_model=d_model, rate=rate)
        self.decoder = Decoder(d_model, rate) if settings.loss == "auto_encoding" else None
        self.settings = settings
        self.counts_usage = settings.counts_usage
        self.has_own_loss = settings.loss in ("attention_reconstruction", "auto_encoding")

    def forward(
        self, old_mem: Float[Tensor, "batch entries d_model"], usage: Float[Tensor, "batch entries"] | None
    ) -> Float[Tensor, "batch compressed d_model"]:
        """Compress what left memory, oldest first; `usage` is read where the function counts it."""
        return self.function(old_mem, usage) if self.counts_usage else self.function(old_mem)

    def loss(
        self,
        attention: RelativeAttention,
        x: Float[Tensor, "batch time d_model"],
        old_mem: Float[Tensor, "batch entries d_model"],
        new_cmem: Float[Tensor, "batch compressed d_model"],
    ) -> Float[Tensor, ""] | None:
        """The loss of one compression; None where the function has no loss of its own.

        Args:
            attention: of the layer.
            x: the segment's attention inputs.
            old_mem: what left memory.
            new_cmem: what it was compressed to.
        """
        if not self.has_own_loss:
            return None
        if self.decoder is None:
            return attention_reconstruction(attention, x, old_mem, new_cmem, self.settings.loss_form)
        decoded = self.decoder(new_cmem)
        return difference(decoded, old_mem[:, : decoded.shape[1]].to(decoded.dtype), self.settings.loss_form)


def attention_reconstruction(
    attention: RelativeAttention,
    x: Float[Tensor, "batch time d_model"],
    old_mem: Float[Tensor, "batch entries d_model"],
    new_cmem: Float[Tensor, "batch compressed d_model"],
    form: LossForm,
) -> Float[Tensor, ""]:
    """The difference that compression makes to what the segment reads by content.

    The segment, old_mem and the layer's projections are constants: only the compression function learns from it.

    Source: Rae et al. 2019, algorithm 2.
    """
    target = attend_by_content(attention, x, old_mem)
    return difference(attend_by_content(attention, x, new_cmem), target.detach(), form)


def difference(a: Float[Tensor, "batch *rest"], b: Float[Tensor, "batch *rest"], form: LossForm) -> Float[Tensor, ""]:
    """The mean square difference of two tensors, or its norm for each lane, averaged over lanes.

    Source: Rae et al. 2019, algorithm 2 prints the norm; DeepMind's code has the mean square, whose size depends on
    neither batch nor length.
    """
    precise = torch.promote_types(a.dtype, torch.float32)
    apart = a.to(precise) - b.to(precise)
    if form == "mean_square":
        return apart.square().mean()
    return torch.linalg.vector_norm(apart.flatten(1), dim=1).mean()
