"""An exponential moving average of the weights, which stands for a model whose learning rate has not come down yet.

Source: Polyak and Juditsky 1992; torch's `AveragedModel` keeps it. Its decay begins low, as in Adam's correction of its
running means, so that the start is soon forgotten.
"""

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel


def averaged(model: nn.Module, decay: float) -> AveragedModel:
    """A copy of a model that follows it.

    Args:
        model: whose weights are averaged; `update_parameters` takes them in.
        decay: share of the average that an update leaves.
    """

    @torch.no_grad()
    def follow(
        averages: tuple[Tensor, ...] | list[Tensor], weights: tuple[Tensor, ...] | list[Tensor], _: Tensor | int
    ) -> None:
        # The count that is handed over stands on the model's device, and a GPU would be waited for; this is its source.
        num = int(average.n_averaged)
        torch._foreach_lerp_(averages, weights, 1 - min(decay, (1 + num) / (10 + num)))

    average = AveragedModel(model, multi_avg_fn=follow).requires_grad_(False)
    return average
