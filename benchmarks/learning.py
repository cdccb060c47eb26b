r"""Learning from the same tokens: ours beside the public compressive-transformer-pytorch, seed by seed.

    OMP_NUM_THREADS=1 python -m benchmarks.learning --store stores/speech --device cpu \
      --out benchmarks/results/2026-11-24-learning-cpu.json
    python -m benchmarks.learning --seeds 1 --tokens 20000          # on synthetic noise, made on the spot

Everything but the method is the same: layers, width, heads, feed-forward, segment, both memories and the rate; float32;
AdamW, its rate, warm-up and linear decay, the task's gradient and the compression's each clipped by its own norm; and
the tokens, which all models of a seed read window by window in turns, so that their speeds compare too. Ours is the
plain model, pre-norm like the package, with no front and no linear prediction. The rows:

    ours
    compressive-transformer-pytorch           its network as it ships, but without gated residuals (see `peers`)
    compressive-transformer-pytorch, thawed   the same, its key and value weights set to learn again before every
                                              backward pass, for the cost of their freezing at the first compression

The package's memories begin with no entries and grow, all lanes alike: a lane cannot be reset by itself. So no lane is
reset here, not even where recordings meet: memories are carried over the whole of training, and once more, from empty
ones, over contiguous lanes of the validation split. Windows before they are full are scored apart, since the package
gives a distance another learned position for every length that the memories have had (docs/notation.md), and has been
trained on the full one. So bits here are not those of `audio-ct evaluate`, which begins anew with every
recording.
"""

import argparse
import math
import tempfile
import time
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from audio_ct.errors import InputError
from audio_ct.models.build import build_model
from audio_ct.models.compressive_transformer import CompressiveLayer
from audio_ct.models.settings import CompressiveTransformerSettings
from audio_ct.models.token_model import num_parameters
from audio_ct.recipe import Recipe
from audio_ct.studies.seeds import difference_over_seeds, mean_over_seeds
from audio_ct.tokens.store import TokenStore
from audio_ct.tokens.streams import Streams, Window
from audio_ct.training.optimizer import learning_rate, make_optimizer
from benchmarks import measure, peers
from benchmarks.measure import Row
from benchmarks.prep import make_recordings
from benchmarks.train import changed, plain_recipe
from data_prep.folder import CORPUS
from data_prep.options import PrepOptions
from data_prep.skeleton import prepare

OURS, PUBLIC, THAWED = "ours", peers.COMPRESSIVE_TRANSFORMER, f"{peers.COMPRESSIVE_TRANSFORMER}, thawed"
MODELS = (OURS, PUBLIC, THAWED)
# 1.1 million parameters.
SIZES = {
    **{"num_layers": 4, "d_model": 128, "num_heads": 4, "segment_length": 128, "memory_length": 128},
    **{"compressed_memory_length": 128, "compression_rate": 4},
}
VALIDATION_LANES = 16
# Headings of the figures of each seed.
FIGURES = {
    "training_bits": "training bits",
    "validation_bits": "validation bits",
    "cold_bits": "cold bits",
    "key_value_change": "key/value change",
}


class Learner(ABC):
    """A model in training, which carries its memories from window to window.

    Args:
        recipe: sizes and optimiser.
        vocabulary_size: number of token values.
        device: that trains.

    Attributes:
        network: the model.
        bits: of each training window so far.
        seconds: that training took so far.
    """

    def __init__(self, recipe: Recipe, vocabulary_size: int, device: torch.device) -> None:
        self.network: Any = self._build(recipe.model, vocabulary_size).to(device)
        self.bits: list[float] = []
        self.seconds = 0.0
        self._recipe, self._device = recipe, device
        self._optimizer = make_optimizer(self.network, recipe.optimizer)
        # The package takes weights out of `requires_grad` later: parameters to be clipped are listed before.
        apart = {id(parameter) for parameter in self._compression_parameters()}
        self._task_parameters = [each for each in self.network.parameters() if id(each) not in apart]
        self._weights_then: list[Tensor] = []
        self._begin(recipe.training.batch_size)

    @abstractmethod
    def _build(self, model: Any, vocabulary_size: int) -> nn.Module:
        """Build the model, freshly initialised."""

    @abstractmethod
    def _begin(self, num_lanes: int) -> None:
        """Empty the memories."""

    @abstractmethod
    def _read(self, inputs: Tensor) -> tuple[Tensor, Tensor | float]:
        """Read a window of every lane and return logits and, in training, the loss of the compression."""

    @abstractmethod
    def _key_value_weights(self) -> list[Tensor]:
        """The weights of every layer's keys and values."""

    @abstractmethod
    def _compression_parameters(self) -> list[nn.Parameter]:
        """The parameters that learn from the loss of the compression alone."""

    def train(self, window: Window, step: int) -> None:
        """Train on one window of every lane."""
        training = self._recipe.training
        inputs, targets = window.inputs.to(self._device), window.targets.to(self._device)
        measure.synchronise(self._device)
        began = time.perf_counter()
        self.network.train()
        logits, auxiliary_loss = self._read(inputs)
        loss = F.cross_entropy(logits.flatten(0, 1), targets.flatten())
        (loss + auxiliary_loss).backward()
        nn.utils.clip_grad_norm_(self._task_parameters, training.gradient_clip_norm)
        nn.utils.clip_grad_norm_(self._compression_parameters(), training.gradient_clip_norm)
        for group in self._optimizer.param_groups:
            group["lr"] = learning_rate(self._recipe.optimizer, step, training.num_steps)
        self._optimizer.step()
        self._optimizer.zero_grad(set_to_none=True)
        self.bits.append(float(loss.detach()) / math.log(2))
        self.seconds += time.perf_counter() - began
        if step == first_compression(self._recipe.model):
            self._weights_then = [weight.detach().clone() for weight in self._key_value_weights()]

    def key_value_change(self) -> float:
        """The change of the key and value weights since the first compression's update.

        The norm of the difference over the norm of the weights then, all layers together.
        """
        pairs = list(zip(self._key_value_weights(), self._weights_then, strict=True))
        moved = sum(float((now.detach() - then).square().sum()) for now, then in pairs)
        return math.sqrt(moved / sum(float(then.square().sum()) for _, then in pairs))

    @torch.no_grad()
    def validate(self, streams: Streams, num_windows: int) -> tuple[float, float]:
        """Measure bits per sample from empty memories on: (once they are full, before that)."""
        self.network.eval()
        self._begin(VALIDATION_LANES)
        bits = []
        for step in range(num_windows):
            window = streams.window(step)
            logits, _ = self._read(window.inputs.to(self._device))
            loss = F.cross_entropy(logits.flatten(0, 1), window.targets.to(self._device).flatten())
            bits.append(float(loss) / math.log(2))
        cold = peers.segments_to_fill(self._recipe.model)
        return sum(bits[cold:]) / len(bits[cold:]), sum(bits[:cold]) / cold


class Ours(Learner):
    """Our Compressive Transformer."""

    def _build(self, model: Any, vocabulary_size: int) -> nn.Module:
        return build_model(model, vocabulary_size)

    def _begin(self, num_lanes: int) -> None:
        self._state = self.network.initial_state(num_lanes, self._device)

    def _read(self, inputs: Tensor) -> tuple[Tensor, Tensor | float]:
        output = self.network(inputs, self._state)
        self._state = output.state
        return output.logits, sum(output.auxiliary_losses.values())

    def _key_value_weights(self) -> list[Tensor]:
        layers = [module for module in self.network.modules() if isinstance(module, CompressiveLayer)]
        return [layer.attention.key_value.weight for layer in layers]

    def _compression_parameters(self) -> list[nn.Parameter]:
        return self.network.auxiliary_parameters()


class Public(Learner):
    """The public package's network, which is given the memories that it returned."""

    def _build(self, model: Any, vocabulary_size: int) -> nn.Module:
        return peers.compressive_transformer(model, vocabulary_size).net  # type: ignore[return-value]

    def _begin(self, num_lanes: int) -> None:
        # The package makes memories when it gets none.
        self._memories: Any = None

    def _read(self, inputs: Tensor) -> tuple[Tensor, Tensor | float]:
        logits, self._memories, auxiliary_loss = self.network(inputs, memories=self._memories)
        return logits, auxiliary_loss.sum()

    def _key_value_weights(self) -> list[Tensor]:
        return [layer.fn.fn.to_kv.weight for layer in self.network.attn_layers]

    def _compression_parameters(self) -> list[nn.Parameter]:
        return [each for layer in self.network.attn_layers for each in layer.fn.fn.compress_mem_fn.parameters()]


class Thawed(Public):
    """The same, its key and value weights set to learn again before every backward pass."""

    def _read(self, inputs: Tensor) -> tuple[Tensor, Tensor | float]:
        result = super()._read(inputs)
        for weight in self._key_value_weights():
            weight.requires_grad_(True)
        return result


LEARNERS: dict[str, type[Learner]] = {OURS: Ours, PUBLIC: Public, THAWED: Thawed}


def first_compression(model: CompressiveTransformerSettings) -> int:
    """The window, counted from 0, in which something leaves memory for the first time."""
    return model.memory_length // model.segment_length


@contextmanager
def open_store(path: Path | None) -> Iterator[TokenStore]:
    """Open a token store, or one of a minute of synthetic noise where there is no path."""
    if path is not None:
        yield TokenStore.open(path)
        return
    with tempfile.TemporaryDirectory(prefix="audio-ct-bench-") as temporary:
        source, store = Path(temporary, "recordings"), Path(temporary, "store")
        make_recordings(source, minutes=1, seconds_each=3, rate_hz=24_000)
        prepare(
            CORPUS, source, store, options=PrepOptions(split_by="recording", validation_fraction=0.2, licence="CC0")
        )
        yield TokenStore.open(store)


def compare_learning(
    kinds: Sequence[str],
    recipe: Recipe,
    store: TokenStore,
    device: torch.device,
    *,
    seeds: Sequence[int],
    validation_tokens: int,
) -> Row:
    """Train the models on the same tokens in turns, print a table, and return it with the figures of each seed.

    Args:
        kinds: of MODELS; a package that cannot be imported has a note of why.
        recipe: sizes and budget.
        store: of the tokens.
        device: that trains.
        seeds: of initialisation and the order of recordings.
        validation_tokens: most tokens to score, those before memories are full included.

    Raises:
        InputError: if a split has too few tokens for its lanes, or training ends before the first compression.
    """
    model, training = recipe.model, recipe.training
    assert isinstance(model, CompressiveTransformerSettings)
    reading: Any = {"window_length": model.segment_length, "reset_every_windows": 0}
    validation = Streams(store, "validation", num_lanes=VALIDATION_LANES, seed=0, **reading)
    wanted = math.ceil(validation_tokens / (VALIDATION_LANES * model.segment_length))
    num_windows = min(validation.windows_per_epoch, max(wanted, peers.segments_to_fill(model) + 1))
    if num_windows <= peers.segments_to_fill(model):
        raise InputError(
            f"split 'validation' of {store.address} has {num_windows} windows for each of {VALIDATION_LANES} lanes, "
            f"must have more than the {peers.segments_to_fill(model)} that fill the memories; shorten the memories."
        )
    if training.num_steps <= first_compression(model) + 1:
        raise InputError(
            f"--tokens={training.max_tokens} end with window {training.num_steps}, must reach beyond the first "
            f"compression, in window {first_compression(model) + 1}; raise it."
        )
    rows: dict[str, Row] = {kind: {"name": kind} for kind in kinds}
    found: dict[str, dict[str, dict[int, float]]] = {kind: {key: {} for key in FIGURES} for kind in kinds}
    seconds = dict.fromkeys(kinds, 0.0)
    for seed in seeds:
        streams = Streams(store, "train", num_lanes=training.batch_size, seed=seed, **reading)
        learners: dict[str, Learner] = {}
        for kind in kinds:
            torch.manual_seed(seed)
            try:
                learners[kind] = LEARNERS[kind](recipe, store.vocabulary_size, device)
            except peers.PeerError as error:
                rows[kind]["note"] = str(error)
        for step in range(training.num_steps):
            window = streams.window(step)
            for learner in learners.values():
                learner.train(window, step)
        for kind, learner in learners.items():
            last = learner.bits[-max(1, len(learner.bits) // 4) :]
            values = found[kind]
            values["training_bits"][seed] = sum(last) / len(last)
            values["key_value_change"][seed] = learner.key_value_change()
            values["validation_bits"][seed], values["cold_bits"][seed] = learner.validate(validation, num_windows)
            seconds[kind] += learner.seconds
            rows[kind]["parameters"] = num_parameters(learner.network)
            print(f"  seed {seed}, {kind}: {values['validation_bits'][seed]:.4f} validation bits", flush=True)
    for kind, row in rows.items():
        row["seeds"] = found[kind]
        if seconds[kind]:
            row["tokens_per_second"] = len(seeds) * training.num_steps * training.tokens_per_step / seconds[kind]
        means = {key: mean_over_seeds(list(found[kind][key].values())) for key in FIGURES}
        if kind != OURS and OURS in kinds:
            bits, our_bits = (found[each]["validation_bits"] for each in (kind, OURS))
            means["validation_bits_over_ours"] = difference_over_seeds(bits, our_bits)
        for key, mean in means.items():
            row[key] = mean and {"value": mean.value, "half_width": mean.half_width}
            row[f"{key}_text"] = mean and f"{mean:.4f}"
    tokens = training.num_steps * training.tokens_per_step
    measure.show(
        f"Learning from the same {tokens:,} tokens: mean of {len(seeds)} seeds ± 95 %",
        list(rows.values()),
        {"name": "model", "parameters": "parameters", "tokens_per_second": "tokens/s"}
        | {f"{key}_text": heading for key, heading in FIGURES.items()}
        | {"validation_bits_over_ours_text": "validation over ours"},
    )
    return {
        "rows": [{k: v for k, v in row.items() if not k.endswith("_text")} for row in rows.values()],
        "tokens": tokens,
        "validation_tokens": num_windows * VALIDATION_LANES * model.segment_length,
        "cold_windows": peers.segments_to_fill(model),
        "store_digest": store.digest,
        "recipe": recipe.model_dump(),
        "bars": [],
    }


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the benchmark, print a table, write JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--store", type=Path, help="token store (a minute of synthetic noise, made on the spot)")
    parser.add_argument("--models", nargs="+", choices=MODELS, default=MODELS, help="(all)")
    parser.add_argument("--seeds", type=int, default=3, help="how many (%(default)s)")
    parser.add_argument("--tokens", type=int, default=240_000, help="to train on (%(default)s)")
    parser.add_argument("--validation-tokens", type=int, default=80_000, help="(%(default)s)")
    parser.add_argument("--batch-size", type=int, default=4, help="(%(default)s)")
    parser.add_argument("--learning-rate", type=float, default=2e-3, help="its peak (%(default)s)")
    parser.add_argument("--warmup-steps", type=int, default=50, help="(%(default)s)")
    for name, value in SIZES.items():
        parser.add_argument(f"--{name.replace('_', '-')}", type=int, default=value, help="(%(default)s)")
    measure.add_common(parser, "learning")
    options = parser.parse_args(arguments)
    device = torch.device(options.device)
    recipe = changed(
        plain_recipe({name: getattr(options, name) for name in SIZES}, batch_size=options.batch_size),
        optimizer__learning_rate=options.learning_rate,
        optimizer__warmup_steps=options.warmup_steps,
        optimizer__decay="linear",
        training__max_tokens=options.tokens,
        training__reset_every_windows=0,
    )
    result: Row = {"benchmark": "learning", "machine": measure.machine(device)}
    with open_store(options.store) as store:
        result["store"] = "synthetic noise" if options.store is None else store.name
        found = compare_learning(
            options.models,
            recipe,
            store,
            device,
            seeds=range(options.seeds),
            validation_tokens=options.validation_tokens,
        )
    measure.finish(result, {"learning": found}, options.out)


if __name__ == "__main__":
    main()
