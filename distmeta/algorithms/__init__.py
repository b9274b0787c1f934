"""One file per meta-learning algorithm: paper, equation, bias and cost are stated there.

An algorithm is a module with

    ORDER         the derivative order that it needs, which decides the attention kernel
    meta_gradient(loss, params, support, query, inner, **options) -> MetaGradient

with the arguments of `distmeta.inner.meta_gradient`. To add one: a file, a line below, a test.
"""

from __future__ import annotations

import importlib
from types import ModuleType

ALGORITHMS: dict[str, str] = {
    "maml": "distmeta.algorithms.maml",
    "fomaml": "distmeta.algorithms.fomaml",
    "reptile": "distmeta.algorithms.reptile",
}


def load_algorithm(name: str) -> ModuleType:
    return importlib.import_module(ALGORITHMS[name])
