"""The run directories of a search, as files alone: what a trial is (trial.json) and what its run has reached."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from distmeta.config import Config
from distmeta.runs import checkpoint as checkpoints
from distmeta.runs.journal import records
from distmeta.search.space import Params, with_params

ENDED = ("completed", "stopped", "failed")  # a trial that is one of these is not run again


def trial_dir(sweep_dir: Path, number: int) -> Path:
    return sweep_dir / "trials" / f"trial-{number:04d}"


def read_record(run_dir: Path) -> dict[str, Any]:
    """trial.json: number, kind, params, status and what else is known; {} before the trial was begun."""
    try:
        record: dict[str, Any] = json.loads((run_dir / "trial.json").read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}
    return record


def have_ended(sweep_dir: Path, trials: int) -> bool:
    """Whether each of so many trials has ended."""
    return all(read_record(trial_dir(sweep_dir, number)).get("status") in ENDED for number in range(trials))


def update_record(run_dir: Path, **changes: Any) -> dict[str, Any]:
    run_dir.mkdir(parents=True, exist_ok=True)
    record = {**read_record(run_dir), **changes}
    checkpoints.write_text(run_dir / "trial.json", json.dumps(record, indent=1, ensure_ascii=False))
    return record


def trial_config(base: Config, kind: str, params: Params, run_dir: Path) -> Config:
    """The configuration of a trial's run. kind: `search`, or how a rival learns its inner rates."""
    changes: Params = {**params, "run.dir": str(run_dir), "run.name": run_dir.name}
    if kind != "search":
        changes["inner.learn_lr"] = kind
    return with_params(base, changes)


def best_count(record: dict[str, Any], metric: str, steps: int) -> dict[str, Any]:
    """The score of a meta-validation at its best number of adaptation steps, 0..K being scored at once.

    Where there is one score, it is of `steps` steps.
    """
    curve = record["validation_curves"][metric]
    means: list[float] = curve["mean"]
    k = means.index(min(means) if metric == "loss" else max(means))
    number = k if len(means) > 1 else steps
    return {"value": means[k], "low": curve["low"][k], "high": curve["high"][k], "adapt_steps": number, "curve": means}


def validations(run_dir: Path) -> list[dict[str, Any]]:
    """The records of metrics.jsonl that hold a meta-validation; whole lines only."""
    scored = []
    for record in records(run_dir):
        if "validation_curves" in record:
            scored.append(record)
    return scored


def is_saved(run_dir: Path, step: int) -> bool:
    return (run_dir / "checkpoints" / f"step-{step:06d}" / checkpoints.MANIFEST).exists()
