"""`distmeta train --seeds`: the same run under several seeds, one after the other, as one table."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from distmeta.errors import InputError
from distmeta.evaluation.metrics import interval, limits
from distmeta.runs import tables


def train_seeds(
    name: str | None,
    overrides: list[str],
    run_dir: str | None,
    seeds: str,
    resume: bool,
    loud: bool | None,
    as_json: bool,
) -> None:
    """A run for each seed; with --resume each is continued, and one that has ended is read. Raises InputError."""
    from distmeta.cli.words import note, shown, silent
    from distmeta.config import load_config
    from distmeta.drive.train import Run, train

    numbers = parse(seeds, overrides)
    base = load_config(name, overrides).run.name
    configs = [load_config(name, [*overrides, *of_seed(base, run_dir, seed)]) for seed in numbers]
    runs: list[Run] = []
    for config in configs:
        (silent if loud is False else note)(f"seed {config.run.seed}, {len(runs) + 1} of {len(configs)}")
        runs.append(train(config, resume=resume, show=shown(loud)))
        if not runs[-1].is_evaluated:  # run.max_hours has ended it
            break
    whole = len(runs) == len(configs) and runs[-1].is_evaluated
    scores = over_seeds([run.evaluation for run in runs]) if whole else None
    if as_json:
        print(json.dumps({"seeds": numbers, "runs": [str(run.path) for run in runs], "evaluation": scores}))
    elif scores:
        tables.show(table(scores, numbers), less=("recall", "precision"))


def parse(text: str, overrides: Sequence[str]) -> list[int]:
    """`0,1,2` -> [0, 1, 2]. Raises InputError."""
    try:
        seeds = [int(word) for word in text.split(",")]
    except ValueError:
        seeds = []
    if len(seeds) < 2 or len(set(seeds)) < len(seeds) or min(seeds) < 0:
        raise InputError(f"--seeds {text}: at least two different whole numbers from 0, such as 0,1,2")
    if any(override.startswith("run.seed=") for override in overrides):
        raise InputError("--seeds sets run.seed for each run: leave run.seed out")
    return seeds


def of_seed(name: str, run_dir: str | None, seed: int) -> list[str]:
    """The overrides of one seed's run: in RUN_DIR/seed-N, or under the name NAME-seedN."""
    return [f"run.seed={seed}", f"run.dir={run_dir}/seed-{seed}" if run_dir else f"run.name={name}-seed{seed}"]


def over_seeds(evaluations: Sequence[Mapping[str, Any]]) -> dict[str, dict[str, Any]]:
    """{method: {metric: mean, low, high, seeds}}: the mean over seeds, each counting once, and its 95% interval."""
    out: dict[str, dict[str, Any]] = {}
    for method, scores in evaluations[0].items():
        out[method] = {}
        for metric in scores:
            means = np.array([scored[method][metric]["mean"] for scored in evaluations])
            over = interval(means, limits(metric))
            out[method][metric] = {**{end: over[end] for end in ("mean", "low", "high")}, "seeds": len(means)}
    return out


def table(scores: Mapping[str, Mapping[str, Any]], seeds: Sequence[int]) -> Any:
    metrics = list(next(iter(scores.values())))[:2]
    rows = [[method, *(tables.interval(of[metric]) for metric in metrics)] for method, of in scores.items()]
    title = f"seeds {', '.join(map(str, seeds))}: mean and 95% interval over seeds (Student's t)"
    return tables.table(title, ["method", *(metric.replace("_", " ") for metric in metrics)], rows)
