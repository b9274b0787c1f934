"""A model or an environment of the user's own, by its import path (model.module, task.environment=package.module:name).

It is imported where a configuration of the user's asks for it. A checkpoint or an adapted model that names one is
opened only where the user names it again: what is read never decides which code runs.
"""

from __future__ import annotations

import importlib
import os
import re
from typing import TYPE_CHECKING, Any

from distmeta.config.base import refuse
from distmeta.errors import InputError

if TYPE_CHECKING:
    from distmeta.config import Config

PATH = re.compile(r"[A-Za-z_]\w*(\.\w+)*:[A-Za-z_]\w*")
GYMNASIUM = "gymnasium:"  # before what gymnasium.make takes
ENVIRONMENT = re.compile(rf"{PATH.pattern}|{GYMNASIUM}[\w./:-]+")
TRUSTED = "DISTMETA_MODULES"  # environment variable, which a server's processes inherit: those that may be opened


def trust_module(path: str) -> None:
    """Let checkpoints and adapted models whose model.module or task.environment is `path` be opened, in this process
    and those that it starts. Raises InputError for what is no import path."""
    if not ENVIRONMENT.fullmatch(path):
        raise InputError(f"{path}: an import path is package.module:function")
    os.environ[TRUSTED] = ",".join(dict.fromkeys([*os.environ.get(TRUSTED, "").split(","), path])).strip(",")


def check_trusted(config: Config, where: object) -> None:
    """Raises InputError where what is read at `where` names a module that the user has not."""
    for what, key, path in (
        ("model is made by code", "model.module", config.model.module),
        ("environment is code", "task.environment", config.task.environment),
    ):
        if path is not None and path not in os.environ.get(TRUSTED, "").split(","):
            raise InputError(
                f"{where}: its {what} of {path} ({key}), which a checkpoint cannot ask to run; if you trust that code: "
                f"distmeta --module {path} VERB ..., in Python distmeta.trust_module('{path}')"
            )


def load_builder(path: str, key: str = "model.module") -> Any:
    """The function or class that `path` names, the value of `key`. Raises InputError."""
    module, _, name = path.partition(":")
    try:
        return getattr(importlib.import_module(module), name)
    except (ImportError, AttributeError) as error:
        raise InputError(f"{key} = {path}: cannot be imported: {error}") from None


def with_module(content: dict[str, Any]) -> dict[str, Any]:
    """`content` without the default settings of another model, where model.module names one. Its own stay."""
    model: Any = content.get("model")
    if not isinstance(model, dict) or model.get("module") is None or model.get("config") is not None:
        return content
    return {**content, "model": {**model, "config": {}}}


def check_module(config: Config) -> None:
    """Raises ValueError for what a module of the user's own does not go with."""
    model = config.model
    if model.module is None:
        return
    refuse(config, f"model.module = {model.module}", [
        ("model.module", bool(PATH.fullmatch(model.module)), "an import path is package.module:function"),
        ("task.family", model.is_array, "it reads images or vectors: set model.image, or family regression or policy"),
        ("model.pretrained", model.pretrained is None, "let the function load it; leave it out"),
        ("model.dropout", model.dropout == 0, "give the function a rate in model.config; set 0"),
    ])  # fmt: skip
