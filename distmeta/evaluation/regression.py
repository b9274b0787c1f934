"""Scoring functions and policies (families regression and policy): the mean squared error on the query set, or the
return of the query rollouts, after each inner step.

Letters: E episodes, K inner steps.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from distmeta.evaluation import metrics
from distmeta.evaluation.scoring import Scoring, adaptation
from distmeta.inner.problem import seeded
from distmeta.models.backbone import set_attention
from distmeta.models.prefix import fixed_prefix
from distmeta.models.sharding import all_together
from distmeta.tasks.rows import Episode

WORST = 1e6  # what an error that is no number counts as in means


@dataclass(frozen=True)
class RegressionScored:
    """One episode's query set. `loss` is not finite where the inner loop diverged."""

    task: str
    label_names: tuple[str, ...]
    loss: NDArray[np.float64]  # [K + 1], or [1] after the last step alone

    def at_start(self) -> RegressionScored:
        """The same before the first inner step."""
        return replace(self, loss=self.loss[:1])

    def metrics(self) -> dict[str, NDArray[np.float64]]:
        return {"loss": np.nan_to_num(self.loss, nan=WORST, posinf=WORST).clip(max=WORST)}


@dataclass(frozen=True)
class PolicyScored(RegressionScored):
    """One episode's query rollouts; the loss is minus their mean return."""

    def metrics(self) -> dict[str, NDArray[np.float64]]:
        loss = super().metrics()["loss"]
        return {"return": -loss, "loss": loss}


@all_together
def score_regression(scoring: Scoring, episodes: Sequence[Episode], curve: bool = True, **_: Any) -> list[Any]:
    """Adapt to each episode, and predict its query set after 0..K inner steps; curve=False: after the last one only."""
    model = scoring.model
    set_attention(model.backbone, "first_order")
    out: list[RegressionScored] = []
    for group in scoring.groups(episodes):
        support, query = (fixed_prefix(model, scoring.values, part) for part in scoring.load(group))
        losses = []
        for values in adaptation(scoring, support, len(group), curve):
            with torch.no_grad(), seeded(scoring.loop.seed, ("query", 0), scoring.device):
                parts = [model.row_scores({**scoring.shared, **values}, batch)[0] for batch in query]
            losses.append(torch.cat(parts, 1).double().mean(1).cpu().numpy())
        by_task = np.stack(losses, 1)
        kind = PolicyScored if scoring.config.task.family == "policy" else RegressionScored
        out += [kind(e.task, e.label_names, by_task[t]) for t, e in enumerate(group)]
    return out


def regression_details(scored: Sequence[RegressionScored]) -> dict[str, Any]:
    """What the means over episodes hide: how many diverged, and the loss, or the return, with its interval over tasks,
    by a cluster bootstrap."""
    out: dict[str, Any] = {"diverged": sum(not np.isfinite(s.loss[-1]) for s in scored)}
    name = next(iter(scored[0].metrics()))
    values = np.array([s.metrics()[name][-1] for s in scored])
    if over := metrics.over_groups(values, [s.task for s in scored], "tasks", metrics.limits(name)):
        out["over_tasks"] = over
    return out
