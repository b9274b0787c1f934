"""The section `task`: what an episode is."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, field_validator

from distmeta.config.base import Section
from distmeta.config.parts import AugmentConfig
from distmeta.config.templates import read_prompt

Mixture = Literal["uniform", "proportional", "temperature", "curriculum"] | dict[str, Annotated[float, Field(ge=0)]]


class TaskConfig(Section):
    """What an episode is."""

    family: Literal["domain", "classes", "text_to_text"] = Field(
        "domain", description="domain: a task per domain, fixed labels; classes: N ways over disjoint classes; "
        "text_to_text: an answer to an input, in words"
    )  # fmt: skip
    ways: int | None = Field(None, ge=2, description="family classes: classes in an episode")
    shots: int = Field(5, ge=1, description="support examples of each class (text_to_text: of a task)")
    queries: int = Field(10, ge=1, description="query examples of each class (text_to_text: of a task)")
    least_ways: int | None = Field(
        None, ge=2, description="task.labels=letters or words: fewest classes in a training episode, each having a "
        "number of them from this to `ways`, by its key; null: all have `ways`"
    )  # fmt: skip
    least_shots: int | None = Field(
        None, ge=1, description="likewise fewest support examples of each class in a training episode; null: `shots`"
    )
    instructions: bool = Field(True, description="family text_to_text: put the task's instruction before the input")
    labels: Literal["head", "letters", "words"] = Field(
        "head", description="how a class is named: head: by an output of the model's head; letters: by a letter that a "
        "pretrained decoder says, drawn anew in each episode, so that only the examples tell what it means; words: by "
        "the label's own words, of which the likeliest are chosen (eval.normalise)"
    )  # fmt: skip
    prompt: str = Field(
        "plain", description="task.labels=letters or words: how an example is written: plain (Input: ... Label: B); "
        "chat: as turns of the model's own chat template; auto: the better of these two, as the untrained model reads "
        "some validation tasks, chosen before the run starts; or a Jinja template with {{ input }} and {{ target }}, "
        "or a file that holds one, which is kept in the run"
    )  # fmt: skip
    permute_labels: bool = Field(
        False, description="family domain: each episode of every split draws a new order of the label ids"
    )
    augment: AugmentConfig = AugmentConfig()
    arrive_every: int = Field(
        0,
        ge=0,
        description="family domain: number of training episodes between the arrivals of two tasks; 0: all "
        "tasks are there from the start",
    )
    mixture: Mixture = Field(
        "uniform", description="how often an episode is of each of data.sources: equally, by their examples, by the "
        "1/temperature power of these, or of their meta-validation losses (curriculum); or weights by name"
    )  # fmt: skip
    temperature: float = Field(
        1.0, gt=0, description="mixtures temperature and curriculum: a larger one makes the shares more equal"
    )
    lag: int = Field(
        20,
        ge=1,
        description="curriculum: number of meta-steps from a meta-validation to the first meta-step that follows it",
    )

    @field_validator("prompt")
    @classmethod
    def _reads(cls, value: str) -> str:
        return read_prompt(value)
