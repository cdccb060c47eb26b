"""A trained model as a folder to be handed on: on a model hub, beside a paper, or with this package.

    FOLDER/
        README.md            the model card, with the front matter that model hubs read
        model.safetensors    weights
        recipe.yaml          the resolved recipe, without this machine's addresses
        manifest.json        step, tokens, metrics, corpus digest, version; size and SHA-256 of the other files
        step.pt2             if asked for: the step as a program of torch.export (`audio_ct.sampling.program`)

It is a checkpoint without what only training needs, and is read and checked as one (`audio_ct.checkpoint`).
"""

import os
import re
import shutil
from pathlib import Path, PurePosixPath

import jinja2
import torch
import yaml

from audio_ct import checkpoint
from audio_ct.durable import install
from audio_ct.errors import AudioCTError, InputError
from audio_ct.estimates import temporal_range
from audio_ct.models.token_model import num_parameters
from audio_ct.pretrained import CARD_FILE, Pretrained
from audio_ct.recipe import Recipe
from audio_ct.sampling.program import export_step
from audio_ct.tokens.store import printable

# What stands below it in a card is its reader's, and kept when the card is written again.
NOTES = "<!-- Notes: what follows is written by hand and kept by `audio-ct export`. -->"
TEMPLATE = Path(__file__).with_name("model_card.md.jinja")
# What a card says of the corpus.
FACTS = ("title", "corpus", "citation", "licence", "address")
KINDS = {
    "compressive_transformer": "Compressive Transformer",
    "transformer_xl": "Transformer-XL",
    "wavenet": "WaveNet",
}
# Licences of corpora that model hubs know by an identifier, which is the SPDX name in small letters.
HUB_LICENCE = re.compile(r"apache-2\.0|mit|cc0-1\.0|gpl-[23]\.0|cc-by(-nc)?(-sa|-nd)?-[234]\.0", re.IGNORECASE)


def export(model: Pretrained, folder: Path, *, licence: str | None = None, program: bool = False) -> Path:
    """Write a model as a folder to be handed on; return the folder.

    Args:
        model: a loaded checkpoint, or a folder of this kind, whose card's notes are kept. On the CPU for a program.
        folder: whole or absent; must not be there yet.
        licence: of the weights, an SPDX name; by default the corpus's, where its store is there and says it.
        program: also write the step as step.pt2.

    Raises:
        InputError: if the folder is there, or cannot be written.
    """
    if folder.exists():
        raise InputError(f"out={str(folder)!r} is there already; choose another place, or remove it first.")
    corpus = _corpus(model)
    is_of_data = licence is None
    corpus["licence"] = licence or corpus["licence"]
    # Not an absolute path of this machine, nor a server of its owner's.
    recipe = model.recipe
    recipe = recipe.model_copy(
        update={
            "corpus": recipe.corpus.model_copy(update={"store": PurePosixPath(recipe.corpus.store).name}),
            "tracking": type(recipe.tracking)(enabled=False),
        }
    )
    target = Path(os.path.abspath(folder))
    temporary = target.with_name(f".{target.name}.{os.getpid()}.tmp")
    files = [*checkpoint.PUBLISHED_FILES, *([checkpoint.PROGRAM_FILE] if program else [])]
    try:
        temporary.mkdir(parents=True)
        shutil.copyfile(model.path / checkpoint.MODEL_FILE, temporary / checkpoint.MODEL_FILE)
        (temporary / checkpoint.RECIPE_FILE).write_bytes(recipe.to_yaml().encode())
        if program:
            exported = export_step(model.model, start_token=model.codec.start_token)
            torch.export.save(exported, temporary / checkpoint.PROGRAM_FILE)
        checkpoint.write_manifest(temporary, files, model.manifest.model_dump())
        card = _card(model, target.name, recipe, corpus, is_of_data=is_of_data, program=program)
        (temporary / CARD_FILE).write_text(card, encoding="utf-8")
        install(temporary, target)
    except OSError as error:
        raise InputError(
            f"out={str(folder)!r} cannot be written: {error.strerror}; choose a writable place."
        ) from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    return folder


def _corpus(model: Pretrained) -> dict[str, str | None]:
    """What the store that a model was trained on says of itself, each a line; None where it is not there."""
    try:
        corpus = model.open_store().corpus
    except AudioCTError:
        corpus = {}
    # "|" would end a cell of the card's table.
    return {name: printable(corpus[name]).replace("|", "/") if corpus.get(name) else None for name in FACTS}


def _card(
    model: Pretrained,
    name: str,
    recipe: Recipe,
    corpus: dict[str, str | None],
    *,
    is_of_data: bool,
    program: bool,
) -> str:
    """The model card: front matter, what is known of the model, how to use it, its limits, and the notes."""
    codec, manifest, licence = model.codec, model.manifest, corpus["licence"] or ""
    rate_hz, back = codec.sample_rate_hz, temporal_range(recipe.model)
    hub_licence = licence.lower() if HUB_LICENCE.fullmatch(licence) else "other" if licence else "unknown"
    front_matter = {
        "library_name": "audio-ct",
        "license": hub_licence,
        **({"license_name": licence} if hub_licence == "other" else {}),
        "pipeline_tag": "text-generation" if rate_hz is None else "audio-to-audio",
        "tags": ["audio-ct", recipe.model.kind.replace("_", "-"), *([] if rate_hz is None else ["audio", "speech"])],
    }
    template = jinja2.Environment(
        # Not a page: what is escaped in HTML would be read as it stands.
        autoescape=False,  # noqa: S701
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
        undefined=jinja2.StrictUndefined,
    ).from_string(TEMPLATE.read_text(encoding="utf-8"))
    card = template.render(
        front_matter=yaml.safe_dump(front_matter, sort_keys=True, allow_unicode=True),
        name=name,
        kind=KINDS[recipe.model.kind],
        has_prediction=recipe.model.linear_prediction is not None,
        millions=f"{num_parameters(model.model) / 1e6:.2f}M",
        codec=codec,
        vocabulary_size=codec.vocabulary_size,
        corpus=corpus,
        digest=manifest.store_digest,
        tokens=f"{manifest.tokens / 1e6:.1f}M",
        manifest=manifest,
        bits=manifest.validation_bits_per_sample,
        is_of_data=is_of_data,
        back=f"{back:,} bytes" if rate_hz is None else f"{back / rate_hz:.2f} s",
        program=program,
        notes=NOTES,
    )
    existing = model.path / CARD_FILE
    kept = existing.read_text(encoding="utf-8").partition(NOTES)[2] if existing.is_file() else ""
    return card + kept.lstrip("\n")
