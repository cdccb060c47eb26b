"""A model's weights laid out for sampling, where each is read once a step, and optionally rounded to 8 bits."""

import copy
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from audio_ct.models.token_model import TokenModel

Weights = Literal["float32", "bfloat16", "int8"]


def with_weights(model: TokenModel, weights: Weights) -> TokenModel:
    """Copy a model, with its linear maps laid out for steps, in evaluation mode.

    Args:
        model: left as it is.
        weights: "float32"; "bfloat16" rounds all parameters, and the whole model works in it; "int8" rounds the
            matrices of linear maps to 8 bits with a scale for each output, embeddings and the rest stay as they are.
    """
    model = copy.deepcopy(model).eval().requires_grad_(False)
    if weights == "bfloat16":
        model.to(torch.bfloat16)
    _replace(model, Int8Linear if weights == "int8" else RowMajorLinear)
    return model


def _replace(module: nn.Module, kind: type[nn.Module]) -> None:
    for name, child in module.named_children():
        if isinstance(child, nn.Linear):
            setattr(module, name, kind(child))
        else:
            _replace(child, kind)


class RowMajorLinear(nn.Module):
    """A linear map with its matrix stored [in, out], the layout in which CPUs multiply a single vector fastest."""

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__()
        self.register_buffer("weight", linear.weight.detach().T.contiguous())
        self.bias = linear.bias
        self.weight: Tensor

    def forward(self, x: Float[Tensor, "*batch inputs"]) -> Float[Tensor, "*batch outputs"]:
        """Compute x W + b."""
        y = x @ self.weight
        return y if self.bias is None else y + self.bias


class Int8Linear(nn.Module):
    """A linear map with 8-bit weights: one scale for each output, chosen so that its largest weight is 127."""

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__()
        scale = linear.weight.detach().abs().amax(dim=1).clamp_min(1e-12) / 127
        int8 = (linear.weight.detach() / scale[:, None]).round().to(torch.int8)
        # The CPU's kernel reads past the end of sizes that 32 does not divide. It takes scales in bfloat16, which would
        # round ours: it is given ones, and ours are applied behind it.
        self._padding = -linear.in_features % 32
        self.register_buffer("int8", F.pad(int8, (0, self._padding, 0, -linear.out_features % 32)))
        self.register_buffer("ones", torch.ones(len(self.int8), dtype=torch.bfloat16))
        self.register_buffer("scale", scale)
        self.bias = linear.bias
        self.int8: Tensor
        self.ones: Tensor
        self.scale: Tensor

    @property
    def weight(self) -> Float[Tensor, "outputs inputs"]:
        """The weights that these 8 bits stand for."""
        return self.int8[: len(self.scale), : self.int8.shape[1] - self._padding] * self.scale[:, None]

    def forward(self, x: Float[Tensor, "*batch inputs"]) -> Float[Tensor, "*batch outputs"]:
        """Compute x W + b; on a CPU x and x W are rounded to bfloat16."""
        if x.is_cuda:
            y = F.linear(F.pad(x, (0, self._padding)), self.int8.to(x.dtype))
        else:
            rows = F.pad(x.flatten(0, -2).bfloat16(), (0, self._padding))
            y = torch._weight_int8pack_mm(rows, self.int8, self.ones).to(x.dtype).unflatten(0, x.shape[:-1])
        y = y[..., : len(self.scale)] * self.scale
        return y if self.bias is None else y + self.bias
