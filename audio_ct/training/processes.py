"""The processes of one run: which this is, what each of them does, and what they tell each other.

`torchrun` starts them, one a GPU, and sets WORLD_SIZE, RANK and LOCAL_RANK in the environment of each; without it there
is one. The lanes are split evenly; gradients are averaged by torch's `DistributedDataParallel`. The first process alone
writes: the record, checkpoints, samples and lines on the terminal.

Source: Li et al. 2020, "PyTorch Distributed: Experiences on Accelerating Data Parallel Training".
"""

import logging
import math
import os
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from audio_ct.device import choose_device
from audio_ct.errors import AudioCTError, InputError
from audio_ct.models.stage import State, flatten, unflatten

# The others wait so long for what the first process does alone: validation, samples, a checkpoint.
ALONE = timedelta(days=1)

logger = logging.getLogger("audio_ct")


@dataclass(frozen=True)
class Processes:
    """This process among those of the run; with one, every method is the identity and nothing is sent.

    Attributes:
        rank: of this process; 0 writes.
        size: how many there are.
        device: of this process.
        words: the group in which short messages pass, on the CPU: a GPU is not waited for.
        patient: the same for what the first process does alone.
    """

    rank: int
    size: int
    device: torch.device
    words: Any = None
    patient: Any = None

    @property
    def is_first(self) -> bool:
        """True in the process that writes."""
        return self.rank == 0

    def share(self, num_lanes: int) -> range:
        """The lanes of this process; raise InputError where they cannot be split evenly."""
        if num_lanes % self.size:
            raise InputError(
                f"training.batch_size={num_lanes} must be a multiple of the {self.size} processes, which share its "
                f"lanes evenly; try {math.ceil(num_lanes / self.size) * self.size}."
            )
        each = num_lanes // self.size
        return range(self.rank * each, (self.rank + 1) * each)

    def averaging(self, forward: Callable[..., Any]) -> Callable[..., Any]:
        """A model's forward that leaves gradients averaged over the processes after a backward pass."""
        if self.size == 1:
            return forward
        assert isinstance(forward, nn.Module)
        averaging = DistributedDataParallel(
            forward,
            device_ids=[self.device.index] if self.device.type == "cuda" else None,
            gradient_as_bucket_view=True,
        )
        # Buffers are constants. Not as an argument, whose name depends on torch's version.
        averaging.broadcast_buffers = False
        return averaging

    def adding_up(self, forward: Callable[..., Any], *, is_last: bool) -> AbstractContextManager[None]:
        """In it, gradients are only added up, and not averaged, but for the last window of an update."""
        return nullcontext() if self.size == 1 or is_last else forward.no_sync()  # type: ignore[attr-defined]

    def any(self, is_so: bool) -> bool:
        """True in every process if it is so in one of them."""
        if self.size == 1:
            return is_so
        found = torch.tensor(int(is_so))
        dist.all_reduce(found, dist.ReduceOp.MAX, group=self.words)
        return bool(found)

    def means(self, values: dict[str, Tensor]) -> dict[str, Tensor]:
        """The means of numbers that each process has under the same names."""
        if self.size == 1 or not values:
            return values
        found = torch.stack(list(values.values())).cpu()
        dist.all_reduce(found, group=self.words)
        return dict(zip(values, (found / self.size).to(self.device), strict=True))

    def of_first(self, number: int) -> int:
        """The number that the first process has; the others wait for it."""
        if self.size == 1:
            return number
        found = torch.tensor(number)
        dist.broadcast(found, 0, group=self.patient)
        return int(found)

    def wait_for_first(self) -> None:
        """Come here when the first process does, which may have worked alone."""
        self.of_first(0)

    def all_lanes(self, state: State) -> State:
        """In the first process the state of all lanes, in their order; elsewhere the own one."""
        return state if self.size == 1 else unflatten({name: self._all_rows(t) for name, t in flatten(state).items()})

    def _all_rows(self, tensor: Tensor) -> Tensor:
        own = tensor.cpu().contiguous()
        if not own.numel():
            return own.new_empty(len(own) * self.size, *own.shape[1:])
        # As bytes: not every type of number can be sent.
        raw = own.flatten().view(torch.uint8)
        rows = [torch.empty_like(raw) for _ in range(self.size)] if self.is_first else None
        dist.gather(raw, rows, group=self.words)
        return own if rows is None else torch.cat(rows).view(own.dtype).view(-1, *own.shape[1:])


@contextmanager
def open_processes(timeout_seconds: float) -> Iterator[Processes]:
    """Meet the other processes of the run, for the length of a `with` block.

    Args:
        timeout_seconds: how long one waits for the others' part of a window.

    Raises:
        InputError: if this machine has fewer GPUs than processes.
        AudioCTError: if another process has ended, or has not answered for so long.
    """
    rank, size = (int(os.environ.get(name, default)) for name, default in (("RANK", "0"), ("WORLD_SIZE", "1")))
    device = choose_device()
    if size == 1:
        yield Processes(0, 1, device)
        return
    if device.type == "cuda":
        device = torch.device("cuda", int(os.environ["LOCAL_RANK"]))
        if device.index >= torch.cuda.device_count():
            raise InputError(
                f"torchrun --nproc-per-node: process {device.index} of this machine has no GPU of its own, there are "
                f"{torch.cuda.device_count()}; start as many processes."
            )
        torch.cuda.set_device(device)
    level, timeout = logger.level, timedelta(seconds=timeout_seconds)
    try:
        store, *_ = next(dist.rendezvous("env://", timeout=timeout))
        # Restarted by torchrun, the store may still have the addresses of processes that are gone.
        store = dist.PrefixStore(f"attempt {os.environ.get('TORCHELASTIC_RESTART_COUNT', 0)}", store)
        dist.init_process_group(
            "nccl" if device.type == "cuda" else "gloo", store=store, rank=rank, world_size=size, timeout=timeout
        )
        words = dist.new_group(backend="gloo", timeout=timeout)
        patient = dist.new_group(backend="gloo", timeout=ALONE)
        if rank > 0:
            # What all of them would say, the first one says.
            logger.setLevel(logging.ERROR)
        yield Processes(rank, size, device, words, patient)
    except RuntimeError as error:
        if not _is_of_another(error):
            raise
        raise AudioCTError(
            f"process {rank} of {size}: another process has ended or did not answer within "
            f"training.timeout_seconds={timeout_seconds:g}; checkpoints are intact, go on with --resume."
        ) from error
    finally:
        logger.setLevel(level)
        if dist.is_initialized():
            dist.destroy_process_group()


def _is_of_another(error: RuntimeError) -> bool:
    """True for what torch raises when another process is gone or silent; gloo's errors have no class of their own."""
    return isinstance(error, dist.DistError) or "gloo" in str(error)
