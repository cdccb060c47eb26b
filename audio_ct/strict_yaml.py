"""Strict YAML for any schema of pydantic models: one reading of every text, and every fault as one line."""

import difflib
import re
from collections.abc import Hashable, Sequence
from typing import Any, TypeVar, get_args

import yaml
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException
from pydantic import BaseModel, ValidationError
from yaml.constructor import ConstructorError

from audio_ct.errors import InputError

MAX_DEPTH = 20
# A list of a thousand wrong numbers is one slip.
MAX_FAULTS = 30

Schema = TypeVar("Schema", bound=BaseModel)


def read(text: str, *, name: str, may_be_empty: bool = False) -> dict[str, Any]:
    """Read the keys and values of a YAML text, which `name` names in an error; `may_be_empty` allows comments alone.

    Raises:
        InputError: if the text is not YAML, or has aliases, tags, a key twice or more than MAX_DEPTH levels.
    """
    try:
        values = yaml.load(text, Loader=_StrictLoader)  # noqa: S506 - a SafeLoader that is stricter
    # Text that looks like a date or a number but is none raises a plain ValueError.
    except (yaml.YAMLError, ValueError) as error:
        raise InputError(f"{name}: not plain YAML: {' '.join(str(error).split())}") from error
    if values is None and may_be_empty:
        return {}
    if not isinstance(values, dict):
        raise InputError(f"{name}: holds {type(values).__name__}, must hold keys like those in recipes/demo/.")
    return values


def read_override(override: str) -> dict[str, Any]:
    """Read a text "section.key=value" as nested keys; the value is YAML.

    Raises:
        InputError: if it has another form.
    """
    if "=" not in override:
        raise InputError(f"--set {override!r} must have the form section.key=value, e.g. optimizer.learning_rate=3e-4.")
    try:
        values = OmegaConf.to_container(OmegaConf.from_dotlist([override]), resolve=False)
    except (OmegaConfBaseException, yaml.YAMLError, ValueError) as error:
        raise InputError(f"--set {override!r} cannot be read: {' '.join(str(error).split())}") from error
    assert isinstance(values, dict)
    return values  # type: ignore[return-value]


def merge(base: dict[str, Any], change: dict[str, Any]) -> dict[str, Any]:
    """Lay values over others, section by section; both are left as they were."""
    merged = dict(base)
    for key, value in change.items():
        old = merged.get(key)
        merged[key] = merge(old, value) if isinstance(old, dict) and isinstance(value, dict) else value
    return merged


def dump(values: dict[str, Any]) -> str:
    """Write values as text that `read` reads back as the same."""
    return yaml.dump(values, Dumper=_StrictDumper, sort_keys=False, allow_unicode=True)


def validate(schema: type[Schema], values: dict[str, Any], *, name: str) -> Schema:
    """Build a schema's object from values; unions of models in the schema are told apart by a key `kind`.

    Raises:
        InputError: naming every fault at once, up to 30, a line each: `name`, key, value, rule and, for an unknown key,
            the nearest known key.
    """
    try:
        return schema.model_validate(values)
    except ValidationError as error:
        found = error.errors(include_url=False)
        faults = [_describe(schema, fault) for fault in found[:MAX_FAULTS]]
        if len(found) > MAX_FAULTS:
            faults.append(f"{len(found) - MAX_FAULTS} more faults like these.")
        raise InputError("\n".join(f"{name}: {fault}" for fault in faults)) from error


def kinds_of(schema: type[BaseModel], key: str) -> dict[str, type[BaseModel]]:
    """The models that a key of a schema may hold, by their `kind`; by "" where they have none."""
    annotation = schema.model_fields[key].annotation
    # A section that may be left out is a union of it and None.
    options = get_args(annotation) or (annotation,)
    sections = [option for option in options if isinstance(option, type) and issubclass(option, BaseModel)]
    return {getattr(section.model_fields.get("kind"), "default", ""): section for section in sections}


class _StrictLoader(yaml.SafeLoader):
    """YAML without aliases, tags, duplicate keys and deep nesting; 3e-4 is a number."""

    depth = 0

    def compose_node(self, parent: Any, index: Any) -> Any:
        if self.check_event(yaml.AliasEvent):
            raise ConstructorError(None, None, "aliases (*name) are not allowed", self.peek_event().start_mark)
        if getattr(self.peek_event(), "tag", None) is not None:
            raise ConstructorError(None, None, "tags (!name) are not allowed", self.peek_event().start_mark)
        self.depth += 1
        if self.depth > MAX_DEPTH:
            raise ConstructorError(None, None, f"nested deeper than {MAX_DEPTH} levels", self.peek_event().start_mark)
        node = super().compose_node(parent, index)
        self.depth -= 1
        return node

    def construct_mapping(self, node: Any, deep: bool = False) -> dict[Hashable, Any]:
        seen: set[str] = set()
        for key, _ in node.value:
            if not isinstance(key, yaml.ScalarNode):
                raise ConstructorError(None, None, "a key must be plain text", key.start_mark)
            if key.value in seen:
                raise ConstructorError(None, None, f"key {key.value!r} stands twice", key.start_mark)
            seen.add(key.value)
        return super().construct_mapping(node, deep)


class _StrictDumper(yaml.SafeDumper):
    """Quotes the text that `_StrictLoader` would take for a number."""


# YAML 1.2's floats; PyYAML follows 1.1, where 3e-4 is text.
for _class in (_StrictLoader, _StrictDumper):
    _class.add_implicit_resolver(
        "tag:yaml.org,2002:float",
        re.compile(r"^[-+]?(\d[\d_]*)(\.\d*)?[eE][-+]?\d+$"),
        list("-+0123456789"),
    )


def _describe(schema: type[BaseModel], fault: Any) -> str:
    """The key, value and rule of a fault, and for an unknown key the nearest known one."""
    path, sections = _follow(schema, fault["loc"])
    key = ".".join(path)
    if fault["type"] == "extra_forbidden":
        (section,) = _follow(schema, fault["loc"][:-1])[1].values()
        near = difflib.get_close_matches(path[-1], section.model_fields, n=1, cutoff=0.5)
        remedy = f"did you mean {'.'.join([*path[:-1], near[0]])}?" if near else "remove it."
        return f"{key}={fault['input']!r}: no such key; {remedy}"
    if fault["type"] == "missing":
        return f"{key} is missing; add it."
    if fault["type"] == "value_error":
        return f"{fault['ctx']['error']}."
    if fault["type"].startswith("union_tag"):
        given = fault["input"].get("kind") if isinstance(fault["input"], dict) else fault["input"]
        return f"{key}.kind={given!r}: must be one of {', '.join(sorted(sections))}."
    message = fault["msg"][0].lower() + fault["msg"][1:]
    if fault["type"] == "int_type" and isinstance(fault["input"], float) and fault["input"].is_integer():
        message += f"; write {fault['input']:.0f}"
    return f"{key}={repr(fault['input'])[:80]}: {message}."


def _follow(schema: type[BaseModel], location: Sequence[Any]) -> tuple[list[str], dict[str, type[BaseModel]]]:
    """The keys that a user knows on the way to a location, and the sections that may stand there, by kind."""
    path: list[str] = []
    sections = {"": schema}
    for part in location:
        if len(sections) > 1:
            # The kind that was chosen is part of pydantic's location; users know no such key.
            sections = {part: sections[part]}
            continue
        path.append(str(part))
        (section,) = sections.values() or (None,)
        sections = kinds_of(section, part) if section is not None and part in section.model_fields else {}
    return path, sections
