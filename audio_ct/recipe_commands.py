"""The `recipes` commands: shipped recipes, and recipes of one's own. Heavy imports happen inside commands."""

import json
import shlex
import sys
import textwrap
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from audio_ct.errors import AudioCTError, InputError
from audio_ct.prep import Overwrite

if TYPE_CHECKING:
    from audio_ct.recipe import Recipe

# Of a recipe whose store is not there: 8 bits.
USUAL_VOCABULARY_SIZE = 256
LIST_WIDTH = 150

recipes = typer.Typer(help="List, show, check, compare and draft recipes.", no_args_is_help=True)

RecipePath = Annotated[Path, typer.Argument(help="A recipe: a file, or a shipped one's name, such as demo/wavenet.")]


@recipes.command("list")
def list_all() -> None:
    """List the shipped recipes: name, model, parameters, and what each is for."""
    from audio_ct.models.footprint import outline
    from audio_ct.models.token_model import num_parameters
    from audio_ct.recipe import load_recipe
    from audio_ct.recipe_files import description, shipped_recipes

    width = max(map(len, shipped_recipes()))
    for name, path in shipped_recipes().items():
        recipe = load_recipe(path)
        millions = num_parameters(outline(recipe.model, USUAL_VOCABULARY_SIZE)) / 1e6
        what = description(path.read_text(encoding="utf-8"))
        line = f"{name:{width}}  {recipe.model.kind:23} {millions:6.1f}M  {what}"
        print(line if len(line) <= LIST_WIDTH else f"{line[: LIST_WIDTH - 3].rsplit(' ', 1)[0]}...")


@recipes.command()
def show(recipe: RecipePath) -> None:
    """Print a recipe as it is written."""
    from audio_ct.recipe import read_recipe

    print(read_recipe(recipe), end="")


@recipes.command()
def check(
    recipe: RecipePath,
    settings: Annotated[list[str] | None, typer.Option("--set", help="section.key=value; may be repeated.")] = None,
) -> None:
    """Check a recipe: every fault at once, a line each, and exit status 2; else one line that says its size.

    Memory is counted for training in one process. Whether the store is there is not asked.
    """
    from audio_ct.device import choose_device, memory_bytes
    from audio_ct.estimates import estimate
    from audio_ct.models.footprint import GIB
    from audio_ct.recipe import load_recipe, refuse_passwords

    checked = load_recipe(recipe, settings or ())
    refuse_passwords(checked)
    vocabulary_size = _vocabulary_size(checked)
    size = estimate(checked, vocabulary_size or USUAL_VOCABULARY_SIZE)
    assumed = (
        "" if vocabulary_size else f", for tokens of 8 bits, since corpus.store={checked.corpus.store!r} is not here"
    )
    device = choose_device()
    too_much = "" if size.fits(device) else f", more than the {memory_bytes(device) / GIB:,.1f} of {device} here"
    print(f"{checked.name}: {size}{too_much}; cut length {checked.model.cut_length}{assumed}")


@recipes.command()
def diff(first: RecipePath, second: RecipePath) -> None:
    """Print the keys in which two recipes differ, defaults written out: the first's value, then the second's."""
    from audio_ct.recipe import flat, load_recipe

    before, after = (flat(load_recipe(path).model_dump()) for path in (first, second))
    differing = [key for key in before | after if (key in before, before.get(key)) != (key in after, after.get(key))]
    for key in differing:
        values = [repr(values[key]) if key in values else "no such key" for values in (before, after)]
        print(f"{key}: {values[0]} -> {values[1]}")
    if not differing:
        print("they say the same")


@recipes.command()
def new(
    store: Annotated[str, typer.Argument(help="A token store: a folder, or s3://bucket/store.")],
    model: Annotated[
        Literal["compressive_transformer", "transformer_xl", "wavenet"], typer.Option("--model", help="Its kind.")
    ],
    minutes: Annotated[
        float | None, typer.Option(help="Of training on this machine (five passes over the store).")
    ] = None,
    out: Annotated[Path | None, typer.Option("--out", help="The file; without it the recipe is printed.")] = None,
    overwrite: Overwrite = False,
) -> None:
    """Draft a recipe for a token store, and say what it takes here. A few windows of training are timed.

    It is a shipped recipe (speech/..., of bytes enwik8/small) with what depends on the store changed, and not tried.
    """
    from audio_ct import strict_yaml
    from audio_ct.device import choose_device
    from audio_ct.durable import write_whole
    from audio_ct.estimates import estimate, temporal_range
    from audio_ct.recipe_draft import draft
    from audio_ct.tokens.store import TokenStore

    if minutes is not None and not 0 < minutes < float("inf"):
        raise InputError(f"minutes={minutes} must be above 0; try 30.")
    if out is not None and out.exists() and not overwrite:
        raise InputError(f"out={str(out)!r} is there already; name another file, or --overwrite.")
    opened, device = TokenStore.open(store), choose_device()
    recipe, speed = draft(opened, model, device, minutes=minutes)
    rate_hz, max_tokens = opened.codec.sample_rate_hz, recipe.training.max_tokens
    num_tokens, back = opened.num_tokens("train"), temporal_range(recipe.model)
    size = f"{num_tokens:,} bytes" if rate_hz is None else f"{num_tokens / rate_hz / 3600:.2f} hours"
    tokens = "bytes" if rate_hz is None else f"{rate_hz} Hz, {opened.codec.bits} bits"
    comment = f"Drafted by `audio-ct recipes new` for {tokens}, {size} for training: a beginning, not tried by anyone."
    text = "".join(f"# {line}\n" for line in textwrap.wrap(comment, 118))
    text += strict_yaml.dump(recipe.model_dump(exclude_unset=True))
    if out is None:
        print(text, end="")
    else:
        out.parent.mkdir(parents=True, exist_ok=True)
        write_whole(out, text.encode())
    lines = [
        f"{opened.address}: {tokens}, {size} for training",
        f"{estimate(recipe, opened.vocabulary_size)}",
        f"looks back {back:,} tokens" + ("" if rate_hz is None else f", {back / rate_hz:.3f} seconds"),
        f"some {speed:,.0f} tokens a second here on {device}: {max_tokens:,} tokens, "
        f"{max_tokens / num_tokens:.2g} passes, in {max_tokens / speed / 60:,.1f} minutes, validation not counted",
    ]
    if out is not None:
        run = shlex.quote(f"runs/{recipe.name}")
        lines.append(f"next: audio-ct train {shlex.quote(str(out))} --run-dir {run}")
    for line in lines:
        print(line, file=sys.stderr if out is None else sys.stdout)


@recipes.command()
def schema() -> None:
    """Print the JSON schema of recipes, by which editors complete and check them (recipes/schema.json)."""
    from audio_ct.recipe import Recipe

    print(json.dumps(Recipe.model_json_schema(), indent=1))


def _vocabulary_size(recipe: "Recipe") -> int | None:
    """The number of token values of a recipe's store; None where it is elsewhere or cannot be read."""
    from audio_ct.storage import is_remote
    from audio_ct.tokens.store import TokenStore

    if is_remote(recipe.corpus.store):
        return None
    try:
        return TokenStore.open(recipe.corpus.store).vocabulary_size
    except AudioCTError:
        return None
