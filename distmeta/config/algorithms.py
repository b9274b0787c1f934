"""The names of the algorithms, and what each needs of the configuration.

An algorithm is a module with

    ORDER         the derivative order that it needs, which decides the attention kernel
    meta_gradient(loss, params, support, query, loop, **options) -> MetaGradient

with the arguments of `distmeta.inner.meta_gradient`. One that names `progress` among its arguments is told how far the
run is, from 0 to 1; one that names `pooled` is given the loss of a classifier over all classes of the data. To add one:
a file, a line below, a test. A module of your own is named by its import path instead (algorithm: mypackage.mymodule);
what it needs of the configuration it says in SETTINGS. It is imported where a run is asked for, and never because a
checkpoint or a run directory that is read names it.
"""

from __future__ import annotations

import importlib
import re
from collections.abc import Mapping
from types import MappingProxyType, ModuleType
from typing import Any, NamedTuple

from distmeta.errors import InputError

IMPORT_PATH = re.compile(r"[A-Za-z_]\w*(\.\w+)+")


class Entry(NamedTuple):
    """A module, the configuration keys without which it would be another algorithm, and keys with another default.

    learns_only_fast: as LEARNS_ONLY_FAST in the module, which is not imported for it.
    """

    module: str
    settings: Mapping[str, Any] = MappingProxyType({})
    defaults: Mapping[str, Any] = MappingProxyType({})
    learns_only_fast: bool = False


ALGORITHMS: dict[str, Entry] = {
    "maml": Entry("distmeta.algorithms.maml"),
    "fomaml": Entry("distmeta.algorithms.fomaml"),
    "reptile": Entry("distmeta.algorithms.reptile", {"inner.learn_lr": "none"}, learns_only_fast=True),
    "anil": Entry("distmeta.algorithms.anil", {"inner.adapt": "head", "outer.base": "train", "model.head": "linear"}),
    "boil": Entry("distmeta.algorithms.boil", {"inner.adapt": "^backbone[.]", "model.head": "linear"}),
    "meta_sgd": Entry("distmeta.algorithms.meta_sgd", {"inner.learn_lr": "per_parameter"}),
    "maml_pp": Entry("distmeta.algorithms.maml_pp", {"inner.learn_lr": "per_layer_step"}, {"outer.schedule": "cosine"}),
    "imaml": Entry("distmeta.algorithms.imaml", {"inner.learn_lr": "none"}, {"inner.proximal": 1.0}),
    "finite_difference": Entry("distmeta.algorithms.finite_difference"),
    "proto_maml": Entry("distmeta.algorithms.proto_maml", {"model.head": "prototype"}),
    "online": Entry("distmeta.algorithms.online", {"task.family": "domain"}, {"task.arrive_every": 64}),
    "prototypes": Entry(
        "distmeta.algorithms.prototypes",
        {"model.head": "prototype", "inner.steps": 0, "inner.learn_lr": "none", "inner.schedule": "constant"},
    ),
    "in_context": Entry(
        "distmeta.algorithms.in_context",
        {"model.head": "context", "inner.steps": 0, "inner.learn_lr": "none", "inner.schedule": "constant"},
        {"model.architecture": "gpt2", "model.config": {"n_embd": 64, "n_layer": 2, "n_head": 2, "n_positions": 2048}},
    ),
    "multi_task": Entry("distmeta.algorithms.multi_task", {"inner.learn_lr": "none"}),
    "fine_tune": Entry("distmeta.algorithms.fine_tune", {"inner.learn_lr": "none"}, {"outer.steps": 1}),
}


def load_algorithm(name: str) -> ModuleType:
    """The module of an algorithm: a name above, or the import path of a module of your own. Raises InputError."""
    try:
        module = importlib.import_module(ALGORITHMS[name].module if name in ALGORITHMS else name)
    except ImportError as error:
        raise InputError(f"algorithm = {name}: cannot be imported: {error}") from None
    absent = [needed for needed in ("ORDER", "meta_gradient") if not hasattr(module, needed)]
    if absent:
        raise InputError(f"algorithm = {name}: the module has no {absent[0]}; it needs ORDER and meta_gradient()")
    return module


def entry(name: object) -> Entry:
    """What an algorithm needs of the configuration. A module of the user's is imported for it. Raises InputError."""
    if isinstance(name, str) and name not in ALGORITHMS and IMPORT_PATH.fullmatch(name):
        return Entry(name, getattr(load_algorithm(name), "SETTINGS", {}))
    return ALGORITHMS.get(str(name), Entry(str(name)))  # one of no such name is refused with the configuration


def with_settings(content: dict[str, Any], of: Entry, over: bool) -> dict[str, Any]:
    """`content` with the algorithm's settings and defaults, where it has none of its own, or `over` its own.

    A task family of its own stays, so that no algorithm turns the data into other tasks.
    """
    out = dict(content)
    has_model = {"pretrained", "architecture", "config"} & set(content.get("model") or {})
    for dotted, value in {**of.defaults, **of.settings}.items():
        section, key = dotted.split(".")
        current = out.get(section) or {}
        chosen = has_model and dotted in ("model.architecture", "model.config")  # one goes with the other
        if isinstance(current, dict) and not chosen and ((over and key != "family") or key not in current):
            out[section] = {**current, key: value}
    return out
