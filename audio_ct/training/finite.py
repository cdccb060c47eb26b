"""Answers of the device to the question if an update was finite, taken without waiting for a GPU."""

from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass, field

import torch
from torch import Tensor

# Updates that a GPU may be behind before their answer is waited for: by then it is there.
BEHIND = 2


@dataclass
class FiniteChecks:
    """Answers on their way from the device, oldest first."""

    pending: deque[tuple[int, Tensor, torch.cuda.Event | None]] = field(default_factory=deque)

    def add(self, step: int, is_finite: Tensor) -> None:
        """Send for the answer of the update after `step` windows, a boolean on the device."""
        if is_finite.is_cuda:
            answer = torch.empty((), dtype=torch.bool, pin_memory=True).copy_(is_finite, non_blocking=True)
            event = torch.cuda.Event()
            event.record()
            self.pending.append((step, answer, event))
        else:
            self.pending.append((step, is_finite, None))

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
