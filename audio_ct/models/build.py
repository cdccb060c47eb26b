"""Models from settings: which parts each family is made of."""

from torch import nn

from audio_ct.models.compressive_transformer import CompressiveTransformer
from audio_ct.models.embedding import AmplitudeEmbedding
from audio_ct.models.frames import Frames
from audio_ct.models.gated_convolutions import DilatedLayer, GatedConvolution, GatedConvolutions, SwiGLUConvolution
from audio_ct.models.heads import Head, SkipBody, SoftmaxHead
from audio_ct.models.linear_prediction import LinearPrediction
from audio_ct.models.mixture import MixtureHead
from audio_ct.models.settings import (
    WIDTH,
    CompressiveTransformerSettings,
    ModelSettings,
    TransformerXLSettings,
    WaveNetSettings,
)
from audio_ct.models.stage import Stage
from audio_ct.models.token_model import TokenModel

EMBEDDINGS: dict[str, type[nn.Module]] = {"learned": nn.Embedding, "sinusoidal": AmplitudeEmbedding}
HEADS: dict[str, type[Head]] = {"softmax": SoftmaxHead, "mixture_of_logistics": MixtureHead}


def build_model(settings: ModelSettings, vocabulary_size: int) -> TokenModel:
    """Build a freshly initialised model.

    WaveNet is gated convolutions whose skips go through WaveNet's head. The Compressive Transformer and Transformer-XL
    are the Compressive Transformer's stage and a layer norm (pre-norm) or nothing (post-norm) before the readout. With
    gated convolutions before or behind them the head is that of the convolutions, and the layers' output is one more
    skip; with frames they stand behind, and see the layers' output at the rate of samples.

    Args:
        settings: a recipe's model section.
        vocabulary_size: number of token values.
    """
    channels = settings.channels
    embedding = EMBEDDINGS[settings.embedding](vocabulary_size, channels)
    stages: dict[str, Stage] = {}
    body: nn.Module
    if isinstance(settings, WaveNetSettings):
        hidden_channels = settings.skip_channels
        stages["convolutions"] = GatedConvolutions(
            GatedConvolution(channels, skip_channels=hidden_channels, width=settings.width, dilation=dilation)
            for dilation in settings.dilations
        )
        body = SkipBody(hidden_channels)
    else:
        hidden_channels = channels
        transformer = CompressiveTransformer(settings)
        if settings.frames is not None:
            frame_length = settings.frames.samples
            stages["frames"] = Frames(
                transformer, channels=channels, d_model=settings.d_model, frame_length=frame_length
            )
            stages["convolutions"] = _convolutions(settings, settings.frames.dilations)
        else:
            if settings.front_dilations:
                stages["front"] = _convolutions(settings, settings.front_dilations)
            stages["transformer"] = transformer
            if settings.back_dilations:
                stages["back"] = _convolutions(settings, settings.back_dilations)
        if len(stages) == 1:
            body = nn.LayerNorm(channels) if settings.norm == "pre" else nn.Identity()
        else:
            body = SkipBody(channels) if settings.convolutions == "wavenet" else nn.RMSNorm(channels, eps=1e-6)
    head = HEADS[settings.output](body, hidden_channels, vocabulary_size=vocabulary_size)  # type: ignore[call-arg]
    linear_prediction = None
    if settings.linear_prediction is not None:
        linear_prediction = LinearPrediction(
            vocabulary_size,
            settings.linear_prediction,
            channels=channels,
            hidden_channels=hidden_channels if settings.output == "softmax" else None,
        )
    return TokenModel(
        vocabulary_size, embedding=embedding, stages=stages, head=head, linear_prediction=linear_prediction
    )


def _convolutions(
    settings: CompressiveTransformerSettings | TransformerXLSettings, dilations: list[int]
) -> GatedConvolutions:
    """Convolutions around a Transformer; their skips are as wide as a sample."""

    def layer(dilation: int) -> DilatedLayer:
        channels = settings.channels
        if settings.convolutions == "swiglu":
            return SwiGLUConvolution(channels, width=WIDTH, dilation=dilation)
        return GatedConvolution(channels, skip_channels=channels, width=WIDTH, dilation=dilation)

    return GatedConvolutions(layer(dilation) for dilation in dilations)
