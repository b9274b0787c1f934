"""Several runs side by side: what they reached, what that took, and the settings in which they differ."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from distmeta.runs import tables
from distmeta.runs.directory import flatten
from distmeta.runs.progress import headline
from distmeta.runs.report.files import read_run
from distmeta.runs.report.sections import place
from distmeta.runs.tables import interval

NAMES = ("run.dir", "run.name")  # differ from run to run and say nothing


def compared(paths: Sequence[str | Path]) -> list[dict[str, Any]]:
    """A record for each run: run, meta_steps, seconds of its meta-steps, scores of the meta-trained model by metric
    (None before it is evaluated), and the settings, by key, that are not the same in all. Raises InputError."""
    runs = [read_run(path) for path in paths]
    settings = [flatten(run.config.model_dump(mode="json")) for run in runs]
    keys = dict.fromkeys(key for of in settings for key in of if key not in NAMES)
    differ = [key for key in keys if any(of.get(key) != settings[0].get(key) for of in settings)]
    return [
        {"run": place(run.path), "meta_steps": run.step, "seconds": run.seconds,
         "scores": run.evaluation.get("meta_trained"), "settings": {key: of.get(key) for key in differ}}
        for run, of in zip(runs, settings, strict=True)
    ]  # fmt: skip


def table(records: Sequence[dict[str, Any]]) -> Any:
    """A rich table, a run a row, in the order in which they were named."""
    scored = [record["scores"] for record in records if record["scores"]]
    metrics = [name for name in scored[0] if all(name in scores for scores in scored)] if scored else []
    metrics.sort(key=lambda name: name != headline({"meta_trained": scored[0]}))
    keys, rows = list(records[0]["settings"]), []
    for record in records:
        cells = [interval(record["scores"][name]) if record["scores"] else "-" for name in metrics]
        values = (value if isinstance(value, str) else json.dumps(value) for value in record["settings"].values())
        rows.append([record["run"], *cells, str(record["meta_steps"]), f"{record['seconds']:.0f}", *values])
    title = "meta-trained models on unseen tasks, mean and 95% interval over episodes"
    return tables.table(title, ["run", *metrics, "meta-steps", "seconds", *keys], rows, texts=keys)
