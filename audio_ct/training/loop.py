"""Training, in the order in which it happens.

A step is one window of every lane: read, forward, backward. Parameters are updated every `update_every` steps.
Checkpoints stand between updates, so that no gradient is lost, and hold all that the next step depends on: a resumed
run goes on bit for bit on the CPU with the same number of threads.
"""

import logging
import math
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType
from typing import Any

import torch
from torch import Tensor

from audio_ct import __version__
from audio_ct.errors import DamagedError, InputError, MissingError, NotFiniteError
from audio_ct.evaluation.likelihood import choose_recordings, likelihood
from audio_ct.models.interface import State, TokenModel, num_parameters, select_lanes
from audio_ct.pretrained import choose_device
from audio_ct.provenance import commit
from audio_ct.recipe import Recipe, build_model, flat, parse_recipe
from audio_ct.sampling.compiled import can_compile
from audio_ct.sampling.engine import EngineOptions
from audio_ct.sampling.filters import Filters
from audio_ct.sampling.writing import write_byte_samples, write_samples
from audio_ct.tokens.clip import open_corpus
from audio_ct.tokens.encoding import unit
from audio_ct.tokens.store import TokenStore
from audio_ct.tokens.streams import Streams
from audio_ct.training import checkpoint
from audio_ct.training.finite import FiniteChecks
from audio_ct.training.optimizer import clip_gradients, learning_rate, make_optimizer, update_every
from audio_ct.training.progress import Progress
from audio_ct.training.tracking import Tracker

logger = logging.getLogger("audio_ct")

# What a resumed run may change: nothing that the next window depends on, except how long the run is.
RESUME_MAY_CHANGE = {
    "name",
    "corpus.store",
    "evaluation",
    "sampling",
    "tracking",
    "training.max_tokens",
    "training.log_every_windows",
    "training.evaluate_every_windows",
    "training.checkpoint_every_windows",
    "training.sample_every_windows",
    "training.recompute_activations",
}


def train(recipe: Recipe, run_folder: Path, *, resume: bool = False) -> Path:
    """Train a recipe's model and return its last checkpoint.

    Args:
        recipe: what to do.
        run_folder: gets recipe.yaml, metrics.jsonl, checkpoints/ and samples/.
        resume: go on from the newest whole checkpoint of run_folder, or from the start where it has none.

    Raises:
        InputError: if the folder already holds a run, or the resumed run's recipe or corpus is another.
        NotFiniteError: after too many losses or gradients in a row that are not finite.
        KeyboardInterrupt: after SIGINT or SIGTERM, once a checkpoint is written; a second signal stops at once.
    """
    if recipe.training.num_threads:
        torch.set_num_threads(recipe.training.num_threads)
    run = _begin(recipe, run_folder, resume)
    status = "FAILED"
    try:
        with _signals() as stop, Progress(recipe.name, run.num_steps, run.step, run.tokens_per_step) as progress:
            forward = torch.compile(run.model) if recipe.training.compile else run.model
            # Never leave between two updates: the gradient so far would be in no checkpoint.
            while not run.between_updates or (run.step < run.num_steps and not stop.is_set()):
                began = time.perf_counter()
                window = run.streams.window(run.step)
                if window.fresh.any():
                    run.state = select_lanes(_on_device(window.fresh, run.device), run.initial_state, run.state)
                inputs, targets = (_on_device(tokens, run.device) for tokens in (window.inputs, window.targets))

                run.model.train()
                with torch.autocast(run.device.type, run.precision, enabled=run.precision != torch.float32):
                    output = forward(inputs, run.state)
                loss = run.model.nats(output.logits, targets).mean()
                every = update_every(recipe.training.update_every, run.step)
                total = loss + sum(output.auxiliary_losses.values())
                run.scaler.scale(total / every).backward()
                run.state = output.state
                run.meter.add({"loss_nats": loss, **output.auxiliary_losses})

                run.step += 1
                run.between_updates = run.step % every == 0
                if run.between_updates:
                    _update(run)
                is_logged = run.step % recipe.training.log_every_windows == 0
                if is_logged:
                    # Here a GPU is waited for: what it has not done yet is part of the time.
                    _settle(run, all_of_them=True)
                run.seconds += time.perf_counter() - began
                if is_logged:
                    progress.show(run.step, _log(run))
                if run.between_updates and not stop.is_set():
                    _occasionally(run, is_last=False)
                progress.advance(run.step)
        if run.step < run.num_steps:
            # Whoever sent the signal may not wait: no validation and no samples before the checkpoint.
            if run.saved_at < run.step:
                _save(run)
        else:
            _occasionally(run, is_last=True)
        if stop.is_set():
            status = "KILLED"
            raise KeyboardInterrupt
        status = "FINISHED"
    finally:
        run.tracker.close(status)
    return checkpoint.find(run_folder, "newest")


@dataclass
class _Meter:
    """Sums of what is logged, kept on the device so that adding never waits for it."""

    sums: dict[str, Tensor] = field(default_factory=dict)
    count: int = 0

    def add(self, values: dict[str, Tensor]) -> None:
        for name, value in values.items():
            self.sums[name] = self.sums.get(name, 0.0) + value.detach().double()
        self.count += 1

    def means(self) -> dict[str, float]:
        return {name: float(total) / self.count for name, total in self.sums.items()}


@dataclass
class _Run:
    """All that a run needs and changes."""

    recipe: Recipe
    folder: Path
    device: torch.device
    precision: torch.dtype
    store: TokenStore
    streams: Streams
    model: TokenModel
    optimizer: torch.optim.AdamW
    scaler: torch.amp.GradScaler
    initial_state: State
    state: State
    tracker: Tracker
    step: int = 0
    not_finite: int = 0
    not_finite_in_a_row: int = 0
    seconds: float = 0.0
    between_updates: bool = True
    gradient_norm: Tensor = field(default_factory=lambda: torch.tensor(math.nan))
    checks: FiniteChecks = field(default_factory=lambda: FiniteChecks())
    meter: _Meter = field(default_factory=_Meter)
    saved_at: int = -1
    evaluated_at: int = -1
    sampled_at: int = -1
    validation_bits: float | None = None

    @property
    def tokens_per_step(self) -> int:
        return self.recipe.training.tokens_per_step

    @property
    def num_steps(self) -> int:
        return self.recipe.training.num_steps

    @property
    def tokens_per_second(self) -> float | None:
        return self.step * self.tokens_per_step / self.seconds if self.seconds else None


def _begin(recipe: Recipe, folder: Path, resume: bool) -> _Run:
    """Return a run at its start or, resumed, where its newest checkpoint stands."""
    loaded = _newest_checkpoint(folder, resume)
    store = open_corpus(recipe.corpus.store, recipe.corpus.clip_seconds)
    store.verify()
    if store.encoding == "bytes" and recipe.model.linear_prediction is not None:
        raise InputError(
            f"model.linear_prediction predicts a waveform, and corpus.store={recipe.corpus.store!r} holds bytes; leave "
            "it out (--set model.linear_prediction=null)."
        )
    if store.encoding == "bytes" and recipe.model.output == "mixture_of_logistics":
        raise InputError(
            f"model.output='mixture_of_logistics' is about amplitudes, and corpus.store={recipe.corpus.store!r} holds "
            "bytes; use softmax (--set model.output=softmax)."
        )
    if loaded is not None:
        _check_same_run(recipe, store, loaded)
    device = choose_device()
    training = recipe.training
    if training.sample_every_windows and recipe.sampling.compiled and not can_compile(device):
        raise InputError("sampling.compiled=True: there is no compiler here; install g++, or set it to false.")
    streams = Streams(
        store,
        "train",
        num_lanes=training.batch_size,
        window_length=training.window_length,
        seed=recipe.seed,
        reset_every_windows=training.reset_every_windows,
        start_token=store.start_token,
    )
    torch.manual_seed(recipe.seed)
    model = build_model(recipe.model, store.vocabulary_size).to(device)
    model.recompute_activations = training.recompute_activations
    initial = model.initial_state(training.batch_size, device)
    run = _Run(
        recipe=recipe,
        folder=folder,
        device=device,
        precision=getattr(torch, training.precision),
        store=store,
        streams=streams,
        model=model,
        optimizer=make_optimizer(model, recipe.optimizer),
        scaler=torch.amp.GradScaler(device.type, enabled=training.precision == "float16"),
        initial_state=initial,
        state=initial,
        tracker=Tracker(
            folder,
            experiment=recipe.tracking.experiment,
            run_name=recipe.name,
            uri=recipe.tracking.uri,
            enabled=recipe.tracking.enabled,
            resume_step=(loaded.manifest.step if loaded else 0) if resume else None,
            parent_run_id=recipe.tracking.parent_run_id,
        ),
    )
    (folder / "recipe.yaml").write_text(recipe.to_yaml(), encoding="utf-8")
    if loaded is not None:
        _restore(run, loaded)
    _describe(run)
    return run


def _newest_checkpoint(folder: Path, resume: bool) -> checkpoint.Checkpoint | None:
    has_checkpoints = (folder / "checkpoints").is_dir() and any((folder / "checkpoints").glob("step-*"))
    if not resume:
        if has_checkpoints:
            raise InputError(f"--run-dir {str(folder)!r} already holds a run; add --resume or name another folder.")
        return None
    if not folder.is_dir():
        raise MissingError(f"--run-dir {str(folder)!r} is not there, so nothing can be resumed; leave out --resume.")
    return checkpoint.load(checkpoint.find(folder, "newest")) if has_checkpoints else None


def refuse_other_recipe(recipe: Recipe, path: Path, trained_by: str) -> None:
    """Raise InputError unless a recipe may go on from a checkpoint.

    Args:
        recipe: of the resumed run.
        path: the checkpoint, for the message.
        trained_by: the text of the recipe that it was trained by.
    """
    old, new = (flat(one.model_dump()) for one in (parse_recipe(trained_by, name=str(path)), recipe))
    for key in sorted(old | new):
        if old.get(key) != new.get(key) and not any(
            key == may or key.startswith(f"{may}.") for may in RESUME_MAY_CHANGE
        ):
            raise InputError(
                f"{key}={new.get(key)!r} was {old.get(key)!r} in {path}; a resumed run must not change it."
            )


def _check_same_run(recipe: Recipe, store: TokenStore, loaded: checkpoint.Checkpoint) -> None:
    refuse_other_recipe(recipe, loaded.path, loaded.recipe)
    if store.digest != loaded.manifest.store_digest:
        raise InputError(
            f"corpus.store={str(store.path)!r} is not the store that {loaded.path} was trained on; name that one."
        )


def _restore(run: _Run, loaded: checkpoint.Checkpoint) -> None:
    assert loaded.training is not None
    assert loaded.state is not None
    training = loaded.training
    try:
        run.model.load_state_dict(loaded.weights)
        run.optimizer.load_state_dict(training["optimizer"])
        run.scaler.load_state_dict(training["scaler"])
        torch.set_rng_state(training["random_cpu"])
        if training["random_cuda"] is not None and run.device.type == "cuda":
            torch.cuda.set_rng_state(training["random_cuda"])
        run.meter.sums = {name: value.to(run.device) for name, value in training["meter_sums"].items()}
        run.meter.count = training["meter_count"]
        run.not_finite, run.seconds = training["not_finite"], training["seconds"]
        run.not_finite_in_a_row = training["not_finite_in_a_row"]
        run.gradient_norm = torch.tensor(training["gradient_norm"])
    except (KeyError, RuntimeError, ValueError) as error:
        raise DamagedError(
            f"{loaded.path}: does not fit its own recipe: {' '.join(str(error).split())[:200]}"
        ) from error
    run.state = {name: tensor.to(run.device) for name, tensor in loaded.state.items()}
    # Before it was saved, all that was due at this step had been done: the next time is as in an unbroken run.
    run.step = run.saved_at = run.evaluated_at = run.sampled_at = loaded.manifest.step
    run.validation_bits = loaded.manifest.validation_bits_per_sample
    logger.info("resumed from %s at step %d", loaded.path, run.step)


def _describe(run: _Run) -> None:
    """Tell the tracker what this run is."""
    run.tracker.log_parameters(
        flat(run.recipe.model_dump()) | {"parameters": num_parameters(run.model), "device": run.device.type}
    )
    run.tracker.set_tags({"commit": commit() or "unknown", "version": __version__})
    run.tracker.log_dataset(run.store.path.name, run.store.digest, str(run.store.path))
    run.tracker.log_artifact(run.folder / "recipe.yaml")


def _update(run: _Run) -> None:
    """Clip and step; a gradient that is not finite leaves the parameters as they are. A GPU is not waited for."""
    run.scaler.unscale_(run.optimizer)
    norms = torch.stack(clip_gradients(run.model, run.recipe.training.gradient_clip_norm))
    run.gradient_norm = norms[0]
    is_finite = norms.isfinite().all()
    rate = learning_rate(run.recipe.optimizer, run.step - 1, run.num_steps)
    for group in run.optimizer.param_groups:
        group["lr"] = rate
    # What torch's own gradient scaler tells a fused optimiser: where it is 1, the step does nothing.
    run.optimizer.found_inf = 1 - is_finite.float()  # type: ignore[attr-defined]
    run.optimizer.step()
    run.scaler.update()
    run.optimizer.zero_grad(set_to_none=True)
    run.checks.add(run.step, is_finite)
    _reset_spoilt_lanes(run, is_finite)
    _settle(run, all_of_them=False)


def _reset_spoilt_lanes(run: _Run, is_finite: Tensor) -> None:
    """Reset lanes whose state is not finite, if the update was not; on a GPU without asking whether it was."""
    if not is_finite.is_cuda and is_finite:
        return
    lanes = [tensor.isfinite().unsqueeze(-1).flatten(1).all(dim=1) for tensor in run.state.values()]
    run.state = select_lanes(torch.stack(lanes).all(dim=0) | is_finite, run.state, run.initial_state)


def _settle(run: _Run, *, all_of_them: bool) -> None:
    """Count the updates that were not finite; too many in a row stop the run."""
    for step, is_finite in run.checks.settled(all_of_them=all_of_them):
        if is_finite:
            run.not_finite_in_a_row = 0
            continue
        run.not_finite += 1
        run.not_finite_in_a_row += 1
        run.meter = _Meter()
        if run.not_finite_in_a_row >= run.recipe.training.max_not_finite:
            names = ", ".join(sorted(set(run.streams.recordings_at(step - 1))))
            raise NotFiniteError(
                f"loss or gradient not finite in {run.not_finite_in_a_row} updates in a row, last at step {step - 1} "
                f"on recordings {names[:300]}; lower optimizer.learning_rate={run.recipe.optimizer.learning_rate} or "
                "use training.precision=bfloat16. The last checkpoint is intact."
            )


def _on_device(tokens: Tensor, device: torch.device) -> Tensor:
    """Return tokens on the device; they travel to a GPU while it works."""
    return tokens.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else tokens


def _log(run: _Run) -> dict[str, float | None]:
    """Record the means since the last log and return them."""
    means = run.meter.means() if run.meter.count else {}
    run.meter = _Meter()
    nats = means.pop("loss_nats", None)
    metrics: dict[str, float | None] = {
        "training_bits_per_sample": None if nats is None else nats / math.log(2),
        **means,
        "gradient_norm": float(run.gradient_norm),
        "learning_rate": run.optimizer.param_groups[0]["lr"],
        "tokens_per_second": run.tokens_per_second,
        "updates_not_finite": float(run.not_finite),
    }
    run.tracker.log_metrics(metrics, step=run.step, tokens=run.step * run.tokens_per_step)
    return metrics


def _occasionally(run: _Run, is_last: bool) -> None:
    """Validate, make samples and write a checkpoint, each when its time has come, all at the end."""
    training = run.recipe.training

    def due(every: int, done_at: int) -> bool:
        return run.step > max(done_at, 0) and (is_last or run.step // every > max(done_at, 0) // every)

    if due(training.evaluate_every_windows, run.evaluated_at):
        run.evaluated_at = run.step
        run.validation_bits = _validate(run)
    if due(training.checkpoint_every_windows, run.saved_at):
        run.saved_at = run.step
        _save(run)
    # Last, so that nothing is lost where it fails.
    if training.sample_every_windows and due(training.sample_every_windows, run.sampled_at):
        run.sampled_at = run.step
        _sample(run)


def _validate(run: _Run) -> float:
    evaluation = run.recipe.evaluation
    result = likelihood(
        run.model,
        run.store,
        "validation",
        choose_recordings(run.store, "validation", evaluation.max_validation_tokens),
        start_token=run.store.start_token,
        batch_size=evaluation.batch_size,
        window_length=evaluation.window_length,
        cold_start_samples=evaluation.cold_start_samples,
        device=run.device,
        precision=run.precision,
    )
    metrics = {
        "validation_bits_per_sample": result.bits_per_sample,
        "validation_cold_start_bits_per_sample": result.cold_start_bits_per_sample,
        "validation_tokens_per_second": result.tokens_per_second,
    }
    run.tracker.log_metrics(metrics, step=run.step, tokens=run.step * run.tokens_per_step)
    logger.info("step %d: validation %.4f bits per %s", run.step, result.bits_per_sample, unit(run.store.encoding))
    return result.bits_per_sample


def _sample(run: _Run) -> None:
    sampling = run.recipe.sampling
    settings: dict[str, Any] = {
        "stem": f"step-{run.step:08d}",
        "filters": Filters(temperature=sampling.temperature),
        "options": EngineOptions(compiled=sampling.compiled),
        "seed": run.recipe.seed,
        "device": run.device,
        "about": {"recipe": run.recipe.name, "step": run.step},
        "overwrite": True,
    }
    folder = run.folder / "samples"
    if run.store.sample_rate_hz is None:
        texts = write_byte_samples(
            run.model, folder, num_files=sampling.num_samples, num_bytes=sampling.num_bytes, **settings
        )
        paths = [text.path for text in texts]
    else:
        samples = write_samples(
            run.model,
            folder,
            sample_rate_hz=run.store.sample_rate_hz,
            bits=run.store.bits,
            num_waveforms=sampling.num_samples,
            seconds=sampling.seconds,
            spectrograms=True,
            **settings,
        )
        paths = [path for sample in samples for path in (sample.path, sample.spectrogram) if path is not None]
    for path in paths:
        run.tracker.log_artifact(path, "samples")


def _save(run: _Run) -> None:
    _settle(run, all_of_them=True)
    path = checkpoint.save(
        run.folder / "checkpoints",
        step=run.step,
        weights=run.model.state_dict(),
        state=run.state,
        training={
            "optimizer": run.optimizer.state_dict(),
            "scaler": run.scaler.state_dict(),
            "random_cpu": torch.get_rng_state(),
            "random_cuda": torch.cuda.get_rng_state() if run.device.type == "cuda" else None,
            "meter_sums": run.meter.sums,
            "meter_count": run.meter.count,
            "not_finite": run.not_finite,
            "not_finite_in_a_row": run.not_finite_in_a_row,
            "gradient_norm": float(run.gradient_norm),
            "seconds": run.seconds,
        },
        recipe=run.recipe.to_yaml(),
        manifest={
            "tokens": run.step * run.tokens_per_step,
            "metrics": {
                "validation_bits_per_sample": _validated(run),
                "training_tokens_per_second": run.tokens_per_second,
            },
            "model": {
                "kind": run.recipe.model.kind,
                "parameters": num_parameters(run.model),
                "vocabulary_size": run.store.vocabulary_size,
                "encoding": run.store.encoding,
                "bits": run.store.bits,
                "sample_rate_hz": run.store.sample_rate_hz,
            },
            "store_digest": run.store.digest,
            "commit": commit(),
            "version": __version__,
        },
    )
    logger.info("step %d: wrote %s", run.step, path)


def _validated(run: _Run) -> float | None:
    """Return the validation bits at this very step, None where there are none or they are not finite."""
    bits = run.validation_bits if run.evaluated_at == run.step else None
    return bits if bits is not None and math.isfinite(bits) else None


@contextmanager
def _signals() -> Iterator[threading.Event]:
    """Set an event at the first SIGINT or SIGTERM; the second has its usual effect."""
    stop = threading.Event()
    if threading.current_thread() is not threading.main_thread():
        yield stop
        return
    old = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}

    def request(number: int, frame: FrameType | None) -> None:
        stop.set()
        for each, handler in old.items():
            signal.signal(each, handler)
        logger.warning("stopping after this window and a checkpoint; signal again to stop at once")

    for number in old:
        signal.signal(number, request)
    try:
        yield stop
    finally:
        for number, handler in old.items():
            signal.signal(number, handler)
