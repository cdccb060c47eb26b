"""Settings of models and of their parts: the keys of a recipe's `model` section, and every rule on their values.

Torch is not imported, so that a recipe is checked in no time; the parts of a model are built from these objects.
"""

import math
from typing import Annotated, ClassVar, Literal, Union

from pydantic import BaseModel, ConfigDict, Field, model_validator

# A count beyond this is a slip, and sums of such counts still fit into 64 bits.
MAX_COUNT = 10**15
Positive = Annotated[int, Field(gt=0, le=MAX_COUNT)]
NonNegative = Annotated[int, Field(ge=0, le=MAX_COUNT)]
# Far above what anyone trains, and so low that a model can be drawn up in seconds, without memory, to find out what it
# would take (`audio_ct.models.footprint`).
Layers = Annotated[int, Field(gt=0, le=1024)]
Channels = Annotated[int, Field(gt=0, le=1 << 16)]
Lag = Annotated[int, Field(gt=0, le=1 << 20)]
Decay = Annotated[int, Field(gt=1, le=1 << 20)]
Entries = Annotated[int, Field(ge=0, le=1 << 20)]
Segment = Annotated[int, Field(gt=0, le=1 << 16)]
Taps = Annotated[int, Field(ge=0, le=1024)]
Dilations = Annotated[list[Lag], Field(max_length=1024)]

CompressionFunction = Literal["convolution", "mean_pooling", "max_pooling", "dilated_convolution", "most_used"]
CompressionLoss = Literal["attention_reconstruction", "auto_encoding", "task", "none"]
LossForm = Literal["mean_square", "norm"]
CompressedPositions = Literal["contiguous", "own"]
Kernel = Literal["auto", "fused", "plain"]
Norm = Literal["pre", "post"]

LEARNED_FUNCTIONS = ("convolution", "dilated_convolution")
# WaveNet's convolutions are wider than 2 in some papers; those around a Transformer are not.
WIDTH = 2


class Section(BaseModel):
    """A part of a recipe: no unknown keys, no silent conversion, never changed after it was read."""

    model_config = ConfigDict(
        extra="forbid",
        frozen=True,
        strict=True,
        allow_inf_nan=False,
        # Editors show them, by recipes/schema.json.
        use_attribute_docstrings=True,
    )


class PitchSettings(Section):
    """A search for the pitch period in the stream's own past; the network is shown what stands a period back."""

    shortest_lag: Lag = 32
    """Samples; 500 Hz at 16 kHz."""
    longest_lag: Lag = 270
    """Samples; 60 Hz at 16 kHz."""
    window: Decay = 256
    """Effective length in samples of the exponential window of the correlation."""
    taps_before: Taps = 4
    """Samples shown before the place a period back, and ..."""
    taps_after: Taps = 7
    """... after it."""

    @model_validator(mode="after")
    def _taps_are_past(self) -> "PitchSettings":
        if not self.taps_after < self.shortest_lag < self.longest_lag:
            raise ValueError(
                f"model.linear_prediction.pitch: taps_after={self.taps_after} < shortest_lag={self.shortest_lag} < "
                f"longest_lag={self.longest_lag} must hold; what is shown must be past"
            )
        return self


class LinearPredictionSettings(Section):
    """Backward-adaptive linear predictors that a model starts from."""

    order: Annotated[int, Field(gt=0, le=256)] = 32
    """Samples that a prediction is made of."""
    windows: Annotated[list[Decay], Field(min_length=1, max_length=16)] = [500, 200, 67, 25]
    """Effective length in samples of the exponential window that each predictor is fitted to; the first predictor's
    forecast centres the logits."""
    frame_length: Segment = 16
    """Samples between two fits; a stream may be cut between frames."""
    bandwidth_expansion: Annotated[float, Field(gt=0, le=1)] = 0.985
    """The coefficient of lag k is multiplied by its k-th power, which draws the predictor's poles in. Below 1 a model
    that listens to itself does not follow oscillations that grow; 1 for none."""
    pitch: PitchSettings | None = None
    """Features of the samples a pitch period back."""
    logistics: bool = False
    """The logits of a softmax begin as the log of a mixture of logistics, one around each predictor's forecast."""


class CompressionSettings(Section):
    """The compression function and the loss that teaches it."""

    function: CompressionFunction = "convolution"
    """convolution and dilated_convolution have weights that their loss teaches, kernel and stride as long as the rate;
    mean_pooling and max_pooling have none; most_used keeps the entries that attention used most."""
    loss: CompressionLoss = "attention_reconstruction"
    """attention_reconstruction and auto_encoding are losses of its own; task is the task's loss through the segments of
    a training window; none teaches nothing, as functions without parameters need."""
    loss_form: LossForm = "mean_square"
    """mean_square, averaged over layers, is DeepMind's code; norm, summed over layers, is printed in the paper."""

    @property
    def counts_usage(self) -> bool:
        """True where entries are compressed by the attention that they received."""
        return self.function == "most_used"

    @model_validator(mode="after")
    def _loss_has_something_to_teach(self) -> "CompressionSettings":
        if self.function not in LEARNED_FUNCTIONS and self.loss != "none":
            raise ValueError(
                f"model.compression.loss={self.loss!r} has nothing to teach: {self.function} has no parameters; "
                "use none"
            )
        return self


class _Input(Section):
    """The part of a model that reads tokens."""

    kind: str
    """Names the model."""
    embedding: Literal["learned", "sinusoidal"] = "learned"
    """A table, or a linear map of sines and cosines of the token's place on the mu-law scale."""
    linear_prediction: LinearPredictionSettings | None = None
    """What linear filters expect of the next sample, as features and as the centre of the logits; none for a model
    without."""

    @property
    def frame_length(self) -> int:
        """Samples between two fits of linear prediction; 1 without it."""
        return 1 if self.linear_prediction is None else self.linear_prediction.frame_length


class _Output(Section):
    """The part of a model that gives tokens their probabilities."""

    output: Literal["softmax", "mixture_of_logistics"] = "softmax"
    """The size of the mixture does not grow with the number of tokens."""

    @model_validator(mode="after")
    def _logistics_begin_a_softmax(self) -> "_Output":
        prediction: LinearPredictionSettings | None = getattr(self, "linear_prediction", None)
        if self.output != "softmax" and prediction is not None and prediction.logistics:
            raise ValueError(
                f"model.linear_prediction.logistics=true is for a softmax, and model.output={self.output!r} stands "
                "around the forecasts anyway; leave one out"
            )
        return self


class TransformerSettings(Section):
    """The stage that Transformer-XL and the Compressive Transformer share, second memory included."""

    num_layers: Layers
    """Layers of attention and feed-forward, each with memories of its own."""
    d_model: Channels
    """Channels of an entry, in the layers and in their memories."""
    num_heads: Channels
    """Heads of queries; they share d_model evenly."""
    num_key_value_heads: Channels | None = None
    """Heads of keys and values, each shared by as many query heads; none for one each."""
    d_ff: Annotated[int, Field(gt=0, le=1 << 18)]
    """Channels inside the feed-forward part of a layer."""
    norm: Norm = "pre"
    """The paper has post."""
    attention_kernel: Kernel = "auto"
    """fused is torch's scaled_dot_product_attention, plain matrix products; auto is fused on a GPU, and on a CPU plain
    up to a size. The result is the same, but for rounding."""
    segment_length: Segment
    """Entries read at once; between segments only memory is carried."""
    memory_length: Entries
    """Entries in each layer."""

    @model_validator(mode="after")
    def _heads_divide(self) -> "TransformerSettings":
        if self.d_model % self.num_heads:
            raise ValueError(f"model.num_heads={self.num_heads} must divide model.d_model={self.d_model}; change one")
        if self.num_heads % (self.num_key_value_heads or self.num_heads):
            raise ValueError(
                f"model.num_key_value_heads={self.num_key_value_heads} must divide model.num_heads={self.num_heads}; "
                "try 1"
            )
        return self

    @property
    def d_head(self) -> int:
        """Channels of a head."""
        return self.d_model // self.num_heads

    @property
    def num_sinusoids(self) -> int:
        """Sinusoids of a position: as many as a head has channels, rounded up to pairs."""
        return self.d_head + self.d_head % 2


class _Convolutions(Section):
    """Gated convolutions of width 2 over the samples, around the Transformer."""

    convolutions: Literal["wavenet", "swiglu"] = "wavenet"
    """WaveNet's layers and head, or pre-norm layers with a Transformer's gate and a norm as head."""
    front_dilations: Dilations = []
    """One convolution before the Transformer for each; their skips go past it to the head. The paper has none."""
    back_dilations: Dilations = []
    """One convolution behind the Transformer for each."""


class FramesSettings(Section):
    """Frames of samples as the entries of a Transformer, and gated convolutions over the samples behind it."""

    samples: Annotated[int, Field(gt=1, le=4096)] = 16
    """Of a frame."""
    channels: Channels
    """Of a sample: embedding, residuals, gates and skips."""
    dilations: Annotated[Dilations, Field(min_length=1)]
    """One gated convolution of width 2 for each."""


class _SegmentsHoldFrames(_Output, TransformerSettings, _Convolutions, _Input):
    """A Transformer between input and output. Bases stand in reverse: fields keep the order of the parts."""

    frames: FramesSettings | None = None
    """Entries are frames; lengths of segments and memories count them. None: an entry is a sample."""

    @model_validator(mode="after")
    def _frames_divide_segment(self) -> "_SegmentsHoldFrames":
        if self.cut_length % self.frame_length:
            raise ValueError(
                f"model.linear_prediction.frame_length={self.frame_length} must divide "
                f"{self.cut_key}={self.cut_length}; try {math.gcd(16, self.cut_length)}"
            )
        return self

    @model_validator(mode="after")
    def _convolutions_are_there(self) -> "_SegmentsHoldFrames":
        if self.convolutions != "wavenet" and not (self.front_dilations or self.back_dilations or self.frames):
            raise ValueError(
                f"model.convolutions={self.convolutions!r}: there are none; give model.front_dilations or "
                "model.back_dilations"
            )
        return self

    @model_validator(mode="after")
    def _one_place_for_convolutions(self) -> "_SegmentsHoldFrames":
        for key in ("front_dilations", "back_dilations"):
            if self.frames is not None and getattr(self, key):
                raise ValueError(
                    f"model.{key}={getattr(self, key)}: with model.frames the convolutions stand behind the "
                    "Transformer, at another width; give them as model.frames.dilations"
                )
        return self

    @property
    def channels(self) -> int:
        """Of a sample."""
        return self.d_model if self.frames is None else self.frames.channels

    @property
    def cut_key(self) -> str:
        """The keys that say `cut_length`."""
        return "model.segment_length" if self.frames is None else "model.segment_length x model.frames.samples"

    @property
    def cut_length(self) -> int:
        """A stream may be cut into windows of whole multiples of so many tokens; `cut_key` is the key that says it."""
        return self.segment_length * (1 if self.frames is None else self.frames.samples)


class TransformerXLSettings(_SegmentsHoldFrames):
    """Transformer-XL: the Compressive Transformer with an empty second memory."""

    kind: Literal["transformer_xl"] = "transformer_xl"
    """Names the model."""

    compressed_memory_length: ClassVar[int] = 0
    compression_rate: ClassVar[int] = 1
    compression: ClassVar[CompressionSettings] = CompressionSettings()
    compressed_positions: ClassVar[CompressedPositions] = "contiguous"


class CompressiveTransformerSettings(_SegmentsHoldFrames):
    """The Compressive Transformer."""

    kind: Literal["compressive_transformer"] = "compressive_transformer"
    """Names the model."""
    compressed_memory_length: Entries
    """Compressed entries in each layer; 0 is Transformer-XL."""
    compression_rate: Segment = 4
    """Entries that become one; the newest of a segment are dropped where it does not divide it."""
    compression: CompressionSettings = CompressionSettings()
    """What makes entries that leave memory into compressed ones, and what teaches it."""
    compressed_positions: CompressedPositions = "contiguous"
    """contiguous numbers compressed entries as if each were one sample, as the paper does; own gives them a projection
    and a bias of their own, as DeepMind's code does."""

    @model_validator(mode="after")
    def _compression_leaves_something(self) -> "CompressiveTransformerSettings":
        if self.compressed_memory_length and self.compression_rate > self.segment_length:
            raise ValueError(
                f"model.compression_rate={self.compression_rate} leaves nothing of "
                f"model.segment_length={self.segment_length}; lower the rate"
            )
        by_use = self.compressed_memory_length and self.compression.counts_usage
        if by_use and self.memory_length < self.segment_length:
            raise ValueError(
                f"model.memory_length={self.memory_length} must be at least model.segment_length="
                f"{self.segment_length} for compression by use, which is counted in memory; raise it"
            )
        return self


class WaveNetSettings(_Output, _Input):
    """WaveNet."""

    kind: Literal["wavenet"] = "wavenet"
    """Names the model."""
    num_stacks: Annotated[int, Field(gt=0, le=64)]
    """Cycles of dilations."""
    layers_per_stack: Annotated[int, Field(gt=0, le=20)]
    """Layers in a cycle, of dilations 1, 2, 4, ..."""
    residual_channels: Channels
    """Channels of the residual stream and of the gates."""
    skip_channels: Channels
    """Channels of the sum of skips, which the head reads."""
    width: Annotated[int, Field(ge=2, le=1024)] = 2
    """Taps of each convolution."""

    @property
    def channels(self) -> int:
        """Of a sample."""
        return self.residual_channels

    @property
    def dilations(self) -> list[int]:
        """One for each layer."""
        return [2**power for _ in range(self.num_stacks) for power in range(self.layers_per_stack)]

    @property
    def receptive_field(self) -> int:
        """Samples that a prediction depends on through the convolutions; linear prediction sees all of the past."""
        return 1 + (self.width - 1) * sum(self.dilations)

    cut_key: ClassVar[str] = "model.linear_prediction.frame_length"

    @property
    def cut_length(self) -> int:
        """A stream may be cut anywhere, with linear prediction between its frames."""
        return self.frame_length


ModelSettings = Annotated[
    Union[CompressiveTransformerSettings, TransformerXLSettings, WaveNetSettings], Field(discriminator="kind")
]
