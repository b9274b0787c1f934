"""What follows a verb: arguments and options that several have."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from distmeta.errors import InputError

if TYPE_CHECKING:
    from distmeta.config import Config
    from distmeta.runs.progress import Show


def recipes(incomplete: str) -> list[str]:
    """For shell completion."""
    folder = Path(__file__).parents[1] / "recipes"
    return sorted(file.stem for file in folder.glob(f"{incomplete}*.yaml"))


Source = Annotated[
    list[str] | None,
    typer.Argument(
        metavar="[RECIPE|FILE.yaml] [section.key=value ...]",
        help="a recipe or file, and overrides",
        autocompletion=recipes,
    ),
]
Json = Annotated[bool, typer.Option("--json", help="print one JSON document on standard output and nothing else")]

Chosen = Annotated[
    str, typer.Option("--checkpoint", metavar="best|last|STEP", help="which of a run's; best: by eval.best, else last")
]
Loud = Annotated[
    bool | None,
    typer.Option("--verbose/--quiet", "-v/-q", help="a line for each step; or no progress, only the result"),
]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="no progress, only the result")]


def shown(loud: bool | None) -> Show:
    """What a Display shows for --verbose, --quiet, or neither."""
    return {None: True, True: "steps", False: False}[loud]  # type: ignore[return-value]


def silent(line: str) -> None:
    """In the place of `note`, for --quiet."""


def split_source(words: list[str] | None) -> tuple[str | None, list[str]]:
    """(recipe or file, overrides) of the words after a verb. Raises InputError for two recipes."""
    sources = [word for word in words or [] if "=" not in word]
    if len(sources) > 1:
        raise InputError(
            f"{sources[1]}: one recipe or file at a time ({sources[0]} was given); an override is key=value"
        )
    return (sources[0] if sources else None), [word for word in words or [] if "=" in word]


def configured(words: list[str] | None, more: Mapping[str, Any] | None = None, recipe: str | None = None) -> Config:
    """The configuration of the words after a verb, over it what an option of `more`, by its key, has set.

    recipe: where the words name none; None: `default`. Raises InputError.
    """
    from distmeta.config import load_config

    name, overrides = split_source(words)
    return load_config(name or recipe, overrides + [f"{key}={value}" for key, value in (more or {}).items() if value])


def one_run(words: list[str] | None) -> str:
    """The run or checkpoint that a verb is given. Raises InputError for another number of words than one."""
    if words and len(words) == 1:
        return words[0]
    more = next((word for word in words or [] if "=" in word), None)
    if more is not None:
        raise InputError(f"{more}: a key of a recipe goes with --base MODEL_DIR; a run is scored as it was trained")
    raise InputError("evaluate: name one run or checkpoint, or a pretrained model by --base MODEL_DIR")


def of_base(words: list[str] | None, base: str) -> Config:
    """The configuration of the words after a verb, whose model is `base`. Raises InputError."""
    chosen = [word for word in words or [] if word.startswith("model.pretrained=")]
    if chosen:
        raise InputError(f"{chosen[0]}: --base names the model, {base}; leave model.pretrained out")
    return configured(words, {"model.pretrained": base})


def note(line: str) -> None:
    print(line, file=sys.stderr)
