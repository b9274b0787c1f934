"""distmeta: Ray-distributed meta-training of language models that learn a new task from a few examples."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from distmeta.config import Config, load_config
    from distmeta.config.modules import trust_module
    from distmeta.drive.cluster import TrainingError
    from distmeta.drive.train import Run, train
    from distmeta.errors import InputError
    from distmeta.evaluation.adapt import AdaptedModel, adapt, load_adapted
    from distmeta.evaluation.evaluate import Evaluation, evaluate
    from distmeta.evaluation.influence import explain
    from distmeta.evaluation.rejection import predict_or_reject
    from distmeta.pretraining.pipeline import Pipeline, pipeline
    from distmeta.pretraining.pretrain import Pretrained, pretrain
    from distmeta.search import Search, tune

__version__ = "0.1.0"

# Where each public name lives. Nothing is imported before it is used: torch and Ray take seconds.
_HOME = {
    "AdaptedModel": "evaluation.adapt", "adapt": "evaluation.adapt", "load_adapted": "evaluation.adapt",
    "Config": "config", "load_config": "config", "InputError": "errors", "Evaluation": "evaluation.evaluate",
    "evaluate": "evaluation.evaluate", "explain": "evaluation.influence", "Run": "drive.train",
    "predict_or_reject": "evaluation.rejection", "TrainingError": "drive.cluster", "train": "drive.train",
    "Search": "search", "tune": "search", "Pretrained": "pretraining.pretrain", "pretrain": "pretraining.pretrain",
    "Pipeline": "pretraining.pipeline", "pipeline": "pretraining.pipeline", "trust_module": "config.modules",
}  # fmt: skip
__all__ = [
    "AdaptedModel", "Config", "Evaluation", "InputError", "Pipeline", "Pretrained", "Run", "Search", "TrainingError",
    "adapt", "evaluate", "explain", "load_adapted", "load_config", "pipeline", "predict_or_reject", "pretrain",
    "train", "trust_module", "tune",
]  # fmt: skip


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'distmeta' has no attribute '{name}'")
    return getattr(importlib.import_module(f"distmeta.{_HOME[name]}"), name)


def __dir__() -> list[str]:
    return [*__all__, "__version__"]
