"""Scores of predictions, and their means with 95% intervals over episodes. Pure numpy.

Letters: E episodes, n query rows, C classes.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

NORMAL_95 = 1.959964  # two-sided 95% quantile of the normal distribution


def confusion(labels: NDArray[np.integer], predicted: NDArray[np.integer], classes: int) -> NDArray[np.int64]:
    """Counts [..., C, C] of (label, predicted) over the last axis of two arrays [..., n]."""
    pairs = labels.astype(np.int64) * classes + predicted
    rows = np.arange(pairs[..., 0].size).reshape(*pairs.shape[:-1], 1) * classes * classes
    counts = np.bincount((pairs + rows).ravel(), minlength=pairs[..., 0].size * classes * classes)
    return counts.reshape(*pairs.shape[:-1], classes, classes)


def scores(matrix: NDArray[np.int64]) -> dict[str, NDArray[np.float64]]:
    """Accuracy and macro precision, recall and F1, each [...], of confusion matrices [..., C, C].

    A class without rows (or never predicted) counts 0 where a quotient is undefined, as scikit-learn's
    zero_division=0 does; classes absent from both labels and predictions are left out of the means.
    """
    per_class = class_scores(matrix)
    present = (matrix.sum(-1) + matrix.sum(-2)) > 0
    weights = present / np.maximum(present.sum(-1, keepdims=True), 1)
    total = np.maximum(matrix.sum((-1, -2)), 1)
    out = {"accuracy": np.trace(matrix, axis1=-2, axis2=-1) / total}
    return out | {name: (value * weights).sum(-1) for name, value in per_class.items()}


def class_scores(matrix: NDArray[np.int64]) -> dict[str, NDArray[np.float64]]:
    """Precision, recall and F1 of each class, [..., C], of confusion matrices [..., C, C]."""
    hit = np.diagonal(matrix, axis1=-2, axis2=-1).astype(np.float64)
    precision = hit / np.maximum(matrix.sum(-2), 1)
    recall = hit / np.maximum(matrix.sum(-1), 1)
    f1 = 2 * hit / np.maximum(matrix.sum(-2) + matrix.sum(-1), 1)
    return {"precision": precision, "recall": recall, "f1": f1}


def interval(values: NDArray[np.floating]) -> dict[str, Any]:
    """Mean and normal 95% interval over episodes, of values [E] at the last step, or of a curve [E, steps]."""
    curve = values if values.ndim == 2 else values[:, None]
    last, count = curve[:, -1], len(curve)
    mean = float(last.mean())
    half = float(NORMAL_95 * last.std(ddof=1) / np.sqrt(count)) if count > 1 else 0.0
    out: dict[str, Any] = {"mean": mean, "low": mean - half, "high": mean + half, "episodes": count}
    if values.ndim == 2:
        out["curve"] = [float(x) for x in curve.mean(0)]
    return out


def curve(values: NDArray[np.floating]) -> dict[str, list[float]]:
    """Mean and normal 95% interval over episodes after each number of steps, of values [E, steps]."""
    ends = [interval(values[:, k]) for k in range(values.shape[1])]
    return {name: [end[name] for end in ends] for name in ("mean", "low", "high")}
