"""Muon for the matrices inside a model, AdamW for everything else, as one optimizer.

A matrix moves by its momentum with all singular values made alike, so that directions that are rarely taken are learned
as fast as those that dominate the gradient. Torch has Muon of its own, which computes in bfloat16 on any machine, 65
times slower on CPUs without its instructions, and cannot leave an update out on the device.

Source: Jordan et al. 2024, "Muon: An optimizer for hidden layers in neural networks"; the coefficients are theirs.
"""

from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

COEFFICIENTS = (3.4445, -4.7750, 2.0315)
NUM_ITERATIONS = 5
MOMENTUM = 0.95
MUON_MOMENTS = ("momentum",)


def orthogonalised(matrix: Float[Tensor, "rows columns"]) -> Float[Tensor, "rows columns"]:
    """The matrix with all singular values brought to 0.7 to 1.2, by five Newton-Schulz iterations.

    On a GPU in bfloat16, which is enough for it; on a CPU in float32.
    """
    x = matrix.bfloat16() if matrix.is_cuda else matrix.float()
    is_tall = x.shape[0] > x.shape[1]
    x = x.T if is_tall else x
    x = x / (x.norm() + 1e-7)
    a, b, c = COEFFICIENTS
    for _ in range(NUM_ITERATIONS):
        gram = x @ x.T
        x = torch.addmm(x, torch.addmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    return (x.T if is_tall else x).to(matrix.dtype)


class MuonAdamW(torch.optim.AdamW):
    """AdamW whose groups with "is_muon" are updated by Muon with Nesterov's momentum, at their own learning rate.

    `found_inf`, 1 on the device, leaves an update out, as it does in torch's fused AdamW.
    """

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        """Update all parameters that have gradients."""
        groups = self.param_groups
        self.param_groups = [group for group in groups if not group["is_muon"]]
        try:
            super().step(closure)
        finally:
            self.param_groups = groups
        found_inf = getattr(self, "found_inf", None)
        for group in groups:
            for parameter in group["params"] if group["is_muon"] else ():
                if parameter.grad is not None:
                    self._update(parameter, parameter.grad, group, None if found_inf is None else found_inf > 0)

    def _update(self, parameter: Tensor, gradient: Tensor, group: dict[str, Any], is_left_out: Tensor | None) -> None:
        state = self.state[parameter]
        if not state:
            state["momentum"] = torch.zeros_like(parameter)
        momentum = state["momentum"].lerp(gradient, 1 - MOMENTUM)
        direction = orthogonalised(gradient.lerp(momentum, MOMENTUM))
        # An update moves every row by about as much, whatever the shape.
        rate = group["lr"] * max(1.0, parameter.shape[0] / parameter.shape[1]) ** 0.5
        moved = parameter * (1 - group["lr"] * group["weight_decay"]) - rate * direction
        if is_left_out is not None:
            momentum = torch.where(is_left_out, state["momentum"], momentum)
            moved = torch.where(is_left_out, parameter, moved)
        state["momentum"].copy_(momentum)
        parameter.copy_(moved)
