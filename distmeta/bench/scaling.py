"""`distmeta bench scaling`: tasks per second over numbers of ranks and samplers, and where the time goes.

weak: the meta-batch grows with the ranks (each has the same work). strong: it stays. Efficiency is tasks per second and
rank over that of the fewest ranks, with as many samplers. Every point is a whole run of `distmeta train`, from its
metrics.jsonl; the first meta-steps, which warm up, do not count.
"""

from __future__ import annotations

import math
import statistics
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from distmeta.config import Config, load_config
from distmeta.errors import InputError
from distmeta.evaluation.metrics import student

# Of metrics.jsonl, without _s. peers: idle until the slowest rank is done.
PHASES = ("wait", "inner", "peers", "aggregate", "checkpoint")
WARM_UP = 3


def bench_scaling(
    source: str | None,
    overrides: list[str],
    *,
    workers: Sequence[int],
    samplers: Sequence[int],
    modes: Sequence[str] = ("weak", "strong"),
    steps: int = 100,
    repeats: int = 3,
    timed: tuple[float, float] | None = None,
    say: Callable[[str], None] = lambda line: None,
) -> dict[str, Any]:
    """Points {mode, workers, samplers, tasks_per_s, efficiency, share of each phase} with 95% intervals, as JSON.

    timed: seconds of a task's inner loop and their relative deviation, waited instead of computed. Raises InputError.
    """
    from distmeta.bench.measure import setting

    _check(workers, samplers, modes, steps, repeats, timed)
    config = load_config(source, overrides)
    runs: dict[tuple[str, int, int], list[dict[str, float]]] = {}
    for repeat in range(repeats):  # interleaved: what drifts on the machine meets all points alike
        for mode in modes:
            for ranks in workers:
                for actors in samplers:
                    say(f"round {repeat + 1} of {repeats}: {mode}, {ranks} ranks, {actors} samplers")
                    point = _point(config, overrides, mode, ranks, actors, steps, min(workers), timed)
                    runs.setdefault((mode, ranks, actors), []).append(_measure(source, point))
    points = []
    for (mode, ranks, actors), repeated in runs.items():
        base = runs[mode, min(workers), actors]
        rates = [run["tasks_per_s"] for run in repeated]
        ratios = [
            (run["tasks_per_s"] / ranks) / (first["tasks_per_s"] / min(workers))
            for run, first in zip(repeated, base, strict=True)
        ]
        shares = {name: statistics.mean(run[name] for run in repeated) for name in (*PHASES, "other")}
        points.append(
            {
                "mode": mode, "workers": ranks, "samplers": actors, "meta_batch": int(repeated[0]["meta_batch"]),
                "tasks_per_s": interval(rates), "efficiency": interval(ratios), "share": shares,
                "step_s": statistics.mean(run["step_s"] for run in repeated),
                "step_deviation": statistics.mean(run["step_deviation"] for run in repeated),
            }
        )  # fmt: skip
    return {
        **setting({"run": config.run.seed}), "recipe": source or "default", "overrides": overrides, "steps": steps,
        "repeats": repeats, "timed_task_s": timed, "config": config.model_dump(mode="json"),
        "points": points,
    }  # fmt: skip


def _check(
    workers: Sequence[int], samplers: Sequence[int], modes: Sequence[str], steps: int, repeats: int,
    timed: tuple[float, float] | None,
) -> None:  # fmt: skip
    if not workers or min(workers) < 1:
        raise InputError(f"--workers {','.join(map(str, workers))}: give numbers of ranks from 1, such as 1,2,4")
    if not samplers or min(samplers) < 0:
        raise InputError(f"--samplers {','.join(map(str, samplers))}: give numbers of samplers from 0, such as 1,2")
    unknown = sorted(set(modes) - {"weak", "strong"})
    if unknown or not modes:
        raise InputError(f"--mode {','.join(unknown)}: give weak, strong or weak,strong")
    if steps <= WARM_UP + 1:
        raise InputError(f"--steps {steps}: give more than {WARM_UP + 1}, since {WARM_UP} warm up")
    if repeats < 1:
        raise InputError(f"--repeats {repeats}: give at least 1")
    if timed is not None and (timed[0] <= 0 or not 0 <= timed[1] < 1):
        raise InputError(f"--timed {timed[0]:g},{timed[1]:g}: give seconds above 0, and a deviation from 0 to below 1")


def _point(
    config: Config, overrides: list[str], mode: str, ranks: int, actors: int, steps: int, fewest: int,
    timed: tuple[float, float] | None,
) -> list[str]:  # fmt: skip
    """Overrides of one run."""
    batch = config.outer.meta_batch_size
    if mode == "weak":
        batch = max(1, batch // fewest) * ranks
    of_point = [
        f"cluster.workers={ranks}", f"sampling.actors={actors}", f"outer.meta_batch_size={batch}",
        f"outer.steps={steps}", "outer.until=null", "eval.every=0", "eval.baselines=false", "eval.episodes=2",
    ]  # fmt: skip
    if timed is not None:  # waiting needs no core
        of_point += ["algorithm=distmeta.bench.timed", f"inner.lr={timed[0]}", f"inner.momentum={timed[1]}",
                "inner.learn_lr=none", "inner.schedule=constant", "inner.task_batch=1", "cluster.cpus_per_worker=0.01",
                "cluster.cpus_per_sampler=0.01"]  # fmt: skip
    return [*overrides, *of_point]


def _measure(source: str | None, overrides: list[str]) -> dict[str, float]:
    """One run's tasks per second, and the shares of its phases."""
    from distmeta.drive.train import train

    with tempfile.TemporaryDirectory(prefix="distmeta-scaling-") as place:
        config = load_config(source, [*overrides, f"run.dir={place}/run"])
        records = train(config).metrics[WARM_UP:]
    return summary(records, config.outer.meta_batch_size)


def summary(records: Sequence[dict[str, Any]], meta_batch: int) -> dict[str, float]:
    """Of the records of metrics.jsonl: tasks per second, seconds of a step, and each phase's share of them."""
    steps = [sum(record[f"{name}_s"] for name in PHASES) for record in records]
    total = sum(steps)
    shares = {name: sum(record[f"{name}_s"] for record in records) / total for name in PHASES}
    inner = [record["inner_s"] for record in records]
    return {
        "meta_batch": meta_batch, "tasks_per_s": meta_batch * len(steps) / total, "step_s": total / len(steps),
        "step_deviation": statistics.pstdev(inner) / statistics.mean(inner), **shares,
        "other": 1.0 - sum(shares.values()),
    }  # fmt: skip


def interval(values: Sequence[float]) -> dict[str, float]:
    """Mean and 95% interval over repeats (Student's t); without repeats the interval is the mean."""
    mean, n = statistics.mean(values), len(values)
    half = 0.0 if n < 2 else student(n - 1) * statistics.stdev(values) / math.sqrt(n)
    return {"mean": mean, "low": mean - half, "high": mean + half}


def table(result: dict[str, Any]) -> Any:
    from distmeta.runs import tables

    repeats = result["repeats"]
    title = f"{repeats} repeats, means and 95% intervals" if repeats > 1 else "one repeat"
    rows = [
        [p["mode"], str(p["workers"]), str(p["samplers"]), spread(p["tasks_per_s"], ".3g", ".2g", repeats),
         spread(p["efficiency"], ".3f", ".3f", repeats), f"{p['step_s']:.3g} s",
         *(f"{p['share'][name]:.1%}" for name in PHASES)]
        for p in result["points"]
    ]  # fmt: skip
    heads = ("mode", "ranks", "samplers", "tasks/s", "efficiency", "step", *PHASES)
    return tables.table(f"scaling of {result['recipe']}, {title}", heads, rows, box=None)


def spread(of: dict[str, float], mean: str, half: str, repeats: int) -> str:
    """A mean and half its interval, in these formats; the mean alone where one repeat says nothing of how it varies."""
    return f"{of['mean']:{mean}}" + (f" ± {of['high'] - of['mean']:{half}}" if repeats > 1 else "")


def plot(result: dict[str, Any], path: Path) -> None:
    """Efficiency over ranks, and where a step's time goes, as PNG."""
    from distmeta.runs.report.plots import new_figure

    figure, ((left, right),) = new_figure(1, 2, (10, 4))
    for mode in sorted({p["mode"] for p in result["points"]}):
        for actors in sorted({p["samplers"] for p in result["points"]}):
            line = [p for p in result["points"] if (p["mode"], p["samplers"]) == (mode, actors)]
            e = [p["efficiency"] for p in line]
            error = [[x["mean"] - x["low"] for x in e], [x["high"] - x["mean"] for x in e]]
            ranks = [p["workers"] for p in line]
            left.errorbar(
                ranks, [x["mean"] for x in e], error, marker="o", capsize=3, label=f"{mode}, {actors} samplers"
            )
    left.axhline(1.0, color="grey", linewidth=0.8)
    left.set(xlabel="ranks", ylabel="efficiency", ylim=(0, 1.15))
    left.legend()
    names = [f"{p['mode'][0]} {p['workers']}/{p['samplers']}" for p in result["points"]]
    bottom = [0.0] * len(names)
    for phase in PHASES:
        share = [p["share"][phase] for p in result["points"]]
        right.bar(names, share, bottom=bottom, label=phase)
        bottom = [a + b for a, b in zip(bottom, share, strict=True)]
    right.set(ylabel="share of a meta-step", xlabel="mode, ranks / samplers")
    right.tick_params(axis="x", rotation=60)
    right.legend()
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=120)
