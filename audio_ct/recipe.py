"""Recipes: one YAML file says everything about a run, and is checked whole before anything is loaded."""

import difflib
import math
import re
from collections.abc import Hashable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, Union, get_args

import yaml
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator
from yaml.constructor import ConstructorError

from audio_ct.errors import InputError, MissingError

if TYPE_CHECKING:
    from audio_ct.models.interface import TokenModel

MAX_RECIPE_BYTES = 1 << 16

Positive = Annotated[int, Field(gt=0)]
NonNegative = Annotated[int, Field(ge=0)]
Fraction = Annotated[float, Field(ge=0, le=1)]


class Section(BaseModel):
    """A part of a recipe: no unknown keys, no silent conversion, never changed after it was read."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False)


class CorpusRecipe(Section):
    """Which recordings to learn from."""

    store: str
    """Folder of a token store, made by `audio-ct prep`."""
    clip_seconds: Annotated[float, Field(gt=0)] | None = None
    """Learn so many seconds of one recording by heart, instead of the corpus."""


class LinearPredictionRecipe(Section):
    """Backward-adaptive linear predictors that a model starts from. Keys are those of `LinearPredictionSettings`."""

    order: Annotated[int, Field(gt=0, le=256)] = 32
    """Samples that a prediction is made of."""
    windows: Annotated[list[Annotated[int, Field(gt=1)]], Field(min_length=1, max_length=16)] = [500, 200, 67, 25]
    """Samples of the past that each predictor is fitted to; the first one's prediction centres the logits."""
    frame_length: Positive = 16
    """Samples between two fits."""
    bandwidth_expansion: Annotated[float, Field(gt=0, le=1)] = 0.985
    """Draws the predictors' poles in, so that a model that listens to itself stays stable; 1 for none."""


Lengths = Union[NonNegative, Annotated[list[NonNegative], Field(min_length=1)]]


class CoarseRecipe(Section):
    """Layers that read frames of samples. Keys are those of `CoarseSettings`."""

    frame_length: Positive
    num_layers: Positive
    memory_length: NonNegative
    """Frames, not samples."""
    compressed_memory_length: NonNegative = 0


class TransformerXLRecipe(Section):
    """Transformer-XL: the Compressive Transformer without compressed memory. Keys are the model's arguments."""

    kind: Literal["transformer_xl"]
    num_layers: Positive
    d_model: Positive
    num_heads: Positive
    d_ff: Positive
    segment_length: Positive
    memory_length: Lengths
    """Entries in each layer, or a list with a number for each."""
    norm: Literal["pre", "post"] = "pre"
    positions: Literal["relative", "rotary"] = "relative"
    num_key_value_heads: Positive | None = None
    """Heads of keys and values, each shared by as many query heads; none for one each."""
    embedding: Literal["learned", "sinusoidal"] = "learned"
    memory_stores: Literal["attention_input", "layer_input"] = "attention_input"
    learned_initial_memory: bool = False
    front_dilations: list[Positive] = []
    coarse: CoarseRecipe | None = None
    short_convolution_width: NonNegative = 0
    attention_kernel: Literal["auto", "fused", "plain"] = "auto"
    linear_prediction: LinearPredictionRecipe | None = None
    output: Literal["softmax", "mixture_of_logistics"] = "softmax"
    """How a token's probability is told; the mixture's size does not grow with the number of tokens."""

    @model_validator(mode="after")
    def _heads_divide(self) -> "TransformerXLRecipe":
        if self.d_model % self.num_heads:
            raise ValueError(f"model.num_heads={self.num_heads} must divide model.d_model={self.d_model}; change one")
        if self.num_heads % (self.num_key_value_heads or self.num_heads):
            raise ValueError(
                f"model.num_key_value_heads={self.num_key_value_heads} must divide model.num_heads={self.num_heads}; "
                "try 1"
            )
        return self

    @model_validator(mode="after")
    def _a_length_for_each_layer(self) -> "TransformerXLRecipe":
        for name in ("memory_length", "compressed_memory_length"):
            lengths = getattr(self, name, 0)
            if isinstance(lengths, list) and len(lengths) != self.num_layers:
                raise ValueError(
                    f"model.{name}={lengths} has {len(lengths)} entries, must have one for each of "
                    f"model.num_layers={self.num_layers}; or give one number for all"
                )
        return self

    @model_validator(mode="after")
    def _parts_fit(self) -> "TransformerXLRecipe":
        if self.positions == "rotary" and self.d_model // self.num_heads % 2:
            raise ValueError(
                f"model.positions='rotary' needs an even model.d_model / model.num_heads="
                f"{self.d_model // self.num_heads}; change one"
            )
        if self.memory_stores == "layer_input" and self.short_convolution_width:
            raise ValueError(
                f"model.short_convolution_width={self.short_convolution_width} is lost on model.memory_stores="
                "'layer_input', which memory does not go through; use attention_input"
            )
        return self

    @model_validator(mode="after")
    def _coarse_frames_divide_segment(self) -> "TransformerXLRecipe":
        if self.coarse is not None and self.segment_length % self.coarse.frame_length:
            raise ValueError(
                f"model.coarse.frame_length={self.coarse.frame_length} must divide "
                f"model.segment_length={self.segment_length}; try {math.gcd(16, self.segment_length)}"
            )
        return self

    @model_validator(mode="after")
    def _frames_divide_segment(self) -> "TransformerXLRecipe":
        frame_length = 1 if self.linear_prediction is None else self.linear_prediction.frame_length
        if self.segment_length % frame_length:
            raise ValueError(
                f"model.linear_prediction.frame_length={frame_length} must divide "
                f"model.segment_length={self.segment_length}; try {math.gcd(16, self.segment_length)}"
            )
        return self


class CompressionRecipe(Section):
    """What compresses memory and what it learns from. Keys are those of `CompressionSettings`."""

    function: Literal["convolution", "mean_pooling", "max_pooling", "dilated_convolution", "most_used"] = "convolution"
    loss: Literal["attention_reconstruction", "auto_encoding", "task", "none"] = "attention_reconstruction"
    """A loss of its own, the task's loss through the segments of a training window, or none for what learns nothing."""
    loss_form: Literal["mean_square", "norm"] = "mean_square"
    bias: bool = False

    @model_validator(mode="after")
    def _there_is_something_to_teach(self) -> "CompressionRecipe":
        if self.function not in ("convolution", "dilated_convolution") and self.loss != "none":
            raise ValueError(
                f"model.compression.loss={self.loss!r} has nothing to teach: {self.function} has no parameters; "
                "use none"
            )
        return self


class CompressiveTransformerRecipe(TransformerXLRecipe):
    """The Compressive Transformer. Keys are the model's arguments."""

    kind: Literal["compressive_transformer"]  # type: ignore[assignment]
    compressed_memory_length: Lengths
    """Entries in each layer, or a list; 0 is Transformer-XL."""
    twice_compressed_memory_length: NonNegative = 0
    compression_rate: Positive = 4
    compression: CompressionRecipe = CompressionRecipe()
    compressed_positions: Literal["contiguous", "centre", "own"] = "contiguous"

    @model_validator(mode="after")
    def _compression_leaves_something(self) -> "CompressiveTransformerRecipe":
        if self.twice_compressed_memory_length and not any(self._pairs_that_compress()):
            raise ValueError(
                f"model.twice_compressed_memory_length={self.twice_compressed_memory_length} compresses what leaves "
                "compressed memory, but model.compressed_memory_length=0; leave it out"
            )
        times = 2 if self.twice_compressed_memory_length else 1
        if any(self._pairs_that_compress()) and self.compression_rate**times > self.segment_length:
            raise ValueError(
                f"model.compression_rate={self.compression_rate} leaves nothing of model.segment_length="
                f"{self.segment_length} compressed {times} times; lower the rate"
            )
        return self

    @model_validator(mode="after")
    def _coarse_frames_can_be_compressed(self) -> "CompressiveTransformerRecipe":
        if self.coarse is None or not self.coarse.compressed_memory_length:
            return self
        num_frames = self.segment_length // self.coarse.frame_length
        if self.compression_rate > num_frames:
            raise ValueError(
                f"model.compression_rate={self.compression_rate} leaves nothing of a segment's {num_frames} frames of "
                f"model.coarse.frame_length={self.coarse.frame_length}; set model.coarse.compressed_memory_length to 0"
            )
        if self.compression.function == "most_used" and self.coarse.memory_length < num_frames:
            raise ValueError(
                f"model.coarse.memory_length={self.coarse.memory_length} must be at least the segment's {num_frames} "
                "frames for compression by use, which is counted in memory; raise it"
            )
        return self

    @model_validator(mode="after")
    def _memory_and_compression_fit(self) -> "CompressiveTransformerRecipe":
        if self.compression.function == "most_used":
            if any(memory < self.segment_length for memory, _ in self._pairs_that_compress()):
                raise ValueError(
                    f"model.memory_length={self.memory_length} must be at least model.segment_length="
                    f"{self.segment_length} for compression by use, which is counted in memory; raise it"
                )
            if self.twice_compressed_memory_length:
                raise ValueError(
                    "model.compression.function='most_used' compresses once; leave out "
                    f"twice_compressed_memory_length={self.twice_compressed_memory_length}"
                )
        if self.positions == "rotary" and self.compressed_positions == "own":
            raise ValueError("model.compressed_positions='own' is about relative positions; use contiguous or centre")
        return self

    def _pairs_that_compress(self) -> list[tuple[int, int]]:
        """Return (memory, compressed memory) of the layers that have the second."""
        memories, compressed = (
            length if isinstance(length, list) else [length] * self.num_layers
            for length in (self.memory_length, self.compressed_memory_length)
        )
        return [pair for pair in zip(memories, compressed, strict=False) if pair[1]]


class WaveNetRecipe(Section):
    """WaveNet. Keys are the model's arguments."""

    kind: Literal["wavenet"]
    num_stacks: Positive
    layers_per_stack: Annotated[int, Field(gt=0, le=20)]
    residual_channels: Positive
    skip_channels: Positive
    width: Annotated[int, Field(ge=2)] = 2
    embedding: Literal["learned", "sinusoidal"] = "learned"
    linear_prediction: LinearPredictionRecipe | None = None
    output: Literal["softmax", "mixture_of_logistics"] = "softmax"

    @property
    def segment_length(self) -> int:
        """Where a stream may be cut: between frames of linear prediction, anywhere without."""
        return 1 if self.linear_prediction is None else self.linear_prediction.frame_length


ModelRecipe = Annotated[
    Union[CompressiveTransformerRecipe, TransformerXLRecipe, WaveNetRecipe], Field(discriminator="kind")
]


class OptimizerRecipe(Section):
    """AdamW and its learning rate over time."""

    learning_rate: Annotated[float, Field(gt=0)]
    warmup_steps: NonNegative = 0
    """Windows over which the learning rate rises linearly."""
    decay: Literal["none", "linear", "cosine"] = "none"
    """How the learning rate falls from the end of the warm-up to the end of the run."""
    final_fraction: Fraction = 0.0
    """Where a decay ends, as a fraction of learning_rate."""
    betas: list[Annotated[float, Field(ge=0, lt=1)]] = Field(default=[0.9, 0.999], min_length=2, max_length=2)
    weight_decay: Annotated[float, Field(ge=0)] = 0.0


class TrainingRecipe(Section):
    """How the model meets the corpus."""

    batch_size: Positive
    """Lanes: streams that are read side by side."""
    window_length: Positive
    """Samples of each lane read between two backward passes."""
    max_tokens: Positive
    """Samples to train on, over all lanes."""
    precision: Literal["bfloat16", "float16", "float32"] = "bfloat16"
    gradient_clip_norm: Annotated[float, Field(gt=0)] = 0.25
    update_every: dict[NonNegative, Positive] = {0: 1}
    """{from this step on: update parameters every so many windows}, e.g. {0: 1, 60000: 4}."""
    reset_every_windows: NonNegative = 256
    """A lane's state is reset after this many windows, staggered over the lanes; 0 for never."""
    log_every_windows: Positive = 20
    evaluate_every_windows: Positive = 1000
    checkpoint_every_windows: Positive = 1000
    sample_every_windows: NonNegative = 0
    """Audio samples, or texts, for the tracker; 0 for none."""
    max_not_finite: Positive = 20
    """Windows in a row whose loss or gradient may be not finite before the run stops."""
    num_threads: NonNegative = 0
    """CPU threads; 0 leaves torch's choice. A resumed run is bit for bit the same only on as many threads."""
    compile: bool = False
    recompute_activations: bool = False
    """Keep each layer's inputs only, compute its inside again in the backward pass: less memory, a third more work."""

    @property
    def tokens_per_step(self) -> int:
        """Samples read in one window of all lanes."""
        return self.batch_size * self.window_length

    @property
    def num_steps(self) -> int:
        """Windows of the whole run."""
        return math.ceil(self.max_tokens / self.tokens_per_step)

    @model_validator(mode="after")
    def _schedule_begins(self) -> "TrainingRecipe":
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
        return self


class EvaluationRecipe(Section):
    """How validation and test bits are measured."""

    batch_size: Positive = 8
    window_length: Positive = 1024
    """Samples read at once; rounded up to whole segments. Does not change the result."""
    cold_start_samples: NonNegative = 1024
    """First samples of each recording that are scored apart."""
    max_validation_tokens: Positive = 500_000
    """Validation during training takes whole recordings, spread over the split, until they hold so many samples."""


class SamplingRecipe(Section):
    """The samples that a run makes of itself: audio, or texts where the corpus is bytes."""

    num_samples: Positive = 1
    seconds: Annotated[float, Field(gt=0, le=3600)] = 1.0
    """Length of audio."""
    num_bytes: Annotated[int, Field(gt=0, le=1 << 30)] = 1024
    """Length of texts."""
    temperature: Annotated[float, Field(gt=0)] = 1.0
    compiled: bool = False
    """Compile the step, which pays from about a second of audio on; see `audio_ct.sampling.engine`."""


class TrackingRecipe(Section):
    """Where mlflow keeps the run; the local record metrics.jsonl is always written."""

    enabled: bool = True
    experiment: str = "audio-ct"
    uri: str | None = None
    """mlflow tracking URI; none for a sqlite file mlflow.db beside the run folder."""
    parent_run_id: str | None = None
    """The mlflow run under which this one is nested; `audio-ct study` sets it."""


class Recipe(Section):
    """Everything about a run."""

    name: str
    seed: Annotated[int, Field(ge=0, lt=2**63)] = 0
    corpus: CorpusRecipe
    model: ModelRecipe
    optimizer: OptimizerRecipe
    training: TrainingRecipe
    evaluation: EvaluationRecipe = EvaluationRecipe()
    sampling: SamplingRecipe = SamplingRecipe()
    tracking: TrackingRecipe = TrackingRecipe()

    @model_validator(mode="after")
    def _windows_are_segments(self) -> "Recipe":
        segment_length = self.model.segment_length
        key = "model.linear_prediction.frame_length" if self.model.kind == "wavenet" else "model.segment_length"
        if self.training.window_length % segment_length:
            raise ValueError(
                f"training.window_length={self.training.window_length} must be a multiple of "
                f"{key}={segment_length}; try {segment_length}"
            )
        return self

    def to_yaml(self) -> str:
        """Return the resolved recipe, every default written out, as text that `parse_recipe` reads back."""
        return yaml.dump(self.model_dump(), Dumper=_StrictDumper, sort_keys=False, allow_unicode=True)


def load_recipe(path: Path, overrides: Sequence[str] = ()) -> Recipe:
    """Return the recipe in a file, with overrides.

    Args:
        path: a YAML file.
        overrides: "section.key=value" texts; a value is read as YAML, 3e-4 as a number.

    Raises:
        MissingError: if there is no such file.
        InputError: naming every fault of the recipe at once, a line each.
    """
    return parse_recipe(read_recipe(path), overrides, name=str(path))


def read_recipe(path: Path) -> str:
    """Return a recipe file's text.

    Raises:
        MissingError: if there is no such file.
        InputError: if it is too large to be a recipe, or no text.
    """
    if not path.is_file():
        raise MissingError(f"recipe {str(path)!r} is not a file; the shipped ones are under recipes/.")
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
    """Return the recipe in a text.

    Args:
        text: YAML, a whole recipe.
        overrides: as for `load_recipe`.
        name: what a fault's line begins with.
        difference: YAML with the keys only that differ from `text`, merged over it section by section. Where it names
            another model.kind, keys of the base's model that this kind does not have are left out.

    Raises:
        InputError: naming every fault of the recipe at once, a line each.
    """
    values = _read_values(text, name)
    if difference is not None:
        values = _merge_difference(values, _read_values(difference, name, may_be_empty=True))
    for override in overrides:
        values = _merge(values, _read_override(override))
    try:
        return Recipe.model_validate(values)
    except ValidationError as error:
        faults = [_describe(fault) for fault in error.errors(include_url=False)]
        raise InputError("\n".join(f"{name}: {fault}" for fault in faults)) from error


def flat(values: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Return {"section.key": value} of nested dictionaries with text keys."""
    found: dict[str, Any] = {}
    for key, value in values.items():
        if isinstance(value, dict) and all(isinstance(inner, str) for inner in value):
            found |= flat(value, f"{prefix}{key}.")
        else:
            found[f"{prefix}{key}"] = value
    return found


def _read_values(text: str, name: str, *, may_be_empty: bool = False) -> dict[str, Any]:
    try:
        values = yaml.load(text, Loader=_StrictLoader)  # noqa: S506 - a SafeLoader that is stricter
    # What looks like a date or a number but is none raises a plain ValueError.
    except (yaml.YAMLError, ValueError) as error:
        raise InputError(f"{name}: not plain YAML: {' '.join(str(error).split())}") from error
    if values is None and may_be_empty:
        return {}
    if not isinstance(values, dict):
        raise InputError(f"{name}: holds {type(values).__name__}, must hold keys like those in recipes/demo/.")
    return values


def _merge_difference(base: dict[str, Any], difference: dict[str, Any]) -> dict[str, Any]:
    old, new = base.get("model"), difference.get("model")
    if isinstance(old, dict) and isinstance(new, dict) and new.get("kind", old.get("kind")) != old.get("kind"):
        kinds = {get_args(kind.model_fields["kind"].annotation)[0]: kind for kind in _model_kinds()}
        # A kind that there is not is refused later, with the kinds that there are.
        if (kind := kinds.get(str(new["kind"]))) is not None:
            base = base | {"model": {key: value for key, value in old.items() if key in kind.model_fields}}
    return _merge(base, difference)


class _StrictLoader(yaml.SafeLoader):
    """YAML without aliases, tags, duplicate keys and deep nesting; 3e-4 is a number."""

    depth = 0

    def compose_node(self, parent: Any, index: Any) -> Any:
        if self.check_event(yaml.AliasEvent):
            raise ConstructorError(None, None, "aliases (*name) are not allowed", self.peek_event().start_mark)
        if getattr(self.peek_event(), "tag", None) is not None:
            raise ConstructorError(None, None, "tags (!name) are not allowed", self.peek_event().start_mark)
        self.depth += 1
        if self.depth > 20:
            raise ConstructorError(None, None, "nested deeper than 20 levels", self.peek_event().start_mark)
        node = super().compose_node(parent, index)
        self.depth -= 1
        return node

    def construct_mapping(self, node: Any, deep: bool = False) -> dict[Hashable, Any]:
        seen: set[str] = set()
        for key, _ in node.value:
            if not isinstance(key, yaml.ScalarNode):
                raise ConstructorError(None, None, "a key must be plain text", key.start_mark)
            if key.value in seen:
                raise ConstructorError(None, None, f"key {key.value!r} stands twice", key.start_mark)
            seen.add(key.value)
        return super().construct_mapping(node, deep)


class _StrictDumper(yaml.SafeDumper):
    """Quotes the text that `_StrictLoader` would take for a number."""


# YAML 1.2's floats; PyYAML follows 1.1, where 3e-4 is text.
for _kind in (_StrictLoader, _StrictDumper):
    _kind.add_implicit_resolver(
        "tag:yaml.org,2002:float",
        re.compile(r"^[-+]?(\d[\d_]*)(\.\d*)?[eE][-+]?\d+$"),
        list("-+0123456789"),
    )


def _read_override(override: str) -> dict[str, Any]:
    if "=" not in override:
        raise InputError(f"--set {override!r} must have the form section.key=value, e.g. optimizer.learning_rate=3e-4.")
    try:
        values = OmegaConf.to_container(OmegaConf.from_dotlist([override]), resolve=False)
    except (OmegaConfBaseException, yaml.YAMLError, ValueError) as error:
        raise InputError(f"--set {override!r} cannot be read: {' '.join(str(error).split())}") from error
    assert isinstance(values, dict)
    return values  # type: ignore[return-value]


def _merge(base: dict[str, Any], change: dict[str, Any]) -> dict[str, Any]:
    merged = dict(base)
    for key, value in change.items():
        old = merged.get(key)
        merged[key] = _merge(old, value) if isinstance(old, dict) and isinstance(value, dict) else value
    return merged


def _describe(fault: Any) -> str:
    """Return one fault as name, value, rule and, where a key is unknown, the nearest right one."""
    # The discriminator's value stands in the location of a model's fault; users know no such key.
    kinds = {get_args(kind.model_fields["kind"].annotation)[0] for kind in _model_kinds()}
    location = [str(part) for part in fault["loc"]]
    if location[:1] == ["model"]:
        location[1:2] = [part for part in location[1:2] if part not in kinds]
    key = ".".join(location)
    if fault["type"] == "extra_forbidden":
        near = difflib.get_close_matches(location[-1], _keys_at(fault["loc"][:-1]), n=1, cutoff=0.5)
        remedy = f"did you mean {'.'.join([*location[:-1], near[0]])}?" if near else "remove it."
        return f"{key}={fault['input']!r}: no such key; {remedy}"
    if fault["type"] == "missing":
        return f"{key} is missing; add it."
    if fault["type"] == "value_error":
        return f"{fault['ctx']['error']}."
    if fault["type"].startswith("union_tag"):
        names = ", ".join(sorted(kinds))
        given = fault["input"].get("kind") if isinstance(fault["input"], dict) else fault["input"]
        return f"{key}.kind={given!r}: must be one of {names}."
    message = fault["msg"][0].lower() + fault["msg"][1:]
    return f"{key}={repr(fault['input'])[:80]}: {message}."


def _model_kinds() -> tuple[type[Section], ...]:
    return CompressiveTransformerRecipe, TransformerXLRecipe, WaveNetRecipe


def _keys_at(location: Sequence[Any]) -> list[str]:
    """Return the keys that a recipe has at a location."""
    section: type[BaseModel] = Recipe
    for part in location:
        if section is Recipe and part == "model":
            continue
        kinds = {get_args(kind.model_fields["kind"].annotation)[0]: kind for kind in _model_kinds()}
        annotation = kinds.get(part) or section.model_fields[part].annotation
        # A section that may be left out is a union of it and None.
        options = get_args(annotation) or (annotation,)
        sections = [each for each in options if isinstance(each, type) and issubclass(each, Section)]
        if not sections:
            return []
        section = sections[0]
    return list(section.model_fields)


def build_model(model: Section, vocabulary_size: int) -> "TokenModel":
    """Return a freshly initialised model; the recipe's keys are the constructor's arguments.

    Raises:
        InputError: if sizes do not fit together.
    """
    # Torch takes seconds to import: checking a recipe must not.
    from audio_ct.models.coarse import CoarseSettings
    from audio_ct.models.compression import CompressionSettings
    from audio_ct.models.compressive_transformer import CompressiveTransformer
    from audio_ct.models.linear_prediction import LinearPredictionSettings
    from audio_ct.models.wavenet import WaveNet

    arguments = model.model_dump(exclude={"kind"})
    if "compression" in arguments:
        arguments["compression"] = CompressionSettings(**arguments["compression"])
    if arguments.get("coarse") is not None:
        arguments["coarse"] = CoarseSettings(**arguments["coarse"])
    if arguments["linear_prediction"] is not None:
        arguments["linear_prediction"] = LinearPredictionSettings(**arguments["linear_prediction"])
    if isinstance(model, WaveNetRecipe):
        return WaveNet(vocabulary_size=vocabulary_size, **arguments)
    return CompressiveTransformer(vocabulary_size=vocabulary_size, **arguments)
