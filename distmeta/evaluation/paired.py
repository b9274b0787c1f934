"""Paired differences: the meta-trained model less a baseline, on the same episodes, with intervals over tasks."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from distmeta.evaluation import metrics
from distmeta.evaluation.scoring import Scored


def difference(
    ours: Sequence[Any], theirs: Sequence[Any], by_class: bool, unit: str = "tasks"
) -> dict[str, dict[str, float]]:
    """Of each metric that both have after the last step: the mean difference, and its 95% interval.

    Over tasks, by a cluster bootstrap of the episodes' differences. by_class: episodes have classes in the place of
    tasks; then accuracy is clustered by class. Where there is one task, or a metric is not of single classes: over
    episodes. The entry says over how many `tasks`, `classes` or `episodes`. unit: what tasks are called.
    """
    pairs = [(one.metrics(), other.metrics()) for one, other in zip(ours, theirs, strict=True)]
    tasks = np.array([one.task for one in ours])
    totals: NDArray[np.float64]
    out: dict[str, dict[str, float]] = {}
    for name in dict.fromkeys(name for one, other in pairs for name in one if name in other):
        least, most = metrics.limits(name)
        within = least - most, most - least
        has = np.array([name in one and name in other for one, other in pairs])
        each = np.array(
            [float(one[name][-1] - other[name][-1]) for one, other in pairs if name in one and name in other]
        )
        if by_class and name == "accuracy":
            of, (totals, counts) = "classes", of_classes(ours, theirs)
        else:
            group = np.unique(tasks[has], return_inverse=True)[1]
            totals, counts = np.bincount(group, each).astype(np.float64), np.bincount(group).astype(np.int64)
            of = unit
        if (by_class and name != "accuracy") or len(counts) < 2:
            interval = metrics.interval(each, within)
            out[name] = {key: interval[key] for key in ("mean", "low", "high", "episodes")}
        else:
            out[name] = {**metrics.over_clusters(totals, counts, within), of: len(counts)}
    return out


def of_classes(ours: Sequence[Scored], theirs: Sequence[Scored]) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
    """For each class of the episodes: how many more of its rows are right, and how many rows there are."""
    names = sorted({name for one in ours for name in one.label_names})
    number = {name: i for i, name in enumerate(names)}
    totals, counts = np.zeros(len(names)), np.zeros(len(names), np.int64)
    for one, other in zip(ours, theirs, strict=True):
        for sign, of in ((1, one), (-1, other)):  # whose rows may be in another order
            place = np.array([number[name] for name in of.label_names])[of.labels]
            np.add.at(totals, place, sign * (of.predicted[-1] == of.labels))
            np.add.at(counts, place, int(sign > 0))
    return totals, counts
