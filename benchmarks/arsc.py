"""Amazon reviews by Yu et al. 2018 (arXiv 1805.07513): 57 tasks to meta-train on, 12 of domains never seen.

    python benchmarks/arsc.py --data DIR/arsc --pretrained ENCODER [section.key=value ...]

A run on the source tasks (ANIL: the encoder is meta-learnt, the head adapts at learnt rates), then `distmeta.adapt` to
each target task's own five examples a label and `predict` on all of its test part, as somebody with ten labelled
reviews would. Every fifth source domain is left for meta-validation, which chooses how many steps to adapt with. The
tests are imbalanced, so balanced accuracy is what counts; the mean of 12 tasks, and the same tasks before any inner
step. No target text chooses anything. Writes benchmarks/results/arsc.json, or --out; no row of the data is kept.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
from records import RESULTS

import distmeta
from distmeta.config import load_config
from distmeta.runs.checkpoint import write_text

SETTINGS = [
    "model.distance=euclidean",
    "algorithm=anil", "task.shots=5", "task.queries=7", "model.max_tokens=96", "inner.lr=0.1", "inner.steps=3",
    "inner.learn_lr=per_layer_step", "outer.lr=1e-4", "outer.rate_lr=0.02", "outer.meta_batch_size=4",
    "outer.steps=150", "outer.warmup_steps=10", "outer.schedule=cosine", "eval.every=0", "eval.episodes=12",
    "eval.baselines=false",
]  # fmt: skip


def splits(source: Path) -> dict[str, list[str]]:
    """Tasks by split: the target domains' as they are given, and every fifth source domain's for meta-validation."""
    table = pq.read_table(source, columns=["task", "domain", "split"])
    rows = sorted({(row["domain"], row["task"], row["split"]) for row in table.to_pylist()})
    held_out = sorted({domain for domain, _, split in rows if split == "train"})[4::5]
    splits: dict[str, list[str]] = {"train": [], "validation": [], "test": []}
    for domain, task, split in rows:
        splits["validation" if domain in held_out else split].append(task)
    return splits


def scores(model: Any, rows: list[dict[str, str]]) -> dict[str, float]:
    from sklearn.metrics import accuracy_score, balanced_accuracy_score

    labels = [row["label"] for row in rows]
    predictions = [found["label"] for found in model.predict([row["text"] for row in rows])]
    return {
        "balanced": float(balanced_accuracy_score(labels, predictions)),
        "accuracy": float(accuracy_score(labels, predictions)),
    }


def mean(scores: list[dict[str, float]]) -> dict[str, float]:
    return {key: statistics.mean(each[key] for each in scores) for key in scores[0]}


def adapted_less_before(tasks: dict[str, Any]) -> dict[str, Any]:
    """Of each score the mean difference, with its 95% interval over the tasks."""
    from distmeta.evaluation.metrics import over_groups

    less = {
        key: [t["adapted"][key] - t["no_adaptation"][key] for t in tasks.values()] for key in ("balanced", "accuracy")
    }
    return {key: over_groups(np.array(each), list(tasks), "tasks", (-1.0, 1.0)) for key, each in less.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--pretrained", required=True)
    parser.add_argument("--run-dir", type=Path, default=Path("runs/arsc"))
    parser.add_argument("--out", type=Path, default=RESULTS / "arsc.json")
    parser.add_argument("more", nargs="*", help="further overrides, section.key=value")
    options = parser.parse_intermixed_args()
    from distmeta.bench.measure import setting

    source = options.data / "data.parquet"
    words = [f"data.path={source}", f"data.splits={json.dumps(splits(source))}"]
    words += [f"model.pretrained={options.pretrained}", *SETTINGS, *options.more]
    run = distmeta.train(load_config("default", [*words, f"run.dir={options.run_dir}"]), resume=True, show=True)
    validation = distmeta.evaluate(run.checkpoint, split="validation", episodes=200).methods["meta_trained"]["accuracy"]
    curve = validation["curve"]
    best = max(range(len(curve)), key=curve.__getitem__)
    print(f"meta-validation after 0, 1, ... steps: {curve}; adapting with {best}", flush=True)
    rows = pq.read_table(source, filters=[("split", "=", "test")]).to_pylist()
    tasks: dict[str, dict[str, Any]] = {}
    for task in sorted({row["task"] for row in rows}):
        support, test = (
            [row for row in rows if (row["task"], row["part"]) == (task, part)] for part in ("train", "test")
        )
        tasks[task] = {
            "adapted": scores(distmeta.adapt(run.checkpoint, support, steps=best), test),
            "no_adaptation": scores(distmeta.adapt(run.checkpoint, support, steps=0), test),
            "rows": len(test),
        }
        print(task, json.dumps(tasks[task]), flush=True)
    record = {
        **setting({"run": 0}), "command": " ".join(sys.argv), "settings": [*SETTINGS, *options.more],
        "seconds": sum(r[k] for r in run.metrics for k in ("wait_s", "inner_s", "aggregate_s", "checkpoint_s")),
        "adapt_steps": best, "validation": validation, "inner_lr": run.metrics[-1]["inner_lr"],
        "adapted less before": adapted_less_before(tasks),
        "mean": {method: mean([task[method] for task in tasks.values()]) for method in ("adapted", "no_adaptation")},
        "tasks": tasks,
    }  # fmt: skip
    print(json.dumps(record["mean"]))
    write_text(options.out, json.dumps(record, indent=1))


if __name__ == "__main__":
    main()
