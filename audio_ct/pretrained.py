"""Checkpoints as ready models, for sampling and evaluation."""

import logging
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from audio_ct import checkpoint
from audio_ct.checkpoint import Manifest
from audio_ct.device import choose_device
from audio_ct.errors import DamagedError, InputError, MissingError
from audio_ct.models.build import build_model
from audio_ct.models.footprint import least_bytes, outline, refuse_too_large
from audio_ct.models.token_model import TokenModel, all_finite
from audio_ct.recipe import Recipe, parse_recipe
from audio_ct.tokens.clip import find_again, open_corpus
from audio_ct.tokens.codec import Codec, make_codec
from audio_ct.tokens.store import TokenStore

# The model card, which a checkpoint of a run has not.
CARD_FILE = "README.md"

logger = logging.getLogger("audio_ct")


@dataclass(frozen=True)
class Pretrained:
    """A trained model with what is known about it.

    Attributes:
        path: the checkpoint's folder.
        model: in evaluation mode.
        recipe: the resolved recipe that it was trained by.
        manifest: step, tokens, metrics, digest of the corpus, versions.
        codec: the meaning of its tokens.
    """

    path: Path
    model: TokenModel
    recipe: Recipe
    manifest: Manifest
    codec: Codec

    def open_store(self, store: Path | str | None = None) -> TokenStore:
        """Open the corpus that the model was trained on, or another store of the same tokens.

        Args:
            store: path or address; by default the recipe's, found from the current folder, or from the checkpoint's and
                those above it. One of other recordings is warned of.

        Raises:
            MissingError: if there is none.
            InputError: if the recipe's store is no longer the one that the model was trained on, or the tokens of a
                store that was named mean something else.
        """
        corpus = self.recipe.corpus
        address = store or find_again(corpus.store, digest=self.manifest.store_digest, checkpoint=self.path)
        try:
            opened = open_corpus(address, corpus.clip_seconds, cache_gib=corpus.cache_gib)
        except MissingError as error:
            if store is not None:
                raise
            raise MissingError(
                f"corpus.store={corpus.store!r}, on which {self.label} was trained, is not there, from here or from "
                f"the folders above the checkpoint; name it, or another store of {self.codec}, by --store."
            ) from error
        if opened.digest == self.manifest.store_digest:
            return opened
        if store is None:
            raise InputError(
                f"corpus.store={opened.address!r} is not the store that {self.label} was trained on; name that one, or "
                "another of the same rate and bits, by --store."
            )
        if opened.codec != self.codec:
            raise InputError(
                f"store={opened.address!r} holds {opened.codec}; {self.label} reads {self.codec}; name one of those."
            )
        logger.warning("%s is not the store that %s was trained on", opened.address, self.label)
        return opened

    @property
    def label(self) -> str:
        """The run and step, or an exported folder's name: enough to find it, without the machine's folders."""
        return self.path.resolve().name if (self.path / CARD_FILE).exists() else "/".join(self.path.parts[-3:])


def shipped() -> dict[str, Path]:
    """The models that come with the package, by name: folders as `audio_ct.publication` writes them."""
    package = Path(__file__).parent
    # In an installed package they lie within it, in a checkout where pyproject.toml takes them from.
    places = (package / "shipped", package.parent / "samples" / "pretrained")
    return {card.parent.name: card.parent for place in places for card in sorted(place.glob(f"*/{CARD_FILE}"))}


def load(path: Path | str, device: torch.device | str | None = None) -> Pretrained:
    """Load the model of a checkpoint, a run's best one, an exported folder, or one that comes with the package.

    Args:
        path: a checkpoint's folder, a run's folder, one that `audio-ct export` wrote, or a name of `shipped`; what is
            there goes before names.
        device: place of the model; by default a GPU where there is one.

    Raises:
        MissingError: if there is no checkpoint, and no model of that name.
        DamagedError: if the checkpoint is not what was written, or its weights are not finite.
        InputError: if its recipe is wrong, or the model does not fit into memory.

    Example:
        >>> model = audio_ct.load("runs/wavenet")
        >>> model.codec.sample_rate_hz
        24000
    """
    folder = checkpoint.find(_place(Path(path)), "best")
    loaded = checkpoint.load(folder, with_training=False)
    recipe = parse_recipe(loaded.recipe, name=str(folder / "recipe.yaml"))
    codec = _codec(folder, loaded.manifest)
    device = torch.device(device or choose_device())
    # What does not fit together, or into memory, is refused before there is memory for it.
    shapes = outline(recipe.model, codec.vocabulary_size)
    needed = least_bytes(shapes, batch_size=1)
    try:
        shapes.load_state_dict(loaded.weights, assign=True)
        refuse_too_large(needed, device)
        model = build_model(recipe.model, codec.vocabulary_size)
        model.load_state_dict(loaded.weights)
    except RuntimeError as error:
        fault = " ".join(str(error).split())[:200]
        raise DamagedError(
            f"{folder}: weights are not those of its recipe's model ({fault}); it was written by version "
            f"{loaded.manifest.version}, commit {loaded.manifest.commit or 'unknown'}: use that, or train again."
        ) from error
    if not all_finite(model):
        raise DamagedError(f"{folder}: weights are not finite; use another checkpoint.")
    return Pretrained(folder, model.to(device).eval(), recipe, loaded.manifest, codec)


def with_memory_lengths(
    pretrained: Pretrained, *, memory_length: int | None = None, compressed_memory_length: int | None = None
) -> Pretrained:
    """Rebuild a model with memories of other lengths than in training, the weights being the same.

    Raises:
        InputError: if the model has no such memory, or the length does not fit.
    """
    settings = pretrained.recipe.model
    lengths = {"memory_length": memory_length, "compressed_memory_length": compressed_memory_length}
    changes = {name: length for name, length in lengths.items() if length is not None}
    for name in changes:
        if name not in type(settings).model_fields:
            raise InputError(f"model.kind={settings.kind!r} has no {name}; leave it as it is.")
        if not getattr(settings, name):
            raise InputError(f"model.{name}=0 was none in training; leave it as it is.")
    if not changes:
        return pretrained
    # Values of a recipe are checked when it is read, not when it is copied.
    recipe = parse_recipe(pretrained.recipe.model_copy(update={"model": settings.model_copy(update=changes)}).to_yaml())
    model = build_model(recipe.model, pretrained.model.vocabulary_size)
    wanted = model.state_dict().keys()
    # Where nothing is compressed any more, there are no compression functions.
    model.load_state_dict({name: tensor for name, tensor in pretrained.model.state_dict().items() if name in wanted})
    device = next(pretrained.model.parameters()).device
    return replace(pretrained, model=model.to(device).eval(), recipe=recipe)


def _place(path: Path) -> Path:
    """The folder that a path, or the name of a model, stands for."""
    known = shipped()
    if path.exists() or len(path.parts) != 1:
        return path
    if path.name not in known:
        raise MissingError(f"{path}: no such folder, and no model of that name; there are {', '.join(known)}")
    return known[path.name]


def _codec(folder: Path, manifest: Manifest) -> Codec:
    encoding, bits, rate = (manifest.model.get(key) for key in ("encoding", "bits", "sample_rate_hz"))
    try:
        if encoding not in ("mu-law", "bytes") or not isinstance(bits, int) or not isinstance(rate, int | None):
            raise InputError("the manifest does not say encoding, bits and sample_rate_hz.")
        return make_codec(encoding, sample_rate_hz=rate, bits=bits)  # type: ignore[arg-type]
    except InputError as error:
        raise DamagedError(f"{folder}: {str(error).rstrip('.')}; train the model again.") from error
