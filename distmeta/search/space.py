"""What a search tries: the axes of `tune.space`, checked before anything starts, and points drawn from them.

    inner.lr: {log_uniform: [0.01, 1]}     a rate                 inner.steps: {integer: [1, 5]}   both ends included
    outer.lr: {uniform: [0.001, 0.01]}                            inner.adapt: {choice: [all, head]}
    inner.momentum: {uniform: [0.5, 0.95], when: {inner.optimizer: momentum}}    only where another axis has that value

The grid searcher takes every combination of values (`grid`, `choice`, `integer`); the others draw.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from distmeta.config import Config, make_config
from distmeta.config.trees import merge, nested
from distmeta.errors import InputError, nearest

RANGES = ("log_uniform", "uniform", "integer")
LISTS = ("choice", "grid")
SAME = ("run", "tune", "cluster", "sampling", "eval")  # sections that all trials share
PERTURBED = ("inner.lr", "outer.lr")  # what population-based training may change in the middle of a run

Params = dict[str, Any]


@dataclass(frozen=True)
class Axis:
    """One searched key. `values`: the two ends of a range, or the list."""

    key: str
    kind: str
    values: tuple[Any, ...]
    when: Mapping[str, Any]

    def is_active(self, params: Params) -> bool:
        return all(key in params and params[key] == value for key, value in self.when.items())

    def listed(self) -> list[Any]:
        """Every value, of a list or of a range of integers."""
        return list(range(self.values[0], self.values[1] + 1)) if self.kind == "integer" else list(self.values)

    def draw(self, rng: np.random.Generator) -> Any:
        if self.kind in LISTS:
            return self.values[int(rng.integers(len(self.values)))]
        low, high = self.values
        if self.kind == "integer":
            return int(rng.integers(low, high + 1))
        if self.kind == "uniform":
            return float(rng.uniform(low, high))
        return float(np.exp(rng.uniform(np.log(low), np.log(high))))


def with_params(config: Config, params: Params) -> Config:
    """`config` with these values of dotted keys. Raises InputError."""
    return make_config(merge(config.model_dump(mode="json"), nested(params)))


def read_space(config: Config) -> list[Axis]:
    """The axes, conditional ones after what they depend on. Raises InputError with one line that names the key."""
    if not config.tune.space:
        raise InputError("tune.space is empty; name a key to search, such as inner.lr: {log_uniform: [0.01, 1]}")
    axes = [_read_axis(key, dict(spec)) for key, spec in config.tune.space.items()]
    ordered: list[Axis] = []
    while len(ordered) < len(axes):
        known = {axis.key for axis in ordered}
        ready = [axis for axis in axes if axis.key not in known and set(axis.when) <= known]
        if not ready:
            stuck = next(axis for axis in axes if axis.key not in known)
            missing = sorted(set(stuck.when) - known)[0]
            keys = [axis.key for axis in axes if axis.key != stuck.key]
            raise InputError(
                f"tune.space.{stuck.key}.when names {missing}, which is not another searched key (or depends on this "
                f"one); searched: {', '.join(keys) or 'nothing else'}.{nearest(missing, keys)}"
            )
        ordered += ready
    for axis in ordered:
        _check_values(config, axis, {a.key: a for a in ordered})
        if config.tune.searcher == "grid" and axis.kind in ("log_uniform", "uniform"):
            raise InputError(
                f"tune.space.{axis.key} = {axis.kind}: tune.searcher=grid needs values; give {{grid: [..]}}"
            )
        if config.tune.searcher != "grid" and axis.kind == "grid":
            raise InputError(f"tune.space.{axis.key} = grid: set tune.searcher=grid, or give {{choice: [..]}}")
    if config.tune.scheduler == "pbt":
        _check_population(config, ordered)
    return ordered


def points(axes: list[Axis], config: Config) -> list[Params]:
    """All points of the grid, or `tune.trials` random ones. Point n is a function of (tune.seed, n) alone."""
    if config.tune.searcher != "grid":
        return [draw_point(axes, config.tune.seed, number) for number in range(config.tune.trials)]
    out: list[Params] = []
    for values in itertools.product(*(axis.listed() for axis in axes)):
        params: Params = {}
        for axis, value in zip(axes, values, strict=True):
            if axis.is_active(params):
                params[axis.key] = value
        if params not in out:  # inactive axes would repeat points
            out.append(params)
    return out


def draw_point(axes: list[Axis], seed: int, number: int) -> Params:
    """Random point `number`."""
    rng = np.random.default_rng([seed, number])
    params: Params = {}
    for axis in axes:
        value = axis.draw(rng)  # also where it is not used: what follows stays the same
        if axis.is_active(params):
            params[axis.key] = value
    return params


def _read_axis(key: str, spec: dict[str, Any]) -> Axis:
    where = f"tune.space.{key}"
    if key.split(".")[0] in SAME:
        raise InputError(f"{where}: the sections {', '.join(SAME)} are the same for all trials; search another key")
    when = spec.pop("when", {})
    if len(spec) != 1 or next(iter(spec)) not in (*RANGES, *LISTS) or not isinstance(when, dict):
        listed = ", ".join(map(str, spec)) or "nothing"
        guess = nearest(listed, [*RANGES, *LISTS])
        raise InputError(
            f"{where} = {listed}: one of {', '.join((*RANGES, *LISTS))}, and perhaps `when: {{key: value}}`.{guess}"
        )
    kind, values = next(iter(spec.items()))
    if kind in LISTS:
        if not isinstance(values, list) or not values:
            raise InputError(f"{where}.{kind} = {values!r}: a list of values")
        return Axis(key, kind, tuple(values), when)
    number = int if kind == "integer" else (int, float)
    if not (
        isinstance(values, list)
        and len(values) == 2
        and all(isinstance(v, number) and not isinstance(v, bool) for v in values)
        and values[0] < values[1]
    ):
        raise InputError(f"{where}.{kind} = {values!r}: two {'whole ' * (kind == 'integer')}numbers, the lower first")
    if kind == "log_uniform" and values[0] <= 0:
        raise InputError(f"{where}.log_uniform = {values!r}: both ends above 0")
    return Axis(key, kind, tuple(values), when)


def _check_values(config: Config, axis: Axis, axes: dict[str, Axis]) -> None:
    """A configuration is built of each end or value, under the axis's own conditions."""
    conditions: Params = {}
    todo = dict(axis.when)
    while todo:
        key, value = todo.popitem()
        conditions[key] = value
        todo |= {k: v for k, v in axes[key].when.items() if k not in conditions}
        if axes[key].kind in LISTS and value not in axes[key].values:
            allowed = ", ".join(map(repr, axes[key].values))
            raise InputError(f"tune.space.{axis.key}.when: {key} is never {value!r}; it is one of {allowed}")
    for value in axis.values:
        try:
            with_params(config, {**conditions, axis.key: value})
        except InputError as error:
            reason = str(error).removeprefix("configuration: ")
            raise InputError(f"tune.space.{axis.key}.{axis.kind}: {reason}") from None


def _check_population(config: Config, axes: list[Axis]) -> None:
    by_key = {axis.key: axis for axis in axes}
    if "inner.lr" not in by_key or by_key["inner.lr"].kind not in ("log_uniform", "uniform"):
        raise InputError("tune.scheduler = pbt perturbs inner.lr: give tune.space.inner.lr a range")
    for key in by_key:
        if key.split(".")[0] not in ("inner", "outer") or key in ("inner.adapt", "inner.learn_lr", "outer.optimizer"):
            raise InputError(
                f"tune.space.{key}: weights cannot be copied between trials that differ in it; not with pbt"
            )
    if config.tune.rivals:
        raise InputError("tune.rivals: learnt rates cannot be perturbed; leave it empty with tune.scheduler=pbt")
    if config.tune.rivals == [] and config.inner.learn_lr != "none":
        raise InputError(
            "tune.scheduler = pbt perturbs constant rates: set inner.learn_lr=none, or leave out tune.rivals"
        )
    if config.tune.searcher != "random":
        raise InputError(
            f"tune.searcher = {config.tune.searcher}: scheduler pbt starts at random; set tune.searcher=random"
        )
    if config.tune.trials < 2:
        raise InputError("tune.trials = 1: a population has at least 2 trials; set tune.trials=2 or more")
