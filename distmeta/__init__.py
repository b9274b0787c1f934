"""distmeta: Ray-distributed meta-training of language models that learn a new task from a few examples."""

from __future__ import annotations

import importlib
import sys
import types
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from distmeta.adapt import AdaptedModel, adapt, load_adapted
    from distmeta.config import Config, load_config
    from distmeta.errors import InputError
    from distmeta.evaluate import Evaluation, evaluate
    from distmeta.pipeline import Pipeline, pipeline
    from distmeta.pretrain import Pretrained, pretrain
    from distmeta.train import Run, TrainingError, train
    from distmeta.tune import Search, tune

__version__ = "0.1.0"

# Where each public name lives. Nothing is imported before it is used: torch and Ray take seconds.
_HOME = {
    "AdaptedModel": "adapt", "adapt": "adapt", "load_adapted": "adapt", "Config": "config", "load_config": "config",
    "InputError": "errors", "Evaluation": "evaluate", "evaluate": "evaluate", "Run": "train", "TrainingError": "train",
    "train": "train", "Search": "tune", "tune": "tune", "Pretrained": "pretrain", "pretrain": "pretrain",
    "Pipeline": "pipeline", "pipeline": "pipeline",
}  # fmt: skip
__all__ = [
    "AdaptedModel", "Config", "Evaluation", "InputError", "Pipeline", "Pretrained", "Run", "Search", "TrainingError",
    "adapt", "evaluate", "load_adapted", "load_config", "pipeline", "pretrain", "train", "tune",
]  # fmt: skip


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'distmeta' has no attribute '{name}'")
    return getattr(importlib.import_module(f"distmeta.{_HOME[name]}"), name)


def __dir__() -> list[str]:
    return [*__all__, "__version__"]


class _Package(types.ModuleType):
    """`distmeta.train` is the function, also after the module of that name was imported.

    `import distmeta.train as t` gives what stands for distmeta.train too: the function, and the module's names on it.
    """

    def __setattr__(self, name: str, value: Any) -> None:
        if not (name in _HOME and isinstance(value, types.ModuleType)):
            super().__setattr__(name, value)
            return
        names = {key: found for key, found in vars(value).items() if not key.startswith("_")}
        vars(names[name]).update(names)


sys.modules[__name__].__class__ = _Package
