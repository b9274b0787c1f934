"""The section `task`: what an episode is."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field, field_validator, model_validator

from distmeta.config.base import Section
from distmeta.config.parts import AugmentConfig
from distmeta.config.templates import of_text, read_prompt

Mixture = Literal["uniform", "proportional", "temperature", "curriculum"] | dict[str, Annotated[float, Field(ge=0)]]


class TaskConfig(Section):
    """What an episode is."""

    family: Literal["domain", "classes", "text_to_text", "document", "regression", "policy"] = Field(
        "domain", description="domain: a task per domain, fixed labels; classes: N ways over disjoint classes; "
        "text_to_text: an answer to an input, in words; document: a text that is read chunk by chunk, with an inner "
        "step on each chunk after it has been scored; regression: a function per task, from vectors to vectors; "
        "policy: a goal per task, which a policy learns to reach by acting in task.environment"
    )  # fmt: skip
    ways: int | None = Field(None, ge=2, description="family classes: classes in an episode")
    shots: int = Field(
        5, ge=1, description="support examples of each class (text_to_text and regression: of a task; policy: rollouts "
        "for an inner step)"
    )  # fmt: skip
    queries: int = Field(
        10, ge=1, description="query examples of each class (text_to_text and regression: of a task; policy: rollouts "
        "of the adapted policy)"
    )  # fmt: skip
    least_ways: int | None = Field(
        None, ge=2, description="task.labels=letters or words, or model.head=words: fewest classes in a training "
        "episode, which draws a number between this and task.ways; null: always task.ways"
    )  # fmt: skip
    least_shots: int | None = Field(
        None,
        ge=1,
        description="task.labels=letters or words: fewest support examples of each class in a training "
        "episode, which draws a number between this and task.shots; null: always task.shots",
    )
    chunks: int = Field(
        8, ge=2, description="family document: number of chunks of an episode, one more than inner steps"
    )
    chunk_tokens: int = Field(64, ge=2, description="family document: number of tokens of a chunk")
    context_tokens: int = Field(
        64, ge=1, description="family document: most tokens before a chunk that the model reads with it, which are not "
        "scored again"
    )  # fmt: skip
    instructions: bool = Field(True, description="family text_to_text: put the task's instruction before the input")
    labels: Literal["head", "letters", "words"] = Field(
        "head", description="how the model names a class: head: by an output of its head; letters: a pretrained "
        "decoder answers with a letter, drawn anew in each episode, so that only the examples say what it means; "
        "words: a pretrained decoder chooses the label with the likeliest words (eval.normalise)"
    )  # fmt: skip
    prompt: str = Field(
        "plain", description="how a language model's example is written (task.labels=letters or words, family "
        "text_to_text): plain (Input: ... Label: B, or Input: ... Output: ...); chat: as turns of the model's own chat "
        "template; auto: the better of these two, as the untrained model reads some validation tasks, chosen before "
        "the run starts; a Jinja template with {{ input }} and {{ target }}, or a file that holds one, which is kept "
        "in the run; or bare, the default of text_to_text: instruction, input and answer with nothing between but "
        "line breaks. Other than bare the instruction stands first, and once in a context"
    )  # fmt: skip
    permute_labels: bool = Field(
        False, description="family domain: each episode of every split draws a new order of the label ids"
    )
    augment: AugmentConfig = AugmentConfig()
    environment: str | None = Field(
        None, description="family policy: package.module:Class of your own that is an environment, or gymnasium:ID of "
        "one that gymnasium makes; null: point navigation in the plane"
    )  # fmt: skip
    horizon: int = Field(20, ge=1, description="family policy: steps of a rollout")
    arrive_every: int = Field(
        0,
        ge=0,
        description="number of training episodes between the arrivals of two tasks (documents, functions), each of "
        "them there from then on; 0: all are available from the start; not with family classes",
    )
    mixture: Mixture = Field(
        "uniform", description="how often episodes come from each of data.sources: uniform: equally; proportional: by "
        "its number of examples; temperature: by the 1/task.temperature power of that number; curriculum: by the "
        "same power of its meta-validation loss; or weights by name"
    )  # fmt: skip
    temperature: float = Field(
        1.0,
        gt=0,
        description="task.mixture=temperature or curriculum: a higher temperature makes the shares more equal",
    )
    lag: int = Field(
        20,
        ge=1,
        description="task.mixture=curriculum: meta-steps between a meta-validation and the first meta-step whose "
        "shares use it",
    )

    @model_validator(mode="before")
    @classmethod
    def _of_text(cls, values: Any) -> Any:
        return of_text(values) if isinstance(values, dict) else values

    @property
    def is_language(self) -> bool:
        """Whether a language model is trained on tokens, and not on labels."""
        return self.family in ("text_to_text", "document")

    @property
    def has_classes(self) -> bool:
        """Whether what is asked is one of an episode's classes."""
        return self.family in ("domain", "classes")

    @property
    def has_numbers(self) -> bool:
        """Whether what is learnt are numbers of numbers, so that the loss is all that is measured."""
        return self.family in ("regression", "policy")

    @property
    def passage_tokens(self) -> int:
        """Family document: tokens of an episode."""
        return self.chunks * self.chunk_tokens

    @field_validator("prompt")
    @classmethod
    def _reads(cls, value: str) -> str:
        return read_prompt(value)
