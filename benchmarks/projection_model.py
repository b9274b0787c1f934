"""On paper: tasks per second and their price at world sizes that are not at hand.

    step(n) = E[max over n ranks of the sum of their tasks' seconds]     the slowest rank
            + fixed + 2 (n - 1) (latency + bytes / (n bandwidth))        a ring all-reduce
            + checkpoint / steps between two
    wall    = step(n) / share of it that no failure undoes               Daly 2006

Seconds of a task are normal and independent, so that the slowest rank is an integral, not a simulation. What a
machine's own numbers are (seconds of a task, fixed, latency) is fitted to a result of `distmeta bench scaling`.
Pure functions: no torch, no Ray.
"""

from __future__ import annotations

import dataclasses
import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from distmeta.errors import InputError

# Where the model stops being true; points where one of the first four matters say so themselves.
LIMITS = (
    "normal: a rank's seconds are normal; where their deviation is over a third of the mean, they cannot be",
    "ring: all bytes go around one ring; where that is over half of a step, trees and overlap would be quicker",
    "failures: Daly's formula holds while an interval between checkpoints is shorter than the time between failures",
    "idle: in strong scaling a rank without a task only waits",
    "independent: tasks' seconds are independent; a GPU that is always slower, or a mix of short and long tasks that "
    "all ranks meet at once, is not in it",
    "fed: samplers keep up, and storage takes a checkpoint in the same time whatever the number of ranks",
    "whole: a failure stops the whole group, which restarts at the same size; failures come one by one",
    "tasks per second is not time to quality: in weak scaling the meta-batch grows, and steps do not get fewer alike",
)


@dataclass(frozen=True)
class Given:
    """Hardware and work, in numbers. Raises InputError.

    task_s            seconds of a task's inner loop and meta-gradient on one GPU; task_deviation: relative
    fixed_s           of a meta-step, whatever the number of ranks: hand-over, outer step, record
    megabytes         that the ring reduces in a meta-step (2**20 bytes)
    gb_per_s          of a rank's slowest link (10**9 bytes); latency_s: of a hop, all collectives of a step together
    checkpoint_s      that the learner waits for at a checkpoint; interval_s: between two, None: the best (Daly's)
    mtbf_h            hours between failures of ONE GPU, its share of the node included; restart_s: after one
    price             of a GPU hour
    """

    task_s: float
    task_deviation: float = 0.0
    fixed_s: float = 0.0
    megabytes: float = 0.0
    gb_per_s: float = math.inf
    latency_s: float = 0.0
    checkpoint_s: float = 0.0
    interval_s: float | None = None
    mtbf_h: float = math.inf
    restart_s: float = 0.0
    price: float = 0.0

    def __post_init__(self) -> None:
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            above = field.name in ("task_s", "gb_per_s", "mtbf_h", "interval_s")
            if value is not None and (math.isnan(value) or value < 0 or (above and value == 0)):
                raise InputError(f"{field.name} = {value:g}: a number {'above' if above else 'from'} 0")
            if value == math.inf and field.name not in ("gb_per_s", "mtbf_h", "interval_s"):
                raise InputError(f"{field.name} = inf: a finite number")


def numbers(machine: Given) -> dict[str, float | None]:
    """For JSON: what is infinite, or not given, is null."""
    values = dataclasses.asdict(machine)
    return {name: value if value is not None and math.isfinite(value) else None for name, value in values.items()}


def expected_max(groups: Sequence[tuple[int, float, float]]) -> float:
    """E[max] of independent normals, for each group (how many, mean, deviation): an integral, no simulation.

    E[max] = a + integral from a on of 1 - P(all below x) dx, for any a that the largest cannot be below.
    """
    groups = [(count, mean, deviation) for count, mean, deviation in groups if count]
    certain = max((mean for _, mean, deviation in groups if deviation == 0), default=-math.inf)
    uncertain = [group for group in groups if group[2] > 0]
    if not uncertain:
        return certain
    a = max(certain, min(mean - 12 * deviation for _, mean, deviation in uncertain))
    b = max(a, max(mean + 12 * deviation for _, mean, deviation in uncertain))
    x = np.linspace(a, b, 8001)
    log_below = sum(count * _log_below(x, mean, deviation) for count, mean, deviation in uncertain)
    above = -np.expm1(log_below)
    return float(a + np.sum((above[1:] + above[:-1]) * 0.5 * np.diff(x)))


def _log_below(x: NDArray[np.float64], mean: float, deviation: float) -> NDArray[np.float64]:
    below = np.array([0.5 * math.erfc((mean - v) / (deviation * math.sqrt(2))) for v in x])
    out: NDArray[np.float64] = np.log(np.maximum(below, 1e-300))
    return out


def slowest_s(machine: Given, world: int, meta_batch: int) -> float:
    """Expected seconds of the rank that is last, of ranks whose numbers of tasks differ by at most one."""
    few, more = divmod(meta_batch, world)
    sd = machine.task_s * machine.task_deviation
    return expected_max([
        (world - more, few * machine.task_s, math.sqrt(few) * sd),
        (more, (few + 1) * machine.task_s, math.sqrt(few + 1) * sd),
    ])  # fmt: skip


def all_reduce_s(machine: Given, world: int) -> float:
    """A ring: 2 (n - 1) messages of 1/n of the bytes each, one after another (Patarasuk and Yuan 2009)."""
    return 2 * (world - 1) * (machine.latency_s + machine.megabytes * 2**20 / world / (machine.gb_per_s * 1e9))


def young_interval_s(checkpoint_s: float, mtbf_s: float) -> float:
    """Seconds of work between two checkpoints that lose least, to first order (Young 1974): sqrt(2 checkpoint M)."""
    return math.sqrt(2 * checkpoint_s * mtbf_s)


def daly_interval_s(checkpoint_s: float, mtbf_s: float) -> float:
    """The same to a higher order (Daly 2006, equation 37)."""
    if checkpoint_s >= 2 * mtbf_s:
        return mtbf_s
    root = math.sqrt(checkpoint_s / (2 * mtbf_s))
    return young_interval_s(checkpoint_s, mtbf_s) * (1 + root / 3 + root**2 / 9) - checkpoint_s


def useful_share(interval_s: float, checkpoint_s: float, restart_s: float, mtbf_s: float) -> float:
    """Share of the clock that is work which stays: interval / (M e^(R/M) (e^((interval + checkpoint)/M) - 1)).

    Daly 2006, equation 20: failures are exponential with mean M = mtbf_s, also while restarting (R = restart_s).
    """
    if math.isinf(mtbf_s):
        return interval_s / (interval_s + checkpoint_s) if math.isfinite(interval_s) else 1.0
    exponent = (interval_s + checkpoint_s) / mtbf_s
    if exponent + restart_s / mtbf_s > 700:
        return 0.0  # such a run does not end
    return interval_s / (mtbf_s * math.exp(restart_s / mtbf_s) * math.expm1(exponent))


def interval_s(machine: Given, world: int) -> float:
    """Seconds of work between two checkpoints: as given, or Daly's best."""
    if machine.interval_s is not None:
        return machine.interval_s
    mtbf_s = 3600 * machine.mtbf_h / world
    if machine.checkpoint_s == 0 and math.isfinite(mtbf_s):
        return 1e-6 * mtbf_s  # a free checkpoint is taken all the time
    return math.inf if math.isinf(mtbf_s) else daly_interval_s(machine.checkpoint_s, mtbf_s)


def project(machine: Given, worlds: Sequence[int], tasks: int, mode: str = "weak") -> list[dict[str, Any]]:
    """Points {workers, meta_batch, step_s, tasks_per_s, efficiency, share of each part, price of 1000 tasks, doubts}.

    tasks: of a rank (weak), or of the meta-batch (strong). efficiency: tasks per second and rank over those of the
    fewest ranks; efficiency_of_one: over a single rank that never fails. Raises InputError.
    """
    if not worlds or min(worlds) < 1 or tasks < 1 or mode not in ("weak", "strong"):
        raise InputError("projection: world sizes and tasks from 1, and a mode that is weak or strong")
    points = [_point(machine, world, tasks * world if mode == "weak" else tasks, mode) for world in sorted(worlds)]
    first = points[0]["tasks_per_s"] / points[0]["workers"]
    for point in points:
        rate = point["tasks_per_s"] / point["workers"]
        point["efficiency"] = rate / first if first else 0.0
        point["efficiency_of_one"] = rate * machine.task_s
    return points


def _point(machine: Given, world: int, meta_batch: int, mode: str) -> dict[str, Any]:
    compute = meta_batch / world * machine.task_s
    slowest, ring = slowest_s(machine, world, meta_batch), all_reduce_s(machine, world)
    step = slowest + machine.fixed_s + ring
    interval = interval_s(machine, world)
    mtbf_s = 3600 * machine.mtbf_h / world
    useful = useful_share(interval, machine.checkpoint_s, machine.restart_s, mtbf_s)
    saving = machine.checkpoint_s / (interval + machine.checkpoint_s) if math.isfinite(interval) else 0.0
    parts = {"compute": compute, "stragglers": slowest - compute, "fixed": machine.fixed_s, "all_reduce": ring}
    share = {name: useful * seconds / step for name, seconds in parts.items()}
    share["checkpoint"] = min(saving, 1 - useful)
    share["failures"] = 1 - useful - share["checkpoint"]
    rate = meta_batch / step * useful
    return {
        "mode": mode, "workers": world, "meta_batch": meta_batch, "step_s": step, "tasks_per_s": rate,
        "share": share, "checkpoint_interval_s": interval if math.isfinite(interval) else None,
        "price_per_1000_tasks": 1000 * machine.price / 3600 * world / rate if rate else None,
        "doubts": doubts(machine, world, meta_batch, ring / step, interval, mtbf_s),
    }  # fmt: skip


def doubts(machine: Given, world: int, meta_batch: int, ring: float, interval: float, mtbf_s: float) -> list[str]:
    """Names of the LIMITS that this point is beyond. ring: the all-reduce's share of a step."""
    beyond = {
        "normal": machine.task_deviation / math.sqrt(max(1, meta_batch // world)) > 1 / 3,
        "ring": ring > 0.5,
        "failures": math.isfinite(mtbf_s) and interval + machine.checkpoint_s > mtbf_s,
        "idle": meta_batch < world,
    }
    return [name for name, is_beyond in beyond.items() if is_beyond]


# --- against what was measured ---


def fit(result: dict[str, Any], fit_up_to: int) -> Given:
    """A machine's numbers from a result of `distmeta bench scaling`, of the points with at most `fit_up_to` ranks.

    task_s is the measured inner loop of the fewest ranks, and its deviation the measured one, or the one that was
    waited for. fixed_s and latency_s, neither below 0, are least squares of what is left of a step, relative to it:
    step - slowest = fixed + 2 (n - 1) latency. Links and failures are not in such a result. Raises InputError.
    """
    points = [p for p in result["points"] if p["workers"] <= fit_up_to]
    if not points:
        raise InputError(f"projection: the result has no point of at most {fit_up_to} ranks to fit")
    fewest = [p for p in points if p["workers"] == min(q["workers"] for q in points)]
    tasks = [p["meta_batch"] / p["workers"] for p in fewest]
    task_s = statistics.mean(p["share"]["inner"] * p["step_s"] / m for p, m in zip(fewest, tasks, strict=True))
    if result.get("timed_task_s"):
        waited_s, relative = result["timed_task_s"]
        deviation = waited_s * relative / task_s
    else:
        deviation = statistics.mean(p["step_deviation"] * math.sqrt(m) for p, m in zip(fewest, tasks, strict=True))
    machine = Given(task_s=task_s, task_deviation=deviation)
    rows = np.array([[1.0, 2.0 * (p["workers"] - 1)] for p in points])
    rest = np.array([p["step_s"] - slowest_s(machine, p["workers"], p["meta_batch"]) for p in points])
    weight = 1 / np.array([p["step_s"] for p in points])
    fixed, latency = _least_squares(rows * weight[:, None], rest * weight)
    return dataclasses.replace(machine, fixed_s=fixed, latency_s=latency)


def _least_squares(a: NDArray[np.float64], y: NDArray[np.float64]) -> list[float]:
    """Of a x = y under x >= 0, for two unknowns: the best of those with some of them at 0."""
    tried = []
    for free in ([0, 1], [0], [1], []):
        x = np.zeros(2)
        x[free] = np.linalg.lstsq(a[:, free], y, rcond=None)[0]
        if x.min() >= 0:
            tried.append((float(np.square(a @ x - y).sum()), [float(v) for v in x]))
    return min(tried)[1]


def compare(result: dict[str, Any], fit_up_to: int) -> dict[str, Any]:
    """Predicted against measured efficiency at each point of the result, and the fit that predicts.

    Points {mode, workers, samplers, fitted, measured, low, high, predicted, error}; error: relative. Those above
    `fit_up_to` ranks were not seen by the fit: worst_unseen is theirs. bare: predicted by the slowest rank alone.
    """
    machine = fit(result, fit_up_to)
    bare = Given(task_s=machine.task_s, task_deviation=machine.task_deviation)
    base: dict[tuple[str, int], dict[str, Any]] = {}
    for p in sorted(result["points"], key=lambda p: p["workers"]):
        base.setdefault((p["mode"], p["samplers"]), p)

    def efficiency(model: Given, p: dict[str, Any]) -> float:
        first = base[p["mode"], p["samplers"]]
        rates = [q["meta_batch"] / q["workers"] / _step_s(model, q["workers"], q["meta_batch"]) for q in (p, first)]
        return float(rates[0] / rates[1])

    points = []
    for p in result["points"]:
        measured, predicted = p["efficiency"], efficiency(machine, p)
        points.append({
            "mode": p["mode"], "workers": p["workers"], "samplers": p["samplers"], "meta_batch": p["meta_batch"],
            "fitted": p["workers"] <= fit_up_to, "measured": measured["mean"], "low": measured["low"],
            "high": measured["high"], "predicted": predicted, "error": predicted / measured["mean"] - 1,
            "bare": efficiency(bare, p), "step_s": p["step_s"],
            "predicted_step_s": _step_s(machine, p["workers"], p["meta_batch"]),
        })  # fmt: skip
    unseen = [abs(p["error"]) for p in points if not p["fitted"]]
    return {
        "fit_up_to": fit_up_to, "fit": numbers(machine), "points": points,
        "worst": max(abs(p["error"]) for p in points), "worst_unseen": max(unseen) if unseen else None,
    }  # fmt: skip


def _step_s(machine: Given, world: int, meta_batch: int) -> float:
    return slowest_s(machine, world, meta_batch) + machine.fixed_s + all_reduce_s(machine, world)
