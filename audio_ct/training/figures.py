"""The running figures of training, which checkpoints keep to the last digit."""

import math
from dataclasses import dataclass, field, fields

import torch
from torch import Tensor

from audio_ct.models.stage import State


@dataclass
class Figures:
    """The running figures of training.

    Attributes:
        seconds: trained so far, by the wall clock.
        seconds_of_sums: those of the windows that are in the sums.
        not_finite: updates left out because their loss or gradient was not finite.
        spikes: those left out because their gradient was a spike.
        left_out_in_a_row: both, since the last update that was taken.
        gradient_norm: of the task's gradient at the last update, before clipping.
        typical_norm: its running mean over the updates taken; see `audio_ct.training.optimizer.judged`.
        learning_rate: of the last update.
        sums: of losses over the windows since the last log; on the device, so that adding never waits for it.
        num_windows: how many those are.
    """

    seconds: float = 0.0
    seconds_of_sums: float = 0.0
    not_finite: int = 0
    spikes: int = 0
    left_out_in_a_row: int = 0
    gradient_norm: Tensor = field(default_factory=lambda: torch.tensor(math.nan))
    typical_norm: Tensor = field(default_factory=lambda: torch.tensor(math.nan))
    learning_rate: float = 0.0
    sums: dict[str, Tensor] = field(default_factory=dict)
    num_windows: int = 0

    def add(self, losses: dict[str, Tensor]) -> None:
        """Add the losses of a window."""
        for name, loss in losses.items():
            self.sums[name] = self.sums.get(name, 0.0) + loss.detach().double()
        self.num_windows += 1

    def add_seconds(self, seconds: float) -> None:
        """Add the time that a window took."""
        self.seconds += seconds
        self.seconds_of_sums += seconds

    def start_sums(self) -> None:
        """Start the sums anew."""
        self.sums, self.num_windows, self.seconds_of_sums = {}, 0, 0.0

    def means(self) -> dict[str, float]:
        """The mean losses since the last log."""
        return {name: float(total) / self.num_windows for name, total in self.sums.items()}

    def to_tensors(self) -> State:
        """The figures as a checkpoint holds them."""
        return {name: value if isinstance(value, dict) else to_tensor(value) for name, value in vars(self).items()}

    @classmethod
    def from_tensors(cls, tensors: State, device: torch.device) -> "Figures":
        """The figures of a checkpoint; those that its version did not know begin anew."""
        sums = {name: total.to(device) for name, total in tensors.get("sums", {}).items()}
        known = {each.name: tensors[each.name] for each in fields(cls) if each.name != "sums" and each.name in tensors}
        unknown = torch.tensor(math.nan)
        norms = {name: known.pop(name, unknown).to(device) for name in ("gradient_norm", "typical_norm")}
        return cls(sums=sums, **norms, **{name: tensor.item() for name, tensor in known.items()})


def to_tensor(number: float | Tensor) -> Tensor:
    """A number as a tensor that holds all of its digits."""
    if isinstance(number, Tensor):
        return number
    return torch.tensor(number, dtype=torch.float64 if isinstance(number, float) else torch.int64)
