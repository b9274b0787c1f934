"""What a language model that answers in words cannot do, each refused in one line that says what to set instead."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from distmeta.config import Config

MOST_LETTERS = 26


def check_text(config: Config) -> None:
    """Raises ValueError for what a language model without classes cannot do."""
    for fits, key, value, mend in (
        (config.model.head != "prototype", "model.head", "prototype", "an answer has no class; set linear, or context"),
        (not config.task.permute_labels, "task.permute_labels", "true", "there are no labels; set false"),
        (config.task.labels == "head", "task.labels", config.task.labels, "there are no labels; leave it out"),
        (not any(value for name, value in config.task.augment if name != "resplit"), "task.augment", "on",
         "it would change answers along with the texts; set task.augment.resplit alone"),
        (config.task.arrive_every == 0, "task.arrive_every", config.task.arrive_every, "set 0"),
        (config.cluster.episode == "rank", "cluster.episode", config.cluster.episode, "set rank"),
        (config.model.context == "direct", "model.context", config.model.context, "set direct"),
        (config.algorithm not in ("proto_maml", "prototypes", "anil", "boil", "online"), "algorithm", config.algorithm,
         "it needs a classifier's head, or tasks that arrive; set maml, fomaml, reptile, in_context, ..."),
        (config.model.answer_tokens < config.model.max_tokens, "model.answer_tokens", config.model.answer_tokens,
         f"the input needs room in model.max_tokens={config.model.max_tokens}"),
        (config.data.sources is None, "data.sources", "several", "data.path may name several files"),
    ):  # fmt: skip
        if not fits:
            raise ValueError(f"task.family = text_to_text does not work with {key} = {value}: {mend}")


def check_labels(config: Config) -> None:
    """Raises ValueError for what a decoder that says the names of classes cannot do."""
    labels, most = config.task.labels, max(config.ways or 2, config.eval.ways or 2)
    for fits, key, value, mend in (
        (config.model.head != "prototype", "model.head", "prototype",
         "it has no features; set linear, or context for a model that reads its support set"),
        (config.model.context == "direct", "model.context", config.model.context, "set direct"),
        (config.inner.adapt != "head", "inner.adapt", "head",
         "there is no head; set lora, all, or a regular expression"),
        (config.algorithm not in ("proto_maml", "prototypes", "anil", "boil"), "algorithm", config.algorithm,
         "it needs a classifier's head; set in_context, maml, fomaml, reptile, ..."),
        (not any(value for name, value in config.task.augment if name != "resplit"), "task.augment", "on",
         "it would change the prompt along with the text; set task.augment.resplit alone"),
        (config.cluster.episode == "rank", "cluster.episode", config.cluster.episode, "set rank"),
        (config.task.prompt != "bare", "task.prompt", "bare", "what asks for the class has to stand there; set plain"),
        (labels != "letters" or most <= MOST_LETTERS, "task.ways", most, f"there are {MOST_LETTERS} letters; lower it"),
        (labels != "words" or not config.task.permute_labels, "task.permute_labels", "true",
         "a label keeps its words in every episode; leave it out"),
    ):  # fmt: skip
        if not fits:
            raise ValueError(f"task.labels = {labels} does not work with {key} = {value}: {mend}")
    if config.model.head == "context" and config.inner.steps and config.task.shots < 2:
        raise ValueError(
            f"task.shots = {config.task.shots}: with inner.steps above 0 the inner loss is on examples whose class an "
            "earlier one has: at least 2, or algorithm=in_context, which has no inner loop"
        )


def check_sizes(config: Config) -> None:
    """Raises ValueError where training episodes cannot be of several sizes."""
    task, least = config.task, config.task.least_ways
    alone = config.model.head == "context" and config.inner.steps > 0
    for refused, key, value, mend in (
        (least is not None and task.family != "classes", "ways", least,
         f"task.family = {task.family} has no number of ways to set; leave it out"),
        (least is not None and task.labels == "head", "ways", least,
         "the head of this model has one number of outputs; set task.labels=letters or words, or leave it out"),
        (least is not None and least > (task.ways or 5), "ways", least,
         f"more than task.ways = {task.ways or 5}; lower it"),
        (task.least_shots is not None and task.least_shots > task.shots, "shots", task.least_shots,
         f"more than task.shots = {task.shots}; lower it"),
        (task.least_shots == 1 and (alone or task.augment.mix > 0), "shots", 1,
         "the inner loss in context, and task.augment.mix, need a second example of a class; set 2, or leave it out"),
    ):  # fmt: skip
        if refused:
            raise ValueError(f"task.least_{key} = {value}: {mend}")
