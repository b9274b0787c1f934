"""What a language model that answers in words cannot do, each refused in one line that says what to set instead."""

from __future__ import annotations

from typing import TYPE_CHECKING

from distmeta.config.base import refuse, unfit

if TYPE_CHECKING:
    from distmeta.config import Config

MOST_LETTERS = 26


def check_text(config: Config) -> None:
    """Raises ValueError for what a language model without classes cannot do."""
    refuse(config, "task.family = text_to_text", [
        ("model.head", config.model.head != "prototype", "an answer has no class; set linear, or context"),
        ("task.permute_labels", not config.task.permute_labels, "there are no labels; set false"),
        ("task.labels", config.task.labels == "head", "there are no labels; leave it out"),
        ("task.augment", not any(value for name, value in config.task.augment if name != "resplit"),
         "it would change answers along with the texts; set task.augment.resplit alone"),
        ("cluster.episode", config.cluster.episode == "rank", "set rank"),
        ("model.context", config.model.context == "direct", "set direct"),
        ("algorithm", config.algorithm not in ("proto_maml", "prototypes", "anil", "boil", "online"),
         "it needs a classifier's head; set maml, fomaml, reptile, in_context, ..."),
        ("model.answer_tokens", config.model.answer_tokens < config.model.max_tokens,
         f"the input needs room in model.max_tokens={config.model.max_tokens}"),
    ])  # fmt: skip


def check_labels(config: Config) -> None:
    """Raises ValueError for what a decoder that says the names of classes cannot do."""
    labels, few = config.task.labels, f"there are {MOST_LETTERS} letters; lower it"
    refuse(config, f"task.labels = {labels}", [
        ("model.head", config.model.head != "prototype",
         "it has no features; set linear, or context for a model that reads its support set"),
        ("model.context", config.model.context == "direct", "set direct"),
        ("inner.adapt", config.inner.adapt != "head", "there is no head; set lora, all, or a regular expression"),
        ("algorithm", config.algorithm not in ("proto_maml", "prototypes", "anil", "boil"),
         "it needs a classifier's head; set in_context, maml, fomaml, reptile, ..."),
        ("task.augment", not any(value for name, value in config.task.augment if name != "resplit"),
         "it would change the prompt along with the text; set task.augment.resplit alone"),
        ("cluster.episode", config.cluster.episode == "rank", "set rank"),
        ("task.prompt", config.task.prompt != "bare", "what asks for the class has to stand there; set plain"),
        ("task.ways", labels != "letters" or (config.ways or 2) <= MOST_LETTERS, few),
        ("eval.ways", labels != "letters" or (config.eval.ways or 2) <= MOST_LETTERS, few),
        ("task.permute_labels", labels != "words" or not config.task.permute_labels,
         "a label keeps its words in every episode; leave it out"),
    ])  # fmt: skip
    if config.model.head == "context" and config.inner.steps and config.task.shots < 2:
        raise ValueError(
            f"task.shots = {config.task.shots}: with inner.steps above 0 the inner loss is on examples whose class an "
            "earlier one has: at least 2, or algorithm=in_context, which has no inner loop"
        )


def check_sizes(config: Config) -> None:
    """Raises ValueError where training episodes cannot be of several sizes."""
    task, least = config.task, config.task.least_ways
    alone = config.model.head == "context" and config.inner.steps > 0
    for setting, mend in unfit(config, [
        ("task.least_ways", least is None or task.family == "classes",
         f"task.family = {task.family} has no number of ways to set; leave it out"),
        ("task.least_ways", least is None or task.labels != "head" or config.model.head == "words",
         "the head of this model has one number of outputs; set task.labels=letters or words, or leave it out"),
        ("task.least_ways", (least or 0) <= (task.ways or 5), f"more than task.ways = {task.ways or 5}; lower it"),
        ("task.least_shots", (task.least_shots or 0) <= task.shots, f"more than task.shots = {task.shots}; lower it"),
        ("task.least_shots", task.least_shots != 1 or not (alone or task.augment.mix > 0),
         "the inner loss in context, and task.augment.mix, need a second example of a class; set 2, or leave it out"),
    ]):  # fmt: skip
        raise ValueError(f"{setting}: {mend}")
