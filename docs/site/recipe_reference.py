"""A page of all keys of a recipe, from the schema that checks them."""

import typing
from collections.abc import Iterator
from typing import Annotated, Any, Union, get_args, get_origin

from annotated_types import Ge, Gt, Le, Lt, MaxLen, MinLen
from pydantic import BaseModel
from pydantic.fields import FieldInfo
from pydantic_core import PydanticUndefined

from audio_ct.recipe import Recipe

SIGNS = {Ge: ("at least", "ge"), Gt: ("above", "gt"), Le: ("at most", "le"), Lt: ("below", "lt")}
LENGTHS = {MinLen: ("at least", "min_length"), MaxLen: ("at most", "max_length")}
# A bound beyond this only keeps sums within 64 bits.
UNBOUNDED = 10**12
NAMES = {str: "text", int: "whole number", float: "number", bool: "true or false", type(None): "none"}

INTRODUCTION = """# A recipe's keys

A recipe is one YAML file. Unknown keys, wrong types and values that break a rule are refused before anything is loaded,
all faults at once. Any key is overridden by `--set section.key=value` under the same checks. A key without a default
must be given.

`audio-ct recipes show demo/wavenet` prints a whole one, `audio-ct recipes check FILE` checks one, and editors complete
keys by the schema that a recipe's first line names (`audio-ct recipes schema`). This page is made from the classes that
check recipes.
"""


def recipe_reference() -> str:
    """The page, as Markdown."""
    lines = [INTRODUCTION, "## The top", "", *_table(Recipe)]
    lines += ["", *_rules(Recipe)]
    for name, field in Recipe.model_fields.items():
        for section in _sections(field.annotation):
            kind = section.model_fields.get("kind")
            key = name if kind is None else f"{name}, kind: {kind.default}"
            lines += ["", f"## {key}", "", *_section(section, name)]
    return "\n".join(lines) + "\n"


def _section(section: type[BaseModel], path: str) -> Iterator[str]:
    yield _one_line(section.__doc__)
    yield ""
    yield from _table(section)
    yield ""
    yield from _rules(section)
    for name, field in section.model_fields.items():
        for inner in _sections(field.annotation):
            yield from ("", f"### {path}.{name}", "", *_section(inner, f"{path}.{name}"))


def _table(section: type[BaseModel]) -> list[str]:
    rows = ["| key | values | default | |", "|---|---|---|---|"]
    for name, field in section.model_fields.items():
        values = [str(each) for each in (_type(field.annotation), *_bounds(field.metadata)) if each]
        cells = (f"`{name}`", ", ".join(values), _default(field), _one_line(field.description))
        rows.append("| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |")
    return rows


def _rules(section: type[BaseModel]) -> Iterator[str]:
    """What is checked of several keys together: the validators are named after their rules."""
    rules = [
        name.strip("_").replace("_", " ")
        for name in section.__pydantic_decorators__.model_validators  # pydantic's own
    ]
    if rules:
        yield "Checked of several keys together: " + "; ".join(rules) + "."


def _sections(annotation: Any) -> Iterator[type[BaseModel]]:
    """The sections that a type is or holds."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield annotation
        return
    for part in get_args(annotation):
        yield from _sections(part)


def _type(annotation: Any) -> str:
    """A type in words."""
    origin, parts = get_origin(annotation), get_args(annotation)
    if origin is Annotated:
        return ", ".join([_type(parts[0]), *_bounds(parts[1:])])
    if origin is typing.Literal:
        return ", ".join(f"`{part}`" for part in parts)
    if origin is list:
        return f"list of {_type(parts[0])}"
    if origin is dict:
        return f"{{{_type(parts[0])}: {_type(parts[1])}}}"
    if origin is Union or type(annotation).__name__ == "UnionType":
        return " or ".join(dict.fromkeys(_type(part) for part in parts))
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return "section"
    return NAMES.get(annotation, str(annotation))


def _bounds(metadata: Any) -> list[str]:
    """Bounds in words; those of a field, and those that stand in its type."""
    found = []
    for each in metadata:
        for part in getattr(each, "metadata", None) or [each] if isinstance(each, FieldInfo) else [each]:
            if type(part) in SIGNS:
                words, attribute = SIGNS[type(part)]
                if abs(getattr(part, attribute)) < UNBOUNDED:
                    found.append(f"{words} {_number(getattr(part, attribute))}")
            if type(part) in LENGTHS:
                words, attribute = LENGTHS[type(part)]
                found.append(f"{words} {getattr(part, attribute)} of them")
    return found


def _number(value: float) -> str:
    return f"{value:,}" if isinstance(value, int) and value < 10**7 else f"{value:.3g}"


def _default(field: FieldInfo) -> str:
    if field.is_required():
        return "**to be given**"
    default = field.get_default(call_default_factory=True)
    assert default is not PydanticUndefined
    if isinstance(default, BaseModel):
        return "its defaults"
    return "none" if default is None else f"`{str(default).lower() if isinstance(default, bool) else default}`"


def _one_line(text: str | None) -> str:
    return " ".join((text or "").split())
