"""What the means over episodes hide: scores by class, task and domain, and the confusion matrix."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from distmeta.evaluation import metrics
from distmeta.evaluation.scoring import Scored, by_episode

TABLED = ("accuracy", "precision", "recall", "f1")  # of each task and domain


def details(scored: Sequence[Scored], fixed_labels: bool, from_sources: bool = False) -> dict[str, Any]:
    """What the means over episodes hide, after the last step.

    diverged: episodes. ece_pooled: the calibration error of all query rows as one. per_class: scores of each class over
    all episodes that it was in, and its rows. per_domain: accuracy, precision, recall and F1 of each data source, or of
    each task. Where all episodes share their labels (fixed_labels) the same per_task, and the confusion matrix. Where
    there are several tasks or sources: the mean over them, each counting once, and the worst_task (or source) by
    accuracy, which as the lowest of many is lower than it would be on new episodes. over_tasks: accuracy with its
    interval over tasks (classes, where these are an episode's own), by a cluster bootstrap; where there are several.
    """
    confidence = np.concatenate([s.confidence[-1] for s in scored])
    right = np.concatenate([s.predicted[-1] == s.labels for s in scored])
    last = by_episode([s.at_end() for s in scored])
    out: dict[str, Any] = {
        "diverged": sum(not np.isfinite(s.loss[-1]) for s in scored),
        "ece_pooled": float(metrics.calibration_error(confidence, right)),
        "per_class": per_class(scored),
        "per_domain": by_name(last, [domain_of(s, fixed_labels, from_sources) for s in scored], TABLED),
    }
    each = [(of["recall"], of["rows"]) for of in out["per_class"].values() if of["rows"]]
    if fixed_labels:
        tasks = [s.task for s in scored]
        out |= {"per_task": by_name(last, tasks, TABLED), "confusion": confusion_by_name(scored)}
        if over := metrics.over_groups(last["accuracy"][:, 0], tasks, "tasks"):
            out["over_tasks"] = over
    elif len(each) > 1:
        means, counts = np.array(each).T
        out["over_tasks"] = {**metrics.over_clusters(means * counts, counts.astype(np.int64)), "classes": len(each)}
    if fixed_labels or from_sources:
        accuracy = {name: of["accuracy"] for name, of in out.get("per_task", out["per_domain"]).items()}
        over = metrics.interval(np.array([interval["mean"] for interval in accuracy.values()]))
        out["mean_over_tasks"] = {**{end: over[end] for end in ("mean", "low", "high")}, "tasks": len(accuracy)}
        worst = min(accuracy, key=lambda name: accuracy[name]["mean"])
        out["worst_task"] = {"task": worst, **accuracy[worst]}
    return out


def domain_of(scored: Scored, fixed_labels: bool, from_sources: bool) -> str:
    """The data source that an episode is from, which its task's name, or those of its classes, begin with; without
    sources its task.
    """
    if not from_sources:
        return scored.task
    return (scored.task if fixed_labels else scored.label_names[0]).split("/")[0]


def by_name(
    values: Mapping[str, NDArray[np.float64]], names: Sequence[str], shown: Sequence[str]
) -> dict[str, dict[str, Any]]:
    """The metrics `shown`, with their intervals, of the episodes of each name after the last step."""
    where = np.array(names)
    return {
        name: {metric: metrics.interval(values[metric][where == name, -1], metrics.limits(metric)) for metric in shown}
        for name in sorted(set(names))
    }


def per_class(scored: Sequence[Scored]) -> dict[str, dict[str, float]]:
    """Precision, recall and F1 of each class over all episodes that it was in, and its rows, after the last step."""
    names = sorted({name for s in scored for name in s.label_names})
    number = {name: i for i, name in enumerate(names)}
    counts = np.zeros((3, len(names)), np.int64)  # hits, rows, predictions
    for s in scored:
        matrix = metrics.confusion(s.labels, s.predicted[-1], len(s.label_names))
        counts[:, [number[name] for name in s.label_names]] += [np.diagonal(matrix), matrix.sum(1), matrix.sum(0)]
    scores = {**metrics.count_scores(*counts), "rows": counts[1]}
    return {name: {metric: value[i].item() for metric, value in scores.items()} for i, name in enumerate(names)}


def confusion_by_name(scored: Sequence[Scored]) -> dict[str, Any]:
    """The confusion matrix over all episodes, after the last step."""
    names = sorted({name for s in scored for name in s.label_names})
    total = np.zeros((len(names), len(names)), np.int64)
    for s in scored:
        ids = np.array([names.index(name) for name in s.label_names])
        total += metrics.confusion(ids[s.labels], ids[s.predicted[-1]], len(names))
    return {"labels": names, "rows_are_labels": total.tolist()}
