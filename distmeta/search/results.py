"""What a search leaves: results.parquet and a table (a row per trial), best.yaml."""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import yaml

from distmeta.config import Config, TuneConfig, dump_config, make_config
from distmeta.runs import checkpoint as checkpoints
from distmeta.runs import notebook, tables
from distmeta.runs.journal import records
from distmeta.runs.report.files import read_json
from distmeta.search.runs import best_count, read_record, trial_config, validations
from distmeta.search.space import with_params

Row = dict[str, Any]


@dataclass(frozen=True, repr=False)
class Search:
    """A finished search."""

    path: Path
    metric: str

    def __post_init__(self) -> None:
        object.__setattr__(self, "path", Path(self.path))  # a string will do

    def __repr__(self) -> str:
        best = self.best
        result = f"{self.metric} {score(best)} by {best['params'] or best['kind']}" if best else "none was scored"
        return f"Search({self.path}; {len(self.trials)} trials, the best: {result})"

    def _repr_html_(self) -> str:
        """A table, in notebooks."""
        heads, rows, _ = listed(self.trials, self.metric)
        return notebook.table(f"meta-validation {self.metric}, 95% interval", heads, rows)

    @cached_property
    def trials(self) -> list[Row]:
        """The rows of results.parquet."""
        import pyarrow.parquet as pq

        rows: list[Row] = pq.read_table(self.path / "results.parquet").to_pylist()
        return [{**row, "params": json.loads(row["params"])} for row in rows]

    @property
    def best(self) -> Row | None:
        """The best trial: of those that ran to their end, if any was scored."""
        return best_of(self.trials, self.metric)

    @property
    def config(self) -> Config:
        """The configuration in best.yaml."""
        return make_config(yaml.safe_load((self.path / "best.yaml").read_text(encoding="utf-8")))


def collect(sweep_dir: Path, config: Config) -> list[Row]:
    """A row for each trial, from the run directories alone."""
    rows = []
    for path in sorted((sweep_dir / "trials").glob("trial-*")):
        record = read_record(path)
        scored = validations(path)
        if "scored_at" in record:  # learners are ahead of what the search has heard, and stopped them for
            scored = [r for r in scored if r["step"] <= (record["scored_at"] or 0)]
        row: Row = {
            "number": record["number"], "kind": record["kind"], "status": record["status"], "reason": record["reason"],
            "params": record["params"], "value": None, "low": None, "high": None, "adapt_steps": None, "curve": None,
            "meta_steps": record.get("meta_steps", max((r["step"] for r in records(path)), default=0)),
            "seconds": record.get("seconds"), "run": str(path), "history": json.dumps(record.get("history", [])),
            "test_accuracy": None, "test_low": None, "test_high": None,
        }  # fmt: skip
        if scored:
            row |= best_count(scored[-1], config.tune.metric, config.inner.steps)
        row["over_time"] = [[r["step"], best_count(r, config.tune.metric, config.inner.steps)["value"]] for r in scored]
        if record["status"] == "completed":
            row |= meta_tested(path, row["adapt_steps"])
        rows.append(row)
    return rows


def meta_tested(run_dir: Path, steps: int | None) -> Row:
    """Meta-test accuracy and its interval after `steps` inner steps, chosen on meta-validation tasks; None: all."""
    ours: dict[str, Any] = read_json(run_dir / "evaluation.json").get("meta_trained", {})
    if "accuracy" not in ours:
        return {}
    after = ours["accuracy"]
    curve = read_json(run_dir / "evaluation_details.json").get("meta_trained", {}).get("curves", {}).get("accuracy")
    if steps is not None and curve:
        after = {end: curve[end][steps] for end in ("mean", "low", "high")}
    return {"test_accuracy": after["mean"], "test_low": after["low"], "test_high": after["high"]}


def best_of(rows: list[Row], metric: str) -> Row | None:
    """The best value among trials that completed, else among all that were scored; the first of equals."""
    scored = [row for row in rows if row["value"] is not None and row["status"] != "failed"]
    whole = [row for row in scored if row["status"] == "completed"] or scored
    sign = -1 if metric == "loss" else 1
    return max(whole, key=lambda row: (sign * row["value"], -row["number"]), default=None)


def write_results(sweep_dir: Path, config: Config, base: Config, rows: list[Row]) -> Search:
    """results.parquet and best.yaml."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    keys = list(dict.fromkeys(key for row in rows for key in row["params"]))
    flat = []
    for row in rows:
        columns = {f"params.{key}": _plain(row["params"].get(key)) for key in keys}
        flat.append({**row, "params": json.dumps(row["params"]), **columns, "over_time": json.dumps(row["over_time"])})
    draft = sweep_dir / ".tmp-results.parquet"
    pq.write_table(pa.Table.from_pylist(flat), draft)
    draft.replace(sweep_dir / "results.parquet")
    best = best_of(rows, config.tune.metric)
    if best is not None:
        checkpoints.write_text(sweep_dir / "best.yaml", recipe(config, base, best))
    return Search(sweep_dir, config.tune.metric)


def recipe(config: Config, base: Config, best: Row) -> str:
    """The given configuration with the best trial's parameters and number of adaptation steps, as YAML."""
    kind = best["kind"]
    rates = trial_config(base, kind, best["params"], Path(best["run"])).inner.learn_lr
    made = with_params(config, {**best["params"], "inner.learn_lr": rates, "eval.steps": best["adapt_steps"]})
    made = made.model_copy(update={"tune": TuneConfig()})
    content = yaml.safe_load(dump_config(made))
    del content["tune"]
    about = (
        f"# {config.run.name}, tuned: trial {best['number']}, meta-validation {config.tune.metric} {best['value']:.3f}"
    )
    about += f" [{best['low']:.3f}, {best['high']:.3f}] after {best['adapt_steps']} adaptation steps\n"
    for change in json.loads(best["history"]):
        about += f"# at meta-step {change['step']} it went on from {change['from']} with {change['params']}\n"
    return about + yaml.safe_dump(content, sort_keys=False, allow_unicode=True)


def _plain(value: Any) -> Any:
    return value if isinstance(value, int | float | str | bool | None) else json.dumps(value)


def listed(rows: list[Row], metric: str) -> tuple[list[str], list[list[str]], int | None]:
    """(column heads, a row of cells for each trial, the best first, and the place of the best trial)."""
    sign = -1 if metric == "loss" else 1
    ranked = sorted(rows, key=lambda r: (r["value"] is None, -sign * (r["value"] or 0.0), r["number"]))
    keys = list(dict.fromkeys(key for row in ranked for key in row["params"]))
    best, place = best_of(rows, metric), None
    cells = []
    for index, row in enumerate(ranked):
        name = f"{row['number']}" + ("" if row["kind"] == "search" else f" ({row['kind']} rates)")
        seconds = "-" if row["seconds"] is None else f"{row['seconds']:.0f}"
        ended = row["status"] + (f": {row['reason']}" if row["reason"] else "")
        params = (shown(row["params"].get(key)) for key in keys)
        cells.append([name, *params, score(row), shown(row["adapt_steps"]), str(row["meta_steps"]), seconds, ended])
        place = index if best is not None and row["number"] == best["number"] else place
    return ["trial", *keys, metric, "adapt steps", "meta-steps", "seconds", "ended"], cells, place


def shown(value: object) -> str:
    return "-" if value is None else f"{value:.4g}" if isinstance(value, float) else str(value)


def score(row: Row) -> str:
    return "-" if row["value"] is None else tables.interval({**row, "mean": row["value"]})


def table(search: Search) -> Any:
    """A rich table, the best first."""
    heads, rows, best = listed(search.trials, search.metric)
    title = f"meta-validation {search.metric} at the best number of adaptation steps, 95% interval"
    return tables.table(title, heads, rows, texts=("ended",), bold=best)
