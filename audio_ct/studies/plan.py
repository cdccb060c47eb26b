"""A study as it is planned: its variants, each a whole recipe, and its runs, a variant with a seed."""

import difflib
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from audio_ct.errors import InputError, MissingError
from audio_ct.recipe import Recipe, flat, parse_recipe, read_recipe, refuse_passwords
from audio_ct.recipe_files import BASE_FILE, description, find_study
from audio_ct.training.mlflow_store import default_uri

# Equal in all variants that are compared at one budget; the table names the variants in which they differ.
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
    """The way in which a study's recipes are run, scored and compared."""

    seeds: tuple[int, ...] = (0,)
    settings: tuple[str, ...] = ()
    """Over every variant, as "section.key=value"."""
    split: str = "test"
    max_tokens: int | None = None
    """Score whole recordings, spread over the split, until they hold this many samples; None for all."""
    cold_start_samples: int = 1024
    jobs: int = 1
    """Runs side by side."""
    only: tuple[str, ...] | None = None
    """Variants that are run; the others are in the table with what they have. None for all."""
    baseline: str | None = None
    """The variant that others are compared with; None for the one that is the base itself, else the first."""
    command: str = ""
    """The command line, for the record."""

    @property
    def scoring(self) -> dict[str, Any]:
        """The options on which a run's score depends."""
        return {key: getattr(self, key) for key in ("split", "max_tokens", "cold_start_samples")}


@dataclass(frozen=True)
class Variant:
    """A recipe of a study; its seed and name are replaced by the runs' own."""

    name: str
    """Its file's, without .yaml."""
    description: str
    """The first sentence of the comment on top of its file, or ""."""
    recipe: Recipe

    def differences(self, other: "Variant") -> dict[str, Any]:
        """{"section.key": value} of every value that is not the other's."""
        values, others = (flat(variant.recipe.model_dump(exclude={"name", "seed"})) for variant in (self, other))
        return {key: values.get(key) for key in others | values if values.get(key) != others.get(key)}


@dataclass(frozen=True)
class Run:
    """A variant with a seed."""

    variant: str
    recipe: Recipe
    folder: Path

    @property
    def name(self) -> str:
        """The run's name in messages."""
        return f"{self.variant}/seed-{self.recipe.seed}"

    @property
    def recipe_file(self) -> Path:
        """The whole recipe, for the command that trains it."""
        return self.folder.with_name(f"{self.folder.name}.yaml")

    @property
    def log_file(self) -> Path:
        """The output of the run's commands."""
        return self.folder.with_name(f"{self.folder.name}.log")


@dataclass(frozen=True)
class Study:
    """A folder of recipes, checked."""

    name: str
    out: Path
    variants: tuple[Variant, ...]
    """In the order of their names, numbers by their value."""
    runs: tuple[Run, ...]
    """Of all variants, seed by seed."""
    baseline: Variant
    options: StudyOptions

    @property
    def selected(self) -> tuple[Run, ...]:
        """The runs that are asked for."""
        only = self.options.only
        return tuple(run for run in self.runs if only is None or run.variant in only)


def read_study(folder: Path, out: Path, options: StudyOptions) -> Study:
    """Read the study in a folder; nothing is written.

    A folder with base.yaml, a whole recipe, holds beside it files of what differs from it; the base is a variant too,
    unless another file says that nothing differs. Without base.yaml a folder holds whole recipes.

    Args:
        folder: a path, or the name of a shipped folder of recipes.
        out: where the study's runs are.
        options: how they are run.

    Raises:
        MissingError: if there is no such folder, or no recipe in it.
        InputError: naming every fault of every recipe at once, a line each.
    """
    folder = find_study(folder)
    variants = _read_variants(folder, options.settings)
    by_name = {variant.name: variant for variant in variants}
    baseline = options.baseline or _default_baseline(by_name, folder, options)
    faults = [
        f"{option}={name!r}: no such variant; {_nearest(name, list(by_name))}"
        for option, names in (("--baseline", [baseline]), ("--only", options.only or ()))
        for name in names
        if name not in by_name
    ]
    faults += _unlike_the_first(variants, "corpus", "models of one study learn from one store")
    faults += _unlike_the_first(variants, "tracking", "runs of one study are kept in one place")
    if len(set(options.seeds)) < len(options.seeds):
        faults.append(f"--seeds {' '.join(map(str, options.seeds))}: a seed stands twice; leave one out.")
    if faults:
        raise InputError("\n".join(faults))
    name = folder.resolve().name
    runs = tuple(_run(variant, name, seed, out) for variant in variants for seed in options.seeds)
    return Study(name, out, tuple(variants), runs, by_name[baseline], options)


def natural_order(name: str) -> list[tuple[int, int, str]]:
    """A key to sort names by: rate-2 before rate-10."""
    parts = re.findall(r"\d+|\D+", name)
    return [(0, int(part), "") if part.isdecimal() else (1, 0, part) for part in parts]


def _read_variants(folder: Path, settings: Sequence[str]) -> list[Variant]:
    """Read the variants in their order; all their faults are one error."""
    paths = sorted(folder.glob("*.yaml"), key=lambda path: natural_order(path.stem))
    if not paths:
        raise MissingError(f"study {str(folder)!r} holds no recipe; put base.yaml there and a file for each variant.")
    base, base_path = None, folder / BASE_FILE
    if base_path in paths:
        base = read_recipe(base_path)
        # Every variant would have the base's faults again.
        parse_recipe(base, name=str(base_path))
    faults: list[str] = []
    variants = []
    for path in paths:
        try:
            variants.append(_read_variant(path, base, settings))
            refuse_passwords(variants[-1].recipe)
        except InputError as error:
            faults += str(error).splitlines()
    if faults:
        raise InputError("\n".join(dict.fromkeys(faults)))
    return [each for each in variants if each.name != base_path.stem or not _is_doubled(each, variants)]


def _is_doubled(variant: Variant, variants: Sequence[Variant]) -> bool:
    return any(other.recipe == variant.recipe for other in variants if other is not variant)


def _read_variant(path: Path, base: str | None, settings: Sequence[str]) -> Variant:
    if not _VARIANT_NAME.fullmatch(path.stem):
        raise InputError(f"{path}: a variant's name has letters, digits, '.', '_' and '-' only; rename it.")
    text = read_recipe(path)
    if base is None:
        return Variant(path.stem, description(text), parse_recipe(text, settings, name=str(path)))
    recipe = parse_recipe(base, settings, name=str(path), difference=text)
    base_recipe = parse_recipe(base)
    for key, rule in (("name", "runs are named by the study"), ("seed", "--seeds says the runs' seeds")):
        if getattr(recipe, key) != getattr(base_recipe, key):
            raise InputError(f"{path}: {key}={getattr(recipe, key)!r}: {rule}; leave it out.")
    return Variant(path.stem, description(text), recipe)


def _default_baseline(variants: dict[str, Variant], folder: Path, options: StudyOptions) -> str:
    """The name of the first variant to be run that is the base itself, or else of the first."""
    names = [name for name in variants if name in (options.only or variants)] or list(variants)
    base_path = folder / BASE_FILE
    base = parse_recipe(read_recipe(base_path), options.settings) if base_path.is_file() else None
    return next((name for name in names if variants[name].recipe == base), names[0])


def _unlike_the_first(variants: Sequence[Variant], section: str, rule: str) -> list[str]:
    """A fault for each value of a section that is not the first variant's."""
    first = variants[0]
    return [
        f"{variant.name}: {key}={value!r} is {first.differences(variant)[key]!r} in {first.name}; {rule}: "
        "make them the same."
        for variant in variants
        for key, value in variant.differences(first).items()
        if key.startswith(f"{section}.")
    ]


def _nearest(name: str, names: Sequence[str]) -> str:
    near = difflib.get_close_matches(name, names, n=1)
    return f"did you mean {near[0]}?" if near else f"there are {', '.join(names)}."


def _run(variant: Variant, study: str, seed: int, out: Path) -> Run:
    """Make a variant's run; all runs are tracked in one place, beside the study's folder."""
    recipe = variant.recipe
    tracking = recipe.tracking.model_copy(update={"uri": recipe.tracking.uri or default_uri(out)})
    name = f"{study}/{variant.name}/seed-{seed}"
    recipe = recipe.model_copy(update={"name": name, "seed": seed, "tracking": tracking})
    return Run(variant.name, recipe, out / variant.name / f"seed-{seed}")
