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
    out: dict[str, dict[str, float]] = {}
    for name in dict.fromkeys(name for one, other in pairs for name in one if name in other):
        least, most = metrics.limits(name)
        within = least - most, most - least
        has = np.array([name in one and name in other for one, other in pairs])
        each = np.array(
            [float(one[name][-1] - other[name][-1]) for one, other in pairs if name in one and name in other]
        )
        if not by_class:
            out[name] = metrics.over_groups(each, tasks[has].tolist(), unit, within)
        elif name == "accuracy" and len((of := of_classes(ours, theirs))[1]) > 1:
            out[name] = {**metrics.over_clusters(*of, within), "classes": len(of[1])}
        if not out.get(name):
            interval = metrics.interval(each, within)
            out[name] = {key: interval[key] for key in ("mean", "low", "high", "episodes")}
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
