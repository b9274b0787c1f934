"""Scores of predictions, and their means with 95% intervals over episodes. Pure numpy.

Letters: E episodes, n query rows, C classes.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

NORMAL_95 = 1.959964  # two-sided 95% quantile of the normal distribution
T95 = (12.7062, 4.30265, 3.18245, 2.77645, 2.57058, 2.44691, 2.36462, 2.30600, 2.26216)  # Student's t, 1 to 9 degrees
SHARE = (0.0, 1.0)
UNBOUNDED = (0.0, math.inf)
LIMITS = {
    "loss": UNBOUNDED,
    "return": (-math.inf, math.inf),
    "loss_by_chunk": UNBOUNDED,
    "bits_per_byte": UNBOUNDED,
    "perplexity": (1.0, math.inf),
}  # of metrics that are no shares
DRAWS = 2000  # of a bootstrap
CALIBRATION_BINS = 15


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
    return count_scores(np.diagonal(matrix, axis1=-2, axis2=-1), matrix.sum(-1), matrix.sum(-2))


def count_scores(
    hits: NDArray[np.int64], labelled: NDArray[np.int64], predicted: NDArray[np.int64]
) -> dict[str, NDArray[np.float64]]:
    """Precision, recall and F1 of each class, [..., C], of its numbers [..., C] of hits, of rows and of predictions."""
    return {
        "precision": hits / np.maximum(predicted, 1),
        "recall": hits / np.maximum(labelled, 1),
        "f1": 2 * hits / np.maximum(labelled + predicted, 1),
    }


def calibration_error(
    confidence: NDArray[np.floating], right: NDArray[np.bool_], bins: int = CALIBRATION_BINS
) -> NDArray[np.float64]:
    """Expected calibration error [...] over the last axis of two arrays [..., n] (Guo et al. 2017, arXiv 1706.04599).

    confidence: the probability of the predicted class, in bins ((b-1)/B, b/B]; the mean over rows of |accuracy - mean
    confidence| of their bin. Of few rows it is too high on average: a bin's accuracy is then a matter of chance.
    """
    bin_of = np.clip(np.ceil(confidence * bins).astype(np.int64) - 1, 0, bins - 1)
    cells = bin_of + bins * np.arange(bin_of[..., 0].size).reshape(*bin_of.shape[:-1], 1)
    gaps = np.bincount(cells.ravel(), (right - confidence).ravel(), minlength=bins * bin_of[..., 0].size)
    error: NDArray[np.float64] = np.abs(gaps).reshape(*bin_of.shape[:-1], bins).sum(-1) / bin_of.shape[-1]
    return error


def student(degrees: int) -> float:
    """Two-sided 95% quantile of Student's t; above 9 degrees by the expansion of Cornish and Fisher."""
    if degrees <= len(T95):
        return T95[degrees - 1]
    z, n = NORMAL_95, degrees
    third = (3 * z**7 + 19 * z**5 + 17 * z**3 - 15 * z) / (384 * n**3)
    return z + (z**3 + z) / (4 * n) + (5 * z**5 + 16 * z**3 + 3 * z) / (96 * n**2) + third


def limits(metric: str) -> tuple[float, float]:
    """The least and the most that a metric can be, and so a mean of it."""
    return LIMITS.get(metric, SHARE)


def bounds(mean: float, half: float, within: tuple[float, float] = SHARE) -> dict[str, float]:
    """mean, low and high, within the least and the most that any mean can be.

    A mean below the least has none: a loss is at least 0, but for that of a policy, minus a return, or of a density.
    """
    least, most = within
    least = least if mean >= least else -math.inf
    return {"mean": mean, "low": min(mean, max(least, mean - half)), "high": max(mean, min(most, mean + half))}


def interval(values: NDArray[np.floating], within: tuple[float, float] = SHARE) -> dict[str, Any]:
    """Mean and 95% interval (Student's t) over episodes, of values [E] at the last step, or of a curve [E, steps].

    within: the least and the most that a value can be, and so the bounds. A single episode has no interval: low = high
    = mean.
    """
    curve = values if values.ndim == 2 else values[:, None]
    last, count = curve[:, -1], len(curve)
    half = float(student(count - 1) * last.std(ddof=1) / np.sqrt(count)) if count > 1 else 0.0
    out: dict[str, Any] = {**bounds(float(last.mean()), half, within), "episodes": count}
    if values.ndim == 2:
        out["curve"] = [float(x) for x in curve.mean(0)]
    return out


def curve(values: NDArray[np.floating], within: tuple[float, float] = SHARE) -> dict[str, list[float]]:
    """Mean and 95% interval (Student's t) over episodes after each number of steps, of values [E, steps]."""
    ends = [interval(values[:, k], within) for k in range(values.shape[1])]
    return {name: [end[name] for end in ends] for name in ("mean", "low", "high")}


def over_clusters(
    totals: NDArray[np.floating], counts: NDArray[np.integer], within: tuple[float, float] = SHARE
) -> dict[str, float]:
    """Mean and 95% interval over clusters (tasks or classes), of each one's total and count [G], G > 1.

    A cluster bootstrap: whole clusters are drawn with replacement, always the same draws. Its standard error is widened
    to that of G - 1 degrees of freedom, since few clusters vary less among themselves than new ones would. within: as
    in `interval`.
    """
    groups = len(counts)
    drawn = np.random.default_rng(0).multinomial(groups, np.full(groups, 1 / groups), DRAWS)  # [DRAWS, G]
    means = (drawn @ totals) / (drawn @ counts)
    half = student(groups - 1) * float(means.std()) * np.sqrt(groups / (groups - 1))
    return bounds(float(totals.sum() / counts.sum()), half, within)


def over_groups(
    values: NDArray[np.floating], names: Sequence[str], unit: str, within: tuple[float, float] = SHARE
) -> dict[str, Any]:
    """As `over_clusters`, of episodes' values [E] in groups by their names, and how many groups there are under `unit`;
    {} where there is one alone."""
    group = np.unique(names, return_inverse=True)[1]
    counts = np.bincount(group).astype(np.int64)
    if len(counts) < 2:
        return {}
    return {**over_clusters(np.bincount(group, values).astype(np.float64), counts, within), unit: len(counts)}
