"""The sections of verbs other than train: pretrain, tune and serve."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field, model_validator

from distmeta.config.base import Section

Rates = Literal["scalar", "per_step", "per_layer", "per_layer_step", "per_parameter"]
Trackers = list[Literal["tensorboard", "wandb", "mlflow"]]


class PretrainConfig(Section):
    """Language-model training, before any task. The model is the section model's, the seed run.seed."""

    path: str | list[str] | None = Field(
        None,
        description="files, directories or globs of text: .txt lines, or data files; null: the meta-train tasks' text",
    )
    text: str = Field("text", description="column of text in data files")
    min_characters: int = Field(1, ge=1, description="shorter texts are removed")
    max_characters: int = Field(100_000, ge=1, description="longer texts are removed")
    near_duplicates: bool = Field(
        True, description="also remove a text whose letters and digits, in any case, are those of an earlier one"
    )
    validation_share: float = Field(
        0.05, ge=0, lt=1, description="share of the texts held out for validation, by a stable hash of each text"
    )
    validation_rows: int = Field(512, ge=1, description="most rows of each split that a validation uses")
    objective: Literal["auto", "masked", "causal"] = Field(
        "auto",
        description="masked: predict hidden tokens of lines, as BERT does; causal: predict the next token in packed "
        "blocks; auto: as the architecture is made",
    )
    mask_probability: float = Field(
        0.15, gt=0, lt=1, description="pretrain.objective=masked: probability that a token is hidden"
    )
    steps: int = Field(500, ge=1, description="number of optimizer steps")
    batch_size: int = Field(32, ge=1, description="number of rows in a step, over all ranks")
    micro_batch: int = Field(0, ge=0, description="rows that a rank runs at a time; 0: its whole share of the batch")
    lr: float = Field(1e-3, gt=0, description="learning rate of AdamW")
    weight_decay: float = Field(0.01, ge=0, description="weight decay of weight matrices")
    clip: float = Field(1.0, gt=0, description="largest norm of the gradient")
    warmup: float = Field(0.1, ge=0, le=1, description="share of the steps in which the rate rises")
    schedule: Literal["linear", "cosine", "constant"] = Field(
        "linear", description="course of the rate after the warm-up: constant, or falling to 0"
    )
    every: int = Field(100, ge=0, description="steps between validations; 0: before the first and after the last")

    @model_validator(mode="after")
    def _lengths(self) -> PretrainConfig:
        if self.min_characters > self.max_characters:
            raise ValueError("pretrain.min_characters is above pretrain.max_characters, so that no text would be left")
        return self


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
    trackers: Trackers = Field(
        ["tensorboard"],
        description="experiment trackers that follow the trials; wandb and mlflow need the extra of that name",
    )
    dir: str | None = Field(None, description="directory of the search; null: runs/NAME-tune")


class ServeConfig(Section):
    """Limits of the service: what goes beyond one is refused with a line that names it. Each replica has its own."""

    memory_mb: float = Field(512, ge=0, description="megabytes of adapted tasks in memory; others are read from disk")
    tasks: int = Field(10_000, ge=1, description="most adapted tasks in the directory of tasks")
    rows: int = Field(1000, ge=1, description="most examples of a support set")
    steps: int = Field(100, ge=0, description="most inner steps that a request may set")
    inputs: int = Field(1000, ge=1, description="most texts in a request for predictions")
    characters: int = Field(20_000, ge=1, description="most characters of one text, label or answer")
    body_mb: float = Field(16, gt=0, description="largest body of a request, in megabytes")
    seconds: float = Field(60, gt=0, description="most seconds of a request, from its first line to its answer")
    waiting: int = Field(1000, ge=1, description="most requests that wait for the model at the same time")
    batch_tasks: int = Field(16, ge=1, description="most tasks in one batch")
    wait_ms: float = Field(4, ge=0, description="milliseconds to wait for other requests to join a batch")
    answers: int = Field(
        32,
        ge=1,
        description="most answers of /v1 that are generated at the same time, taking turns token by token; further "
        "requests wait; n times the prompts of one request may not exceed it",
    )
    max_tokens: int = Field(1024, ge=1, description="most tokens in an answer of /v1")
