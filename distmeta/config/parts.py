"""Parts of sections that have keys of their own."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from distmeta.config.base import Section

Share = Annotated[float, Field(ge=0, lt=1)]


class AugmentConfig(Section):
    """Changes of the episodes that are learnt from; those that are scored stay as they are."""

    token_dropout: Share = Field(0.0, description="probability that a token of a support row is left out")
    word_swap: Share = Field(0.0, description="probability that two neighbouring words of a support row change places")
    mix: Share = Field(
        0.0, description="probability that a word of a support row is replaced by one from other rows of its class"
    )
    permute_labels: bool = Field(
        False,
        description="like task.permute_labels, but only in training: meta-validation and meta-test keep the label ids",
    )
    resplit: bool = Field(
        False, description="every second episode divides the previous one's rows anew into support and query"
    )

    rotations: bool = Field(
        False, description="images of family classes: a class turned by a quarter, half or three quarters of a circle "
        "is a class of its own"
    )  # fmt: skip
    flips: Literal["classes", "images"] | None = Field(
        None, description="images: classes: a class seen in a mirror is a class of its own (family classes); images: "
        "each image of an episode is mirrored, or not, by a draw; null: neither"
    )  # fmt: skip

    @property
    def turns(self) -> list[int]:
        """Ways to turn a class that make classes of their own: quarters of a circle, and 4 more if it is mirrored."""
        quarters = range(4 if self.rotations else 1)
        return [quarter + mirror for mirror in ((0, 4) if self.flips == "classes" else (0,)) for quarter in quarters]

    @property
    def changes_tokens(self) -> bool:
        return max(self.token_dropout, self.word_swap, self.mix) > 0

    @property
    def changes_rows(self) -> bool:
        """Whether a row that is learnt from may be another one than the task store's."""
        return self.changes_tokens or len(self.turns) > 1 or self.flips is not None


class DataWeightsConfig(Section):
    """Learnt weights of the support examples (distmeta.algorithms.data_weights)."""

    by: Literal["source", "task", "example"] = Field(
        description="what has a learnt weight of its own: each of data.sources, each task (of classes: each class), or "
        "each example"
    )
    lr: float = Field(
        0.2, gt=0, description="how far the number behind a weight (weight = 2 sigmoid(number), at first 1) moves in a "
        "meta-step with an episode that has it; follows the outer schedule"
    )  # fmt: skip


class PrivacyConfig(Section):
    """Task-level differential privacy; what it guarantees is said in distmeta.algorithms.privacy."""

    noise: float = Field(gt=0, description="standard deviation of a meta-step's noise, in units of clip")
    clip: float = Field(gt=0, description="largest norm of a task's meta-gradient")
    delta: float = Field(gt=0, lt=1, description="delta of the reported (epsilon, delta); far below 1 / tasks")


class KeepBaseConfig(Section):
    """What a language model's pretrained base says of text, held to by a term of the outer loss."""

    weight: float = Field(gt=0, description="factor of the divergence from the base in the outer loss")
    path: str | None = Field(
        None, description="file of the texts that the divergence is of (.txt with one a line, or column data.text of a "
        "table); null: the episodes' own query rows, without their support set"
    )  # fmt: skip
