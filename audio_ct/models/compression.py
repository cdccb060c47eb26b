"""How memory is compressed, and the loss that teaches it."""

from einops import rearrange
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from audio_ct.models.attention import RelativeAttention, attend_by_content


class ConvolutionCompression(nn.Module):
    """A convolution over time whose kernel and stride are the compression rate, without bias.

    Since its spans do not overlap it is a linear map of `rate` stacked entries. Without a bias, empty memory (zeros)
    stays empty.

    Source: Rae et al. 2019, section 3.2; bias-free as in DeepMind's code.
    """

    def __init__(self, d_model: int, rate: int) -> None:
        super().__init__()
        self.rate = rate
        self.project = nn.Linear(rate * d_model, d_model, bias=False)

    def forward(self, old_mem: Float[Tensor, "batch entries d_model"]) -> Float[Tensor, "batch compressed d_model"]:
        """Return one entry for each `rate` entries; entries must be a multiple of the rate."""
        return self.project(rearrange(old_mem, "b (s r) d -> b s (r d)", r=self.rate))


def attention_reconstruction_loss(
    attention: RelativeAttention,
    h: Float[Tensor, "batch time d_model"],
    old_mem: Float[Tensor, "batch entries d_model"],
    compressed: Float[Tensor, "batch compressed d_model"],
) -> Float[Tensor, ""]:
    """Return how much attention of the segment over compressed entries differs from that over what they replace.

    The segment, the old memory and the layer's projections are constants here, so that only the compression function
    that made `compressed` learns from this loss.

    Source: Rae et al. 2019, algorithm 2. The printed loss is a norm per layer; this is the mean square per layer of
    DeepMind's code, whose size does not depend on batch and length.
    """
    reconstructed = attend_by_content(attention, h, compressed)
    target = attend_by_content(attention, h, old_mem.detach())
    return F.mse_loss(reconstructed.float(), target.detach().float())
