"""The outer learning rate of each meta-step."""

from __future__ import annotations

import math
from collections.abc import Sequence

from distmeta.config import Config


def outer_lr(config: Config, step: int, validation_losses: Sequence[float] = ()) -> float:
    """The outer learning rate of meta-step `step` (from 1), a pure function: warm-up, then the schedule.

    validation_losses: of the meta-validations before this step, which schedule plateau goes by.
    """
    outer = config.outer
    if outer.schedule == "plateau":
        warm = min(1.0, step / max(1, outer.warmup_steps))
        return outer.lr * warm * outer.factor ** plateaus(validation_losses, outer.patience)
    if step <= outer.warmup_steps:
        return outer.lr * step / outer.warmup_steps
    done = (step - 1 - outer.warmup_steps) / max(1, outer.steps - outer.warmup_steps)
    factor = {"constant": 1.0, "linear": 1.0 - done, "cosine": 0.5 * (1 + math.cos(math.pi * done))}[outer.schedule]
    return outer.lr * factor


def plateaus(losses: Sequence[float], patience: int) -> int:
    """How often more than `patience` losses in a row were no lower (by 1e-4 of it) than the lowest before them."""
    lowest, without, found = math.inf, 0, 0
    for loss in losses:
        if loss < lowest * (1 - 1e-4):
            lowest, without = loss, 0
        else:
            without += 1
        if without > patience:
            found, without = found + 1, 0
    return found
