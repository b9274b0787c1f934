"""Scores of subgroups (data.subgroup): accuracy of each, of the worst, and the largest gap between two.

A subgroup's accuracy is that of its query rows in all episodes together, hits / rows. Its interval is over episodes, by
the linearised variance of a ratio, and so is that of the gap, a difference of two ratios of the same episodes. Which
subgroup is the worst, and which two are furthest apart, is chosen by the same episodes: new ones would show less.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from distmeta.evaluation import metrics
from distmeta.evaluation.scoring import Scored

if TYPE_CHECKING:
    from distmeta.tasks.store import TaskStore

PREFIX = "accuracy:"  # before a subgroup's name
WORST, GAP = "worst_subgroup", "subgroup_gap"
NONE = "(none)"  # the subgroup of rows that have no name of one


def of_subgroups(scored: Sequence[Any], store: TaskStore) -> dict[str, dict[str, Any]]:
    """Metrics as `summarise` has them: "accuracy:NAME" of each subgroup, worst_subgroup and subgroup_gap.

    {} where fewer than two subgroups are in the episodes.
    """
    if store.subgroup_ids is None or not scored or any(not isinstance(s, Scored) or s.rows is None for s in scored):
        return {}
    hits, rows = counts(scored, store.subgroup_ids, len(store.subgroups))
    met = [i for i in range(len(store.subgroups)) if rows[:, i].any()]
    if len(met) < 2:
        return {}
    names = {i: store.subgroups[i] or NONE for i in met}
    each = {i: ratio(hits[:, i], rows[:, i]) for i in met}
    worst, best = (choose(met, key=lambda i: each[i][0]) for choose in (min, max))
    out = {PREFIX + names[i]: interval(*each[i], int((rows[:, i] > 0).sum())) for i in met}
    out[WORST] = {**out[PREFIX + names[worst]], "subgroup": names[worst]}
    gap = interval(each[best][0] - each[worst][0], each[best][1] - each[worst][1], len(scored))
    out[GAP] = {**gap, "best": names[best], "worst": names[worst]}
    return out


def counts(
    scored: Sequence[Scored], subgroup_ids: NDArray[np.int32], subgroups: int
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Hits and query rows of each episode and subgroup after the last step, [E, G] each."""
    hits, rows = np.zeros((2, len(scored), subgroups))
    for e, s in enumerate(scored):
        of = subgroup_ids[s.rows]
        hits[e] = np.bincount(of, s.predicted[-1] == s.labels, minlength=subgroups)
        rows[e] = np.bincount(of, minlength=subgroups)
    return hits, rows


def ratio(hits: NDArray[np.float64], rows: NDArray[np.float64]) -> tuple[float, NDArray[np.float64]]:
    """sum hits / sum rows, and what each episode moves it by, [E]."""
    value = float(hits.sum() / rows.sum())
    return value, (hits - value * rows) / rows.sum()


def interval(value: float, moves: NDArray[np.float64], episodes: int) -> dict[str, Any]:
    """Mean and 95% interval of a ratio that episodes have moved by `moves` [E]; of one episode: no interval."""
    spread = np.sqrt(episodes / (episodes - 1) * float((moves**2).sum())) if episodes > 1 else 0.0
    half = metrics.student(episodes - 1) * spread if episodes > 1 else 0.0
    return {**metrics.bounds(value, float(half)), "episodes": episodes}
