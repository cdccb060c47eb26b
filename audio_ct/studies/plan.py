"""What a study is: its variants, each a whole recipe, and its runs, a variant with a seed. Read and checked at once."""

import difflib
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from audio_ct.errors import InputError, MissingError
from audio_ct.recipe import Recipe, flat, parse_recipe, read_recipe
from audio_ct.training.tracking import default_uri

BASE_FILE = "base.yaml"
# What must be equal for a comparison at one budget; what is not is said in the table.
BUDGET = (
    "training.max_tokens",
    "training.batch_size",
    "training.window_length",
    "training.update_every",
    "training.precision",
    "evaluation.max_validation_tokens",
    "evaluation.cold_start_samples",
)
_VARIANT_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")


@dataclass(frozen=True)
class StudyOptions:
    """What a study does with its recipes.

    Attributes:
        seeds: of the runs of each variant.
        settings: "section.key=value" texts, over every variant.
        split: of the corpus, on which the runs are compared.
        max_tokens: score whole recordings, spread over the split, until they hold this many samples; None for all.
        cold_start_samples: first samples of each recording, scored apart.
        jobs: runs side by side.
        only: names of the variants that are run; the others are in the table with what they have. None for all.
        baseline: the variant that others are compared with; None for the one that is the base itself, else the first.
        command: the command line, for the record.
    """

    seeds: tuple[int, ...] = (0,)
    settings: tuple[str, ...] = ()
    split: str = "test"
    max_tokens: int | None = None
    cold_start_samples: int = 1024
    jobs: int = 1
    only: tuple[str, ...] | None = None
    baseline: str | None = None
    command: str = ""


@dataclass(frozen=True)
class Variant:
    """One recipe of a study.

    Attributes:
        name: its file's name without .yaml.
        description: the comment on its file's first line, or "".
        recipe: whole, with a seed and a name that the runs replace.
        changes: {"section.key": value} where it differs from the baseline, in model, optimizer and so on.
        budget: {"section.key": value} where its budget differs from the baseline's.
    """

    name: str
    description: str
    recipe: Recipe
    changes: dict[str, Any]
    budget: dict[str, Any]


@dataclass(frozen=True)
class Run:
    """A variant with a seed."""

    variant: str
    recipe: Recipe
    folder: Path

    @property
    def name(self) -> str:
        """What a user is told of it."""
        return f"{self.variant}/seed-{self.recipe.seed}"

    @property
    def recipe_file(self) -> Path:
        """The whole recipe, for the command that trains it."""
        return self.folder.with_name(f"{self.folder.name}.yaml")

    @property
    def log_file(self) -> Path:
        """What its commands print."""
        return self.folder.with_name(f"{self.folder.name}.log")


@dataclass(frozen=True)
class Study:
    """A folder of recipes, checked.

    Attributes:
        name: the folder's.
        out: where everything is written.
        variants: in the order of their names, numbers by their value.
        runs: of all variants, seed by seed.
        baseline: name of a variant.
        options: what to do.
    """

    name: str
    out: Path
    variants: tuple[Variant, ...]
    runs: tuple[Run, ...]
    baseline: str
    options: StudyOptions

    @property
    def selected(self) -> tuple[Run, ...]:
        """The runs that are asked for."""
        only = self.options.only
        return tuple(run for run in self.runs if only is None or run.variant in only)


def read_study(folder: Path, out: Path, options: StudyOptions) -> Study:
    """Return the study in a folder.

    A folder with base.yaml, a whole recipe, holds beside it files of what differs from it; without one it holds whole
    recipes. base.yaml alone is a study of one variant. Nothing is written.

    Args:
        folder: holds the *.yaml.
        out: where runs and results will be.
        options: what to do.

    Raises:
        MissingError: if there is no such folder, or no recipe in it.
        InputError: naming every fault of every recipe at once, a line each.
    """
    recipes, descriptions = _read_recipes(folder, options.settings)
    names = list(recipes)
    baseline = options.baseline or _default_baseline(recipes, folder, options)
    faults = [
        f"{option}={name!r}: no such variant; {_nearest(name, names)}"
        for option, given in (("--baseline", [baseline]), ("--only", options.only or ()))
        for name in given
        if name not in names
    ]
    faults += _different(recipes, "corpus", "models of one study learn from one store")
    faults += _different(recipes, "tracking", "runs of one study are kept in one place")
    if len(set(options.seeds)) < len(options.seeds):
        faults.append(f"--seeds {' '.join(map(str, options.seeds))}: a seed stands twice; leave one out.")
    if faults:
        raise InputError("\n".join(faults))
    study = folder.resolve().name
    base = flat(recipes[baseline].model_dump())
    variants = []
    for name, recipe in recipes.items():
        values = flat(recipe.model_dump())
        different = {key: values.get(key) for key in base | values if values.get(key) != base.get(key)}
        variants.append(
            Variant(
                name=name,
                description=descriptions[name],
                recipe=recipe,
                changes={key: value for key, value in different.items() if key not in {*BUDGET, "name", "seed"}},
                budget={key: value for key, value in different.items() if key in BUDGET},
            )
        )
    runs = [
        Run(variant.name, _recipe_of_run(variant, study, seed, out), out / variant.name / f"seed-{seed}")
        for variant in variants
        for seed in options.seeds
    ]
    return Study(study, out, tuple(variants), tuple(runs), baseline, options)


def _default_baseline(recipes: dict[str, Recipe], folder: Path, options: StudyOptions) -> str:
    """Return the name of the first variant to be run that differs from the base in nothing, or else of the first."""
    names = [name for name in recipes if name in (options.only or recipes)] or list(recipes)
    base_path = folder / BASE_FILE
    base = parse_recipe(read_recipe(base_path), options.settings) if base_path.is_file() else None
    return next((name for name in names if recipes[name] == base), names[0])


def natural_order(name: str) -> list[tuple[int, int, str]]:
    """Return a key to sort names by: rate-2 before rate-10."""
    parts = re.findall(r"\d+|\D+", name)
    return [(0, int(part), "") if part.isdecimal() else (1, 0, part) for part in parts]


def _read_recipes(folder: Path, settings: Sequence[str]) -> tuple[dict[str, Recipe], dict[str, str]]:
    """Return recipes and descriptions by the variants' names, in their order."""
    if not folder.is_dir():
        raise MissingError(f"study {str(folder)!r} is not a folder; name one with recipes in it.")
    paths = sorted(folder.glob("*.yaml"), key=lambda path: natural_order(path.stem))
    if not paths:
        raise MissingError(f"study {str(folder)!r} holds no recipe; put base.yaml there and a file for each variant.")
    base_path = folder / BASE_FILE
    base = read_recipe(base_path) if base_path in paths else None
    if base is not None and len(paths) > 1:
        paths.remove(base_path)
        # Every variant would have the base's faults again.
        parse_recipe(base, name=str(base_path))
    faults: list[str] = []
    recipes, descriptions = {}, {}
    for path in paths:
        try:
            recipes[path.stem], descriptions[path.stem] = _read_variant(path, base, settings)
        except InputError as error:
            faults += str(error).splitlines()
    if faults:
        raise InputError("\n".join(dict.fromkeys(faults)))
    return recipes, descriptions


def _read_variant(path: Path, base: str | None, settings: Sequence[str]) -> tuple[Recipe, str]:
    if not _VARIANT_NAME.fullmatch(path.stem):
        raise InputError(f"{path}: a variant's name has letters, digits, '.', '_' and '-' only; rename it.")
    text = read_recipe(path)
    first = text.split("\n", 1)[0]
    description = first.lstrip("#").strip().rstrip(".") if first.startswith("#") else ""
    if base is None or path.name == BASE_FILE:
        return parse_recipe(text, settings, name=str(path)), description
    recipe = parse_recipe(base, settings, name=str(path), difference=text)
    named = parse_recipe(base)
    for key, rule in (("name", "runs are named by the study"), ("seed", "--seeds says the runs' seeds")):
        if getattr(recipe, key) != getattr(named, key):
            raise InputError(f"{path}: {key}={getattr(recipe, key)!r}: {rule}; leave it out.")
    return recipe, description


def _different(recipes: dict[str, Recipe], section: str, rule: str) -> list[str]:
    """Return a fault if a section is not the same in all recipes."""
    (first, *_), values = recipes, {name: flat(getattr(each, section).model_dump()) for name, each in recipes.items()}
    return [
        f"{name}: {section}.{key}={value!r} is {values[first][key]!r} in {first}; {rule}: make them the same."
        for name, each in values.items()
        for key, value in each.items()
        if value != values[first][key]
    ]


def _nearest(name: str, names: Sequence[str]) -> str:
    near = difflib.get_close_matches(name, names, n=1)
    return f"did you mean {near[0]}?" if near else f"there are {', '.join(names)}."


def _recipe_of_run(variant: Variant, study: str, seed: int, out: Path) -> Recipe:
    """Return a run's whole recipe; all runs are tracked in one place, beside the study's folder."""
    recipe = variant.recipe
    tracking = recipe.tracking.model_copy(update={"uri": recipe.tracking.uri or default_uri(out)})
    name = f"{study}/{variant.name}/seed-{seed}"
    return recipe.model_copy(update={"name": name, "seed": seed, "tracking": tracking})
