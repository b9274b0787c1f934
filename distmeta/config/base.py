"""What all sections of a configuration have in common, and how one is refused: in a line that says what was set, why it
cannot be, and what to set instead."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, Any

from pydantic import BaseModel, ConfigDict

if TYPE_CHECKING:
    from distmeta.config import Config

Rule = tuple[str, bool, str]  # a key, whether its value fits, and why it does not or what to set instead


class Section(BaseModel):
    """Frozen; an unknown key, or a number that is not finite, is refused."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False, protected_namespaces=())


def refuse(config: Config, what: str, rules: Iterable[Rule]) -> None:
    """Raises ValueError for the first key whose value does not go with `what`."""
    for setting, mend in unfit(config, rules):
        raise ValueError(f"{what} does not work with {setting}: {mend}")


def unfit(config: Config, rules: Iterable[Rule]) -> Iterator[tuple[str, str]]:
    """("KEY = VALUE", what to do) of the rules that `config` breaks."""
    return ((f"{key} = {shown(config, key)}", mend) for key, fits, mend in rules if not fits)


def shown(config: Config, key: str) -> str:
    """The value of a dotted key as YAML writes it; of what has keys of its own, that it is there."""
    value: Any = config
    for part in key.split("."):
        value = value[part] if isinstance(value, dict) else getattr(value, part)
    if isinstance(value, dict):
        return "several"
    if isinstance(value, Section):
        return "on"
    if isinstance(value, bool | None):
        return {None: "null", True: "true", False: "false"}[value]
    return str(list(value) if isinstance(value, tuple) else value)
