"""Ray Tune's part: searchers and schedulers by name, and what is written down as trials end."""

from __future__ import annotations

import hashlib
import logging
import math
import os
import random
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from ray import tune
from ray.tune.schedulers import (
    FIFOScheduler,
    MedianStoppingRule,
    PopulationBasedTraining,
    TrialScheduler,
)

from distmeta.config import Config
from distmeta.drive.elastic import release
from distmeta.runs.journal import records
from distmeta.runs.progress import Display
from distmeta.search.asha import Asha, rungs_of
from distmeta.search.runs import ENDED, read_record, trial_dir, update_record, validations
from distmeta.search.searcher import InOrder
from distmeta.search.space import PERTURBED, Axis, Params
from distmeta.search.trial import Trial

if TYPE_CHECKING:
    from distmeta.drive.cluster import Cluster

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
    configs = [{"kind": kind, "params": params} for kind, params in trials]
    space: dict[str, Any] = {}
    searcher = InOrder(config, axes, configs, at_once)
    search: dict[str, Any] = {"search_alg": searcher}
    if t.scheduler == "pbt":  # it takes no searcher
        space = {
            "number": tune.grid_search(list(range(len(configs)))),
            "kind": "search",
            "params": tune.sample_from(lambda config: dict(configs[config["number"]]["params"])),
        }
        search = {"max_concurrent_trials": at_once}
    trainable = tune.with_parameters(
        Trial, sweep_dir=str(sweep_dir), base=config.model_dump(mode="json"), store=str(store)
    )
    tuner = tune.Tuner(
        tune.with_resources(trainable, tune.PlacementGroupFactory(OWN)),
        param_space=space,
        tune_config=tune.TuneConfig(
            metric=t.metric, mode="min" if t.metric == "loss" else "max", num_samples=len(configs) if not space else 1,
            scheduler=scheduler(config, axes, at_once, searcher), **search,
            trial_name_creator=name_of, trial_dirname_creator=name_of,
        ),
        run_config=tune.RunConfig(
            name=name, storage_path=str(sweep_dir), verbose=0,
            checkpoint_config=tune.CheckpointConfig(checkpoint_frequency=0, checkpoint_at_end=False),
            failure_config=tune.FailureConfig(max_failures=t.retries),
            callbacks=[*trackers(config), Recorder(sweep_dir, config, display.phase, len(configs))],
        ),
    )  # fmt: skip
    tuner.fit()


def name_of(trial: Any) -> str:
    return f"trial-{trial.config['number']:04d}"


def scheduler(config: Config, axes: list[Axis], at_once: int, searcher: InOrder) -> TrialScheduler:
    """Which trials are stopped, on the meta-validation metric at equal meta-steps."""
    t, every = config.tune, int(config.eval.every)  # a number, by base_config
    longest = max([config.outer.steps, *(v for a in axes if a.key == "outer.steps" for v in a.values)])
    if t.scheduler == "asha":
        return Asha(rungs_of(t.grace or every, t.reduction, longest), t.reduction, at_once, searcher)
    if t.scheduler == "median":  # Golovin et al. 2017, Google Vizier
        return MedianStoppingRule(time_attr="step", grace_period=t.grace or every, min_samples_required=3)
    if t.scheduler == "pbt":  # Jaderberg et al. 2017, arXiv 1711.09846
        ranges = {a.key: a for a in axes if a.key in PERTURBED and a.kind in ("log_uniform", "uniform")}

        def within(values: dict[str, Any]) -> dict[str, Any]:
            """A perturbed value stays in its range."""
            for key, axis in ranges.items():
                values["params"][key] = float(min(max(values["params"][key], axis.values[0]), axis.values[1]))
            return values

        mutations = {
            key: (tune.loguniform if axis.kind == "log_uniform" else tune.uniform)(*axis.values)
            for key, axis in ranges.items()
        }
        return PopulationBasedTraining(
            time_attr="step", perturbation_interval=t.perturb_every or every, burn_in_period=t.grace or 0,
            hyperparam_mutations={"params": mutations}, custom_explore_fn=within, log_config=False, require_attrs=False,
        )  # fmt: skip
    return FIFOScheduler()


def trackers(config: Config) -> list[Any]:
    """Tune's own callbacks, by the names in tune.trackers."""
    callbacks: list[Any] = []
    for name in config.tune.trackers:
        if name == "tensorboard":
            from ray.tune.logger import TBXLoggerCallback

            callbacks.append(TBXLoggerCallback())
        elif name == "wandb":
            from ray.air.integrations.wandb import WandbLoggerCallback

            callbacks.append(WandbLoggerCallback(project=config.run.name))
        else:
            from ray.air.integrations.mlflow import MLflowLoggerCallback

            callbacks.append(MLflowLoggerCallback(experiment_name=config.run.name))
    return callbacks


class Recorder(tune.Callback):  # type: ignore[misc]
    """Writes down how each trial ended, and says each score and end; it runs in the driver."""

    def __init__(self, sweep_dir: Path, config: Config, say: Callable[[str], None], trials: int) -> None:
        self.sweep_dir, self.config, self.say, self.trials = sweep_dir, config, say, trials
        self.best: tuple[float, int] | None = None  # the best score so far, and its trial's number

    def __getstate__(self) -> dict[str, Any]:
        """Tune writes its callbacks down, which nothing here reads; a display cannot be."""
        return {**self.__dict__, "say": None}

    def on_trial_start(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        path = trial_dir(self.sweep_dir, number_of(trial))
        if not read_record(path):
            settings = trial.config
            update_record(
                path,
                number=number_of(trial),
                kind=settings["kind"],
                params=settings["params"],
                status="pending",
                reason="",
            )

    def on_trial_result(
        self, iteration: int, trials: list[Any], trial: Any, result: dict[str, Any], **info: Any
    ) -> None:
        metric, number = self.config.tune.metric, number_of(trial)
        score = result.get(metric)
        if score is None:
            return
        if math.isfinite(score):
            better = min if metric == "loss" else max
            self.best = better(self.best or (score, number), (score, number), key=lambda of: of[0])
        if read_record(trial_dir(self.sweep_dir, number)).get("status") not in ENDED:
            shown = "  ".join(f"{k} {v:.4g}" if isinstance(v, float) else f"{k} {v}" for k, v in _shown(trial).items())
            where = f"trial {number} of {self.trials}  step {result['step']}/{self.config.outer.steps}"
            adapted = f" after {result['adapt_steps']} inner steps" if self.config.inner.steps else ""
            so_far = f"  (best {self.best[0]:.3f}, trial {self.best[1]})" if self.best else ""
            self.say(f"{where}  {metric} {score:.3f}{adapted}{so_far}  {shown}")

    def on_trial_complete(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        path = trial_dir(self.sweep_dir, number_of(trial))
        if read_record(path).get("status") not in ENDED:
            # Learners are ahead of what Tune has heard: one that was stopped may have come to its end meanwhile.
            whole = all(r["step"] <= told_step(trial) for r in validations(path))
            status = "completed" if whole and (path / "evaluation.json").exists() else "stopped"
            reason = "" if status == "completed" else f"by {self.config.tune.scheduler}"
            self._end(trial, status, reason)

    def on_trial_error(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        from distmeta.learner.causes import explain, text_of

        path = trial_dir(self.sweep_dir, number_of(trial))
        if trial.status == "ERROR" and read_record(path).get("status") not in ENDED:
            error = trial.get_error()
            release(path)  # of an actor that died; one that is stopped ends its learners first, and then releases
            self._end(trial, "failed", explain(text_of(error) if error else f"see {trial.error_file}"))

    def _end(self, trial: Any, status: str, reason: str) -> None:
        path = trial_dir(self.sweep_dir, number_of(trial))
        heard = told_step(trial) if status != "failed" else math.inf
        scored = [r["step"] for r in validations(path) if r["step"] <= heard]
        update_record(
            path, status=status, reason=reason, seconds=float((trial.last_result or {}).get("time_total_s", 0.0)),
            meta_steps=max((r["step"] for r in records(path)), default=0), scored_at=max(scored, default=None),
        )  # fmt: skip
        self.say(f"trial {number_of(trial)} {status}{f' ({reason})' if reason else ''}")


def number_of(trial: Any) -> int:
    return int(str(trial.custom_trial_name).removeprefix("trial-"))


def told_step(trial: Any) -> int:
    """The meta-step of the last score that Tune was told."""
    return int((trial.last_result or {}).get("step", 0))


def _shown(trial: Any) -> dict[str, Any]:
    kind = trial.config["kind"]
    return dict(trial.config["params"]) if kind == "search" else {"inner.learn_lr": kind}
