"""The learner's loop, from top to bottom: what one rank does from its start to the last meta-step.

    episodes -> adapt on each support set -> meta-gradient -> mean over ranks -> outer step -> record -> checkpoint

Every rank runs `learn`. Rank r takes episodes (t-1)B + its share of 0..B-1 in meta-step t, whatever the number of
samplers. State is the meta-parameters, their optimizer's state and the step; all else is a function of these.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from distmeta.algorithms import privacy
from distmeta.algorithms.rates import mean_rate
from distmeta.algorithms.schedule import outer_lr, validation_every
from distmeta.config import Config
from distmeta.config.algorithms import load_algorithm
from distmeta.config.consistency import check_settings
from distmeta.errors import InputError
from distmeta.evaluation.scoring import split_meta
from distmeta.inner import Diverged
from distmeta.learner.arrivals import score_arrivals
from distmeta.learner.beside import Ask, Validations, as_actor, in_process
from distmeta.learner.clock import Clock
from distmeta.learner.ending import Ending, is_asked_to_pause, requests
from distmeta.learner.engine import MetaEngine
from distmeta.learner.evaluation import finish
from distmeta.learner.flow import AutoSamplers, episode_window
from distmeta.learner.gradients import meta_gradients, state_cache
from distmeta.learner.group import mean_rate_in_group
from distmeta.learner.kept import KeptBase
from distmeta.learner.process import run_rank
from distmeta.learner.ranks import Rank, all_sum, gather
from distmeta.learner.recorder import Recorder
from distmeta.learner.saver import Saver
from distmeta.learner.skipped import OuterDiverged, refuse_outer_divergence, refuse_skipped
from distmeta.learner.source import Source
from distmeta.learner.state import Reached, fast_shards, save, start
from distmeta.models.build import build_for
from distmeta.models.sharding import Shards, frozen_shards
from distmeta.models.task_model import TaskModel
from distmeta.runs.interrupt import PAUSED
from distmeta.runs.journal import Log
from distmeta.tasks.store import TaskStore, open_store
from distmeta.tasks.stream import Stream

Params = dict[str, Tensor]


def train_worker(settings: dict[str, Any], leave: Callable[[Path, TaskModel], None] | None) -> None:
    """Entry point under Ray Train. `settings` as train.py makes them. leave: what rank 0 does with the model when the
    run has come to its end."""
    import ray.train

    def body(config: Config, run_dir: Path, rank: int, world: int, device: torch.device) -> None:
        model = learn(
            config, run_dir, Path(settings["store"]), settings["samplers"], rank, world, device,
            report=ray.train.report, stream=settings["stream"], ask=as_actor,
        )  # fmt: skip
        if rank == 0 and model is not None and leave is not None:
            leave(run_dir, model)

    run_rank(settings, body, (Diverged, OuterDiverged))


def learn(
    config: Config,
    run_dir: Path,
    store_path: Path,
    samplers: list[Any],
    rank: int,
    world: int,
    device: torch.device,
    report: Any = lambda record: None,
    stream: Stream | None = None,
    ask: Callable[..., Ask] = in_process,
) -> TaskModel | None:
    """Meta-train one rank of a torch.distributed group, from the newest whole checkpoint of `run_dir` if any; returns
    the model where the run has come to its end.

    stream: where the store's source grows. The run then waits for the tasks of a meta-step, and ends where it does.
    ask: makes what meta-validates beside training (eval.beside), on rank 0.
    """
    this = Rank(rank, world, device, config, run_dir, Log(run_dir).say if rank == 0 else lambda line: None)
    source = Source(config, open_store(store_path), stream)
    model, base_shards = make_model(this, source.store)
    every = validation_every(config, len(source.store.groups["validation"].ids))
    engine, reached = start(this, model, every > 0, source.store)
    step, meta = reached.step, engine.snapshot()
    cache = state_cache(model, config, source.store)
    kept = KeptBase(model, config, source.store.pad_id, device) if config.outer.keep_base is not None else None
    recorder = Recorder(this, reached, classes_of(config, source.store))
    gradients = partial(
        meta_gradients, model, algorithm=own_algorithm(config), config=config, device=device, cache=cache,
        see=recorder.tell,
    )  # fmt: skip
    window = episode_window(this, source, samplers, step, reached.validations)
    ending = Ending.DONE if is_done(config, reached, source, step) else None
    validations = Validations(this, reached, ask, store_path, every if ending is None else 0)
    source.reach(step, cache)
    auto, clock = AutoSamplers(this, store_path, samplers), Clock(engine, base_shards, model.fast_shards)
    with Saver(run_dir, config.run.keep, rank, world, this.say) as saver:
        for episodes, wait_s in window if ending is None else ():
            step += 1
            clock.begin(wait_s)
            saver.check()
            source.reach(step, cache)
            store = source.store
            arrivals = score_arrivals(this, model, meta, store, step)
            lost: list[Diverged] = []
            with clock.phase("inner_s"):
                counts = reached.counts(store)
                grads, sums = gradients(meta, store=store, episodes=episodes, step=step, skipped=lost, counts=counts)
                kept_kl = kept.add(grads, meta, episodes) if kept is not None else 0.0
                grads = privacy.with_noise(grads, config, step, rank)
            with clock.phase("peers_s"):  # the first of the collectives: what it takes is the wait for the slowest rank
                lost_here = len(lost) if model.fast_shards is None or rank == 0 else 0  # a group loses one together
                *sums, kept_kl, skipped, halts, leaves = all_sum([*sums, kept_kl, lost_here, *requests(this)])

            with clock.phase("aggregate_s"):
                sums = reached.follow_subgroups(sums, store)
                record = outer_step(this, engine, reached, step, grads, sums, lost, int(skipped))
                meta = engine.snapshot()
                record["inner_lr"] = shown_rate(model, meta, config)
            clock.read_communication()
            mean_kl = kept_kl / config.outer.meta_batch_size if kept is not None else None
            record |= at_times(mean_kl, reached.subgroup_weights, int(skipped), arrivals)

            with clock.phase("validation_s", every > 0):
                validation, must_save = validations.at(step, model, meta, store)
            record |= validation

            with clock.phase("source_s", source.grows):
                done = is_done(config, reached, source, step)
            ending = Ending.HALTED if halts else Ending.DONE if done else Ending.LEFT if leaves else None
            with clock.phase("checkpoint_s"):
                if step % config.run.checkpoint_every == 0 or must_save or done or leaves:
                    recorder.sync()
                    record |= privacy.spent(config, store, step)
                    reached.step, reached.record = step, record | clock.seconds
                    save(saver, config, store, engine, reached)
                    report(shown(record))
                    if ending is None and config.cluster.is_elastic and is_asked_to_pause(this):
                        ending = Ending.PAUSED

            auto.see(clock.seconds, window)
            recorder.write(record, clock.seconds, window.in_flight)
            if ending:
                break
    if ending is Ending.PAUSED and rank == 0:
        (run_dir / PAUSED).touch()
    if ending is Ending.DONE:
        finish(this, model, meta, source.store, step, reached.best, recorder.warnings)
    return model if ending is Ending.DONE else None


def make_model(rank: Rank, store: TaskStore) -> tuple[TaskModel, Any]:
    """The configured model on the rank's device, and what holds its frozen weights in shards, if anything does."""
    config, device = rank.config, rank.device
    shards = fast_shards(config, device) or frozen_shards(config, device)
    model = build_for(config, store, shards)
    frozen = shards if isinstance(shards, Shards) and shards.weights else None
    if frozen is not None:
        rank.say(frozen.describe())
    return model.to(device), frozen


def own_algorithm(config: Config) -> Any:
    """The algorithm's module. Raises InputError where the configuration is not what it needs."""
    algorithm = load_algorithm(config.algorithm)
    try:
        check_settings(config, getattr(algorithm, "SETTINGS", {}))
    except ValueError as error:
        raise InputError(str(error)) from None
    return algorithm


def classes_of(config: Config, store: TaskStore) -> int | None:
    """Classes of an episode; None where there are none."""
    return (config.ways or len(store.labels)) if config.task.has_classes else None


def is_done(config: Config, reached: Reached, source: Source, step: int) -> bool:
    """Whether no meta-step comes after `step`; where the source grows, once the tasks of the next one have come."""
    return reached.stopped or not source.has_tasks_of(step + 1) or step >= config.outer.steps


def outer_step(
    rank: Rank,
    engine: MetaEngine,
    reached: Reached,
    step: int,
    grads: Params,
    sums: list[float],
    lost: list[Diverged],
    skipped: int,
) -> dict[str, Any]:
    """Take the outer step of the mean over the meta-batch but for its `skipped` episodes; what there is to record.

    grads, lost: the rank's own sums of meta-gradients, and episodes left out. sums: over all ranks, as of
    `meta_gradients`. Raises OuterDiverged.
    """
    config, total = rank.config, rank.config.outer.meta_batch_size
    counted = max(1.0, total - skipped)
    scale = engine.averaged_over / (total if config.outer.privacy else counted)
    lr = outer_lr(config, step, [v["loss"] for v in reached.validations])
    norm = engine.step({name: g * scale for name, g in grads.items()}, lr)
    reached.tasks_seen += total
    reached.skipped += skipped
    if skipped:
        refuse_skipped(config, step, gather(lost[-1:]), reached.skipped, reached.tasks_seen, rank.say)
    loss, accuracy, *inner_losses = (value / counted for value in sums)
    refuse_outer_divergence(step, loss, norm)
    right = {} if config.task.has_numbers else {"query_accuracy": accuracy}
    return {
        "step": step, "tasks_seen": reached.tasks_seen, "outer_loss": loss, **right, "inner_loss": inner_losses,
        "grad_norm": norm, "outer_lr": lr,
    }  # fmt: skip


def at_times(kept_kl: float | None, subgroup_weights: dict[str, float], skipped: int, arrivals: Any) -> dict[str, Any]:
    """What a record holds only where there is something to say."""
    told = {"kept_kl": kept_kl, "subgroup_weights": subgroup_weights or None, "skipped": skipped or None,
            "arrivals": arrivals or None}  # fmt: skip
    return {name: value for name, value in told.items() if value is not None}


def shown_rate(model: TaskModel, meta: Params, config: Config) -> float:
    """The mean inner learning rate; all ranks ask for it together."""
    rates = split_meta(model, meta)[2]
    if model.fast_shards is None:
        return mean_rate(config.inner, rates)
    return mean_rate_in_group(config, rates, model.fast_shards)


def shown(record: dict[str, Any]) -> dict[str, Any]:
    """What Ray Train is told of a meta-step."""
    told: dict[str, Any] = {key: record[key] for key in ("step", "outer_loss", "query_accuracy") if key in record}
    return told | dict(record.get("validation", {}))
