"""Episodes whose loss or meta-gradient is no number: a meta-step leaves them out, and too many of them end the run."""

from __future__ import annotations

import math
from collections.abc import Callable

from distmeta.config import Config
from distmeta.inner import Diverged

Say = Callable[[str], None]
LEAST_SKIPPED = 3  # episodes that a run may skip, however few it has seen


class OuterDiverged(ArithmeticError):
    """The outer loop left the finite numbers; the message names the meta-step."""


def refuse_skipped(config: Config, step: int, lost: list[Diverged], skipped: int, seen: int, say: Say) -> None:
    """Say which of the episodes `lost` a meta-step leaves out, the run having skipped so many of the `seen` so far.

    Raises OuterDiverged where these are more than outer.max_skipped allows.
    """
    if not lost:
        return
    share = config.outer.max_skipped
    so_far = f"{skipped} of {seen} episodes so far are skipped"
    say(f"meta-step {step}: {lost[-1]}; {so_far}")
    if skipped > (max(share * seen, LEAST_SKIPPED) if share else 0):
        raise OuterDiverged(f"meta-step {step}: {lost[-1]}; {so_far}, more than outer.max_skipped = {share:g} allows")


def refuse_outer_divergence(step: int, loss: float, norm: float) -> None:
    """Raises OuterDiverged where the outer loss or the gradient's norm is not finite."""
    if not math.isfinite(norm) or not math.isfinite(loss):
        raise OuterDiverged(f"meta-step {step}: outer loss {loss}, gradient norm {norm}; lower outer.lr")
