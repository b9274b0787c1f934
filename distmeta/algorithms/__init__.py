"""One file per meta-learning algorithm: paper, equation, bias and cost are stated there.

An algorithm is a module with

    ORDER         the derivative order that it needs, which decides the attention kernel
    meta_gradient(loss, params, support, query, inner, **options) -> MetaGradient

with the arguments of `distmeta.inner.meta_gradient`. To add one: a file, a line below, a test. A module of your own is
named by its import path instead (algorithm: mypackage.mymodule).
"""

from __future__ import annotations

import importlib
from types import ModuleType

from distmeta.errors import InputError

ALGORITHMS: dict[str, str] = {
    "maml": "distmeta.algorithms.maml",
    "fomaml": "distmeta.algorithms.fomaml",
    "reptile": "distmeta.algorithms.reptile",
}


def load_algorithm(name: str) -> ModuleType:
    """The module of an algorithm: a name above, or the import path of a module of your own. Raises InputError."""
    try:
        module = importlib.import_module(ALGORITHMS.get(name, name))
    except ImportError as error:
        raise InputError(f"algorithm = {name}: cannot be imported: {error}") from None
    absent = [needed for needed in ("ORDER", "meta_gradient") if not hasattr(module, needed)]
    if absent:
        raise InputError(f"algorithm = {name}: the module has no {absent[0]}; it needs ORDER and meta_gradient()")
    return module
