"""Which trials there are, in order: those that are known beforehand, or Optuna's suggestions."""

from __future__ import annotations

from typing import Any

import numpy as np
from ray.tune.search import Searcher

from distmeta.config import Config
from distmeta.search.space import Axis, Params, draw_point


class InOrder(Searcher):  # type: ignore[misc]
    """Numbered trials: the rivals and points that are known beforehand, or Optuna's.

    Optuna's suggestion n is a function of the seed, of n and of the scores of the trials before n - `at_once` + 1, told
    in the order of their numbers, so that it does not depend on which of those that run together ends first. Trials
    that wait for others (`wait`, by the scheduler asha) are no longer among those that run.
    """

    def __init__(self, config: Config, axes: list[Axis], trials: list[dict[str, Any]], at_once: int) -> None:
        mode = "min" if config.tune.metric == "loss" else "max"
        super().__init__(metric=config.tune.metric, mode=mode)
        self.config, self.axes, self.points = config, axes, trials
        self.at_once = at_once
        self.next = 0
        self.live: dict[str, int] = {}
        self.waiting: set[str] = set()
        self.scores: dict[int, float | None] = {}
        self.params: dict[int, Params] = {}

    def suggest(self, trial_id: str) -> Any:
        number = self.next
        if number >= len(self.points):
            return Searcher.FINISHED
        if len(self.live) - len(self.waiting) >= self.at_once:
            return None
        chosen = dict(self.points[number])
        if self.config.tune.searcher == "optuna" and chosen["kind"] == "search":
            before = range(max(0, number - self.at_once + 1))
            if not all(n in self.scores for n in before):
                return None
            scored = [(self.params[n], self.scores[n]) for n in before if self.points[n]["kind"] == "search"]
            chosen["params"] = ask(self.axes, self.config, number, scored)
        self.next, self.live[trial_id], self.params[number] = number + 1, number, chosen["params"]
        return {"number": number, **chosen}

    @property
    def is_exhausted(self) -> bool:
        return self.next >= len(self.points)

    def wait(self, trial_id: str, score: float) -> None:
        """A trial waits, with this score; another may begin."""
        self.waiting.add(trial_id)
        self.scores[self.live[trial_id]] = score

    def go_on(self, trial_id: str) -> None:
        self.waiting.discard(trial_id)

    def on_trial_complete(self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False) -> None:
        number = self.live.pop(trial_id)
        if trial_id in self.waiting:
            self.waiting.remove(trial_id)
        else:
            self.scores[number] = None if error or result is None else result.get(self.metric)

    def on_trial_result(self, trial_id: str, result: dict[str, Any]) -> None:
        pass

    def save(self, checkpoint_path: str) -> None:
        pass  # a search is resumed from its run directories

    def restore(self, checkpoint_path: str) -> None:
        raise NotImplementedError


def ask(axes: list[Axis], config: Config, number: int, scored: list[tuple[Params, float | None]]) -> Params:
    """Optuna's point `number` after these scores (Bergstra et al. 2011); the first ones, and after a failure, too."""
    import optuna

    optuna.logging.set_verbosity(optuna.logging.ERROR)
    direction = "minimize" if config.tune.metric == "loss" else "maximize"
    seed = int(np.random.SeedSequence([config.tune.seed, number]).generate_state(1)[0])
    sampler = optuna.samplers.TPESampler(seed=seed, n_startup_trials=min(5, max(1, config.tune.trials // 3)))
    study = optuna.create_study(direction=direction, sampler=sampler)
    kinds = {axis.key: distribution(axis) for axis in axes}
    for params, score in scored:
        study.add_trial(
            optuna.trial.create_trial(
                params={k: axis_index(axes, k, v) for k, v in params.items()},
                distributions={k: kinds[k] for k in params},
                value=score,
                state=optuna.trial.TrialState.FAIL if score is None else optuna.trial.TrialState.COMPLETE,
            )
        )
    if not any(score is not None for _, score in scored):
        return draw_point(axes, config.tune.seed, number)
    trial = study.ask()
    point: Params = {}
    for axis in axes:
        if axis.is_active(point):
            value = trial._suggest(axis.key, kinds[axis.key])
            point[axis.key] = axis.values[value] if axis.kind == "choice" else value
    return point


def axis_index(axes: list[Axis], key: str, value: Any) -> Any:
    """A choice as its position: Optuna's categories are plain values, ours may be lists."""
    axis = next(a for a in axes if a.key == key)
    return axis.values.index(value) if axis.kind == "choice" else value


def distribution(axis: Axis) -> Any:
    from optuna import distributions as d

    if axis.kind == "choice":
        return d.CategoricalDistribution(tuple(range(len(axis.values))))
    if axis.kind == "integer":
        return d.IntDistribution(*axis.values)
    return d.FloatDistribution(*axis.values, log=axis.kind == "log_uniform")
