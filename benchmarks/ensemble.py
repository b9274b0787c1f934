"""Do a meta-trained model and n-grams err on the same reviews? Chinese three-class reviews of products never seen.

    python benchmarks/ensemble.py --data DIR/zh_reviews_3class RUN ...

RUN: runs of `real_text.py sentiment` that differ in their seed. Each adapts to the first five reviews of each label of
a domain and classifies all others; then the mean of their probabilities, and of that and the n-grams'. How many steps
each run adapts with, how far the n-grams are regularised and how much they weigh in the mean is what is best on rows
of the meta-validation domain. Macro recall, its interval from resampled rows, and the difference to the n-grams on the
same draws. Writes benchmarks/results/ensemble.json, no row of the data.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
from real_text import LABELS, by_domain, lexical
from records import RESULTS

import distmeta
from distmeta.bench.measure import setting
from distmeta.runs.checkpoint import write_text

SHOTS, MOST_STEPS, DRAWS = 5, 6, 2000
REGULARISATIONS = (1.0, 3.0, 10.0)
WEIGHTS = (0.0, 0.25, 0.5, 0.75, 1.0)  # of the n-grams


def recall(probabilities: np.ndarray, labels: np.ndarray) -> float:
    """Macro recall: the mean over classes of the share of their rows that were found."""
    found = probabilities.argmax(1) == labels
    return float(np.mean([found[labels == label].mean() for label in range(len(LABELS))]))


def probabilities(run: Path, parts: dict[str, Any], steps: int) -> np.ndarray:
    """[rows, labels] of a run that has adapted to each domain's support set with `steps` steps."""
    found = [
        [row["probabilities"][label] for label in LABELS]
        for support, rest in parts.values()
        for row in distmeta.adapt(run, support, steps=steps).predict([row["text"] for row in rest])
    ]
    return np.array(found)


def labels_of(parts: dict[str, Any]) -> np.ndarray:
    return np.array([LABELS.index(row["label"]) for _, rest in parts.values() for row in rest])


def with_interval(models: dict[str, np.ndarray], labels: np.ndarray) -> dict[str, Any]:
    """Macro recall of each model, and less that of the n-grams; 95% of the draws of as many rows of each class."""
    rng = np.random.default_rng(0)
    of_class = [np.flatnonzero(labels == label) for label in range(len(LABELS))]
    draws = [np.concatenate([rng.choice(rows, len(rows)) for rows in of_class]) for _ in range(DRAWS)]
    drawn = {name: np.array([recall(found[rows], labels[rows]) for rows in draws]) for name, found in models.items()}

    def told(mean: float, values: np.ndarray) -> dict[str, float]:
        low, high = np.quantile(values, [0.025, 0.975])
        return {"mean": mean, "low": float(low), "high": float(high)}

    grams = recall(models["n-grams"], labels)
    return {
        name: {
            "recall": told(recall(found, labels), drawn[name]),
            "less the n-grams": told(recall(found, labels) - grams, drawn[name] - drawn["n-grams"]),
        }
        for name, found in models.items()
    }


def mixture(models: dict[str, np.ndarray], weight: float) -> np.ndarray:
    return (1 - weight) * models["runs"] + weight * models["n-grams"]


def best(scores: dict[Any, float]) -> Any:
    return max(scores, key=scores.__getitem__)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", nargs="+", type=Path, metavar="RUN")
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--out", type=Path, default=RESULTS / "ensemble.json")
    options = parser.parse_args()
    rows = pq.read_table(options.data / "matched60.parquet").to_pylist()
    parts = {split: by_domain(rows, split, SHOTS) for split in ("val", "test")}
    labels = {split: labels_of(of) for split, of in parts.items()}
    texts = {split: [row["text"] for _, rest in of.values() for row in rest] for split, of in parts.items()}
    train = [row for row in rows if row["split"] == "train"]
    grams = {C: lexical(train, C) for C in REGULARISATIONS}
    by_c = {C: recall(model.predict_proba(texts["val"]), labels["val"]) for C, model in grams.items()}
    chosen = best(by_c)
    found = {split: {"n-grams": grams[chosen].predict_proba(texts[split])} for split in parts}
    by_steps = {}
    for number, run in enumerate(options.runs):
        name = f"run {number}"
        curve = {k: probabilities(run, parts["val"], k) for k in range(MOST_STEPS + 1)}
        by_steps[name] = {k: recall(values, labels["val"]) for k, values in curve.items()}
        steps = best(by_steps[name])
        print(f"{name}: {steps} steps, on meta-validation {by_steps[name][steps]:.3f}", flush=True)
        found["val"][name], found["test"][name] = curve[steps], probabilities(run, parts["test"], steps)
    for models in found.values():
        models["runs"] = np.mean([values for name, values in models.items() if name != "n-grams"], axis=0)
    by_weight = {w: recall(mixture(found["val"], w), labels["val"]) for w in WEIGHTS}
    weight = best(by_weight)
    found["test"]["runs and n-grams"] = mixture(found["test"], weight)
    record = {
        **setting({"runs": len(options.runs)}), "command": " ".join(sys.argv), "rows": len(labels["test"]),
        "validation": {"by_steps": by_steps, "by_regularisation": by_c, "by_weight": by_weight},
        "chosen": {"steps": [best(by_steps[n]) for n in by_steps], "regularisation": chosen, "weight": weight},
        "models": with_interval(found["test"], labels["test"]),
    }  # fmt: skip
    for name, of in record["models"].items():
        print(name, *(f"{key} {v['mean']:.3f} [{v['low']:.3f}, {v['high']:.3f}]" for key, v in of.items()))
    write_text(options.out, json.dumps(record, indent=1))


if __name__ == "__main__":
    main()
