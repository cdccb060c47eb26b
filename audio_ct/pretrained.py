"""Checkpoints as ready models, for sampling and evaluation."""

from dataclasses import dataclass, replace
from pathlib import Path

import torch

from audio_ct.errors import DamagedError, InputError
from audio_ct.models.interface import TokenModel
from audio_ct.recipe import Recipe, build_model, parse_recipe
from audio_ct.tokens.clip import open_corpus
from audio_ct.tokens.encoding import Encoding, check_encoding, start_token
from audio_ct.tokens.store import TokenStore
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
        sample_rate_hz: of the audio it was trained on; None for a model of bytes.
        bits: of its tokens.
        encoding: what its tokens stand for.
    """

    path: Path
    model: TokenModel
    recipe: Recipe
    manifest: Manifest
    sample_rate_hz: int | None
    bits: int
    encoding: Encoding = "mu-law"

    @property
    def start_token(self) -> int:
        """What stands before the first token: the code of silence, or 0 before bytes."""
        return start_token(self.encoding, self.bits)

    def open_store(self, store: Path | None = None) -> TokenStore:
        """Return the corpus that the model was trained on.

        Args:
            store: where it is, if no longer where the recipe says.

        Raises:
            InputError: if it is another.
        """
        opened = open_corpus(store or self.recipe.corpus.store, self.recipe.corpus.clip_seconds)
        if opened.digest != self.manifest.store_digest:
            raise InputError(
                f"corpus.store={str(opened.path)!r} is not the store that {self.path} was trained on; name it by "
                "--store."
            )
        return opened

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
    encoding: Encoding = "bytes" if about.get("encoding") == "bytes" else "mu-law"
    try:
        if not isinstance(bits, int) or not isinstance(sample_rate_hz, int | None):
            raise InputError("the manifest does not say bits and sample_rate_hz.")
        check_encoding(encoding, sample_rate_hz=sample_rate_hz, bits=bits)
    except InputError as error:
        raise DamagedError(f"{folder}: {str(error).rstrip('.')}; train the model again.") from error
    model = build_model(recipe.model, 2**bits)
    try:
        model.load_state_dict(loaded.weights)
    except RuntimeError as error:
        fault = " ".join(str(error).split())[:200]
        raise DamagedError(
            f"{folder}: weights are not those of its recipe's model ({fault}); it was written by version "
            f"{loaded.manifest.version}, commit {loaded.manifest.commit or 'unknown'}: use that, or train again."
        ) from error
    return Pretrained(folder, model.to(device).eval(), recipe, loaded.manifest, sample_rate_hz, bits, encoding)


def with_memory_lengths(
    pretrained: Pretrained, *, memory_length: int | None = None, compressed_memory_length: int | None = None
) -> Pretrained:
    """Return the same model with memories of other lengths than in training, in all layers that have one.

    Raises:
        InputError: if the model has no such memory, or weights that depend on its length, or the length does not fit.
    """
    about = pretrained.recipe.model
    lengths = {"memory_length": memory_length, "compressed_memory_length": compressed_memory_length}
    changes: dict[str, int | list[int]] = {}
    for name, length in lengths.items():
        if length is None:
            continue
        if not hasattr(about, name):
            raise InputError(f"model.kind={about.kind!r} has no {name}; leave it as it is.")
        trained = getattr(about, name)
        if not any(trained if isinstance(trained, list) else [trained]):
            raise InputError(f"model.{name}={trained} was none in training; leave it as it is.")
        changes[name] = [length if each else 0 for each in trained] if isinstance(trained, list) else length
    if not changes:
        return pretrained
    if changes.get("compressed_memory_length") == 0:
        # Nothing leaves what is not there.
        changes["twice_compressed_memory_length"] = 0
    if getattr(about, "learned_initial_memory", False):
        raise InputError(
            "model.learned_initial_memory=True was learned for its length; memories must stay as they are."
        )
    # Values of a recipe are checked when it is read, not when it is copied.
    recipe = parse_recipe(pretrained.recipe.model_copy(update={"model": about.model_copy(update=changes)}).to_yaml())
    model = build_model(recipe.model, pretrained.model.vocabulary_size)
    wanted = model.state_dict().keys()
    # Where nothing is compressed any more, nothing needs to be able to.
    model.load_state_dict({name: tensor for name, tensor in pretrained.model.state_dict().items() if name in wanted})
    device = next(pretrained.model.parameters()).device
    return replace(pretrained, model=model.to(device).eval(), recipe=recipe)


def choose_device() -> torch.device:
    """Return the GPU where there is one, the CPU otherwise."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")
