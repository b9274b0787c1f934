"""The section `inner`: how a model adapts to a support set."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, field_validator

from distmeta.config.base import Section
from distmeta.config.rates import RANDOM

Beta = Annotated[float, Field(ge=0, lt=1)]


class InnerConfig(Section):
    """The inner loop: adaptation on a support set."""

    lr: float = Field(
        RANDOM[1], gt=0, description="(initial) inner learning rate; null: 0.1; with model.pretrained 0.02 if all "
        "weights of the base adapt, 0.05 for LoRA or an encoder under a linear head (inner.optimizer=adam: 1e-4, "
        "1e-3; the head alone: 1e-2)"
    )  # fmt: skip
    steps: int = Field(5, ge=0, description="number of inner steps in training")
    schedule: Literal["constant", "linear", "cosine", "warmup"] = Field(
        "constant",
        description="course of the inner rate over the steps: falling to 0 (linear, cosine) or rising to "
        "inner.lr (warmup)",
    )
    optimizer: Literal["sgd", "momentum", "adam"] = Field(
        "sgd", description="inner optimizer; each is differentiated exactly"
    )
    momentum: float = Field(0.9, ge=0, lt=1, description="momentum of inner.optimizer=momentum")
    betas: tuple[Beta, Beta] = Field((0.9, 0.999), description="decay rates of inner.optimizer=adam")
    learn_lr: Literal["none", "scalar", "per_step", "per_layer", "per_layer_step", "per_parameter"] = Field(
        "none", description="which inner rates are meta-learnt; none: the rate stays inner.lr"
    )  # fmt: skip
    proximal: float = Field(
        0.0, ge=0, description="strength of the pull to the initial weights, lam/2 |theta - theta_0|^2 (iMAML)"
    )
    solver: Literal["cg", "neumann"] = Field("cg", description="algorithm imaml: solver of its linear system")
    cg_steps: int = Field(5, ge=1, description="algorithm imaml: number of steps of inner.solver")
    clip: float | None = Field(
        None, gt=0, description="largest norm of an inner step's gradient, which is scaled down to it; null: none"
    )
    clip_norm: Literal["exact", "constant"] = Field(
        "exact", description="how inner.clip is differentiated: exact, or with the norm taken for a constant"
    )
    adam_root: Literal["exact", "constant"] = Field(
        "exact", description="inner.optimizer=adam: whether a derivative goes through the root that it divides by"
    )
    lr_warmup: float = Field(
        0.0, ge=0, le=1, description="share of outer.steps over which the inner rate rises from a tenth of itself"
    )
    snapshots: int = Field(
        0, ge=0, description="number of inner steps whose fast weights are kept at once, those between being run "
        "again; 0: as many as inner.budget_mb has room for"
    )  # fmt: skip
    adapt: str = Field(
        "all", description="what the inner loop adapts: all, lora, head, last_quarter_mlp (the feed-forward layers of "
        "the last quarter of the layers), or a regular expression of parameter names"
    )  # fmt: skip
    memory: Literal["auto", "layers", "walk", "unroll"] = Field(
        "auto", description="walk: recomputes inner steps, so memory does not grow with their number; layers: "
        "recomputes layers, so memory hardly grows with depth, and keeps what passes between them in as many steps as "
        "inner.budget_mb allows; unroll: keeps all graphs; auto: keeps as many graphs as inner.budget_mb allows"
    )  # fmt: skip
    budget_mb: float | None = Field(
        None, gt=0, description="inner.memory=auto and layers: most megabytes of graphs; the graphs of as many steps "
        "as fit are kept, and auto recomputes layers if one micro-batch does not fit; null: 768 on a CPU, a quarter of "
        "a GPU's memory"
    )  # fmt: skip
    buckets: int = Field(
        0,
        ge=0,
        description="number of micro-batches, sorted by length, into which a set is divided; 0: the cheapest number",
    )
    part_tokens: int = Field(
        0,
        ge=0,
        description="most padded tokens of a micro-batch; 0: as many as fit into inner.budget_mb, 256 to 4096 on a CPU",
    )
    prefix_mb: float = Field(
        512,
        ge=0,
        description="megabytes for storing the outputs of the frozen layers below the adapted ones; 0: nothing is "
        "stored",
    )
    task_batch: int = Field(
        0, ge=0, description="number of tasks that run together as one batch; 0: chosen by their size and the device"
    )

    @field_validator("learn_lr", mode="before")
    @classmethod
    def _from_bool(cls, value: object) -> object:
        return {True: "scalar", False: "none", None: "none"}.get(value, value) if not isinstance(value, str) else value  # type: ignore[call-overload]
