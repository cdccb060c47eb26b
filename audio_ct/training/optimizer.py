"""The optimizer, its schedules, clipping, and the answers to the question if an update was finite."""

import math
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from audio_ct.models.token_model import TokenModel
from audio_ct.recipe import OptimizerRecipe

# Updates that a GPU may be behind before their answer is waited for: by then it is there.
BEHIND = 2


def make_optimizer(model: nn.Module, recipe: OptimizerRecipe) -> torch.optim.AdamW:
    """Make AdamW; weight decay falls on matrices only, not on biases, norms and embeddings."""
    embeddings = {id(module.weight) for module in model.modules() if isinstance(module, nn.Embedding)}
    decayed: list[nn.Parameter] = []
    plain: list[nn.Parameter] = []
    for name, parameter in model.named_parameters():
        is_matrix = parameter.dim() >= 2 and not name.endswith("bias") and id(parameter) not in embeddings
        (decayed if is_matrix else plain).append(parameter)
    groups = [
        {"params": decayed, "weight_decay": recipe.weight_decay},
        {"params": plain, "weight_decay": 0.0},
    ]
    beta1, beta2 = recipe.betas
    return torch.optim.AdamW(groups, lr=recipe.learning_rate, betas=(beta1, beta2), fused=True)


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
class FiniteChecks:
    """Answers of the device to the question if an update was finite, taken without waiting for a GPU.

    Attributes:
        pending: answers on their way, oldest first, with the step of each.
    """

    pending: deque[tuple[int, Tensor, torch.cuda.Event | None]] = field(default_factory=deque)

    def add(self, step: int, is_finite: Tensor) -> None:
        """Send for the answer of the update after `step` windows, a boolean on the device."""
        event = None
        if is_finite.is_cuda:
            is_finite = torch.empty((), dtype=torch.bool, pin_memory=True).copy_(is_finite, non_blocking=True)
            event = torch.cuda.Event()
            event.record()
        self.pending.append((step, is_finite, event))

    def settled(self, *, all_of_them: bool) -> Iterator[tuple[int, bool]]:
        """Yield (step, is_finite) of updates: of all so far, or of those whose answers need no waiting."""
        while self.pending:
            step, answer, event = self.pending[0]
            if event is not None:
                if not all_of_them and len(self.pending) <= BEHIND:
                    return
                event.synchronize()
            self.pending.popleft()
            yield step, bool(answer)
