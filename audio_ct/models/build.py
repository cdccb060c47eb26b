"""Models from settings: which parts each family is made of."""

from torch import nn

from audio_ct.models.compressive_transformer import CompressiveTransformer
from audio_ct.models.embedding import AmplitudeEmbedding
from audio_ct.models.frames import Frames
from audio_ct.models.gated_convolutions import GatedConvolutions
from audio_ct.models.heads import Head, SkipBody, SoftmaxHead
from audio_ct.models.linear_prediction import LinearPrediction
from audio_ct.models.mixture import MixtureHead
from audio_ct.models.settings import FRONT_WIDTH, ModelSettings, WaveNetSettings
from audio_ct.models.stage import Stage
from audio_ct.models.token_model import TokenModel

EMBEDDINGS: dict[str, type[nn.Module]] = {"learned": nn.Embedding, "sinusoidal": AmplitudeEmbedding}
HEADS: dict[str, type[Head]] = {"softmax": SoftmaxHead, "mixture_of_logistics": MixtureHead}


def build_model(settings: ModelSettings, vocabulary_size: int) -> TokenModel:
    """Build a freshly initialised model.

    WaveNet is gated convolutions whose skips go through WaveNet's head. The Compressive Transformer and Transformer-XL
    are the Compressive Transformer's stage and a layer norm (pre-norm) or nothing (post-norm) before the readout; with
    a front, gated convolutions stand before it, and the layers' output is one more skip through WaveNet's head; with
    frames they stand behind it, and see its output at the rate of samples.

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
            channels, skip_channels=hidden_channels, width=settings.width, dilations=settings.dilations
        )
        body = SkipBody(hidden_channels)
    elif settings.frames is not None:
        frames, hidden_channels = settings.frames, channels
        stages["frames"] = Frames(
            CompressiveTransformer(settings), channels=channels, d_model=settings.d_model, frame_length=frames.samples
        )
        stages["convolutions"] = GatedConvolutions(
            channels, skip_channels=channels, width=FRONT_WIDTH, dilations=frames.dilations
        )
        body = SkipBody(channels)
    else:
        hidden_channels = channels
        if settings.front_dilations:
            stages["front"] = GatedConvolutions(
                channels, skip_channels=channels, width=FRONT_WIDTH, dilations=settings.front_dilations
            )
        stages["transformer"] = CompressiveTransformer(settings)
        if settings.front_dilations:
            body = SkipBody(channels)
        else:
            body = nn.LayerNorm(channels) if settings.norm == "pre" else nn.Identity()
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
