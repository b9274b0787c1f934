"""The best meta-validation of a run so far, by `eval.best`: whether there is a new one, and when none is waited for."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from distmeta.config import Config
from distmeta.config.consistency import parse_best, parse_until
from distmeta.runs import checkpoint as checkpoints

Best = dict[str, Any]  # step, metric (as eval.best), value, loss

# Values measured under other settings do not compare.
MEASURE = ("validation_episodes", "steps")


def rule(config: Config) -> str:
    """`eval.best` as METRIC:max or METRIC:min."""
    if config.eval.best != "auto":
        return ":".join(parse_best(config.eval.best))
    return "accuracy:max" if config.task.has_classes else "loss:min"


def better(config: Config, validation: Mapping[str, float], step: int, best: Best | None) -> Best | None:
    """The meta-validation of `step` if it is a new best, else None. Of two that are equal the lower loss is better."""
    metric, way = rule(config).split(":")
    new: Best = {"step": step, "metric": rule(config), "value": validation[metric], "loss": validation["loss"]}
    sign = 1.0 if way == "max" else -1.0
    if best is not None and (sign * new["value"], -new["loss"]) <= (sign * best["value"], -best["loss"]):
        return None
    return new


def comparable(best: Best | None, before: Config, config: Config) -> Best | None:
    """The best of a run that is continued under `config`; None where it was measured in another way."""
    same = all(getattr(before.eval, key) == getattr(config.eval, key) for key in MEASURE)
    return best if best is not None and same and best["metric"] == rule(config) else None


def is_over(config: Config, validations: Sequence[Mapping[str, Any]], best: Best | None) -> bool:
    """Whether `outer.stop_after` meta-validations have passed without a new best. validations: {step, ...} so far."""
    if config.outer.stop_after is None or best is None:
        return False
    without = [v for v in validations if v["step"] > best["step"]]
    return len(without) >= config.outer.stop_after


def is_reached(until: str | None, validation: Mapping[str, float]) -> bool:
    """Whether a meta-validation meets `outer.until`."""
    if until is None:
        return False
    metric, sign, value = parse_until(until)
    return validation[metric] >= value if sign == ">=" else validation[metric] <= value


def still_kept(run_dir: Path, best: Best | None) -> Best | None:
    """The best that a run goes on from, if its checkpoint is still whole; else the next meta-validation is the best."""
    if best is None or checkpoints.damage(run_dir / "checkpoints" / f"step-{best['step']:06d}") is not None:
        return None
    return best
