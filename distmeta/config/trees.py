"""Nested dictionaries: laid upon each other, and from dotted keys."""

from __future__ import annotations

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
