"""What happens at which meta-step: the outer learning rate, and meta-validations."""

from __future__ import annotations

import math
from collections.abc import Sequence

from distmeta.config import Config

LONG = 100  # meta-steps of a run that is meta-validated without being asked to
VALIDATIONS = 10  # of such a run
# Meta-steps from which on a constant rate may lose again what was learnt. A shorter run from random weights needs all
# of it; pretrained ones learn early, and what they have learnt a constant rate shakes.
FALLING = 300


def is_open_ended(config: Config) -> bool:
    """Whether tasks arrive as the run learns, so that what was learnt last matters most and the end is not known."""
    return config.task.arrive_every > 0 or config.data.follow is not None


def schedule_of(config: Config) -> tuple[str, int]:
    """The schedule of the outer rate and its meta-steps of warm-up, as `auto` and null stand for."""
    outer = config.outer
    if outer.schedule != "auto":
        return outer.schedule, outer.warmup_steps or 0
    if is_open_ended(config) or (outer.steps < FALLING and config.model.pretrained is None):
        return "constant", outer.warmup_steps or 0
    return "cosine", min(100, outer.steps // 20) if outer.warmup_steps is None else outer.warmup_steps


def validation_every(config: Config, tasks: int = 1) -> int:
    """Meta-steps between meta-validations, with so many meta-validation tasks in the data; 0: there are none."""
    outer = config.outer
    if config.eval.every != "auto":
        return config.eval.every
    needed = (
        outer.until is not None or outer.stop_after is not None
        or outer.schedule == "plateau" or config.task.mixture == "curriculum"
    )  # fmt: skip
    if not needed and (tasks == 0 or outer.steps < LONG or is_open_ended(config)):
        return 0
    return -(-outer.steps // VALIDATIONS)


def outer_lr(config: Config, step: int, validation_losses: Sequence[float] = ()) -> float:
    """The outer learning rate of meta-step `step` (from 1), a pure function: warm-up, then the schedule.

    validation_losses: of the meta-validations before this step, which schedule plateau goes by.
    """
    outer = config.outer
    schedule, warmup = schedule_of(config)
    if schedule == "plateau":
        warm = min(1.0, step / max(1, warmup))
        return outer.lr * warm * outer.factor ** plateaus(validation_losses, outer.patience)
    if step <= warmup:
        return outer.lr * step / warmup
    done = (step - 1 - warmup) / max(1, outer.steps - warmup)
    factor = {"constant": 1.0, "linear": 1.0 - done, "cosine": 0.5 * (1 + math.cos(math.pi * done))}[schedule]
    return outer.lr * factor


def plateaus(losses: Sequence[float], patience: int) -> int:
    """How often more than `patience` losses in a row were no lower (by 1e-4 of it) than the lowest before them."""
    lowest, without, count = math.inf, 0, 0
    for loss in losses:
        if loss < lowest * (1 - 1e-4):
            lowest, without = loss, 0
        else:
            without += 1
        if without > patience:
            count, without = count + 1, 0
    return count
