"""Speed of training: tokens per second of our models and of the public packages, timed in turns.

    python -m benchmarks.train                  # recipes/small, and the trial beside the peers
    python -m benchmarks.train --parts --curves # how speed follows from batch, segment, memory and layers
    python -m benchmarks.train --parts paper --recipes recipes/paper        # on a GPU
    python -m benchmarks.train --parts prediction --recipes recipes/headline

A step is a window of every lane: forward, backward, clipping, update, on random tokens, with state carried, as the
recipe says (batch, window, precision, compilation). Peers train by their own loss on as many lanes and tokens. In
bfloat16 nothing is measured where the processor only emulates it.

Two counts of FLOPs are compared with the ceiling that matrix products reach here. `share` takes the textbook's: 6 for
each parameter but the embedding's, and 12 x layers x d_model for each key that a query sees; it doesn't depend on how
the model is written. `share counted` takes torch's count of one step: every matrix product that is really done,
projecting the memories anew and the attention-reconstruction loss included.
"""

import argparse
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from audio_ct.models.build import build_model
from audio_ct.models.settings import CompressiveTransformerSettings, TransformerXLSettings, WaveNetSettings
from audio_ct.models.token_model import TokenModel, num_parameters
from audio_ct.recipe import CorpusRecipe, OptimizerRecipe, Recipe, TrainingRecipe, load_recipe, parse_recipe
from audio_ct.studies.plan import BASE_FILE, StudyOptions, read_study
from audio_ct.training.loop import compiled_for_training
from audio_ct.training.optimizer import clip_gradients, make_optimizer
from benchmarks import measure, peers
from benchmarks.bars import judge, ratio
from benchmarks.measure import Build, Row, Timing

VOCABULARY_SIZE = 256
# 6.5 million parameters.
TRIAL_SIZES = {
    **{"num_layers": 6, "d_model": 256, "num_heads": 8, "segment_length": 256, "memory_length": 256},
    **{"compressed_memory_length": 256, "compression_rate": 4},
}
TRIAL_BATCH_SIZE = 4
CURVES: dict[str, tuple[tuple[str, ...], tuple[int, ...]]] = {
    "batch": (("training__batch_size",), (1, 2, 4, 8, 16)),
    "segment": (("model__segment_length", "training__window_length"), (64, 128, 256, 512, 1024)),
    "memory": (("model__memory_length",), (64, 256, 512, 1024, 2048)),
    "layers": (("model__num_layers",), (1, 2, 4, 8, 12)),
}
COLUMNS = {
    **{"name": "model", "parameters": "parameters", "batch_size": "batch", "window_length": "window"},
    **{"precision": "precision", "compiled": "compiled", "tokens_per_second": "tokens/s"},
    **{"share_of_ceiling": "share", "share_of_ceiling_counted": "share counted"},
}


def plain_recipe(sizes: dict[str, int], *, batch_size: int = 1, precision: str = "float32") -> Recipe:
    """A recipe for a Compressive Transformer of these sizes as the paper describes it, but pre-norm."""
    model = CompressiveTransformerSettings(d_ff=4 * sizes["d_model"], **sizes)
    training: Any = {"batch_size": batch_size, "window_length": model.segment_length, "precision": precision}
    return Recipe(
        name="trial",
        corpus=CorpusRecipe(store="none"),
        model=model,
        optimizer=OptimizerRecipe(learning_rate=3e-4),
        training=TrainingRecipe(max_tokens=1, **training),
    )


def changed(recipe: Recipe, **values: Any) -> Recipe:
    """Change values of a recipe, and check it; a key is written section__key."""
    changes = []
    for key, value in values.items():
        changes.append(f"{key.replace('__', '.')}={str(value).lower() if isinstance(value, bool) else value}")
    return parse_recipe(recipe.to_yaml(), changes)


def recipes_of(folder: Path) -> list[Recipe]:
    """Load the recipes of a folder, or the variants of a study under their names."""
    if (folder / BASE_FILE).is_file():
        variants = read_study(folder, folder, StudyOptions(seeds=(0,))).variants
        return [changed(variant.recipe, name=variant.name) for variant in variants]
    return [load_recipe(path) for path in sorted(folder.glob("*.yaml"))]


def without_linear_prediction(recipe: Recipe) -> Recipe:
    """The recipe of the network alone, which is what the peers have."""
    if recipe.model.linear_prediction is None:
        return recipe
    return changed(recipe, model__linear_prediction="null").model_copy(
        update={"name": f"{recipe.name} without linear prediction"}
    )


class Training:
    """One of our models in training, step for step as in `audio_ct.training.loop`; a call is a window of every lane."""

    def __init__(self, recipe: Recipe, device: torch.device) -> None:
        torch.manual_seed(0)
        training = recipe.training
        self.model = build_model(recipe.model, VOCABULARY_SIZE).to(device).train()
        self.model.recompute_activations = training.recompute_activations
        self.parameters = num_parameters(self.model)
        self.batch_size, self.window_length = training.batch_size, training.window_length
        self.precision, self.compiled = training.precision, training.compile
        self.flops_per_token = textbook_flops_per_token(recipe, self.model)
        self._clip_norm = training.gradient_clip_norm
        self._optimizer = make_optimizer(self.model, recipe.optimizer)
        self._scaler = torch.amp.GradScaler(device.type, enabled=self.precision == "float16")
        dtype = getattr(torch, self.precision)
        self._autocast = torch.autocast(device.type, dtype, enabled=dtype != torch.float32)
        self._forward: Any = compiled_for_training(self.model) if self.compiled else self.model
        self._state = self.model.initial_state(self.batch_size, device)
        self._tokens = torch.randint(0, VOCABULARY_SIZE, (self.batch_size, self.window_length + 1), device=device)

    def __call__(self) -> None:
        """Train on one window of every lane."""
        self._step(self._forward)

    def counted_flops_per_token(self) -> float:
        """Torch's count for one step that is not compiled."""
        with FlopCounterMode(display=False) as counter:
            self._step(self.model)
        return counter.get_total_flops() / (self.batch_size * self.window_length)

    def _step(self, forward: Any) -> None:
        with self._autocast:
            output = forward(self._tokens[:, :-1], self._state)
        loss = self.model.head.nats(output.logits, self._tokens[:, 1:]).mean()
        self._scaler.scale(loss + sum(output.auxiliary_losses.values())).backward()
        self._state = output.state
        self._scaler.unscale_(self._optimizer)
        clip_gradients(self.model, self._clip_norm)
        self._scaler.step(self._optimizer)
        self._scaler.update()
        self._optimizer.zero_grad(set_to_none=True)


class Predicting:
    """The linear prediction in a step of `Training`: predictors, pitch taps and what is fed to the network."""

    def __init__(self, recipe: Recipe, device: torch.device) -> None:
        torch.manual_seed(0)
        training = recipe.training
        model = build_model(recipe.model, VOCABULARY_SIZE).to(device)
        assert model.linear_prediction is not None
        self.parameters = num_parameters(model.linear_prediction)
        self.batch_size, self.window_length = training.batch_size, training.window_length
        self.precision, self.compiled = training.precision, training.compile
        self._predict: Any = torch.compile(model.linear_prediction) if training.compile else model.linear_prediction
        self._state = model.initial_state(self.batch_size, device)["linear_prediction"]
        self._tokens = torch.randint(0, VOCABULARY_SIZE, (self.batch_size, self.window_length), device=device)

    @torch.no_grad()
    def __call__(self) -> None:
        """Predict a window of every lane; of its gradient there is only that of one small matrix, left out."""
        self._predict(self._tokens, self._state)


def untaught(recipe: Recipe) -> Recipe:
    """The recipe without a compression loss: memory is compressed, but nothing teaches how."""
    return changed(recipe, model__compression__loss="none")


def textbook_flops_per_token(recipe: Recipe, model: TokenModel) -> float:
    """The textbook's FLOPs of forward and backward for a token (see the module)."""
    embedding = sum(num_parameters(module) for module in model.modules() if isinstance(module, nn.Embedding))
    flops = 6.0 * (num_parameters(model) - embedding)
    if isinstance(recipe.model, TransformerXLSettings | CompressiveTransformerSettings):
        past = recipe.model.memory_length + recipe.model.compressed_memory_length
        seen = past + (recipe.model.segment_length + 1) / 2
        flops += 12 * recipe.model.num_layers * recipe.model.d_model * seen
    return flops


def label(recipe: Recipe, *, reconstruction: bool = True) -> str:
    """The name of our model's row."""
    return recipe.name + " without reconstruction loss" * (not reconstruction) + " compiled" * recipe.training.compile


def peers_of(recipe: Recipe, device: torch.device) -> dict[str, Build]:
    """The public package of the same architecture and size in training, in every precision, by name."""
    training: type[peers.PeerTraining]
    if isinstance(recipe.model, WaveNetSettings):
        package, training = peers.WAVENET, peers.WaveNetTraining
    else:
        package, training = peers.COMPRESSIVE_TRANSFORMER, peers.CompressiveTransformerTraining
    return {
        f"{package} {precision}": partial(training, recipe, device, precision, VOCABULARY_SIZE)
        for precision in measure.precisions(device)
    }


def time_training(
    builds: dict[str, Build], device: torch.device, ceilings: Row, *, repeats: int, calls: int
) -> dict[str, Row]:
    """Time all in turns and return their rows, by name; a peer or compiled model that cannot run has a note of why."""
    # Compiled models of an earlier call count against the number that torch keeps of one function.
    torch.compiler.reset()
    may_fail = [
        name
        for name in builds
        if name.startswith((peers.COMPRESSIVE_TRANSFORMER, peers.WAVENET)) or name.endswith(" compiled")
    ]
    timings = measure.time_in_turns(builds, repeats=repeats, warm_up=3, calls=calls, may_fail=may_fail, device=device)
    return {name: _row(name, timing, ceilings) for name, timing in timings.items()}


def _row(name: str, timing: Timing, ceilings: Row) -> Row:
    subject = timing.subject
    if subject is None or timing.median_seconds is None:
        return {"name": name, "tokens_per_second": None, "note": timing.failure}
    tokens = subject.batch_size * subject.window_length
    row = {
        "name": name,
        "parameters": subject.parameters,
        "batch_size": subject.batch_size,
        "window_length": subject.window_length,
        "precision": subject.precision,
        "compiled": subject.compiled,
        "tokens_per_second": tokens / timing.median_seconds,
        "slowest_tokens_per_second": tokens / max(timing.seconds),
        "fastest_tokens_per_second": tokens / min(timing.seconds),
    }
    if getattr(subject, "part_size", subject.batch_size) != subject.batch_size:
        row["note"] = f"memory suffices for {subject.part_size} lanes at a time, so a batch goes in parts"
    if isinstance(subject, Training):
        ceiling = ceilings[f"{'float32' if subject.precision == 'float32' else 'bfloat16'}_flops_per_second"]
        for suffix, flops in {"": subject.flops_per_token, "_counted": subject.counted_flops_per_token()}.items():
            row[f"flops_per_token{suffix}"] = flops
            row[f"flops_per_second{suffix}"] = flops * row["tokens_per_second"]
            row[f"share_of_ceiling{suffix}"] = flops * row["tokens_per_second"] / ceiling
    return row


def reconstruction_share(rows: dict[str, Row], recipe: Recipe) -> float | None:
    """Print and return the attention-reconstruction loss's share of a step; None if it was not measured."""
    speeds = [rows[label(recipe, reconstruction=with_it)]["tokens_per_second"] for with_it in (True, False)]
    if None in speeds:
        return None
    share = 1 - speeds[0] / speeds[1]
    print(f"  The attention-reconstruction loss takes {share:.1%} of a step.")
    return share


def train_recipes(recipes: Sequence[Recipe], device: torch.device, ceilings: Row, *, repeats: int, calls: int) -> Row:
    """Measure the speed of every recipe's model as it stands, and of the public WaveNet beside ours."""
    builds: dict[str, Build] = {}
    for recipe in recipes:
        builds[label(recipe)] = partial(Training, recipe, device)
        if isinstance(recipe.model, WaveNetSettings):
            bare = without_linear_prediction(recipe)
            builds |= {label(bare): partial(Training, bare, device)} | peers_of(bare, device)
    rows = time_training(builds, device, ceilings, repeats=repeats, calls=calls)
    measure.show("Training, as the recipes say", list(rows.values()), COLUMNS)
    return {"rows": list(rows.values()), "bars": []}


def train_trial(
    recipe: Recipe, device: torch.device, ceilings: Row, *, compiled: Sequence[bool], repeats: int, calls: int = 1
) -> Row:
    """Measure the speed of a plain Compressive Transformer beside the public package, and judge a CPU's bar.

    Args:
        recipe: of our model.
        device: that trains.
        ceilings: see `measure.ceilings`.
        compiled: of ours; both may be tried, and the best counts. The peer counts as it ships, in float32; the note has
            the ratio to it under autocast, which it was not written for.
        repeats: timings of each.
        calls: steps in one timing.
    """
    ours = [changed(recipe, training__compile=each) for each in compiled]
    builds: dict[str, Build] = {label(each): partial(Training, each, device) for each in ours}
    builds[label(ours[0], reconstruction=False)] = partial(Training, untaught(ours[0]), device)
    builds |= peers_of(recipe, device)
    rows = time_training(builds, device, ceilings, repeats=repeats, calls=calls)
    measure.show("Training, the trial's size", list(rows.values()), COLUMNS)
    as_it_ships = rows[f"{peers.COMPRESSIVE_TRANSFORMER} float32"]
    under_autocast = rows.get(f"{peers.COMPRESSIVE_TRANSFORMER} bfloat16")
    our_rows = [rows[label(each)] for each in ours]
    bar = ratio("cpu_training_over_peer", our_rows, [as_it_ships], "tokens_per_second")
    if under_autocast is None:
        bar["note"] += "; this processor only emulates bfloat16"
    elif under_autocast["tokens_per_second"] is not None:
        fastest = max(row["tokens_per_second"] for row in our_rows if row["tokens_per_second"] is not None)
        bar["note"] += f", {fastest / under_autocast['tokens_per_second']:.3g} times {under_autocast['name']}"
    share = reconstruction_share(rows, ours[0])
    return {"rows": list(rows.values()), "reconstruction_loss_share": share, "bars": [bar]}


def train_paper(recipes: Sequence[Recipe], device: torch.device, ceilings: Row, *, repeats: int, calls: int) -> Row:
    """Measure the speed of both models, compiled, beside both peers, and judge a GPU's bars."""
    compiled = [changed(recipe, training__compile=True) for recipe in recipes]
    ours = next(each for each in compiled if isinstance(each.model, CompressiveTransformerSettings))
    wavenet = next(each for each in compiled if isinstance(each.model, WaveNetSettings))
    builds: dict[str, Build] = {label(each): partial(Training, each, device) for each in (ours, wavenet)}
    of_ours = peers_of(ours, device)
    rows = time_training(builds | of_ours | peers_of(wavenet, device), device, ceilings, repeats=repeats, calls=calls)
    measure.show("Training, the paper's size, ours compiled", list(rows.values()), COLUMNS)
    of_peer = [rows[name] for name in of_ours]
    our_row, wavenet_row = rows[label(ours)], rows[label(wavenet)]
    bars = [
        ratio("gpu_training_over_wavenet", [our_row], [wavenet_row], "tokens_per_second"),
        ratio("gpu_training_over_peer", [our_row], of_peer, "tokens_per_second"),
        judge("gpu_share_of_ceiling", our_row.get("share_of_ceiling"), our_row.get("note")),
    ]
    return {"rows": list(rows.values()), "bars": bars}


def train_prediction(recipe: Recipe, device: torch.device, ceilings: Row, *, repeats: int, calls: int) -> Row:
    """Measure linear prediction's share of a step, and judge it."""
    inside = "its linear prediction"
    builds: dict[str, Build] = {
        label(recipe): partial(Training, recipe, device),
        inside: partial(Predicting, recipe, device),
    }
    rows = time_training(builds, device, ceilings, repeats=repeats, calls=calls)
    measure.show("Training, and linear prediction in it by itself", list(rows.values()), COLUMNS)
    whole, part = (rows[name]["tokens_per_second"] for name in (label(recipe), inside))
    missing = next((row["note"] for row in rows.values() if row["tokens_per_second"] is None), None)
    share = None if missing else whole / part
    kind = "gpu" if device.type == "cuda" else "cpu"
    return {"rows": list(rows.values()), "bars": [judge(f"{kind}_linear_prediction_share", share, missing)]}


def train_reconstruction(recipe: Recipe, device: torch.device, ceilings: Row, *, repeats: int, calls: int) -> Row:
    """Measure the attention-reconstruction loss's share of a step."""
    builds: dict[str, Build] = {
        label(recipe): partial(Training, recipe, device),
        label(recipe, reconstruction=False): partial(Training, untaught(recipe), device),
    }
    rows = time_training(builds, device, ceilings, repeats=repeats, calls=calls)
    measure.show("Training with and without the attention-reconstruction loss", list(rows.values()), COLUMNS)
    return {"rows": list(rows.values()), "reconstruction_loss_share": reconstruction_share(rows, recipe), "bars": []}


def train_curves(recipe: Recipe, device: torch.device, ceilings: Row, *, repeats: int, calls: int) -> Row:
    """Measure tokens per second by batch, segment, memory length and layers, all else as in the recipe."""
    result = {}
    for curve, (keys, values) in CURVES.items():
        builds: dict[str, Build] = {
            f"{curve} {value}": partial(Training, changed(recipe, **dict.fromkeys(keys, value)), device)
            for value in values
        }
        rows = time_training(builds, device, ceilings, repeats=repeats, calls=calls)
        result[curve] = list(rows.values())
        measure.show(f"Training by {curve}", result[curve], COLUMNS)
    return result | {"bars": []}


def add_sizes(parser: argparse.ArgumentParser, sizes: dict[str, int]) -> None:
    """Add an option for each size of a plain Compressive Transformer."""
    for name, value in sizes.items():
        parser.add_argument(f"--{name.replace('_', '-')}", type=int, default=value, help="of the trial (%(default)s)")


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the benchmark, print tables, write JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--parts", nargs="*", choices=["recipes", "trial", "paper", "prediction"], default=["recipes", "trial"]
    )
    parser.add_argument("--curves", action="store_true", help="also how the trial's speed follows from its sizes")
    parser.add_argument("--recipes", type=Path, default=Path("recipes/small"), help="folder (%(default)s)")
    parser.add_argument(
        "--compile",
        action=argparse.BooleanOptionalAction,
        help="(the recipes as they are, the trial both ways)",
    )
    parser.add_argument("--batch-size", type=int, default=TRIAL_BATCH_SIZE, help="of the trial (%(default)s)")
    add_sizes(parser, TRIAL_SIZES)
    parser.add_argument("--repeats", type=int, default=7, help="timings of each, in turns (%(default)s)")
    parser.add_argument("--calls", type=int, help="steps in one timing (1; on a GPU 3)")
    measure.add_common(parser, "train")
    options = parser.parse_args(arguments)

    device = torch.device(options.device)
    timing: Any = {"repeats": options.repeats, "calls": options.calls or (3 if device.type == "cuda" else 1)}
    sizes = {name: getattr(options, name) for name in TRIAL_SIZES}
    trial = plain_recipe(sizes, batch_size=options.batch_size, precision=measure.precisions(device)[0])
    recipes = recipes_of(options.recipes)
    compiled = [False, True]
    if options.compile is not None:
        recipes = [changed(recipe, training__compile=options.compile) for recipe in recipes]
        compiled = [options.compile]

    result: Row = {"benchmark": "train", "machine": measure.machine(device), "ceilings": measure.ceilings(device)}
    parts: Row = {}
    if "recipes" in options.parts:
        parts["recipes"] = train_recipes(recipes, device, result["ceilings"], **timing)
    if "trial" in options.parts:
        parts["trial"] = train_trial(trial, device, result["ceilings"], compiled=compiled, **timing)
    if "paper" in options.parts:
        parts["paper"] = train_paper(recipes, device, result["ceilings"], **timing)
    if "prediction" in options.parts:
        predicting = next(each for each in recipes if each.model.linear_prediction is not None)
        parts["prediction"] = train_prediction(predicting, device, result["ceilings"], **timing)
    if options.curves:
        base = changed(trial, training__compile=bool(options.compile))
        parts["curves"] = train_curves(base, device, result["ceilings"], **timing)
    measure.finish(result, parts, options.out)


if __name__ == "__main__":
    main()
