"""Checkpoints as ready models, for sampling and evaluation."""

from dataclasses import dataclass
from pathlib import Path

import torch

from audio_ct.audio.mu_law import silence_token
from audio_ct.errors import DamagedError
from audio_ct.models.interface import TokenModel
from audio_ct.recipe import Recipe, build_model, parse_recipe
from audio_ct.training import checkpoint
from audio_ct.training.checkpoint import Manifest


@dataclass(frozen=True)
class Pretrained:
    """A trained model with what is known about it.

    Attributes:
        path: the checkpoint's folder.
        model: in evaluation mode.
        recipe: the resolved recipe that it was trained by.
        manifest: step, tokens, metrics, digest of the corpus, versions.
        sample_rate_hz: of the audio it was trained on.
        bits: of its tokens.
    """

    path: Path
    model: TokenModel
    recipe: Recipe
    manifest: Manifest
    sample_rate_hz: int
    bits: int

    @property
    def start_token(self) -> int:
        """The code of silence, which stands before the first sample."""
        return silence_token(self.bits)

    @property
    def label(self) -> str:
        """The checkpoint's run and step: enough to find it, without the machine's folders."""
        return "/".join(self.path.parts[-3:])


def load(path: Path | str, device: torch.device | str = "cpu") -> Pretrained:
    """Return the model of a checkpoint, or of a run's best checkpoint.

    Args:
        path: a checkpoint's folder or a run's folder.
        device: where the model shall be.

    Raises:
        MissingError: if there is no checkpoint.
        DamagedError: if the checkpoint is not what was written.
    """
    folder = checkpoint.find(Path(path), "best")
    loaded = checkpoint.load(folder, with_training=False)
    recipe = parse_recipe(loaded.recipe, name=str(folder / "recipe.yaml"))
    about = loaded.manifest.model
    bits, sample_rate_hz = about.get("bits"), about.get("sample_rate_hz")
    if not isinstance(bits, int) or not isinstance(sample_rate_hz, int):
        raise DamagedError(f"{folder}: the manifest does not say bits and sample_rate_hz; train the model again.")
    model = build_model(recipe.model, 2**bits)
    try:
        model.load_state_dict(loaded.weights)
    except RuntimeError as error:
        fault = " ".join(str(error).split())[:200]
        raise DamagedError(
            f"{folder}: weights are not those of its recipe's model ({fault}); it was written by version "
            f"{loaded.manifest.version}, commit {loaded.manifest.commit or 'unknown'}: use that, or train again."
        ) from error
    return Pretrained(folder, model.to(device).eval(), recipe, loaded.manifest, sample_rate_hz, bits)


def choose_device() -> torch.device:
    """Return the GPU where there is one, the CPU otherwise."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")
