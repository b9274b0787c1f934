"""The section `eval`: what is scored, and which checkpoint is the best."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, field_validator

from distmeta.config import consistency
from distmeta.config.base import Section


class EvalConfig(Section):
    """Meta-validations while a run learns, and the evaluation at its end."""

    episodes: int = Field(600, ge=2, description="number of meta-test episodes")
    steps: int | None = Field(None, ge=0, description="number of inner steps when evaluating; null: inner.steps")
    baselines: bool = Field(True, description="also score the methods that were not meta-trained")
    every: Annotated[int, Field(ge=0)] | Literal["auto"] = Field(
        "auto", description="meta-steps between meta-validations; 0: none; auto: a tenth of outer.steps, but none "
        "with fewer than 100 outer.steps, without meta-validation tasks, or in a run during which tasks arrive"
    )  # fmt: skip
    beside: int = Field(
        0, ge=0, description="0: the ranks stop for a meta-validation; above 0: a process with the resources of one "
        "more rank makes it while they go on, and its result takes effect (in outer.until, outer.stop_after, plateau, "
        "curriculum, the best checkpoint) that many meta-steps later, where they wait for it"
    )  # fmt: skip
    best: str = Field(
        "auto", description="METRIC:max or METRIC:min of the meta-validations: decides which checkpoint is the best "
        "one, which is evaluated, exported, adapted and served; auto: accuracy:max, in family text_to_text loss:min"
    )  # fmt: skip
    validation_episodes: int = Field(50, ge=2, description="number of episodes of a meta-validation")
    ways: int | None = Field(
        None, ge=2, description="family classes, model.head=prototype or words: classes in an episode of a "
        "meta-validation or an evaluation; null: task.ways"
    )  # fmt: skip
    shots: int | None = Field(
        None, ge=1, description="support examples of each class in a meta-validation or an evaluation; null: task.shots"
    )
    queries: int | None = Field(
        None, ge=1, description="query examples of each class in a meta-validation or an evaluation; null: task.queries"
    )
    refine: int = Field(
        0, ge=0, le=1000, description="rounds of soft k-means, in which the class means of algorithm=prototypes move "
        "to the texts of a query set, each weighed by its probability of the class; the texts of a query set are then "
        "classified together (transductively); 0: each alone"
    )  # fmt: skip
    normalise: Literal["none", "length", "unconditional"] | None = Field(
        None, description="how a label (task.labels=words) or an option (family text_to_text) is scored: none: by the "
        "sum of its tokens' log-likelihoods; length: by their mean; unconditional: by their sum less the sum after "
        "an example without text; null: none for labels, length for options"
    )  # fmt: skip

    @field_validator("best")
    @classmethod
    def _parses(cls, value: str) -> str:
        if value != "auto":
            consistency.parse_best(value)
        return value
