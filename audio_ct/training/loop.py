"""Training, in the order in which it happens.

A step is one window of every lane: read, forward, backward. Parameters are updated every `update_every` steps.
Checkpoints stand between updates, so that no gradient is lost, and hold all that the next step depends on: a resumed
run goes on bit for bit on the CPU with the same number of threads and processes.

Started by torchrun, each process trains its share of the lanes, and all of them take every step here together.
"""

import logging
import math
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import cast

import torch
from torch import nn

from audio_ct import checkpoint
from audio_ct.device import used_bytes
from audio_ct.errors import NotFiniteError
from audio_ct.models.footprint import GIB
from audio_ct.models.token_model import TokenModel, all_finite
from audio_ct.progress import Progress
from audio_ct.recipe import Recipe
from audio_ct.signals import stop_on_signals
from audio_ct.tokens.store import TokenStore
from audio_ct.training.optimizer import Verdict, clip_gradients, judged, learning_rate, own_share, update_every
from audio_ct.training.processes import open_processes
from audio_ct.training.run import Run, memory_explained, roll_back, save
from audio_ct.training.setup import begin, hold_run, track
from audio_ct.training.tracking import Tracker

Validate = Callable[[Recipe, TokenModel, TokenStore], dict[str, float | None]]
MakeSamples = Callable[[Recipe, TokenModel, TokenStore, int, Path], list[Path]]

STOPPING = "stopping after this window and a checkpoint; signal again to stop at once"

logger = logging.getLogger("audio_ct")


def train(
    recipe: Recipe, run_folder: Path, *, resume: bool = False, validate: Validate, make_samples: MakeSamples
) -> Path:
    """Train a recipe's model and return its last checkpoint.

    Args:
        recipe: what to do.
        run_folder: gets recipe.yaml, metrics.jsonl, checkpoints/ and samples/.
        resume: go on from the newest whole checkpoint of run_folder, or from the start where it has none.
        validate: measures figures by name for the record, validation_bits_per_sample among them.
        make_samples: writes samples of a model at a step to a folder and lists the files, for the tracker.

    Raises:
        InputError: if the folder already holds a run, another process trains there, the resumed run's recipe or corpus
            is another, or the model does not fit into memory.
        MissingError: if there is nothing to resume.
        AudioCTError: if memory runs out, or another process of the run has ended or hangs.
        NotFiniteError: after too many losses or gradients in a row that are not finite, or where parameters or
            validation are not; no checkpoint is made of them.
        KeyboardInterrupt: after SIGINT or SIGTERM, once a checkpoint is written; a second signal stops at once.
    """
    training = recipe.training
    if training.num_threads:
        torch.set_num_threads(training.num_threads)
    precision = getattr(torch, training.precision)
    with (
        open_processes(training.timeout_seconds) as processes,
        hold_run(run_folder, processes, resume=resume),
        track(run := begin(recipe, run_folder, processes, resume=resume), resume=resume) as tracker,
        stop_on_signals(STOPPING, after_first="restore") as stop,
        Progress(recipe.name, training.num_steps, unit="steps", done=run.step, shown=processes.is_first) as progress,
        memory_explained(run),
    ):
        model, lanes, figures = run.model, run.lanes, run.figures
        # One machine may take minutes longer to get here than another.
        processes.wait_for_all()
        forward = processes.data_parallel(compiled_for_training(model) if training.compile else model)
        # Where a signal stopped the run, a validation that was due has not been made.
        if not run.is_validated and _is_due(training.evaluate_every_windows, run, since=_updated_before(run)):
            _save(run, _validate(run, tracker, validate))
        is_stopped = False
        while not run.is_done and not is_stopped:
            updated_at, every = run.step, update_every(training.update_every, run.step)
            # Never left between these windows: the gradient so far would be in no checkpoint.
            for num_windows in range(1, every + 1):
                began = time.perf_counter()
                inputs, targets = lanes.read(run.step)
                model.train()
                with processes.accumulating(forward, is_last=num_windows == every):
                    with torch.autocast(lanes.device.type, precision, enabled=precision != torch.float32):
                        output = forward(inputs, lanes.state)
                    loss = model.head.nats(output.logits, targets).mean()
                    total = loss + sum(output.auxiliary_losses.values())
                    run.scaler.scale(total / every).backward()
                lanes.state = output.state
                figures.add({"loss_nats": loss, **output.auxiliary_losses})
                run.step += 1
                if num_windows == every:
                    _update(run)
                is_logged = run.step % training.log_every_windows == 0
                if is_logged:
                    # Here a GPU is waited for: what it has not done yet is part of the time.
                    _settle(run, all_of_them=True)
                figures.add_seconds(time.perf_counter() - began)
                if is_logged:
                    _log(run, tracker, progress)
                progress.update(run.step)

            # Whoever sent a signal may not wait: no validation and no samples before the checkpoint.
            is_stopped = processes.any_process(stop.asked > 0)
            if is_stopped and not run.is_done:
                break
            validation_bits = None
            if _is_due(training.evaluate_every_windows, run, since=updated_at):
                validation_bits = _validate(run, tracker, validate)
            if _is_due(training.checkpoint_every_windows, run, since=updated_at):
                _save(run, validation_bits)
            # After the checkpoint: one that is due is on disk before sampling can fail.
            if _is_due(training.sample_every_windows, run, since=updated_at):
                if tracker is not None:
                    logger.info("step %d: making samples", run.step)
                    for path in make_samples(recipe, run.published, run.store, run.step, run_folder / "samples"):
                        tracker.log_artifact(path, "samples")
                processes.wait_for_all()
        if is_stopped or processes.any_process(stop.asked > 0):
            if run.saved_at < run.step:
                _save(run)
            raise KeyboardInterrupt
    return checkpoint.find(run_folder, "newest")


def compiled_for_training(model: TokenModel) -> nn.Module:
    """Compile a model whose gradients are then computed in the types that they have without compilation."""
    # By default the backward pass is compiled as if it stood under autocast too; private, but the only place to say so.
    torch._functorch.config.backward_pass_autocast = "off"  # noqa: S105
    return cast(nn.Module, torch.compile(model))


def _update(run: Run) -> None:
    """Clip and step; a gradient not finite, or a spike, leaves the parameters as they are. A GPU is not waited for."""
    training, figures = run.recipe.training, run.figures
    run.scaler.unscale_(run.optimizer)
    norms = torch.stack(clip_gradients(run.model, training.gradient_clip_norm))
    figures.gradient_norm = norms[0]
    verdict, figures.typical_norm = judged(norms, figures.typical_norm, spike_factor=training.skip_spikes_above)
    figures.learning_rate = learning_rate(run.recipe.optimizer, run.step - 1, training.num_steps)
    for group in run.optimizer.param_groups:
        group["lr"] = figures.learning_rate * group["rate_ratio"]
    # The attribute by which torch's own gradient scaler tells a fused optimizer to do nothing: there it is 1.
    own_share(run.optimizer).found_inf = (verdict != Verdict.TAKEN).float()  # type: ignore[attr-defined]
    run.optimizer.step()
    if run.average is not None:
        run.average.update_parameters(run.model)
    run.scaler.update()
    run.optimizer.zero_grad(set_to_none=True)
    run.verdicts.add(run.step, verdict)
    run.lanes.reset_spoilt(verdict != Verdict.NOT_FINITE)
    _settle(run, all_of_them=False)


def _settle(run: Run, *, all_of_them: bool) -> None:
    """Count the updates that were left out; many in a row roll back or stop the run, as does a parameter not finite."""
    training, figures = run.recipe.training, run.figures
    for step, verdict in run.verdicts.settled(all_of_them=all_of_them):
        if verdict == Verdict.TAKEN:
            figures.left_out_in_a_row = 0
            continue
        figures.left_out_in_a_row += 1
        if verdict == Verdict.SPIKE:
            figures.spikes += 1
        else:
            figures.not_finite += 1
            figures.start_sums()
        if figures.left_out_in_a_row == training.roll_back_after and run.saved_at >= 0:
            roll_back(run)
        elif figures.left_out_in_a_row >= training.max_not_finite:
            names = ", ".join(sorted(set(run.lanes.streams.recordings_at(step - 1))))
            what = "a spike" if verdict == Verdict.SPIKE else "not finite"
            raise NotFiniteError(
                f"loss or gradient {what} in {figures.left_out_in_a_row} updates in a row, last at step "
                f"{step - 1} on recordings {names[:300]}; lower optimizer.learning_rate="
                f"{run.recipe.optimizer.learning_rate} or use training.precision=bfloat16. Checkpoints are "
                "intact."
            )
    # A gradient may be finite and the update that it leads to beyond all numbers; asking makes a GPU wait.
    if all_of_them and not all_finite(run.model):
        raise _diverged(run, "parameters are")


def _diverged(run: Run, what_is: str) -> NotFiniteError:
    optimizer = run.recipe.optimizer
    return NotFiniteError(
        f"{what_is} not finite at step {run.step}; lower optimizer.learning_rate={optimizer.learning_rate} or "
        f"optimizer.weight_decay={optimizer.weight_decay}. Checkpoints are intact."
    )


def _log(run: Run, tracker: Tracker | None, progress: Progress) -> None:
    """Record the means since the last log and show them."""
    training, figures = run.recipe.training, run.figures
    figures.sums = run.processes.means(figures.sums)
    means, seconds = figures.means(), figures.seconds_of_sums
    # Of these windows, not of the whole run: what it is now is what tells how much time is left.
    speed = figures.num_windows * training.tokens_per_step / seconds if seconds else None
    figures.start_sums()
    nats = means.pop("loss_nats", None)
    rate_hz = run.store.codec.sample_rate_hz
    metrics = {
        "training_bits_per_sample": None if nats is None else nats / math.log(2),
        **means,
        "gradient_norm": float(figures.gradient_norm),
        "learning_rate": figures.learning_rate,
        "tokens_per_second": speed,
        **({} if rate_hz is None else {"times_real_time": speed and speed / rate_hz}),
        "memory_bytes": float(used_bytes(run.lanes.device)),
        "updates_not_finite": float(figures.not_finite),
        "updates_of_spikes": float(figures.spikes),
    }
    if tracker is not None:
        tracker.log_metrics(metrics, step=run.step, tokens=run.tokens)
    status = _status(metrics)
    progress.update(run.step, status)
    left = (training.num_steps - run.step) * training.tokens_per_step / speed if speed else 0.0
    progress.line(f"{run.recipe.name}: step {run.step}/{training.num_steps} · {status} · {left / 60:.1f} min left")


def _status(metrics: Mapping[str, float | None]) -> str:
    """The figures of a log in a line."""
    bits, speed, real_time = (
        metrics.get(name) for name in ("training_bits_per_sample", "tokens_per_second", "times_real_time")
    )
    parts = [
        "not finite" if bits is None else f"{bits:.3f} bits",
        f"gradient {metrics['gradient_norm']:.3g}",
        "" if speed is None else f"{speed:,.0f} tokens/s",
        "" if real_time is None else f"{real_time:.2f} x real time",
        f"{(metrics['memory_bytes'] or 0) / GIB:.1f} GiB",
    ]
    return " · ".join(part for part in parts if part)


def _is_due(every_windows: int, run: Run, *, since: int) -> bool:
    """True where a multiple of `every_windows` came after a step, or the run is done; never for 0."""
    return every_windows > 0 and (run.is_done or run.step // every_windows > since // every_windows)


def _updated_before(run: Run) -> int:
    """The step of the update before the last one."""
    return run.step - update_every(run.recipe.training.update_every, run.step - 1)


def _validate(run: Run, tracker: Tracker | None, validate: Validate) -> float | None:
    """Measure the figures of validation, which the first process does for all."""
    _settle(run, all_of_them=True)
    metrics = {} if tracker is None else validate(run.recipe, run.published, run.store)
    bits = metrics.get("validation_bits_per_sample")
    if bits is not None and not math.isfinite(bits):
        raise _diverged(run, f"validation_bits_per_sample={bits} is")
    if tracker is not None:
        tracker.log_metrics(metrics, step=run.step, tokens=run.tokens)
        logger.info("step %d: validation %.4f bits per %s", run.step, bits, run.store.codec.unit)
    run.processes.wait_for_all()
    return bits


def _save(run: Run, validation_bits: float | None = None) -> None:
    _settle(run, all_of_them=True)
    save(run, validation_bits)
