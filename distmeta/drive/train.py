"""`distmeta train`: from a configuration to a run directory.

The driver prepares (tasks, run directory, Ray), starts the samplers and the learner group, shows what the group
writes, and reads the result back. It does no mathematics and imports no model.
"""

from __future__ import annotations

import contextlib
import html
import json
import os
import shutil
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from distmeta import health
from distmeta.algorithms.schedule import validation_every
from distmeta.config import Config, ConfigSource, config_of
from distmeta.config.consistency import check_beside
from distmeta.config.paths import absolute
from distmeta.drive.cluster import Cluster, TrainingError, check_room, first_actors, ray_cluster
from distmeta.errors import InputError
from distmeta.runs import checkpoint as checkpoints
from distmeta.runs import interrupt
from distmeta.runs.directory import note, now, run_directory, write_setting
from distmeta.runs.journal import records
from distmeta.versions import trainer_class

if TYPE_CHECKING:
    from distmeta.evaluation.evaluate import Evaluation
    from distmeta.runs.progress import Display, Show


@dataclass(frozen=True, repr=False)
class Run:
    """A finished run."""

    path: Path

    def __post_init__(self) -> None:
        object.__setattr__(self, "path", Path(self.path))  # a string will do

    def __repr__(self) -> str:
        return f"Run({self.path}; {self._scores() if self.is_evaluated else 'not evaluated yet'})"

    def _repr_html_(self) -> str:
        """A table, in notebooks."""
        return self._scores()._repr_html_() if self.is_evaluated else html.escape(repr(self))

    def _scores(self) -> Evaluation:
        from distmeta.evaluation.evaluate import Evaluation

        details = json.loads((self.path / "evaluation_details.json").read_text(encoding="utf-8"))
        return Evaluation(self.evaluation, details)

    @cached_property
    def metrics(self) -> list[dict[str, Any]]:
        """The records of metrics.jsonl, one a meta-step."""
        return list(records(self.path))

    @property
    def checkpoint(self) -> Path:
        """The checkpoint of the best meta-validation; the newest whole one of a run without meta-validations."""
        return checkpoints.resolve(self.path)

    @property
    def is_evaluated(self) -> bool:
        """Whether the run has come to its end; one that run.max_hours ended has not."""
        return (self.path / "evaluation.json").is_file() and not (self.path / interrupt.LEAVE).exists()

    @cached_property
    def evaluation(self) -> dict[str, Any]:
        """evaluation.json."""
        scores: dict[str, Any] = json.loads((self.path / "evaluation.json").read_text(encoding="utf-8"))
        return scores


def train(config: ConfigSource | None = None, *, resume: bool = False, show: Show = None, **sections: Any) -> Run:
    """Meta-train as `config` says, on a Ray cluster or on one started here; returns when the run has ended.

    config: a Config, nested dictionaries, or the name of a recipe or YAML file; None: the recipe `default`. sections:
    laid over it, such as outer={"steps": 100} or algorithm="fomaml".
    resume: continue the newest run of that name (or the one in run.dir) from its newest whole checkpoint; without
    one it begins anew. show: progress on standard error; "steps": a line for each meta-step; None: only in a notebook.
    A run that run.max_hours has ended has no evaluation yet.
    Raises InputError (nothing was written), TrainingError, or KeyboardInterrupt once the last whole meta-step is saved.
    """
    config = absolute(config_of(config, sections))
    from distmeta.config.consistency import check_used
    from distmeta.drive import prompt
    from distmeta.runs import trackers
    from distmeta.runs.progress import Display

    if not resume:
        check_used(config)
    trackers.check("run.trackers", config.run.trackers)
    ends_at = interrupt.deadline(config.run.max_hours, time.monotonic())
    with Display(config, show) as display:
        display.waiting("reading tasks")
        config, choice = prompt.with_prompt(
            config, lambda plain: prepare_store(plain, display), resume, display.waiting
        )
        store = prepare_store(config, display)
        with run_directory(config, resume, store) as (run_dir, is_new):
            if not is_new and has_ended(run_dir, config):
                display.phase(f"{run_dir} has ended; there is nothing to continue")
                if not (run_dir / "report.html").is_file():  # the driver was killed, and its learners went on
                    finish(run_dir, display)
                return Run(run_dir)
            interrupt.driving(run_dir)
            write_setting(run_dir, config, store)
            if choice:
                checkpoints.write_text(run_dir / prompt.FILE, json.dumps(choice, indent=1))
            write_tasks(run_dir, config, store, display)
            with trackers.following(config, run_dir, display.phase):
                display.waiting("starting Ray")
                with ray_cluster(config) as cluster:
                    interrupt.check()
                    display.follow(run_dir)
                    run_learners(config, run_dir, store, cluster, ends_at, exports=True)
            if (run_dir / interrupt.LEAVE).exists():
                display.phase(f"run.max_hours = {config.run.max_hours:g} is over; {interrupt.farewell()}")
                return Run(run_dir)
            finish(run_dir, display)
    return Run(run_dir)


def finish(run_dir: Path, display: Display) -> None:
    """What the driver writes once the learners have ended: the time, the report, and the export if they could not."""
    if not (run_dir / "export").is_dir():
        write_export(run_dir, display)
    note(run_dir, ended=now())
    write_report(run_dir, display)


def has_ended(run_dir: Path, config: Config) -> bool:
    """Whether the run in `run_dir` has come to its end, and `config` asks for no more of it."""
    if not Run(run_dir).is_evaluated or (run_dir / "error.json").exists() or config.data.follow is not None:
        return False
    newest = checkpoints.newest_whole(run_dir, lambda line: None)
    before = checkpoints.read_config(run_dir / "config.yaml")
    if newest is None or (before.outer, before.eval) != (config.outer, config.eval):
        return False
    state = checkpoints.read_state(newest / "state.json")
    details = json.loads((run_dir / "evaluation_details.json").read_text(encoding="utf-8"))
    is_last = state["step"] >= config.outer.steps or bool(state.get("stopped"))
    settings = details["settings"]
    return is_last and settings.get("last_step", settings.get("meta_step")) == state["step"]


def prepare_store(config: Config, display: Display | None = None) -> Path:
    """The token cache of the run's tasks, built if need be, and checked against what episodes ask of it."""
    from distmeta.models.trial import check_model
    from distmeta.tasks.build import build_store, cache_directory, check_data
    from distmeta.tasks.descriptions import check_words
    from distmeta.tasks.families import check_feasible
    from distmeta.tasks.store import open_store

    data = config.data
    check_data(data, config.task, config.model)
    if config.cluster.storage and not (data.cache or os.environ.get("DISTMETA_CACHE")):
        data = data.model_copy(update={"cache": f"{config.cluster.storage}/cache"})  # samplers read it on other nodes
    path = build_store(data, config.task, config.model, progress=display.counted if display else None)
    store = open_store(path)
    check_feasible(store, config.task, ["train"])
    check_feasible(store, config.of_evaluation().task, ["validation", "test"])
    check_words(store.labels, config)
    check_model(config, cache_directory(data), len(store.labels))  # refused here, and not once all is started
    if config.outer.keep_base is not None:
        from distmeta.learner.kept import check

        check(config)
    if config.outer.privacy is not None:
        from distmeta.algorithms.privacy import spent

        spent(config, store, config.outer.steps)  # raises before anything is started where it cannot be counted
    every = validation_every(config, tasks := len(store.groups["validation"].ids))
    if every and tasks == 0:
        raise InputError("eval.every: the data has no meta-validation tasks; name some, or set eval.every=0")
    try:
        check_beside(config, every)
    except ValueError as error:
        raise InputError(str(error)) from None
    return path


def write_tasks(run_dir: Path, config: Config, store: Path, display: Display) -> None:
    """tasks.json: which tasks and classes train, validate and test, with their rows; and the texts in two splits.

    prompt.txt: the first examples of the first episode, as the model sees them.
    """
    from distmeta.tasks import shown, summary
    from distmeta.tasks.store import open_store

    checkpoints.write_text(run_dir / shown.FILE, shown.shown(open_store(store), config))
    counts = summary.summary(open_store(store), config.task) | ({"follows": True} if config.data.follow else {})
    checkpoints.write_text(run_dir / summary.FILE, json.dumps(counts, indent=1, ensure_ascii=False))
    display.phase(summary.headline(counts))
    for sign in summary.signs(counts):
        display.phase(health.sentence(sign))


def write_export(run_dir: Path, display: Any) -> None:
    """RUN/export; an architecture that cannot be exported does not fail its run, `distmeta export` says why."""
    from distmeta.export import export

    try:
        export.write(export.read(run_dir), run_dir / "export")
    except InputError as error:
        display.phase(f"no export: {error}")


def train_rank(settings: dict[str, Any]) -> None:
    """What a rank does; the first has the model that is exported, so that the driver loads none."""
    from distmeta.learner.worker import train_worker

    train_worker(settings, export_live if settings["exports"] else None)


def export_live(run_dir: Path, model: Any) -> None:
    """RUN/export from the model in this process; none is there afterwards if that has only a part of it."""
    from distmeta.export import export

    shutil.rmtree(run_dir / "export", ignore_errors=True)
    with contextlib.suppress(InputError):  # which the driver will say
        trained = export.read(run_dir, model=model)
        if trained.is_whole:
            export.write(trained, run_dir / "export")


def write_report(run_dir: Path, display: Any) -> None:
    """RUN/report.html; a run that has ended well does not fail by it."""
    from distmeta.runs import report

    try:
        display.phase(f"report {report.write(run_dir)}")
    except (InputError, OSError) as error:
        display.phase(f"no report: {error}")


def run_learners(
    config: Config, run_dir: Path, store: Path, cluster: Cluster, ends_at: float | None = None, exports: bool = False
) -> None:
    """Start samplers and the learner group, and wait for the group's end, or until `ends_at` (interrupt.wait).

    exports: whether RUN/export is written at the run's end.
    """
    import ray

    from distmeta.drive.collect import collecting
    from distmeta.drive.elastic import run_groups
    from distmeta.runs.journal import Log
    from distmeta.tasks.episodes.sampler import start_samplers

    c = config.cluster
    gpus = check_room(config, cluster)
    actors = first_actors(config)
    say = Log(run_dir).say
    (run_dir / "error.json").unlink(missing_ok=True)
    with collecting(config, run_dir, store, say) as stream:
        samplers = start_samplers(stream or str(store), config.task, config.run.seed, actors, c.cpus_per_sampler)
        more = {"store": str(store), "samplers": samplers, "stream": stream, "exports": exports}

        def attempt(size: int) -> Exception | None:
            return run_group(train_rank, config, run_dir, more, size, gpus, 0 if c.is_elastic else c.max_failures)

        try:
            if c.is_elastic:
                failure = interrupt.wait(
                    lambda: run_groups(attempt, c, bundle_of(config, gpus), run_dir, config.run.timeout_s, say),
                    run_dir, ends_at,
                )  # fmt: skip
            else:
                failure = interrupt.wait(lambda: attempt(c.fewest), run_dir, ends_at)
        finally:
            for sampler in samplers:
                ray.kill(sampler)
            shutil.rmtree(run_dir / ".ray", ignore_errors=True)
    raise_failure(config, run_dir, failure)


def bundle_of(config: Config, gpus: float) -> dict[str, float]:
    """What a rank reserves."""
    return {"CPU": config.cluster.cpus_per_worker} | ({"GPU": gpus} if gpus else {})


def run_group(
    worker: Callable[[dict[str, Any]], None],
    config: Config,
    run_dir: Path,
    more: dict[str, Any],
    size: int,
    gpus: float,
    restarts: int,
) -> Exception | None:
    """A group of `size` ranks that each call worker({**more, ...}), to its end; returns the failure it ended in.

    Ray restarts it after a failure, up to `restarts` times.
    """
    import ray.exceptions
    import ray.train
    from ray.train.torch import TorchConfig

    shutil.rmtree(run_dir / ".ray", ignore_errors=True)  # Ray's own record of an earlier attempt
    if gpus:  # Ray says which ranks stand still in a collective; it only watches, unless RAY_TRAIN_NCCL_RAS_ACTION=fail
        os.environ.setdefault("RAY_TRAIN_ENABLE_NCCL_HANG_DETECTOR", "1")
    settings = {"config": config.model_dump(mode="json"), "run_dir": str(run_dir)}
    trainer = trainer_class()(
        worker,
        train_loop_config={**settings, "threads": config.cluster.cpus_per_worker, **more},
        torch_config=TorchConfig(timeout_s=int(config.run.timeout_s)),
        scaling_config=ray.train.ScalingConfig(
            num_workers=size, use_gpu=gpus > 0, resources_per_worker=bundle_of(config, gpus)
        ),
        run_config=ray.train.RunConfig(
            name="train", storage_path=str(run_dir / ".ray"),
            failure_config=ray.train.FailureConfig(max_failures=restarts),
        ),
    )  # fmt: skip
    try:
        trainer.fit()
    except (ray.train.TrainingFailedError, ray.exceptions.OutOfMemoryError) as error:  # the latter: of its controller
        failed: Exception = error
        return failed
    except ray.exceptions.RayActorError:  # Ray Train's own
        raise TrainingError(
            "Ray Train's controller has gone, or the node or the cluster that it was on (perhaps another run's, which "
            f"ended). Checkpoints so far are in {run_dir}; --resume continues from the newest"
        ) from None
    return None


def raise_failure(config: Config, run_dir: Path, failure: Exception | None) -> None:
    """Raises what a group's ranks have told of their end, else TrainingError with what it failed of, if it did."""
    error_file = run_dir / "error.json"
    if error_file.exists():
        report = json.loads(error_file.read_text(encoding="utf-8"))
        raise (InputError if report["kind"] == "input" else TrainingError)(report["message"])
    if failure is not None:
        from distmeta.learner.causes import explain, text_of

        raise TrainingError(
            f"the learner group failed {config.cluster.max_failures + 1} times; the last cause: "
            f"{explain(text_of(failure))}. Checkpoints so far are in {run_dir}; --resume continues from the newest"
        ) from failure
