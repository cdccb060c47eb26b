"""Setting a run up from its recipe, at its start or where its newest checkpoint stands."""

import logging
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path

import torch

from audio_ct.device import emulates_bfloat16
from audio_ct.durable import write_whole
from audio_ct.errors import InputError, MissingError
from audio_ct.locks import hold
from audio_ct.models.build import build_model
from audio_ct.models.footprint import outline, refuse_too_large
from audio_ct.models.token_model import num_parameters
from audio_ct.provenance import NOTE_TAG, source_tags
from audio_ct.recipe import Recipe, flat, parse_recipe, refuse_passwords
from audio_ct.storage import is_remote
from audio_ct.tokens.clip import find_again, open_corpus
from audio_ct.tokens.store import TokenStore
from audio_ct.tokens.streams import Streams
from audio_ct.training.averaging import averaged
from audio_ct.training.figures import Figures
from audio_ct.training.optimizer import make_optimizer
from audio_ct.training.processes import Processes
from audio_ct.training.run import Lanes, Run, newest_checkpoint, restore, training_bytes
from audio_ct.training.tracking import Tracker

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
    "training.shard_optimizer",
    "training.timeout_seconds",
)


logger = logging.getLogger("audio_ct")


def hold_run(folder: Path, processes: Processes, *, resume: bool) -> AbstractContextManager[int | None]:
    """Make a run's folder where it is missing, and let no other process train there but those of the run.

    Raises:
        InputError: if another process does, or the folder cannot be written.
        MissingError: if there is nothing to resume.
    """
    if not processes.is_first:
        return nullcontext()
    option = f"--run-dir {str(folder)!r}"
    if resume and not folder.is_dir():
        raise MissingError(f"{option} is not there, so nothing can be resumed; leave out --resume.")
    return hold(folder, name=option)


def begin(recipe: Recipe, folder: Path, processes: Processes, *, resume: bool) -> Run:
    """Set a run up at its start or, resumed, where its newest checkpoint stands. Nothing is written.

    Raises:
        InputError: if the folder already holds a run, the resumed run's recipe or corpus is another, an address in the
            recipe holds a password, the lanes cannot be split over the processes, or the model does not fit into
            memory.
        DamagedError: if the checkpoint does not fit its recipe.
    """
    refuse_passwords(recipe)
    own_lanes = processes.own_lanes(recipe.training.batch_size)
    loaded = newest_checkpoint(folder, processes, resume=resume)
    address = recipe.corpus.store
    if loaded is not None:
        address = find_again(address, digest=loaded.manifest.store_digest, checkpoint=loaded.path)
    store = open_corpus(address, recipe.corpus.clip_seconds, cache_gib=recipe.corpus.cache_gib)
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
    training, device = recipe.training, processes.device
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
        own_lanes=own_lanes,
    )
    refuse_too_large(training_bytes(outline(recipe.model, store.vocabulary_size), training, processes), device)
    torch.manual_seed(recipe.seed)
    model = build_model(recipe.model, store.vocabulary_size).to(device)
    model.recompute_activations = training.recompute_activations
    initial_state = model.initial_state(len(own_lanes), device)
    run = Run(
        recipe=recipe,
        folder=folder,
        store=store,
        model=model,
        optimizer=make_optimizer(model, recipe.optimizer, sharded=training.shard_optimizer and processes.size > 1),
        scaler=torch.amp.GradScaler(device.type, enabled=training.precision == "float16"),
        lanes=Lanes(streams, initial_state, initial_state, device),
        processes=processes,
        figures=Figures(
            learning_rate=recipe.optimizer.learning_rate, typical_norm=torch.tensor(torch.nan, device=device)
        ),
        average=averaged(model, training.average_decay) if training.average_decay else None,
    )
    if loaded is not None:
        restore(run, loaded)
    return run


def track(run: Run, *, resume: bool) -> AbstractContextManager[Tracker | None]:
    """Open the run's record and describe the run to mlflow; the folder gets the resolved recipe.

    Only the first process of a run has a record.

    Raises:
        InputError: if the folder has a record and the run is not resumed.
        AudioCTError: if it cannot be written to.
    """
    if not run.processes.is_first:
        return nullcontext()
    recipe = run.recipe
    tracker = Tracker(run.folder, recipe.tracking, run_name=recipe.name, resume_step=run.step if resume else None)
    write_whole(run.folder / "recipe.yaml", recipe.to_yaml().encode())
    tracker.log_parameters(
        flat(recipe.model_dump())
        | {
            "parameters": num_parameters(run.model),
            "device": run.lanes.device.type,
            "processes": run.processes.size,
        }
    )
    tracker.set_tags(source_tags("audio-ct train") | {NOTE_TAG: _description(run)})
    tracker.log_dataset(run.store.name, run.store.digest, run.store.address)
    tracker.log_artifact(run.folder / "recipe.yaml")
    return tracker


def _description(run: Run) -> str:
    """A run in a sentence, for mlflow's page of it."""
    recipe, codec = run.recipe, run.store.codec
    rate = "" if codec.sample_rate_hz is None else f" at {codec.sample_rate_hz:,} Hz"
    return (
        f"{recipe.model.kind.replace('_', ' ')} of {num_parameters(run.model):,} parameters, to learn "
        f"{recipe.training.max_tokens:,} {codec.unit}s of {run.store.name}{rate}, seed {recipe.seed}."
    )


def refuse_other_recipe(recipe: Recipe, path: Path, trained_by: str) -> None:
    """Raise InputError unless a run may go on from the checkpoint at `path`, whose recipe's text is `trained_by`."""
    old, new = flat(parse_recipe(trained_by, name=str(path)).model_dump()), flat(recipe.model_dump())
    for key in sorted(old | new):
        may_change = any(key == name or key.startswith(f"{name}.") for name in RESUME_MAY_CHANGE)
        if old.get(key) != new.get(key) and not may_change:
            raise InputError(
                f"{key}={new.get(key)!r} was {old.get(key)!r} in {path}; a resumed run must not change it."
            )


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
