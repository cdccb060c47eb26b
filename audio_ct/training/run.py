"""A training run: all that its next step depends on, written to checkpoints, and restored from one bit for bit."""

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor
from torch.optim.swa_utils import AveragedModel

from audio_ct import __version__, checkpoint
from audio_ct.checkpoint import Checkpoint
from audio_ct.device import memory_bytes
from audio_ct.errors import AudioCTError, DamagedError, InputError
from audio_ct.models.footprint import GIB, least_bytes
from audio_ct.models.stage import State, flatten, map_state, select_lanes
from audio_ct.models.token_model import TokenModel, all_finite, num_parameters
from audio_ct.provenance import commit
from audio_ct.recipe import Recipe, TrainingRecipe
from audio_ct.tokens.store import TokenStore
from audio_ct.tokens.streams import Streams
from audio_ct.training.figures import Figures, to_tensor
from audio_ct.training.optimizer import Verdicts, load_whole_state, whole_state
from audio_ct.training.processes import Processes

logger = logging.getLogger("audio_ct")

# Of each parameter: itself, its gradient, and AdamW's two running means.
COPIES = 4


@dataclass
class Lanes:
    """The streams that this process reads side by side, and what each carries from window to window."""

    streams: Streams
    initial_state: State
    state: State
    device: torch.device

    def read(self, step: int) -> tuple[Tensor, Tensor]:
        """Read the window of a step, inputs and targets [lanes, window_length]; lanes that are due start afresh."""
        window = self.streams.window(step)
        if window.fresh.any():
            self.state = select_lanes(self._sent(window.fresh), self.initial_state, self.state)
        return self._sent(window.inputs), self._sent(window.targets)

    def reset(self) -> None:
        """Start all lanes afresh, wherever they stand."""
        self.state = self.initial_state

    def reset_spoilt(self, is_finite: Tensor) -> None:
        """Reset lanes whose state is not finite, if an update was not; a GPU is not asked whether it was."""
        if not is_finite.is_cuda and is_finite:
            return
        sound = [tensor.isfinite().unsqueeze(-1).flatten(1).all(dim=1) for tensor in flatten(self.state).values()]
        self.state = select_lanes(torch.stack(sound).all(dim=0) | is_finite, self.state, self.initial_state)

    def _sent(self, tensor: Tensor) -> Tensor:
        """Send a tensor to the device; it travels to a GPU while that works."""
        return tensor.pin_memory().to(self.device, non_blocking=True) if self.device.type == "cuda" else tensor


@dataclass
class Run:
    """A run in the middle of its training.

    Attributes:
        average: of the weights, where the recipe wants one.
        step: windows trained so far.
        saved_at: the step of the newest checkpoint; -1 before the first.
        is_validated: false where the checkpoint that the run goes on from has no validation.
    """

    recipe: Recipe
    folder: Path
    store: TokenStore
    model: TokenModel
    optimizer: torch.optim.Optimizer
    scaler: torch.amp.GradScaler
    lanes: Lanes
    processes: Processes
    figures: Figures = field(default_factory=Figures)
    verdicts: Verdicts = field(default_factory=Verdicts)
    average: AveragedModel | None = None
    step: int = 0
    saved_at: int = -1
    is_validated: bool = True

    @property
    def published(self) -> TokenModel:
        """The model that is validated, sampled from and published: the average where there is one."""
        if self.average is None:
            return self.model
        assert isinstance(self.average.module, TokenModel)
        return self.average.module

    @property
    def is_done(self) -> bool:
        """True once all windows were trained."""
        return self.step >= self.recipe.training.num_steps

    @property
    def tokens(self) -> int:
        """Samples trained so far, over all lanes."""
        return self.step * self.recipe.training.tokens_per_step

    @property
    def tokens_per_second(self) -> float | None:
        """Samples trained per second of the wall clock, without validation, sampling and checkpoints."""
        return self.tokens / self.figures.seconds if self.figures.seconds else None


def training_bytes(model: TokenModel, training: TrainingRecipe, processes: Processes) -> dict[str, int]:
    """Count the memory that training takes at the least in one of its processes, by parts; see `least_bytes`.

    Args:
        model: its outline.
        training: the recipe's section.
        processes: of the run.
    """
    is_sharded = training.shard_optimizer and processes.size > 1
    return least_bytes(
        model,
        batch_size=len(processes.own_lanes(training.batch_size)),
        window_length=training.window_length,
        copies=COPIES - 2 * is_sharded + (training.average_decay > 0),
        activation_bytes=0 if training.recompute_activations else getattr(torch, training.precision).itemsize,
    )


def save(run: Run, validation_bits: float | None = None) -> None:
    """Write a checkpoint of a run that stands between two updates, all of its verdicts taken; each process calls it.

    `validation_bits` are bits per sample at this very step, if they were measured.
    """
    processes, figures = run.processes, run.figures
    state = processes.all_lanes(run.lanes.state)
    optimizer = whole_state(run.optimizer, processes)
    # From here on all have the mean over the processes, as those have that resume from it.
    figures.sums = processes.means(figures.sums)
    if processes.is_first:
        _write(run, state, optimizer, validation_bits)
    run.saved_at = run.step
    # Nobody goes on, or ends, before it is written.
    processes.wait_for_all()


def _write(run: Run, state: State, optimizer: dict[int, State], validation_bits: float | None) -> None:
    device, codec = run.lanes.device, run.store.codec
    # Nothing in training draws random numbers: all processes have those of the first.
    random = {"cpu": torch.get_rng_state()}
    if device.type == "cuda":
        random["cuda"] = torch.cuda.get_rng_state()
    averaging: State = {}
    if run.average is not None:
        # The weights that training goes on from; those of the checkpoint are the average. Dots would nest.
        own = {name.replace(".", "/"): tensor for name, tensor in run.model.state_dict().items()}
        averaging = {"own_weights": own, "num_averaged": run.average.n_averaged}
    path = checkpoint.save(
        run.folder / "checkpoints",
        step=run.step,
        weights=run.published.state_dict(),
        state=state,
        training={
            # Learning rate and weight decay of the parameter groups are the recipe's.
            "optimizer": {str(index): entries for index, entries in optimizer.items()},
            "scaler": {name: to_tensor(value) for name, value in run.scaler.state_dict().items()},
            "random": random,
            "figures": run.figures.to_tensors(),
            **averaging,
        },
        recipe=run.recipe.to_yaml(),
        manifest={
            "tokens": run.tokens,
            "metrics": {
                "validation_bits_per_sample": validation_bits,
                "training_tokens_per_second": run.tokens_per_second,
            },
            "model": {
                "kind": run.recipe.model.kind,
                "parameters": num_parameters(run.model),
                "vocabulary_size": codec.vocabulary_size,
                "encoding": codec.encoding,
                "bits": codec.bits,
                "sample_rate_hz": codec.sample_rate_hz,
            },
            "store_digest": run.store.digest,
            "commit": commit(),
            "version": __version__,
        },
    )
    logger.info("step %d: wrote %s", run.step, path)


def roll_back(run: Run) -> None:
    """Take weights and optimizer back to the newest checkpoint; training goes on with the windows that come next.

    Raises:
        MissingError: if there is no whole checkpoint.
    """
    loaded = newest_checkpoint(run.folder, run.processes, resume=True)
    assert loaded is not None
    _restore_weights(run, loaded)
    run.lanes.reset()
    run.figures.start_sums()
    logger.warning("step %d: rolled back to the weights of %s", run.step, loaded.path)


@contextmanager
def memory_explained(run: Run) -> Iterator[None]:
    """Turn running out of memory into one line that says what took it and what to change.

    Raises:
        AudioCTError: in its place.
    """
    try:
        yield
    except RuntimeError as error:
        # The allocator of the CPU has no error of its own.
        if not isinstance(error, torch.OutOfMemoryError) and "DefaultCPUAllocator" not in str(error):
            raise
        device, training = run.lanes.device, run.recipe.training
        kept = COPIES * sum(parameter.nbytes for parameter in run.model.parameters()) / GIB
        in_use = f", {torch.cuda.max_memory_allocated(device) / GIB:,.1f} in use" if device.type == "cuda" else ""
        fewer = max(1, training.batch_size // 2)
        raise AudioCTError(
            f"{device} is out of memory at step {run.step}: {memory_bytes(device) / GIB:,.1f} GiB{in_use}, weights, "
            f"gradients and optimizer {kept:,.1f}; the rest grows with training.batch_size={training.batch_size} and "
            f"training.window_length={training.window_length}; try batch_size={fewer}, or "
            "training.recompute_activations=true. Checkpoints are intact."
        ) from error


def newest_checkpoint(folder: Path, processes: Processes, *, resume: bool) -> Checkpoint | None:
    """Load a resumed run's newest whole checkpoint; the same in all processes."""
    has_checkpoints = (folder / "checkpoints").is_dir() and any((folder / "checkpoints").glob("step-*"))
    if has_checkpoints and not resume:
        raise InputError(f"--run-dir {str(folder)!r} already holds a run; add --resume or name another folder.")
    loaded = checkpoint.load(checkpoint.find(folder, "newest")) if has_checkpoints else None
    step = -1 if loaded is None else loaded.manifest.step
    if (first := processes.from_first(step)) != step:
        raise InputError(
            f"--run-dir {str(folder)!r} has its newest checkpoint at step {step} for process {processes.rank}, at step "
            f"{first} for the first; it must be one folder that all machines see."
        )
    return loaded


def restore(run: Run, loaded: Checkpoint) -> None:
    """Put a run where a checkpoint stands, made by as many processes or by others.

    Raises:
        DamagedError: if it does not fit its own recipe.
    """
    assert loaded.training is not None
    assert loaded.state is not None
    training, lanes = loaded.training, run.lanes
    _restore_weights(run, loaded)
    with _fitting(loaded):
        torch.set_rng_state(training["random"]["cpu"])
        if "cuda" in training["random"] and lanes.device.type == "cuda":
            torch.cuda.set_rng_state(training["random"]["cuda"])
        run.figures = Figures.from_tensors(training["figures"], lanes.device)
        num_lanes, own = run.recipe.training.batch_size, run.processes.own_lanes(run.recipe.training.batch_size)
        if any(len(tensor) != num_lanes for tensor in flatten(loaded.state).values()):
            raise ValueError("there are other lanes")
        state = map_state(lambda tensor: tensor[own.start : own.stop].to(lanes.device), loaded.state)
        if _layout(lanes.state) != _layout(state):
            raise ValueError("lanes carry other tensors")
        lanes.state = state
    run.step = run.saved_at = loaded.manifest.step
    run.is_validated = loaded.manifest.validation_bits_per_sample is not None
    logger.info("resumed from %s at step %d", loaded.path, run.step)


def _restore_weights(run: Run, loaded: Checkpoint) -> None:
    """Load weights, their average, and what the optimizer and the gradient scaler know."""
    assert loaded.training is not None
    training = loaded.training
    with _fitting(loaded):
        run.published.load_state_dict(loaded.weights)
        if run.average is not None:
            run.average.n_averaged.copy_(training["num_averaged"])
            own = {name.replace("/", "."): tensor for name, tensor in training["own_weights"].items()}
            run.model.load_state_dict(own)
        if not (all_finite(run.published) and all_finite(run.model)):
            raise ValueError("weights are not finite")
        entries = {int(index): dict(values) for index, values in training.get("optimizer", {}).items()}
        load_whole_state(run.optimizer, entries)
        run.scaler.load_state_dict({name: value.item() for name, value in training.get("scaler", {}).items()})


@contextmanager
def _fitting(loaded: Checkpoint) -> Iterator[None]:
    """Turn what torch raises for tensors of another run into one line."""
    try:
        yield
    except (AttributeError, KeyError, RuntimeError, TypeError, ValueError) as error:
        raise DamagedError(
            f"{loaded.path}: does not fit its own recipe: {' '.join(str(error).split())[:200]}"
        ) from error


def _layout(state: State) -> dict[str, tuple[torch.Size, torch.dtype]]:
    return {name: (tensor.shape, tensor.dtype) for name, tensor in flatten(state).items()}
