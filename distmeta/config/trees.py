"""Nested dictionaries: laid upon each other, from dotted keys, and as sections of a configuration."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


def nested(dotted: dict[str, Any]) -> dict[str, Any]:
    """{"inner.lr": 1} -> {"inner": {"lr": 1}}."""
    out: dict[str, Any] = {}
    for key, value in dotted.items():
        for part in reversed(key.split(".")):
            value = {part: value}
        out = merge(out, value)
    return out


def merge(base: dict[str, Any], over: dict[str, Any]) -> dict[str, Any]:
    """`over` laid upon `base`, dictionaries within dictionaries merged. Neither is changed."""
    out = dict(base)
    for key, value in over.items():
        out[key] = merge(out[key], value) if isinstance(value, dict) and isinstance(out.get(key), dict) else value
    return out


def section(content: Mapping[str, Any], name: str) -> dict[str, Any] | None:
    """A section, {} where there is none; None for what is no section, which is refused where it is read."""
    found: Any = content.get(name)
    if found is None or isinstance(found, dict):
        return found or {}
    return found.model_dump() if hasattr(found, "model_dump") else None


def with_defaults(content: Mapping[str, Any], defaults: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    """`content` with these values of its sections, where it has none of its own, or null."""
    out = dict(content)
    for name, values in defaults.items():
        if (current := section(content, name)) is not None:
            out[name] = {**values, **{k: value for k, value in current.items() if value is not None or k not in values}}
    return out
