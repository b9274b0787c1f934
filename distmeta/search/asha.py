"""Asynchronous successive halving as it was published (Li et al. 2020, arXiv 1810.05934, algorithm 2), for Ray Tune.

A trial that reaches a rung waits there until it is among the best 1/reduction of all that have reached it. Ray's own
scheduler of that name lets whatever is the best so far go on at once, so that early trials run to their end whatever
they are worth: with few trials that is most of the search's cost.
"""

from __future__ import annotations

import math
from typing import Any

from ray.tune.experiment import Trial
from ray.tune.schedulers import FIFOScheduler

from distmeta.search.searcher import InOrder

CONTINUE, PAUSE = "CONTINUE", "PAUSE"  # of ray.tune.schedulers.TrialScheduler


class Asha(FIFOScheduler):  # type: ignore[misc]
    """rungs: meta-steps, ascending. at_once: trials that may run together; `searcher` begins no more than that."""

    def __init__(self, rungs: list[int], reduction: int, at_once: int, searcher: InOrder) -> None:
        super().__init__()
        self.rungs, self.reduction, self.at_once, self.searcher = rungs, reduction, at_once, searcher
        self.scores: list[dict[str, float]] = [{} for _ in rungs]  # by trial, larger is better
        self.reached: dict[str, int] = {}  # rungs
        self.has_finished = False  # any trial, its whole run

    def set_search_properties(self, metric: str | None, mode: str | None, **spec: Any) -> bool:
        self._metric, self.sign = metric, -1.0 if mode == "min" else 1.0
        return True

    def on_trial_result(self, tune_controller: Any, trial: Trial, result: dict[str, Any]) -> str:
        if self.metric not in result:
            return CONTINUE
        trial_id, before = trial.trial_id, self.reached.get(trial.trial_id, 0)
        now = sum(rung <= result["step"] for rung in self.rungs)
        if now <= before:
            return CONTINUE
        score = self.sign * result[self.metric]
        for rung in range(before, now):
            self.scores[rung][trial_id] = -math.inf if math.isnan(score) else score
        self.reached[trial_id] = now
        if self.is_among_the_best(trial_id):
            return CONTINUE
        self.searcher.wait(trial_id, result[self.metric])
        return PAUSE

    def is_among_the_best(self, trial_id: str) -> bool:
        """Of those that have reached the last rung that it has."""
        scores = self.scores[self.reached[trial_id] - 1]
        best = sorted(scores, key=lambda other: -scores[other])
        return trial_id in best[: len(best) // self.reduction]

    def choose_trial_to_run(self, tune_controller: Any) -> Trial | None:
        trials = tune_controller.get_trials()
        waiting = [trial for trial in trials if trial.status == Trial.PAUSED]
        busy = [trial for trial in trials if trial.status in (Trial.RUNNING, Trial.PENDING)]
        if len(busy) < self.at_once and waiting:
            chosen = [trial for trial in waiting if self.is_among_the_best(trial.trial_id)]
            if not chosen and not busy and self.searcher.is_exhausted:
                if self.has_finished:
                    for trial in waiting:
                        tune_controller.stop_trial(trial)
                    return None
                chosen = waiting  # too few trials for a rung to let any go on: the best of all runs to its end
            if chosen:
                best = max(chosen, key=lambda trial: self.place(trial.trial_id))
                self.searcher.go_on(best.trial_id)
                return best
        return next((trial for trial in busy if trial.status == Trial.PENDING), None)

    def place(self, trial_id: str) -> tuple[int, float]:
        """How far it has come, and how well."""
        reached = self.reached[trial_id]
        return reached, self.scores[reached - 1][trial_id]

    def on_trial_complete(self, tune_controller: Any, trial: Trial, result: dict[str, Any]) -> None:
        self.has_finished |= self.reached.get(trial.trial_id, 0) == len(self.rungs)


def rungs_of(grace: int, reduction: int, longest: int) -> list[int]:
    """grace, grace * reduction, ... below `longest`."""
    return [grace * reduction**k for k in range(64) if grace * reduction**k < longest]
