"""Ray Tune's part: searchers and schedulers by name, and what is written down as trials end."""

from __future__ import annotations

import hashlib
import logging
import os
import random
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from ray import tune
from ray.tune.schedulers import (
    AsyncHyperBandScheduler,
    FIFOScheduler,
    MedianStoppingRule,
    PopulationBasedTraining,
    TrialScheduler,
)
from ray.tune.search import Searcher

from distmeta.config import Config
from distmeta.learner.elastic import release
from distmeta.learner.journal import records
from distmeta.progress import Display, TrialBars
from distmeta.tune.runs import ENDED, read_record, trial_dir, update_record, validations
from distmeta.tune.space import PERTURBED, Axis, Params, draw_point
from distmeta.tune.trial import Trial

if TYPE_CHECKING:
    from distmeta.train import Cluster

# What a trial's own process takes, a byte: it only waits, and a share of a processor would leave no room for one more
# group of learners where these need all of them. Tune refuses an empty request.
OWN = [{"memory": 1.0}]


def concurrency(config: Config, cluster: Cluster) -> int:
    """How many trials there are at once: as many learner groups as the cluster holds, or tune.max_concurrent."""
    c = config.cluster
    room = int(cluster.cpus / (c.fewest * c.cpus_per_worker))
    if c.gpus_per_worker:
        room = min(room, int(cluster.gpus / (c.fewest * c.gpus_per_worker)))
    elif c.gpus_per_worker is None and cluster.gpus >= c.fewest:
        room = min(room, int(cluster.gpus / c.fewest))
    return max(1, min(room, config.tune.max_concurrent or room))


def run_search(
    config: Config,
    axes: list[Axis],
    trials: list[tuple[str, Params]],
    at_once: int,
    sweep_dir: Path,
    store: Path,
    display: Display,
) -> None:
    """All trials to their ends. Trial n has the run directory SWEEP/trials/trial-n, whatever Tune calls it."""
    os.environ["TUNE_DISABLE_SIGINT_HANDLER"] = "1"
    os.environ["TUNE_DISABLE_STRICT_METRIC_CHECKING"] = "1"  # a trial that is refused has no score
    logging.getLogger("ray.tune").setLevel(logging.CRITICAL)
    # A name of its own: Tune's files of two searches that begin in the same second are else written to one place.
    name = f"tune-{hashlib.sha256(str(sweep_dir).encode()).hexdigest()[:8]}"
    shutil.rmtree(sweep_dir / name, ignore_errors=True)  # the records of a search that is resumed are told anew
    t = config.tune
    random.seed(t.seed)  # population-based training draws from these
    np.random.seed(t.seed)
    given = [{"kind": kind, "params": params} for kind, params in trials]
    space: dict[str, Any] = {}
    search: dict[str, Any] = {"search_alg": InOrder(config, axes, given, at_once, sweep_dir)}
    if t.scheduler == "pbt":  # it takes no searcher
        space = {
            "number": tune.grid_search(list(range(len(given)))),
            "kind": "search",
            "params": tune.sample_from(lambda config: dict(given[config["number"]]["params"])),
        }
        search = {"max_concurrent_trials": at_once}
    trainable = tune.with_parameters(
        Trial, sweep_dir=str(sweep_dir), base=config.model_dump(mode="json"), store=str(store)
    )
    bars = TrialBars(display, len(given), config.outer.steps)
    tuner = tune.Tuner(
        tune.with_resources(trainable, tune.PlacementGroupFactory(OWN)),
        param_space=space,
        tune_config=tune.TuneConfig(
            metric=t.metric, mode="min" if t.metric == "loss" else "max", num_samples=len(given) if not space else 1,
            scheduler=scheduler(config, axes), trial_name_creator=name_of, trial_dirname_creator=name_of, **search,
        ),
        run_config=tune.RunConfig(
            name=name, storage_path=str(sweep_dir), verbose=0,
            checkpoint_config=tune.CheckpointConfig(checkpoint_frequency=0, checkpoint_at_end=False),
            failure_config=tune.FailureConfig(max_failures=t.retries),
            callbacks=[*trackers(config), Recorder(sweep_dir, config, bars)],
        ),
    )  # fmt: skip
    with bars:
        tuner.fit()


def name_of(trial: Any) -> str:
    return f"trial-{trial.config['number']:04d}"


def scheduler(config: Config, axes: list[Axis]) -> TrialScheduler:
    """Which trials are stopped, on the meta-validation metric at equal meta-steps."""
    t, every = config.tune, config.eval.every
    longest = max([config.outer.steps, *(v for a in axes if a.key == "outer.steps" for v in a.values)])
    if t.scheduler == "asha":  # Li et al. 2020, arXiv 1810.05934
        # One more than the longest: a trial is not cut off between its last meta-step and its evaluation.
        return AsyncHyperBandScheduler(
            time_attr="step", max_t=longest + 1, grace_period=t.grace or every, reduction_factor=t.reduction
        )
    if t.scheduler == "median":  # Golovin et al. 2017, Google Vizier
        return MedianStoppingRule(time_attr="step", grace_period=t.grace or every, min_samples_required=3)
    if t.scheduler == "pbt":  # Jaderberg et al. 2017, arXiv 1711.09846
        ranges = {a.key: a for a in axes if a.key in PERTURBED and a.kind in ("log_uniform", "uniform")}

        def within(given: dict[str, Any]) -> dict[str, Any]:
            """A perturbed value stays in its range."""
            for key, axis in ranges.items():
                given["params"][key] = float(min(max(given["params"][key], axis.values[0]), axis.values[1]))
            return given

        mutations = {
            key: (tune.loguniform if axis.kind == "log_uniform" else tune.uniform)(*axis.values)
            for key, axis in ranges.items()
        }
        return PopulationBasedTraining(
            time_attr="step", perturbation_interval=t.perturb_every or every, burn_in_period=t.grace or 0,
            hyperparam_mutations={"params": mutations}, custom_explore_fn=within, log_config=False, require_attrs=False,
        )  # fmt: skip
    return FIFOScheduler()


class InOrder(Searcher):  # type: ignore[misc]
    """Numbered trials: the rivals and points that are known beforehand, or Optuna's.

    Optuna's suggestion n is a function of the seed, of n and of the scores of the trials before n - `at_once` + 1, told
    in the order of their numbers, so that it does not depend on which of those that run together ends first.
    """

    def __init__(
        self, config: Config, axes: list[Axis], given: list[dict[str, Any]], at_once: int, sweep_dir: Path
    ) -> None:
        mode = "min" if config.tune.metric == "loss" else "max"
        super().__init__(metric=config.tune.metric, mode=mode)
        self.config, self.axes, self.given = config, axes, given
        self.at_once, self.sweep_dir = at_once, sweep_dir
        self.next = 0
        self.live: dict[str, int] = {}
        self.scores: dict[int, float | None] = {}
        self.params: dict[int, Params] = {}

    def suggest(self, trial_id: str) -> Any:
        number = self.next
        if number >= len(self.given):
            return Searcher.FINISHED
        if len(self.live) >= self.at_once:
            return None
        chosen = dict(self.given[number])
        if self.config.tune.searcher == "optuna" and chosen["kind"] == "search":
            before = range(max(0, number - self.at_once + 1))
            if not all(n in self.scores for n in before):
                return None
            told = [(self.params[n], self.scores[n]) for n in before if self.given[n]["kind"] == "search"]
            chosen["params"] = ask(self.axes, self.config, number, told)
        self.next, self.live[trial_id], self.params[number] = number + 1, number, chosen["params"]
        return {"number": number, **chosen}

    def on_trial_complete(self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False) -> None:
        number = self.live.pop(trial_id)
        self.scores[number] = None if error or result is None else result.get(self.metric)

    def on_trial_result(self, trial_id: str, result: dict[str, Any]) -> None:
        pass

    def save(self, checkpoint_path: str) -> None:
        pass  # a search is resumed from its run directories

    def restore(self, checkpoint_path: str) -> None:
        raise NotImplementedError


def ask(axes: list[Axis], config: Config, number: int, told: list[tuple[Params, float | None]]) -> Params:
    """Optuna's point `number` after these scores (Bergstra et al. 2011); the first ones, and after a failure, too."""
    import optuna

    optuna.logging.set_verbosity(optuna.logging.ERROR)
    direction = "minimize" if config.tune.metric == "loss" else "maximize"
    seed = int(np.random.SeedSequence([config.tune.seed, number]).generate_state(1)[0])
    sampler = optuna.samplers.TPESampler(seed=seed, n_startup_trials=min(5, max(1, config.tune.trials // 3)))
    study = optuna.create_study(direction=direction, sampler=sampler)
    kinds = {axis.key: distribution(axis) for axis in axes}
    for params, score in told:
        study.add_trial(
            optuna.trial.create_trial(
                params={k: axis_index(axes, k, v) for k, v in params.items()},
                distributions={k: kinds[k] for k in params},
                value=score,
                state=optuna.trial.TrialState.FAIL if score is None else optuna.trial.TrialState.COMPLETE,
            )
        )
    if not any(score is not None for _, score in told):
        return draw_point(axes, config.tune.seed, number)
    trial = study.ask()
    found: Params = {}
    for axis in axes:
        if axis.is_active(found):
            value = trial._suggest(axis.key, kinds[axis.key])
            found[axis.key] = axis.values[value] if axis.kind == "choice" else value
    return found


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


def trackers(config: Config) -> list[Any]:
    """Tune's own callbacks, by the names in tune.trackers."""
    found: list[Any] = []
    for name in config.tune.trackers:
        if name == "tensorboard":
            from ray.tune.logger import TBXLoggerCallback

            found.append(TBXLoggerCallback())
        elif name == "wandb":
            from ray.air.integrations.wandb import WandbLoggerCallback

            found.append(WandbLoggerCallback(project=config.run.name))
        else:
            from ray.air.integrations.mlflow import MLflowLoggerCallback

            found.append(MLflowLoggerCallback(experiment_name=config.run.name))
    return found


class Recorder(tune.Callback):  # type: ignore[misc]
    """Writes down how each trial ended, and shows the search; it runs in the driver."""

    def __init__(self, sweep_dir: Path, config: Config, bars: TrialBars) -> None:
        self.sweep_dir, self.config, self.bars = sweep_dir, config, bars

    def __getstate__(self) -> dict[str, Any]:
        """Tune writes its callbacks down, which nothing here reads; a display cannot be."""
        return {**self.__dict__, "bars": None}

    def on_trial_start(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        path = trial_dir(self.sweep_dir, number_of(trial))
        if not read_record(path):
            given = trial.config
            update_record(
                path, number=number_of(trial), kind=given["kind"], params=given["params"], status="pending", reason=""
            )

    def on_trial_result(
        self, iteration: int, trials: list[Any], trial: Any, result: dict[str, Any], **info: Any
    ) -> None:
        metric = self.config.tune.metric
        if metric in result and read_record(trial_dir(self.sweep_dir, number_of(trial))).get("status") not in ENDED:
            shown = "  ".join(f"{k} {v:.4g}" if isinstance(v, float) else f"{k} {v}" for k, v in _shown(trial).items())
            score = f"{metric} {result[metric]:.3f} after {result['adapt_steps']}"
            self.bars.scored(number_of(trial), result["step"], score, shown)

    def on_trial_complete(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        path = trial_dir(self.sweep_dir, number_of(trial))
        if read_record(path).get("status") not in ENDED:
            status = "completed" if (path / "evaluation.json").exists() else "stopped"
            reason = "" if status == "completed" else f"by {self.config.tune.scheduler}"
            self._end(trial, status, reason)

    def on_trial_error(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        from distmeta.train import _cause

        path = trial_dir(self.sweep_dir, number_of(trial))
        if trial.status == "ERROR" and read_record(path).get("status") not in ENDED:
            release(path)  # of an actor that died; one that is stopped ends its learners first, and then releases
            self._end(trial, "failed", _cause(trial.get_error() or RuntimeError(f"see {trial.error_file}")))

    def _end(self, trial: Any, status: str, reason: str) -> None:
        path = trial_dir(self.sweep_dir, number_of(trial))
        scored = [r["step"] for r in validations(path)]
        update_record(
            path, status=status, reason=reason, seconds=float((trial.last_result or {}).get("time_total_s", 0.0)),
            meta_steps=max((r["step"] for r in records(path)), default=0), scored_at=max(scored, default=None),
        )  # fmt: skip
        self.bars.ended(number_of(trial), f"{status}{f' ({reason})' if reason else ''}")


def number_of(trial: Any) -> int:
    return int(str(trial.custom_trial_name).removeprefix("trial-"))


def _shown(trial: Any) -> dict[str, Any]:
    kind = trial.config["kind"]
    return dict(trial.config["params"]) if kind == "search" else {"inner.learn_lr": kind}
