"""The section of `distmeta pretrain`."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator

from distmeta.config.base import Section


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
