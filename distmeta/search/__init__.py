"""`distmeta tune`: a search over whole meta-training runs with Ray Tune.

    space.py    what is tried          runs.py     what a trial has reached, from its files
    trial.py    one run, told to Tune  search.py   Tune's searchers and schedulers
    results.py  the table, best.yaml   report.py  report.html and its figures

A trial's number and parameters are its own (trial.json in its run directory), so that a search whose driver was
killed goes on from the run directories: trials that had ended tell Tune their scores again, the others continue from
their checkpoints. Tune's own files are only for its trackers.
"""

from __future__ import annotations

import contextlib
import io
import json
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

from distmeta.config import Config, ConfigSource, config_of
from distmeta.config.paths import absolute
from distmeta.errors import InputError
from distmeta.runs import checkpoint as checkpoints
from distmeta.runs import interrupt, trackers
from distmeta.runs.directory import refuse_limit, run_directory, write_setting
from distmeta.search.results import Search, collect, write_results
from distmeta.search.runs import have_ended
from distmeta.search.space import Params, points, read_space, with_params

if TYPE_CHECKING:
    from distmeta.runs.progress import Show

# What may differ between a search and its continuation.
RESUMABLE = ("trials", "max_concurrent", "retries", "trackers", "dir")

__all__ = ["Search", "tune"]


def tune(config: ConfigSource | None = None, *, resume: bool = False, show: Show = None, **sections: Any) -> Search:
    """Search as `config.tune` says, each trial a meta-training run; returns when all have ended.

    config, sections, show: as of `train`. resume: continue the newest search of that name (or the one in tune.dir).
    Raises InputError before anything was started, or TrainingError when no trial could be scored.
    """
    config = absolute(config_of(config, sections))
    if config.outer.privacy is not None:
        raise InputError(
            "outer.privacy does not work with a search, which would spend privacy that is not counted; set "
            "outer.privacy=null"
        )
    axes = read_space(config)
    check_metric(config)
    trackers.check("tune.trackers", config.tune.trackers)
    if config.run.trackers:
        raise InputError("run.trackers follows a run alone: set tune.trackers for a search, and leave run.trackers out")
    base = base_config(config)
    if base.validates_beside:
        raise InputError(
            f"eval.beside = {base.eval.beside}: a search stops trials at their meta-validations; set it to 0"
        )
    trials: list[tuple[str, Params]] = [(rates, {}) for rates in rivals(config)]
    for rates, params in trials:
        with_params(base, {**params, "inner.learn_lr": rates})
    trials += [("search", params) for params in points(axes, config)]

    from distmeta.drive.cluster import TrainingError, check_room, ray_cluster
    from distmeta.drive.train import prepare_store
    from distmeta.runs.progress import Display
    from distmeta.search.report import write as write_report
    from distmeta.search.search import concurrency, run_search

    with Display(config, show) as display:
        refuse_limit(config, "tune")
        display.waiting("reading tasks")
        store = prepare_store(base, display)
        named = config.tune.dir or (f"{config.run.dir}-tune" if config.run.dir else None)
        place = {"run.name": f"{config.run.name}-tune", "run.dir": named}
        claimed = with_params(config, place)
        with run_directory(claimed, resume, store) as (sweep_dir, fresh):
            interrupt.keeping(
                f"trials so far are kept in {sweep_dir}; the same command with --resume continues the search"
            )
            if not fresh:
                check_same_search(sweep_dir, config)
            write_setting(sweep_dir, claimed, store)
            if have_ended(sweep_dir, len(trials)):
                display.phase(f"all {len(trials)} trials of {sweep_dir} have ended; there is nothing to continue")
            else:
                display.waiting("starting Ray")
                # Tune, and Ray's own thread that tells of processes that end, speak there whatever they are told.
                with contextlib.redirect_stdout(io.StringIO()), ray_cluster(base) as cluster:
                    interrupt.check()
                    check_room(base, cluster)
                    at_once = concurrency(base, cluster)
                    display.phase(f"{len(trials)} trials, {at_once} at once, in {sweep_dir}")
                    run_search(base, axes, trials, at_once, sweep_dir, store, display)
                    interrupt.check()
        rows = collect(sweep_dir, base)
        display.phase("writing results")
        search = write_results(sweep_dir, config, base, rows)
        display.phase(f"report {write_report(sweep_dir)}")
    if search.best is None:
        reasons = sorted({row["reason"] for row in rows if row["reason"]})
        raise TrainingError(f"no trial could be scored: {reasons[0] if reasons else 'none ran'}; see {sweep_dir}")
    return search


def rivals(config: Config) -> list[str]:
    """How the trials beside the search learn their inner rates."""
    if config.tune.rivals is None:
        has_none = config.tune.scheduler == "pbt" or config.algorithm == "reptile"
        return [] if has_none else ["per_layer"]
    return list(config.tune.rivals)


def base_config(config: Config) -> Config:
    """What the trials share: meta-validations, all adaptation step counts in one, constant rates unless searched."""
    t = config.tune
    steps = t.adapt_steps or config.eval.steps
    if steps is None:
        spec = t.space.get("inner.steps", {})
        listed: list[Any] = next((values for kind, values in spec.items() if kind != "when"), [])
        steps = max([config.inner.steps, *listed])
    every = config.eval.every if isinstance(config.eval.every, int) else 0
    every = every or max(1, config.outer.steps // 10)
    changes: Params = {
        "eval.steps": steps,
        "eval.every": every,
        "eval.baselines": False,
        # A group's processors are placed at once or not at all; samplers that held some could block each other.
        "cluster.cpus_per_sampler": 0,
    }
    if "inner.learn_lr" not in t.space and t.rivals != [] and "inner.lr" in t.space:
        changes["inner.learn_lr"] = "none"
    if t.scheduler == "asha":  # a trial that waited goes on from where it was scored
        changes["run.checkpoint_every"] = every
    if t.scheduler == "pbt":  # each report has its checkpoint, and none is removed while it is copied
        changes |= {"run.checkpoint_every": every, "run.keep": 1000}
    return with_params(config, changes)


def check_metric(config: Config) -> None:
    """Raises InputError for a metric that meta-validations of the task family do not have after every inner step."""
    if not config.task.has_classes and config.tune.metric != "loss":
        raise InputError(
            f"tune.metric = {config.tune.metric}: task.family = {config.task.family} is scored by the loss alone "
            "after every inner step; set tune.metric=loss"
        )


def check_same_search(sweep_dir: Path, config: Config) -> None:
    """Raises InputError naming the first key of `tune` that makes `config` another search."""
    before = checkpoints.read_config(sweep_dir / "config.yaml").tune.model_dump(mode="json")
    for key, now in config.tune.model_dump(mode="json").items():
        if key not in RESUMABLE and before[key] != now:
            raise InputError(
                f"--resume: tune.{key} is {json.dumps(now)} but {sweep_dir} was searched with "
                f"{json.dumps(before[key])}; continue with the same value, or begin another search"
            )


os.environ.setdefault("TUNE_DISABLE_AUTO_CALLBACK_LOGGERS", "1")  # before Tune is imported: its loggers are chosen
