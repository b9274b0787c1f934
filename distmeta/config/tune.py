"""The section of `distmeta tune`."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field

from distmeta.config.base import Section

Rates = Literal["scalar", "per_step", "per_layer", "per_layer_step", "per_parameter"]


class TuneConfig(Section):
    """The search of `distmeta tune` over whole runs. What `space` may say is in distmeta.search.space."""

    space: dict[str, dict[str, Any]] = Field(
        {"inner.lr": {"log_uniform": [0.01, 1.0]}, "inner.steps": {"integer": [1, 5]}},
        description="keys to search, each with log_uniform, uniform or integer [low, high], or choice or grid "
        "[values], and perhaps `when`",
    )
    searcher: Literal["random", "grid", "optuna"] = Field(
        "random", description="how the values of a trial are chosen; optuna: by a tree of Parzen estimators"
    )
    scheduler: Literal["none", "asha", "median", "pbt"] = Field("asha", description="which trials are stopped early")
    trials: int = Field(16, ge=1, description="number of trials; with searcher grid: trials for each point of the grid")
    max_concurrent: int | None = Field(
        None, ge=1, description="most trials at the same time; null: as many as the cluster has room for"
    )
    metric: Literal["accuracy", "f1", "precision", "recall", "loss"] = Field(
        "accuracy",
        description="meta-validation metric that trials are compared by, at the best number of adaptation steps",
    )
    adapt_steps: int | None = Field(
        None, ge=1, description="largest number of adaptation steps that is scored; null: eval.steps, else inner.steps"
    )
    grace: int | None = Field(None, ge=1, description="meta-steps before any trial is stopped; null: eval.every")
    reduction: int = Field(
        3, ge=2, description="asha: at each rung one in this many trials continues, to this many times the meta-steps"
    )
    perturb_every: int | None = Field(None, ge=1, description="pbt: meta-steps between copies; null: eval.every")
    seed: int = Field(0, ge=0, description="seed of the search; each trial's run uses run.seed")
    retries: int = Field(1, ge=0, description="how often a trial that crashed continues from its checkpoint")
    rivals: list[Rates] | None = Field(
        None,
        description="values of inner.learn_lr that extra trials compare with constant rates; null: per_layer; []: none",
    )
    trackers: list[Literal["tensorboard", "wandb", "mlflow"]] = Field(
        ["tensorboard"],
        description="experiment trackers that follow the trials; wandb and mlflow need the extra of that name",
    )
    dir: str | None = Field(None, description="directory of the search; null: runs/NAME-tune")
