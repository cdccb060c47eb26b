"""The optimizer, its schedules, clipping, and the verdicts on updates: taken, or left out."""

import math
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass, field
from enum import IntEnum
from typing import Any

import torch
from torch import Tensor, nn

from audio_ct.models.token_model import TokenModel
from audio_ct.recipe import OptimizerRecipe
from audio_ct.training.muon import MUON_MOMENTS, MuonAdamW
from audio_ct.training.processes import MOMENTS, Processes

# Updates that a GPU may be behind before their answer is waited for: by then it is there.
BEHIND = 2
# The parts of a model between embedding and readout, by the names of their parameters.
INSIDE = ("stages.", "head.body.")
# Share of a norm in the running mean of gradient norms.
NEW_SHARE = 0.02


class Verdict(IntEnum):
    """What becomes of an update; all but the first leave parameters and optimizer as they are."""

    TAKEN = 0
    SPIKE = 1
    NOT_FINITE = 2


def make_optimizer(model: nn.Module, recipe: OptimizerRecipe, *, sharded: bool = False) -> torch.optim.Optimizer:
    """Make AdamW, or where the recipe says so Muon for the matrices between embedding and readout and AdamW for others.

    Weight decay falls on matrices only, not on biases, norms and embeddings. Each group's learning rate is "rate_ratio"
    times the recipe's.

    Args:
        model: whose parameters it updates.
        recipe: its settings.
        sharded: of several processes, each keeps the running means of its share of the parameters, updates those and
            sends them to the others. Source: Rajbhandari et al. 2020, "ZeRO", stage 1.
    """
    embeddings = {id(module.weight) for module in model.modules() if isinstance(module, nn.Embedding)}
    by_muon: list[nn.Parameter] = []
    decayed: list[nn.Parameter] = []
    plain: list[nn.Parameter] = []
    for name, parameter in model.named_parameters():
        is_matrix = parameter.dim() >= 2 and not name.endswith("bias") and id(parameter) not in embeddings
        if recipe.muon_learning_rate and is_matrix and parameter.dim() == 2 and name.startswith(INSIDE):
            by_muon.append(parameter)
        else:
            (decayed if is_matrix else plain).append(parameter)
    groups = [
        {"params": decayed, "weight_decay": recipe.weight_decay, "rate_ratio": 1.0, "is_muon": False},
        {"params": plain, "weight_decay": 0.0, "rate_ratio": 1.0, "is_muon": False},
    ]
    kind: type[torch.optim.AdamW] = torch.optim.AdamW
    if recipe.muon_learning_rate is not None:
        kind, ratio = MuonAdamW, recipe.muon_learning_rate / recipe.learning_rate
        groups.append({"params": by_muon, "weight_decay": recipe.weight_decay, "rate_ratio": ratio, "is_muon": True})
    beta1, beta2 = recipe.betas
    settings: dict[str, Any] = {"lr": recipe.learning_rate, "betas": (beta1, beta2), "fused": True}
    if not sharded:
        return kind(groups, **settings)
    from torch.distributed.optim import ZeroRedundancyOptimizer

    return ZeroRedundancyOptimizer(groups, kind, **settings)


def own_share(optimizer: torch.optim.Optimizer) -> torch.optim.Optimizer:
    """The optimizer of this process's share of the parameters: itself, where it is not sharded."""
    share: torch.optim.Optimizer = getattr(optimizer, "optim", optimizer)
    return share


def whole_state(optimizer: torch.optim.Optimizer, processes: Processes) -> dict[int, dict[str, Tensor]]:
    """An optimizer's state by the number of the parameter; sharded, it comes together in the first process alone."""
    state, parameters = own_share(optimizer).state, _parameters(optimizer)
    entries = [dict(state.get(parameter, {})) for parameter in parameters]
    collected = processes.collected(entries, [parameter.shape for parameter in parameters])
    return {number: entry for number, entry in enumerate(collected) if entry}


def load_whole_state(optimizer: torch.optim.Optimizer, state: dict[int, dict[str, Tensor]]) -> None:
    """Load what `whole_state` gave, here or with another number of processes.

    Raises:
        ValueError: if it is of other parameters, or not whole.
    """
    own = own_share(optimizer)
    parameters = {id(parameter) for parameter in _parameters(own)}
    by_muon = {id(parameter) for group in own.param_groups if group.get("is_muon") for parameter in group["params"]}
    own.state.clear()
    for number, parameter in enumerate(_parameters(optimizer)):
        entry = state.get(number, {})
        if entry and entry.keys() != set(MUON_MOMENTS if id(parameter) in by_muon else MOMENTS):
            raise ValueError("the optimizer's running means are missing")
        if any(entry[name].shape != parameter.shape for name in entry if name != "step"):
            raise ValueError("the optimizer's running means are of other parameters")
        if entry and id(parameter) in parameters:
            # The fused kernel wants the number of steps on the device too.
            own.state[parameter] = {name: tensor.to(parameter.device, copy=True) for name, tensor in entry.items()}


def _parameters(optimizer: torch.optim.Optimizer) -> list[Tensor]:
    return [parameter for group in optimizer.param_groups for parameter in group["params"]]


def judged(norms: Tensor, typical_norm: Tensor, *, spike_factor: float) -> tuple[Tensor, Tensor]:
    """Decide on the device what becomes of an update.

    Args:
        norms: of its gradients, the task's first.
        typical_norm: running mean of the task's over the updates taken; NaN before the first.
        spike_factor: a norm of so many times the typical one is a spike; 0 for none.

    Returns:
        The `Verdict`, an integer, and the new typical norm.
    """
    is_spike = norms[0] > spike_factor * typical_norm if spike_factor else torch.zeros_like(norms[0], dtype=torch.bool)
    verdict = torch.where(norms.isfinite().all(), is_spike * Verdict.SPIKE, Verdict.NOT_FINITE)
    typical = torch.where(typical_norm.isnan(), norms[0], typical_norm.lerp(norms[0], NEW_SHARE))
    return verdict, torch.where(verdict == Verdict.TAKEN, typical, typical_norm)


def clip_gradients(model: TokenModel, max_norm: float) -> tuple[Tensor, Tensor]:
    """Clip the task's gradient and the auxiliary losses' each by its own norm, and return both norms from before.

    They share no parameters. Under one common norm the compression functions' gradient, often the larger, would scale
    the task's down.
    """
    auxiliary = model.auxiliary_parameters()
    apart = {id(parameter) for parameter in auxiliary}
    task = [parameter for parameter in model.parameters() if id(parameter) not in apart]
    norm = nn.utils.clip_grad_norm_(task, max_norm)
    # Of no gradients torch returns a norm on the CPU.
    return norm, nn.utils.clip_grad_norm_(auxiliary, max_norm) if auxiliary else torch.zeros_like(norm)


def learning_rate(recipe: OptimizerRecipe, step: int, num_steps: int) -> float:
    """The learning rate of a step: a linear rise over the warm-up, then the recipe's decay to step `num_steps`."""
    if step < recipe.warmup_steps:
        return recipe.learning_rate * (step + 1) / recipe.warmup_steps
    done = min(1.0, (step - recipe.warmup_steps) / max(1, num_steps - recipe.warmup_steps))
    remaining = {"none": 1.0, "linear": 1 - done, "cosine": (1 + math.cos(math.pi * done)) / 2}[recipe.decay]
    return recipe.learning_rate * (recipe.final_fraction + (1 - recipe.final_fraction) * remaining)


def update_every(schedule: dict[int, int], step: int) -> int:
    """The number of windows that the gradient is averaged over for an update at this step.

    Example: {0: 1, 60000: 4} gives 1 at step 59999 and 4 at step 60000.

    Source: Rae et al. 2019, section 4.2: rarer updates late in training instead of smaller steps.
    """
    return schedule[max(start for start in schedule if start <= step)]


@dataclass
class Verdicts:
    """Verdicts on updates, taken from the device without waiting for a GPU.

    Attributes:
        pending: verdicts on their way, oldest first, with the step of each.
    """

    pending: deque[tuple[int, Tensor, torch.cuda.Event | None]] = field(default_factory=deque)

    def add(self, step: int, verdict: Tensor) -> None:
        """Send for the verdict, an integer on the device, on the update after `step` windows."""
        event = None
        if verdict.is_cuda:
            verdict = torch.empty((), dtype=verdict.dtype, pin_memory=True).copy_(verdict, non_blocking=True)
            event = torch.cuda.Event()
            event.record()
        self.pending.append((step, verdict, event))

    def settled(self, *, all_of_them: bool) -> Iterator[tuple[int, Verdict]]:
        """Yield (step, verdict) of updates: of all so far, or of those whose verdicts need no waiting."""
        while self.pending:
            step, verdict, event = self.pending[0]
            if event is not None:
                if not all_of_them and len(self.pending) <= BEHIND:
                    return
                event.synchronize()
            self.pending.popleft()
            yield step, Verdict(int(verdict))
