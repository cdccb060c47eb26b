"""A layer of the Compressive Transformer: its parts, put together by `audio_ct.models.compressive_transformer`."""

from torch import Tensor, nn

from audio_ct.models.attention import Kernel, RelativeAttention
from audio_ct.models.compression import ConvolutionCompression
from audio_ct.models.convolution import ShortConvolution


class CompressiveLayer(nn.Module):
    """One layer's parts: attention, feed-forward, norms, its own compression function and short convolution."""

    def __init__(
        self,
        *,
        d_model: int,
        num_heads: int,
        d_ff: int,
        pre_norm: bool,
        compression_rate: int,
        short_convolution_width: int,
        attention_kernel: Kernel,
    ) -> None:
        super().__init__()
        self.pre_norm = pre_norm
        self.attention = RelativeAttention(d_model, num_heads, attention_kernel)
        self.attention_norm = nn.LayerNorm(d_model)
        self.expand_contract = nn.Sequential(nn.Linear(d_model, d_ff), nn.GELU(), nn.Linear(d_ff, d_model))
        self.feed_forward_norm = nn.LayerNorm(d_model)
        self.short = ShortConvolution(d_model, short_convolution_width) if short_convolution_width else None
        self.compression = ConvolutionCompression(d_model, compression_rate) if compression_rate else None

    def feed_forward(self, h: Tensor, attended: Tensor) -> Tensor:
        """Return the layer's output from its input h and the attention's output."""
        if self.pre_norm:
            h = h + attended
            return h + self.expand_contract(self.feed_forward_norm(h))
        h = self.attention_norm(h + attended)
        return self.feed_forward_norm(h + self.expand_contract(h))
