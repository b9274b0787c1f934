"""What asks for a pretrained base, refused in one line where there is none, or not one that stays."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from distmeta.config import Config


def check_keep_base(config: Config) -> None:
    """Raises ValueError where outer.keep_base has no meaning."""
    if config.outer.keep_base is None:
        return
    says_words = config.task.family == "text_to_text" or config.task.labels != "head"
    for fits, reason in (
        (config.task.family != "document", "does not go with task.family = document, whose outer loss is of the text "
                                           "itself"),
        (says_words, "is of the words of a language model, and this model has a head of its own; set task.family="
                     "text_to_text, or task.labels=letters or words"),
        (config.model.pretrained is not None, "needs model.pretrained: a model built from its configuration has no "
                                              "base to keep"),
        (config.algorithm != "fine_tune", "does not go with algorithm = fine_tune, which learns nothing in the outer "
                                          "loop"),
        (config.outer.privacy is None, "does not go with outer.privacy: its gradient is of no single task"),
    ):  # fmt: skip
        if not fits:
            raise ValueError(f"outer.keep_base {reason}; or leave outer.keep_base out")


def check_quantise(config: Config) -> None:
    """Raises ValueError where there is no frozen base that could be rounded."""
    stage = config.deepspeed["zero_optimization"]["stage"]
    for fits, key, value, mend in (
        (config.model.pretrained is not None, "model.pretrained", "null", "there is no base; name one"),
        (config.inner.adapt == "lora", "inner.adapt", config.inner.adapt, "rounded weights cannot move; set lora"),
        (config.outer.base != "train", "outer.base", config.outer.base, "rounded weights cannot move; set freeze"),
        (stage != 3, "deepspeed.zero_optimization.stage", stage, "shards are of whole weights; set 0, 1 or 2"),
    ):
        if config.model.quantise is not None and not fits:
            raise ValueError(f"model.quantise = {config.model.quantise} does not work with {key} = {value}: {mend}")
