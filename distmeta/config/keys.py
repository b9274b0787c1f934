"""The keys of a configuration as a person reads them: type, bounds, default, what each does."""

from __future__ import annotations

import types
import typing
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any, Literal, Union, get_args, get_origin

from pydantic import BaseModel
from pydantic.fields import FieldInfo
from pydantic_core import PydanticUndefined

from distmeta.config.sections import Config
from distmeta.errors import InputError, nearest

BOUNDS = {"ge": "at least {}", "gt": "above {}", "le": "at most {}", "lt": "below {}", "pattern": "matching {}"}
PLAIN = {int: "integer", float: "number", str: "text", bool: "true or false", type(None): "null"}


@dataclass(frozen=True)
class Key:
    """One key: its dotted name, what values it takes, its default as YAML writes it, and what it does."""

    name: str
    values: str
    default: str
    description: str

    def text(self) -> str:
        """Several lines for a terminal."""
        return f"{self.name}\n    {self.description}\n    values: {self.values}\n    default: {self.default}"


def keys(section: str | None = None) -> list[Key]:
    """All keys, or those of a section such as `inner` or `task.augment`. Raises InputError."""
    every = list(_keys(Config, ""))
    if section is None:
        return every
    chosen = [key for key in every if key.name == section or key.name.startswith(f"{section}.")]
    if not chosen:
        sections = sorted({key.name.rpartition(".")[0] for key in every} - {""})
        raise InputError(f"{section}: no such section; there are {', '.join(sections)}.{nearest(section, sections)}")
    return chosen


def explain(name: str) -> Key:
    """One key by its dotted name. Raises InputError."""
    every = {key.name: key for key in keys()}
    if name not in every:
        raise InputError(f"{name}: no such key; `distmeta config --keys` lists them.{nearest(name, list(every))}")
    return every[name]


def _keys(model: type[BaseModel], prefix: str) -> Iterator[Key]:
    hints = typing.get_type_hints(model, include_extras=True)
    for name, field in model.model_fields.items():
        inner = _section_in(field.annotation)
        if inner is None or (not field.is_required() and field.default is None):
            bounds = _bounds(field.metadata)
            values = _values(hints[name]) + (f", {bounds}" if bounds else "")
            yield Key(prefix + name, values, _default(field), field.description or "")
        if inner is not None:
            yield from _keys(inner, f"{prefix}{name}.")


def _section_in(annotation: Any) -> type[BaseModel] | None:
    """The section that a key holds, perhaps beside null; not one that is an item of a list or dictionary."""
    for part in get_args(annotation) if _is_union(annotation) else (annotation,):
        if isinstance(part, type) and issubclass(part, BaseModel):
            return part
    return None


def _is_union(annotation: Any) -> bool:
    return get_origin(annotation) in (Union, types.UnionType)


def _values(annotation: Any) -> str:
    origin, parts = get_origin(annotation), get_args(annotation)
    if hasattr(annotation, "__metadata__"):  # Annotated
        marks = [mark.metadata if isinstance(mark, FieldInfo) else [mark] for mark in annotation.__metadata__]
        bounds = _bounds([one for mark in marks for one in mark])
        return _values(parts[0]) + (f" {bounds}" if bounds else "")
    if _is_union(annotation):
        return ", or ".join(_values(part) for part in parts)
    if origin is Literal:
        return ", ".join(str(part) for part in parts)
    if origin in (list, tuple):
        return "a list of " + _values(parts[0])
    if origin is dict or annotation is dict:
        return "keys with values"
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return "keys of its own"
    return PLAIN.get(annotation, "any value")


def _bounds(metadata: Iterable[Any]) -> str:
    pairs = [(text, getattr(one, key, None)) for one in metadata for key, text in BOUNDS.items()]
    return " and ".join(text.format(value) for text, value in pairs if value is not None)


def _default(field: FieldInfo) -> str:
    value = field.get_default(call_default_factory=True, validated_data={})
    if value is PydanticUndefined:
        return "none: it has to be given"
    return {None: "null", True: "true", False: "false"}[value] if isinstance(value, bool | None) else str(value)
