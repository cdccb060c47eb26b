"""Recipes: one YAML file says everything about a run, and is checked whole before anything is loaded."""

import math
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import Field, model_validator

from audio_ct import strict_yaml
from audio_ct.errors import InputError
from audio_ct.models.settings import ModelSettings, NonNegative, Positive, Section
from audio_ct.recipe_files import find_recipe
from audio_ct.tokens.store_files import CACHE_GIB

MAX_RECIPE_BYTES = 1 << 16
# Bounds of what is sampled, here and in `audio_ct.sampling`.
MAX_WAVEFORMS = 4096
MAX_TEMPERATURE = 100

# In an address: user:password@host, or ?password=...
PASSWORD = re.compile(r"//[^/@\s]*:[^/\s]*@|[?&]password=")

Fraction = Annotated[float, Field(ge=0, le=1)]
Lanes = Annotated[int, Field(gt=0, le=1 << 16)]
Window = Annotated[int, Field(gt=0, le=1 << 24)]


class CorpusRecipe(Section):
    """The recordings to learn from."""

    store: str
    """Folder of a token store, made by `audio-ct prep`, or its address, such as s3://bucket/store."""
    clip_seconds: Annotated[float, Field(gt=0, le=36_000)] | None = None
    """Learn so many seconds of one recording by heart, instead of the corpus."""
    cache_gib: Annotated[float, Field(gt=0, le=1 << 20)] = CACHE_GIB
    """The most that is kept on this machine of stores from elsewhere, in GiB; see `audio_ct.tokens.shard_cache`."""


class OptimizerRecipe(Section):
    """AdamW, or Muon and AdamW, and the learning rate over time."""

    learning_rate: Annotated[float, Field(gt=0, le=1000)]
    """The highest of the run."""
    warmup_steps: NonNegative = 0
    """Windows over which the learning rate rises linearly."""
    decay: Literal["none", "linear", "cosine"] = "none"
    """Fall of the learning rate from the end of the warm-up to the end of the run."""
    final_fraction: Fraction = 0.0
    """End of a decay, as a fraction of learning_rate."""
    betas: list[Annotated[float, Field(ge=0, lt=1)]] = Field(default=[0.9, 0.999], min_length=2, max_length=2)
    """Decay of the gradient's running mean and of its square's."""
    weight_decay: Annotated[float, Field(ge=0, le=100)] = 0.0
    """Of matrices; biases, norms and embeddings do not decay."""
    muon_learning_rate: Annotated[float, Field(gt=0, le=1000)] | None = None
    """The highest of Muon, which then updates the matrices between embedding and readout; AdamW updates the rest. It
    rises and falls with learning_rate. None: AdamW updates everything."""


class TrainingRecipe(Section):
    """The course of training. A step is one window of every lane."""

    batch_size: Lanes
    """Lanes: streams that are read side by side."""
    window_length: Window
    """Samples of each lane read between two backward passes."""
    max_tokens: Positive
    """Samples to train on, over all lanes."""
    precision: Literal["bfloat16", "float16", "float32"] = "bfloat16"
    """Of matrix products; parameters are float32. float16 scales its gradients."""
    gradient_clip_norm: Annotated[float, Field(ge=1e-6, le=1e6)] = 0.25
    """Largest norm of the task's gradient, and of the auxiliary losses'."""
    update_every: dict[NonNegative, Positive] = Field(default={0: 1})
    """{from this step on: update parameters every so many windows}, e.g. {0: 1, 60000: 4}."""
    reset_every_windows: NonNegative = 256
    """A lane's state is reset after this many windows, staggered over the lanes; 0 for never."""
    log_every_windows: Positive = 20
    """Means over so many windows go to the record."""
    evaluate_every_windows: Positive = 1000
    """Validation comes this often, and at the end."""
    checkpoint_every_windows: Positive = 1000
    """Checkpoints come this often, and at the end."""
    sample_every_windows: NonNegative = 0
    """Audio samples, or texts, for the tracker; 0 for none."""
    max_not_finite: Positive = 20
    """Updates in a row that may be left out, their loss or gradient not finite or a spike, before the run stops."""
    skip_spikes_above: Annotated[float, Field(ge=0, le=1e6)] = 0.0
    """An update whose gradient norm is so many times the running mean is left out; 0 for none."""
    roll_back_after: NonNegative = 0
    """After so many updates left out in a row, weights and optimizer go back to the newest checkpoint, and training
    goes on with the windows that come next; 0 for never."""
    average_decay: Annotated[float, Field(ge=0, lt=1)] = 0.0
    """Share of the moving average of the weights that an update leaves; validation, samples and the checkpoint's
    weights are then the average's. 0 for none."""
    num_threads: Annotated[int, Field(ge=0, le=1024)] = 0
    """CPU threads; 0 leaves torch's choice. A resumed run is bit for bit the same only on as many threads."""
    compile: bool = False
    """Compile the model, which pays on a GPU."""
    recompute_activations: bool = False
    """Keep each layer's inputs only, compute its inside again in the backward pass: less memory, a third more work."""
    shard_optimizer: bool = False
    """Of several processes, each keeps its share of the optimizer's running means only."""
    timeout_seconds: Annotated[float, Field(ge=1, le=86_400)] = 600.0
    """Several processes wait so long for each other before the run stops."""

    @property
    def tokens_per_step(self) -> int:
        """Samples read in one window of all lanes."""
        return self.batch_size * self.window_length

    @property
    def num_steps(self) -> int:
        """Windows of the whole run."""
        return math.ceil(self.max_tokens / self.tokens_per_step)

    @model_validator(mode="after")
    def _spikes_are_above_the_mean(self) -> Self:
        if 0 < self.skip_spikes_above <= 1:
            raise ValueError(
                f"training.skip_spikes_above={self.skip_spikes_above} must be above 1, the running mean itself, or 0 "
                "for none; try 5"
            )
        if self.roll_back_after >= self.max_not_finite:
            raise ValueError(
                f"training.roll_back_after={self.roll_back_after} must be below training.max_not_finite="
                f"{self.max_not_finite}, which stops the run first; lower it"
            )
        return self

    @model_validator(mode="after")
    def _schedule_cuts_no_update(self) -> Self:
        if 0 not in self.update_every:
            raise ValueError(
                f"training.update_every={self.update_every} must say how often from step 0 on; add the entry 0: 1"
            )
        before = 1
        for start, every in sorted(self.update_every.items()):
            period = math.lcm(before, every)
            if start % period:
                raise ValueError(
                    f"training.update_every={self.update_every} changes at step {start}, which must be a multiple of "
                    f"{before} and {every}, so that no update is cut; try {period * max(1, start // period)}"
                )
            before = every
            if start < self.num_steps < every:
                raise ValueError(
                    f"training.update_every={self.update_every} updates once in {every} windows from step {start} on, "
                    f"and the run has {self.num_steps}; lower it or raise training.max_tokens={self.max_tokens}"
                )
        return self


class EvaluationRecipe(Section):
    """The measurement of validation and test bits."""

    batch_size: Lanes = 8
    """Recordings read side by side. Does not change the result."""
    window_length: Window = 1024
    """Samples read at once; rounded up to whole segments. Does not change the result."""
    cold_start_samples: NonNegative = 1024
    """First samples of each recording that are scored apart."""
    max_validation_tokens: Positive = 500_000
    """Validation during training takes whole recordings, spread over the split, until they hold so many samples."""


class SamplingRecipe(Section):
    """The samples that a run makes of itself: audio, or texts where the corpus is bytes."""

    num_samples: Annotated[int, Field(gt=0, le=MAX_WAVEFORMS)] = 1
    """Files made side by side."""
    seconds: Annotated[float, Field(gt=0, le=3600)] = 1.0
    """Length of audio."""
    num_bytes: Annotated[int, Field(gt=0, le=1 << 30)] = 1024
    """Length of texts."""
    temperature: Annotated[float, Field(ge=0, le=MAX_TEMPERATURE)] = 1.0
    """Divides the logits; 1 is the model's own distribution."""
    compiled: bool = False
    """Compile the step, which pays from about a second of audio on; see `audio_ct.sampling.engine`."""


class TrackingRecipe(Section):
    """The run in mlflow; the local record metrics.jsonl is always written."""

    enabled: bool = True
    """Off, mlflow is not even imported."""
    experiment: str = "audio-ct"
    """mlflow's experiment, made where it is missing."""
    uri: str | None = None
    """mlflow tracking URI; none for a sqlite file mlflow.db beside the run folder."""
    parent_run_id: str | None = None
    """The mlflow run under which this one is nested; `audio-ct study` sets it."""


class Recipe(Section):
    """Everything about a run."""

    name: str
    """mlflow's name for the run."""
    seed: Annotated[int, Field(ge=0, lt=2**63)] = 0
    """Draws initial parameters, the order of recordings and samples."""
    corpus: CorpusRecipe
    """The recordings to learn from."""
    model: ModelSettings
    """What predicts the next token: a Compressive Transformer, a Transformer-XL or a WaveNet, by its kind."""
    optimizer: OptimizerRecipe
    """What an update does to the parameters."""
    training: TrainingRecipe
    """How long, how wide, how exact, and how often what is done."""
    evaluation: EvaluationRecipe = EvaluationRecipe()
    """How validation and test are read."""
    sampling: SamplingRecipe = SamplingRecipe()
    """What a run writes to be heard while it trains."""
    tracking: TrackingRecipe = TrackingRecipe()
    """Where the run is shown in mlflow."""

    @model_validator(mode="after")
    def _windows_end_where_streams_may_be_cut(self) -> Self:
        cut_length = self.model.cut_length
        if self.training.window_length % cut_length:
            raise ValueError(
                f"training.window_length={self.training.window_length} must be a multiple of "
                f"{self.model.cut_key}={cut_length}; try {cut_length}"
            )
        return self

    @model_validator(mode="after")
    def _muon_is_whole(self) -> Self:
        rate = self.optimizer.muon_learning_rate
        if rate is not None and self.training.shard_optimizer:
            raise ValueError(
                f"optimizer.muon_learning_rate={rate} needs training.shard_optimizer=false; only AdamW is sharded"
            )
        return self

    def to_yaml(self) -> str:
        """Write the recipe, defaults too, as text that `parse_recipe` reads back as the same."""
        return strict_yaml.dump(self.model_dump())


def load_recipe(path: Path | str, overrides: Sequence[str] = ()) -> Recipe:
    """Read the recipe in a file, with overrides.

    Args:
        path: a YAML file, or the name of a shipped recipe, such as small/wavenet.
        overrides: "section.key=value" texts; a value is read as YAML, 3e-4 as a number.

    Raises:
        MissingError: if there is no such file.
        InputError: naming every fault of the recipe at once, a line each.

    Example:
        >>> recipe = audio_ct.load_recipe("recipes/small/wavenet.yaml", ["optimizer.learning_rate=1e-3"])
        >>> recipe.optimizer.learning_rate
        0.001
    """
    return parse_recipe(read_recipe(Path(path)), overrides, name=str(path))


def resumed_recipe(saved: Path, given: Path, overrides: Sequence[str] = ()) -> tuple[Recipe, list[str]]:
    """Read the recipe of a run that is resumed: its own, with overrides, whatever was overridden when it was begun.

    Args:
        saved: the run's own recipe file; where it is missing, the run has not begun and `given` is taken.
        given: the recipe file that was named.
        overrides: as for `load_recipe`.

    Returns:
        The recipe, and a line for each key in which it differs from the saved one, or the saved one is kept although
        the given one differs.

    Raises:
        MissingError: if there is no `given` file.
        InputError: naming every fault of a recipe at once, a line each.
    """
    named = load_recipe(given, overrides)
    if not saved.is_file():
        return named, []
    recipe = load_recipe(saved, overrides)
    before, now, other = (flat(each.model_dump()) for each in (load_recipe(saved), recipe, named))
    lines = []
    for key in before | now | other:
        if now.get(key) != before.get(key):
            lines.append(f"{key}={now.get(key)!r}, was {before.get(key)!r} in {saved}")
        elif other.get(key) != now.get(key):
            lines.append(f"{key}={now.get(key)!r} as in {saved}, not {other.get(key)!r} as in {given}; or --set it")
    return recipe, lines


def read_recipe(path: Path) -> str:
    """Read a recipe file's text, unchecked; `path` may be a shipped recipe's name.

    Raises:
        MissingError: if there is no such file or name.
        InputError: if the file is too long or no text.
    """
    path = find_recipe(path)
    if path.stat().st_size > MAX_RECIPE_BYTES:
        raise InputError(
            f"recipe {str(path)!r} has {path.stat().st_size} bytes, more than {MAX_RECIPE_BYTES}; is it a recipe?"
        )
    try:
        return path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise InputError(f"recipe {str(path)!r} is not UTF-8 text: {error.reason} at byte {error.start}.") from error


def parse_recipe(
    text: str, overrides: Sequence[str] = (), *, name: str = "recipe", difference: str | None = None
) -> Recipe:
    """Read the recipe in a text.

    Args:
        text: YAML, a whole recipe.
        overrides: as for `load_recipe`.
        name: begins each line of an error.
        difference: YAML with the keys only that differ from `text`, merged over it section by section. Where it names
            another model.kind, keys of the base's model that this kind does not have are left out.

    Raises:
        InputError: naming every fault of the recipe at once, a line each.
    """
    values = strict_yaml.read(text, name=name)
    if difference is not None:
        changes = strict_yaml.read(difference, name=name, may_be_empty=True)
        values = strict_yaml.merge(_without_keys_of_another_kind(values, changes), changes)
    for override in overrides:
        values = strict_yaml.merge(values, strict_yaml.read_override(override))
    return strict_yaml.validate(Recipe, values, name=name)


def refuse_passwords(recipe: Recipe) -> None:
    """Raise InputError if an address holds a password: a recipe is stored with its run and in every checkpoint."""
    of_tracking = "set MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD (of a database its own, as PGPASSWORD)"
    of_store = "set it for fsspec, as FSSPEC_FTP_PASSWORD for ftp://"
    for key, address, remedy in (
        ("tracking.uri", recipe.tracking.uri, of_tracking),
        ("corpus.store", recipe.corpus.store, of_store),
    ):
        if address is not None and PASSWORD.search(address):
            raise InputError(f"{key} must hold no password, for it is stored with the run: leave it out and {remedy}.")


def flat(values: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Flatten nested dictionaries with text keys to {"section.key": value}."""
    found: dict[str, Any] = {}
    for key, value in values.items():
        if isinstance(value, dict) and all(isinstance(inner, str) for inner in value):
            found |= flat(value, f"{prefix}{key}.")
        else:
            found[f"{prefix}{key}"] = value
    return found


def _without_keys_of_another_kind(base: dict[str, Any], changes: dict[str, Any]) -> dict[str, Any]:
    """The base, its model reduced to the keys that the kind of model in `changes` has too."""
    old, new = base.get("model"), changes.get("model")
    if not isinstance(old, dict) or not isinstance(new, dict):
        return base
    # A kind that there is not is refused later, with the kinds that there are.
    kind = strict_yaml.kinds_of(Recipe, "model").get(str(new.get("kind", old.get("kind"))))
    if kind is None or new.get("kind", old.get("kind")) == old.get("kind"):
        return base
    return base | {"model": {key: value for key, value in old.items() if key in kind.model_fields}}
