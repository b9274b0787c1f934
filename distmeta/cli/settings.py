"""`distmeta recipes` and `distmeta config`: what there is to run, and what a run would use."""

from __future__ import annotations

import json
from typing import Annotated

import typer

from distmeta.cli.words import Json, Source, configured


def recipes(as_json: Json = False) -> None:
    """List the recipes: complete runs by name."""
    from distmeta.config import RECIPES, recipe_names

    about = {}
    for name in recipe_names():
        first = (RECIPES / f"{name}.yaml").read_text(encoding="utf-8").split("\n", 1)[0]
        about[name] = first.lstrip("# ").strip()
    if as_json:
        print(json.dumps(about))
    else:
        for name, line in about.items():
            print(f"{name:24} {line}")


def config(
    source: Source = None,
    list_keys: Annotated[
        bool, typer.Option("--keys", help="what each key does, in all sections or in those named")
    ] = False,
    explain: Annotated[str | None, typer.Option(metavar="KEY", help="what one key does, such as inner.lr")] = None,
    show_prompt: Annotated[
        bool, typer.Option("--show-prompt", help="the first examples of the first episode, as the model sees them")
    ] = False,
    as_json: Json = False,
) -> None:
    """Print everything that a run would use, defaults included; or what the keys do; or what the model sees."""
    from distmeta.config import dump_config

    if list_keys or explain is not None:
        from distmeta.config import keys

        named = [key for name in source for key in keys.keys(name)] if source else keys.keys()
        chosen = named if explain is None else [keys.explain(explain)]
        print(json.dumps([vars(key) for key in chosen]) if as_json else "\n".join(key.text() for key in chosen))
        return

    loaded = configured(source)
    if show_prompt:
        from distmeta.tasks.build import build_store
        from distmeta.tasks.shown import shown
        from distmeta.tasks.store import open_store

        print(shown(open_store(build_store(loaded.data, loaded.task, loaded.model)), loaded))
        return
    print(json.dumps(loaded.model_dump(mode="json")) if as_json else dump_config(loaded), end="\n" if as_json else "")
