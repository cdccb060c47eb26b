"""An embedding that knows that tokens are places on a scale."""

import math

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn import functional as F


class AmplitudeEmbedding(nn.Module):
    """Sines and cosines of a token's place on the mu-law scale, linearly mixed: near tokens start out alike.

    The scale runs from -1 to 1; frequencies go by octaves from once around in twice the scale to once around in four
    tokens.

    Args:
        vocabulary_size: number of tokens.
        d_model: size of the embedding.

    Source: the idea is the linear RNN for raw audio of 2510.02401; frequencies by octaves are this project's.
    """

    def __init__(self, vocabulary_size: int, d_model: int) -> None:
        super().__init__()
        scale = torch.linspace(-1, 1, vocabulary_size, dtype=torch.float64)
        num_octaves = max(1, math.ceil(math.log2(vocabulary_size)))
        angle = scale[:, None] * math.pi / 2 * 2.0 ** torch.arange(num_octaves)
        self.register_buffer("features", torch.cat([angle.sin(), angle.cos()], dim=-1).float(), persistent=False)
        self.features: Tensor
        self.mix = nn.Linear(2 * num_octaves, d_model)

    def forward(self, tokens: Int[Tensor, "*batch"]) -> Float[Tensor, "*batch d_model"]:
        """Embed tokens."""
        # As a table's entries, not in autocast's type: the residual stream begins here.
        return self.mix(F.embedding(tokens, self.features)).to(self.mix.weight.dtype)
