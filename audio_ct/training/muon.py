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


def orthogonalised(matrices: Float[Tensor, "many rows columns"]) -> Float[Tensor, "many rows columns"]:
    """Matrices with all singular values brought to 0.7 to 1.2, by five Newton-Schulz iterations.

    On a GPU in bfloat16, which is enough for it; on a CPU in float32.
    """
    x = matrices.bfloat16() if matrices.is_cuda else matrices.float()
    is_tall = x.shape[-2] > x.shape[-1]
    x = x.mT if is_tall else x
    x = x / (x.norm(dim=(-2, -1), keepdim=True) + 1e-7)
    a, b, c = COEFFICIENTS
    for _ in range(NUM_ITERATIONS):
        gram = x @ x.mT
        x = torch.baddbmm(x, torch.baddbmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    return (x.mT if is_tall else x).to(matrices.dtype)


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
            alike: dict[torch.Size, list[Tensor]] = {}
            for parameter in group["params"] if group["is_muon"] else ():
                if parameter.grad is not None:
                    alike.setdefault(parameter.shape, []).append(parameter)
            for parameters in alike.values():
                self._update(parameters, group, None if found_inf is None else found_inf > 0)

    def _update(self, parameters: list[Tensor], group: dict[str, Any], is_left_out: Tensor | None) -> None:
        """Update matrices of one shape together: a GPU does many as fast as one."""
        for parameter in parameters:
            if not self.state[parameter]:
                self.state[parameter]["momentum"] = torch.zeros_like(parameter)
        kept = [self.state[parameter]["momentum"] for parameter in parameters]
        weights, before = torch.stack(parameters), torch.stack(kept)
        gradient = torch.stack([parameter.grad for parameter in parameters if parameter.grad is not None])
        momentum = before.lerp(gradient, 1 - MOMENTUM)
        direction = orthogonalised(gradient.lerp(momentum, MOMENTUM))
        # An update moves every row by about as much, whatever the shape.
        rate = group["lr"] * max(1.0, weights.shape[1] / weights.shape[2]) ** 0.5
        moved = weights * (1 - group["lr"] * group["weight_decay"]) - rate * direction
        if is_left_out is not None:
            momentum = torch.where(is_left_out, before, momentum)
            moved = torch.where(is_left_out, weights, moved)
        torch._foreach_copy_(kept, list(momentum))
        torch._foreach_copy_(parameters, list(moved))
