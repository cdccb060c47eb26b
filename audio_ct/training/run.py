"""A training run: set up from a recipe, written to checkpoints, and restored from one bit for bit."""

import logging
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor
from torch.optim.swa_utils import AveragedModel

from audio_ct import __version__, checkpoint
from audio_ct.checkpoint import Checkpoint
from audio_ct.device import choose_device, emulates_bfloat16
from audio_ct.errors import DamagedError, InputError, MissingError
from audio_ct.locks import hold
from audio_ct.models.build import build_model
from audio_ct.models.footprint import least_bytes, outline, refuse_too_large
from audio_ct.models.stage import State, flatten, map_state, select_lanes
from audio_ct.models.token_model import TokenModel, all_finite, num_parameters
from audio_ct.provenance import commit
from audio_ct.recipe import Recipe, flat, parse_recipe, refuse_passwords
from audio_ct.storage import is_remote
from audio_ct.tokens.clip import open_corpus
from audio_ct.tokens.store import TokenStore
from audio_ct.tokens.streams import Streams
from audio_ct.training.averaging import averaged
from audio_ct.training.figures import Figures, to_tensor
from audio_ct.training.optimizer import FiniteChecks, make_optimizer
from audio_ct.training.tracking import Tracker

logger = logging.getLogger("audio_ct")

# The keys that a resumed run may change: nothing that the next window depends on, except how long the run is.
RESUME_MAY_CHANGE = (
    "name",
    "corpus.store",
    "corpus.cache_gib",
    "evaluation",
    "sampling",
    "tracking",
    "training.max_tokens",
    "training.log_every_windows",
    "training.evaluate_every_windows",
    "training.checkpoint_every_windows",
    "training.sample_every_windows",
    "training.recompute_activations",
)

# Of each parameter: itself, its gradient, and AdamW's two running means.
COPIES = 4


@dataclass
class Lanes:
    """The streams that are read side by side, and what each carries from window to window."""

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
    """

    recipe: Recipe
    folder: Path
    store: TokenStore
    model: TokenModel
    optimizer: torch.optim.AdamW
    scaler: torch.amp.GradScaler
    lanes: Lanes
    figures: Figures = field(default_factory=Figures)
    checks: FiniteChecks = field(default_factory=FiniteChecks)
    average: AveragedModel | None = None
    step: int = 0
    saved_at: int = -1

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


def hold_run(folder: Path, *, resume: bool) -> AbstractContextManager[int]:
    """Make a run's folder where it is missing, and let no other process train there.

    Raises:
        InputError: if another process does, or the folder cannot be written.
        MissingError: if there is nothing to resume.
    """
    option = f"--run-dir {str(folder)!r}"
    if resume and not folder.is_dir():
        raise MissingError(f"{option} is not there, so nothing can be resumed; leave out --resume.")
    return hold(folder, name=option)


def begin(recipe: Recipe, folder: Path, *, resume: bool) -> Run:
    """Set a run up at its start or, resumed, where its newest checkpoint stands. Nothing is written.

    Raises:
        InputError: if the folder already holds a run, the resumed run's recipe or corpus is another, an address in the
            recipe holds a password, or the model does not fit into memory.
        DamagedError: if the checkpoint does not fit its recipe.
    """
    refuse_passwords(recipe)
    loaded = _newest_checkpoint(folder, resume)
    store = open_corpus(recipe.corpus.store, recipe.corpus.clip_seconds, cache_gib=recipe.corpus.cache_gib)
    # What is elsewhere is verified shard by shard, as it is fetched.
    if not is_remote(recipe.corpus.store):
        store.verify()
    _refuse_waveform_parts_for_bytes(recipe, store)
    if loaded is not None:
        refuse_other_recipe(recipe, loaded.path, loaded.recipe)
        if store.digest != loaded.manifest.store_digest:
            raise InputError(
                f"corpus.store={store.address!r} is not the store that {loaded.path} was trained on; name that one."
            )
    for warning in store.warnings:
        logger.warning("%s: %s", store.name, warning)
    training, device = recipe.training, choose_device()
    if training.precision == "bfloat16" and device.type == "cpu" and emulates_bfloat16():
        logger.warning(
            "training.precision=bfloat16: this CPU has no bfloat16 instructions and emulates them, some 50 times "
            "slower than float32; use training.precision=float32"
        )
    streams = Streams(
        store,
        "train",
        num_lanes=training.batch_size,
        window_length=training.window_length,
        seed=recipe.seed,
        reset_every_windows=training.reset_every_windows,
    )
    _refuse_too_large(recipe, store.vocabulary_size, device)
    torch.manual_seed(recipe.seed)
    model = build_model(recipe.model, store.vocabulary_size).to(device)
    model.recompute_activations = training.recompute_activations
    initial_state = model.initial_state(training.batch_size, device)
    run = Run(
        recipe=recipe,
        folder=folder,
        store=store,
        model=model,
        optimizer=make_optimizer(model, recipe.optimizer),
        scaler=torch.amp.GradScaler(device.type, enabled=training.precision == "float16"),
        lanes=Lanes(streams, initial_state, initial_state, device),
        figures=Figures(learning_rate=recipe.optimizer.learning_rate),
        average=averaged(model, training.average_decay) if training.average_decay else None,
    )
    if loaded is not None:
        _restore(run, loaded)
    return run


def track(run: Run, *, resume: bool) -> Tracker:
    """Open the run's record and describe the run to mlflow; the folder gets the resolved recipe.

    Raises:
        InputError: if the folder has a record and the run is not resumed.
        AudioCTError: if it cannot be written to.
    """
    recipe = run.recipe
    tracker = Tracker(run.folder, recipe.tracking, run_name=recipe.name, resume_step=run.step if resume else None)
    (run.folder / "recipe.yaml").write_text(recipe.to_yaml(), encoding="utf-8")
    tracker.log_parameters(
        flat(recipe.model_dump()) | {"parameters": num_parameters(run.model), "device": run.lanes.device.type}
    )
    tracker.set_tags({"commit": commit() or "unknown", "version": __version__})
    tracker.log_dataset(run.store.name, run.store.digest, run.store.address)
    tracker.log_artifact(run.folder / "recipe.yaml")
    return tracker


def save(run: Run, validation_bits: float | None = None) -> None:
    """Write a checkpoint of a run that stands between two updates, all answers of its `checks` taken.

    `validation_bits` are bits per sample at this very step, if they were measured.
    """
    device, codec = run.lanes.device, run.store.codec
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
        state=run.lanes.state,
        training={
            # Learning rate and weight decay of the parameter groups are the recipe's.
            "optimizer": {str(index): entries for index, entries in run.optimizer.state_dict()["state"].items()},
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
    run.saved_at = run.step
    logger.info("step %d: wrote %s", run.step, path)


def refuse_other_recipe(recipe: Recipe, path: Path, trained_by: str) -> None:
    """Raise InputError unless a run may go on from the checkpoint at `path`, whose recipe's text is `trained_by`."""
    old, new = flat(parse_recipe(trained_by, name=str(path)).model_dump()), flat(recipe.model_dump())
    for key in sorted(old | new):
        may_change = any(key == name or key.startswith(f"{name}.") for name in RESUME_MAY_CHANGE)
        if old.get(key) != new.get(key) and not may_change:
            raise InputError(
                f"{key}={new.get(key)!r} was {old.get(key)!r} in {path}; a resumed run must not change it."
            )


def _newest_checkpoint(folder: Path, resume: bool) -> Checkpoint | None:
    has_checkpoints = (folder / "checkpoints").is_dir() and any((folder / "checkpoints").glob("step-*"))
    if not resume:
        if has_checkpoints:
            raise InputError(f"--run-dir {str(folder)!r} already holds a run; add --resume or name another folder.")
        return None
    return checkpoint.load(checkpoint.find(folder, "newest")) if has_checkpoints else None


def _refuse_waveform_parts_for_bytes(recipe: Recipe, store: TokenStore) -> None:
    if store.codec.encoding != "bytes":
        return
    if recipe.model.linear_prediction is not None:
        raise InputError(
            f"model.linear_prediction predicts a waveform, and corpus.store={recipe.corpus.store!r} holds bytes; leave "
            "it out (--set model.linear_prediction=null)."
        )
    if recipe.model.output == "mixture_of_logistics":
        raise InputError(
            f"model.output='mixture_of_logistics' is about amplitudes, and corpus.store={recipe.corpus.store!r} holds "
            "bytes; use softmax (--set model.output=softmax)."
        )


def _refuse_too_large(recipe: Recipe, vocabulary_size: int, device: torch.device) -> None:
    training = recipe.training
    parts = least_bytes(
        outline(recipe.model, vocabulary_size),
        batch_size=training.batch_size,
        window_length=training.window_length,
        copies=COPIES + (training.average_decay > 0),
        activation_bytes=0 if training.recompute_activations else getattr(torch, training.precision).itemsize,
    )
    refuse_too_large(parts, device)


def _restore(run: Run, loaded: Checkpoint) -> None:
    assert loaded.training is not None
    assert loaded.state is not None
    training, lanes = loaded.training, run.lanes
    try:
        run.published.load_state_dict(loaded.weights)
        if run.average is not None:
            run.average.n_averaged.copy_(training["num_averaged"])
            own = {name.replace("/", "."): tensor for name, tensor in training["own_weights"].items()}
            run.model.load_state_dict(own)
        if not (all_finite(run.published) and all_finite(run.model)):
            raise ValueError("weights are not finite")
        entries = {int(index): dict(values) for index, values in training.get("optimizer", {}).items()}
        groups = run.optimizer.state_dict()["param_groups"]
        run.optimizer.load_state_dict({"state": entries, "param_groups": groups})
        run.scaler.load_state_dict({name: value.item() for name, value in training.get("scaler", {}).items()})
        torch.set_rng_state(training["random"]["cpu"])
        if "cuda" in training["random"] and lanes.device.type == "cuda":
            torch.cuda.set_rng_state(training["random"]["cuda"])
        run.figures = Figures.from_tensors(training["figures"], lanes.device)
        if _layout(lanes.state) != _layout(loaded.state):
            raise ValueError("lanes carry other tensors")
        for parameter, moments in run.optimizer.state.items():
            if any(moments[name].shape != parameter.shape for name in ("exp_avg", "exp_avg_sq")):
                raise ValueError("the optimizer's running means are of other parameters")
        lanes.state = map_state(lambda tensor: tensor.to(lanes.device), loaded.state)
    except (AttributeError, KeyError, RuntimeError, TypeError, ValueError) as error:
        raise DamagedError(
            f"{loaded.path}: does not fit its own recipe: {' '.join(str(error).split())[:200]}"
        ) from error
    run.step = run.saved_at = loaded.manifest.step
    logger.info("resumed from %s at step %d", loaded.path, run.step)


def _layout(state: State) -> dict[str, tuple[torch.Size, torch.dtype]]:
    return {name: (tensor.shape, tensor.dtype) for name, tensor in flatten(state).items()}
