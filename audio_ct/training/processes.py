"""The processes of one run: which this is, what each of them does, and what they tell each other.

`torchrun` starts them, one a GPU. The lanes are split evenly; gradients are averaged by torch's
`DistributedDataParallel`. The first process alone writes: the record, checkpoints, samples and lines on the terminal.

Source: Li et al. 2020, "PyTorch Distributed: Experiences on Accelerating Data Parallel Training".
"""

import logging
import math
import os
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from datetime import timedelta

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from audio_ct.device import choose_device
from audio_ct.errors import AudioCTError, InputError
from audio_ct.launch import num_processes, rank
from audio_ct.models.stage import State, flatten, unflatten

# The others wait so long for what the first process does alone: validation, samples, a checkpoint.
PATIENT_TIMEOUT = timedelta(days=1)
# What AdamW keeps of a parameter, float32: two tensors of its shape, and a number.
MOMENTS = ("exp_avg", "exp_avg_sq", "step")

logger = logging.getLogger("audio_ct")


@dataclass(frozen=True)
class Processes:
    """This process among those of the run; with one, every method is the identity and nothing is sent.

    Attributes:
        rank: of this process; 0 writes.
        size: how many there are.
        device: of this process.
        cpu_group: in which short messages pass on the CPU, so that a GPU is not waited for.
        patient_group: the same with PATIENT_TIMEOUT.
    """

    rank: int
    size: int
    device: torch.device
    cpu_group: dist.ProcessGroup | None = None
    patient_group: dist.ProcessGroup | None = None

    @property
    def is_first(self) -> bool:
        """True in the process that writes."""
        return self.rank == 0

    def own_lanes(self, num_lanes: int) -> range:
        """The lanes of this process; raise InputError where they cannot be split evenly."""
        if num_lanes % self.size:
            raise InputError(
                f"training.batch_size={num_lanes} must be a multiple of the {self.size} processes, which share its "
                f"lanes evenly; try {math.ceil(num_lanes / self.size) * self.size}."
            )
        lanes_each = num_lanes // self.size
        return range(self.rank * lanes_each, (self.rank + 1) * lanes_each)

    def data_parallel(self, model: nn.Module) -> nn.Module:
        """A model whose gradients are averaged over the processes in each backward pass; see `accumulating`."""
        if self.size == 1:
            return model
        replica = DistributedDataParallel(
            model,
            device_ids=[self.device.index] if self.device.type == "cuda" else None,
            gradient_as_bucket_view=True,
        )
        # Buffers are constants. Not as an argument, whose name depends on torch's version.
        replica.broadcast_buffers = False
        return replica

    def accumulating(self, model: nn.Module, *, is_last: bool) -> AbstractContextManager[None]:
        """Skip averaging in the windows of an update that are not its last one."""
        if is_last or not isinstance(model, DistributedDataParallel):
            return nullcontext()
        return model.no_sync()

    def any_process(self, flag: bool) -> bool:
        """True in every process if the flag is set in one of them."""
        if self.size == 1:
            return flag
        found = torch.tensor(int(flag))
        dist.all_reduce(found, dist.ReduceOp.MAX, group=self.cpu_group)
        return bool(found)

    def means(self, values: dict[str, Tensor]) -> dict[str, Tensor]:
        """The means of numbers that each process has under the same names."""
        if self.size == 1 or not values:
            return values
        found = torch.stack(list(values.values())).cpu()
        dist.all_reduce(found, group=self.cpu_group)
        return dict(zip(values, (found / self.size).to(self.device), strict=True))

    def from_first(self, number: int) -> int:
        """The number that the first process has; the others wait for it."""
        if self.size == 1:
            return number
        found = torch.tensor(number)
        dist.broadcast(found, 0, group=self.patient_group)
        return int(found)

    def wait_for_all(self) -> None:
        """Wait until every process, the first one too, gets here, however long one works alone."""
        if self.size > 1:
            dist.all_reduce(torch.zeros(()), group=self.patient_group)

    def all_lanes(self, state: State) -> State:
        """In the first process the state of all lanes, in their order; elsewhere the own one."""
        return state if self.size == 1 else unflatten({name: self._all_rows(t) for name, t in flatten(state).items()})

    def collected(self, entries: Sequence[dict[str, Tensor]], shapes: Sequence[torch.Size]) -> list[dict[str, Tensor]]:
        """In the first process all entries of an optimizer's state, of which each process has some and others are {}.

        Entry i is of a parameter of the shape `shapes[i]`.
        """
        if self.size == 1:
            return list(entries)
        owners = torch.tensor([self.rank if entry else -1 for entry in entries])
        dist.all_reduce(owners, dist.ReduceOp.MAX, group=self.cpu_group)
        found = list(entries)
        for i, owner in enumerate(owners.tolist()):
            if owner > 0:
                found[i] = self._handed_over(entries[i], shapes[i], owner)
        return found

    def _handed_over(self, entry: dict[str, Tensor], shape: torch.Size, owner: int) -> dict[str, Tensor]:
        """Send an entry from its owner to the first process."""
        if self.rank == owner:
            for name in MOMENTS:
                dist.send(entry[name].cpu().contiguous(), 0, group=self.cpu_group)
        if not self.is_first:
            return entry
        received = {name: torch.empty(() if name == "step" else shape) for name in MOMENTS}
        for tensor in received.values():
            dist.recv(tensor, owner, group=self.cpu_group)
        return received

    def _all_rows(self, tensor: Tensor) -> Tensor:
        own = tensor.cpu().contiguous()
        if not own.numel():
            return own.new_empty(len(own) * self.size, *own.shape[1:])
        # As bytes: not every type of number can be sent.
        raw = own.flatten().view(torch.uint8)
        rows = [torch.empty_like(raw) for _ in range(self.size)] if self.is_first else None
        dist.gather(raw, rows, group=self.cpu_group)
        return own if rows is None else torch.cat(rows).view(own.dtype).view(-1, *own.shape[1:])


@contextmanager
def open_processes(timeout_seconds: float) -> Iterator[Processes]:
    """Meet the other processes of the run, for the length of a `with` block.

    Args:
        timeout_seconds: how long one waits for the others' part of a window.

    Raises:
        InputError: if this machine has fewer GPUs than processes, or the environment is not that of torchrun.
        AudioCTError: if another process has ended, or has not answered for so long.
    """
    device = choose_device()
    if num_processes() == 1:
        yield Processes(0, 1, device)
        return
    if device.type == "cuda":
        device = torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0")))
        if device.index >= torch.cuda.device_count():
            raise InputError(
                f"LOCAL_RANK={device.index}: this machine, or CUDA_VISIBLE_DEVICES, has {torch.cuda.device_count()} "
                "GPUs, and each process needs its own; start as many processes."
            )
        torch.cuda.set_device(device)
    level, timeout = logger.level, timedelta(seconds=timeout_seconds)
    try:
        try:
            store, *_ = next(dist.rendezvous("env://", timeout=timeout))
        except ValueError as error:
            raise InputError(
                f"WORLD_SIZE={num_processes()} is set, but not all that torchrun sets ({error}); start by torchrun, or "
                "unset WORLD_SIZE."
            ) from error
        # Restarted by torchrun, the store may still have the addresses of processes that are gone.
        store = dist.PrefixStore(f"attempt {os.environ.get('TORCHELASTIC_RESTART_COUNT', 0)}", store)
        backend = "nccl" if device.type == "cuda" else "gloo"
        dist.init_process_group(backend, store=store, rank=rank(), world_size=num_processes(), timeout=timeout)
        cpu_group = _gloo_group(timeout)
        patient_group = _gloo_group(PATIENT_TIMEOUT)
        if rank() > 0:
            # What all of them would say, the first one says.
            logger.setLevel(logging.ERROR)
        yield Processes(rank(), num_processes(), device, cpu_group, patient_group)
    except RuntimeError as error:
        if not _is_of_another(error):
            raise
        raise AudioCTError(
            "another process of the run has ended, as a line of its own says, or did not answer within training."
            f"timeout_seconds={timeout_seconds:g}; checkpoints are intact ({str(error).splitlines()[0][:200]})."
        ) from error
    finally:
        logger.setLevel(level)
        if dist.is_initialized():
            dist.destroy_process_group()


def _gloo_group(timeout: timedelta) -> dist.ProcessGroup:
    group = dist.new_group(backend="gloo", timeout=timeout)
    assert isinstance(group, dist.ProcessGroup)
    return group


def _is_of_another(error: RuntimeError) -> bool:
    """True for what torch raises when another process is gone or silent; gloo's errors have no class of their own."""
    return isinstance(error, dist.DistError) or "gloo" in str(error)
