"""The learner's loop, from top to bottom: what one rank does from its start to the last meta-step.

    episodes -> adapt on each support set -> meta-gradient -> mean over ranks -> outer step -> record -> checkpoint

Every rank runs `learn`. Rank r takes episodes (t-1)B + its share of 0..B-1 in meta-step t, whatever the number of
samplers. State is the meta-parameters, their optimizer's state and the step; all else is a function of these.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from distmeta import health
from distmeta.algorithms import privacy
from distmeta.algorithms.rates import initial_log_rates, inner_loop, mean_rate
from distmeta.algorithms.schedule import outer_lr, schedule_of, validation_every
from distmeta.config import Config
from distmeta.config.algorithms import load_algorithm
from distmeta.config.consistency import check_settings
from distmeta.errors import InputError
from distmeta.evaluation.evaluate import evaluate_methods, scorer
from distmeta.evaluation.scoring import curves, domain_of, split_meta
from distmeta.inner import Diverged
from distmeta.learner.arrivals import regret, score_arrivals, sentence
from distmeta.learner.best import Best, better, comparable, is_over, is_reached, still_kept
from distmeta.learner.engine import MetaEngine
from distmeta.learner.flow import MEASURED, Gauges, more_samplers
from distmeta.learner.gradients import meta_gradients, state_cache
from distmeta.learner.group import GroupEngine, mean_rate_in_group, score_in_group
from distmeta.learner.process import run_rank
from distmeta.learner.ranks import all_sum, episodes_of_rank, gather
from distmeta.learner.saver import Saver
from distmeta.models.build import build_model, check_format
from distmeta.models.fast_shards import FastShards
from distmeta.models.sharding import persistence_threshold, shard_frozen
from distmeta.models.task_model import TaskModel
from distmeta.runs import checkpoint as checkpoints
from distmeta.runs.interrupt import EVALUATING, GROW, LEAVE, PAUSED, STOP
from distmeta.runs.journal import Journal, Log
from distmeta.tasks.episodes.episode import sample_episode
from distmeta.tasks.episodes.flow import seconds_per_episode
from distmeta.tasks.episodes.sampler import Sampler
from distmeta.tasks.episodes.window import EpisodeWindow
from distmeta.tasks.mixture import curriculum
from distmeta.tasks.store import TaskStore, open_store
from distmeta.tasks.stream import Stream
from distmeta.tasks.summary import read, signs

Params = dict[str, Tensor]
Say = Callable[[str], None]
LEAST_SKIPPED = 3  # episodes that a run may skip, however few it has seen


@dataclass
class Reached:
    """How far a run has come, beside its engine; what a checkpoint's state.json has of it.

    skipped: of the episodes seen, those whose loss or meta-gradient was not finite. stopped: by outer.until or
    outer.stop_after. record: the step's. validations: {step, loss, sources}, in order.
    """

    step: int = 0
    tasks_seen: int = 0
    skipped: int = 0
    stopped: bool = False
    record: dict[str, Any] | None = None
    validations: list[dict[str, Any]] = field(default_factory=list)
    best: Best | None = None


class OuterDiverged(ArithmeticError):
    """The outer loop left the finite numbers; the message names the meta-step."""


def train_worker(settings: dict[str, Any]) -> None:
    """Entry point under Ray Train. `settings` as train.py makes them."""
    import ray.train

    def body(config: Config, run_dir: Path, rank: int, world: int, device: torch.device) -> None:
        learn(
            config, run_dir, Path(settings["store"]), settings["samplers"], rank, world, device,
            report=ray.train.report, stream=settings["stream"],
        )  # fmt: skip

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
) -> None:
    """Meta-train one rank of a torch.distributed group, from the newest whole checkpoint of `run_dir` if any.

    stream: where the store's source grows. The run then waits for the tasks of a meta-step, and ends where it does.
    """
    store = open_store(store_path)
    classes = config.ways or len(store.labels)
    model = build_model(
        config, store.vocab_size, store.pad_id, classes, fast_shards(config, device), labels=len(store.labels)
    )
    algorithm = own_algorithm(config)
    say = Log(run_dir).say if rank == 0 else lambda line: None
    shards = shard_frozen(model, config, device)
    if shards is not None:
        say(shards.describe())
    model = model.to(device)
    engine, reached = start(config, run_dir, model, device, say)
    step, validations = reached.step, reached.validations
    every = validation_every(config, len(store.groups["validation"].ids))
    reached.best = reached.best if every else None
    cache = state_cache(model, config, store)
    journal = Journal(run_dir, step, reached.record) if rank == 0 else None
    watch = health.Watch(None if config.task.family == "text_to_text" else classes, say)
    if rank == 0:  # a group that died between writing a checkpoint and this left one too many
        checkpoints.write_best(run_dir, reached.best)
        checkpoints.prune(run_dir, config.run.keep, step)
    mine = episodes_of_rank(config, config.outer.meta_batch_size, rank, world)
    window = EpisodeWindow(
        ([t * config.outer.meta_batch_size + j for j in mine] for t in range(step, config.outer.steps)),
        samplers[rank:] + samplers[:rank] or Sampler(stream or store, config.task, config.run.seed).sample,
        split="train", window=config.sampling.window, timeout_s=config.sampling.timeout_s,
        mixture=mixture_by(validations, config, store),
        ready=lambda indices: stream is None or not indices or stream.covers(indices[-1]),
    )  # fmt: skip
    ended = not reached.stopped and not tasks_have_come(stream, config, step + 1)
    if stream is not None and step > 0:
        store = tasks_so_far(stream, config, step)
    meta, paused, halted, leaves, gauges = engine.snapshot(), False, 0.0, 0.0, Gauges(config, rank)
    auto = config.sampling.actors == "auto" and bool(samplers)
    make_s = seconds_per_episode(samplers[rank % len(samplers)], config.sampling.timeout_s) if auto else 0.0
    busy: list[float] = []  # seconds of the first meta-steps, where the number of samplers is chosen
    with Saver(run_dir, config.run.keep, rank, world, config.run.timeout_s) as saver:
        for episodes, wait_s in window if not (reached.stopped or ended) else ():
            step += 1
            saver.check()
            if stream is not None:
                store = tasks_so_far(stream, config, step)
                if cache is not None:
                    cache.reach(store.rows)
            arrivals = score_arrivals(model, meta, store, config, step, rank, world, device)
            began = time.perf_counter()
            lost: list[Diverged] = []
            grads, sums = meta_gradients(model, meta, algorithm, config, store, episodes, step, device, cache, lost)
            grads = privacy.with_noise(grads, config, step, rank)
            inner_s = time.perf_counter() - began
            began = time.perf_counter()
            # The first of the collectives: what it takes is the ranks' wait for the slowest of them.
            asked = [float(rank == 0 and (run_dir / name).exists()) for name in (STOP, LEAVE)]
            of_rank = 1 if model.fast_shards is None or rank == 0 else 0  # a group loses an episode together
            *sums, skipped, halted, leaves = all_sum([*sums, float(len(lost) * of_rank), *asked])
            peers_s = time.perf_counter() - began

            began = time.perf_counter()
            spoken = engine.seconds
            total = config.outer.meta_batch_size
            counted = max(1.0, total - skipped)
            scale = engine.averaged_over / (total if config.outer.privacy else counted)
            lr = outer_lr(config, step, [v["loss"] for v in validations])
            norm = engine.step({name: g * scale for name, g in grads.items()}, lr)
            meta = engine.snapshot()
            reached.tasks_seen += total
            reached.skipped += int(skipped)
            refuse_skipped(config, reached, step, gather(lost[-1:]) if skipped else [], say)
            record: dict[str, Any] = {
                "step": step, "tasks_seen": reached.tasks_seen, "outer_loss": sums[0] / counted,
                "query_accuracy": sums[1] / counted, "inner_loss": [s / counted for s in sums[2:]], "grad_norm": norm,
                "outer_lr": lr, "inner_lr": shown_rate(model, meta, config),
            }  # fmt: skip
            if skipped:
                record["skipped"] = int(skipped)
            if arrivals:
                record["arrivals"] = arrivals
            if not math.isfinite(norm) or not math.isfinite(record["outer_loss"]):
                raise OuterDiverged(
                    f"meta-step {step}: outer loss {record['outer_loss']}, gradient norm {norm}; lower outer.lr"
                )
            aggregate_s = time.perf_counter() - began
            seconds = {
                "wait_s": wait_s, "inner_s": inner_s, "peers_s": peers_s, "aggregate_s": aggregate_s,
                "checkpoint_s": 0.0,  # what the learner waits for: copies, and the end of the checkpoint before
                "comm_s": engine.seconds - spoken,  # part of aggregate_s: gradients and gathered meta-parameters
            }  # fmt: skip
            if shards is not None:  # part of inner_s: frozen weights on their way, waiting for other ranks included
                seconds["base_comm_s"], shards.seconds = shards.seconds, 0.0
            if model.fast_shards is not None:  # part of inner_s too: fast weights, and their gradients
                seconds["fast_comm_s"], model.fast_shards.seconds = model.fast_shards.seconds, 0.0

            new_best = None
            if every and (step % every == 0 or step == config.outer.steps):
                record["validation"], record["validation_curves"], by_source = validate(
                    model, meta, store, config, rank, world, device
                )
                validations.append({"step": step, "loss": record["validation"]["loss"], "sources": by_source})
                new_best = better(config, record["validation"], step, reached.best)
                reached.best = new_best or reached.best
                stops = is_reached(config.outer.until, record["validation"])
                reached.stopped = stops or is_over(config, validations, reached.best)
            began = time.perf_counter()
            if stream is not None:
                ended = not reached.stopped and not tasks_have_come(stream, config, step + 1)
                seconds["source_s"] = time.perf_counter() - began  # until the tasks of the next meta-step have come
                began = time.perf_counter()
            is_last = step == config.outer.steps or reached.stopped or ended
            if step % config.run.checkpoint_every == 0 or is_last or new_best or leaves:
                if journal:
                    journal.sync()
                record |= privacy.spent(config, store, step)
                reached.step, reached.record = step, {**record, **seconds}
                save(saver, config, store, classes, engine, reached)
                shown = {key: record[key] for key in ("step", "outer_loss", "query_accuracy")}
                report(shown | record.get("validation", {}))
                paused = config.cluster.is_elastic and is_asked_to_pause(run_dir, rank) and step < config.outer.steps
            seconds["checkpoint_s"] = time.perf_counter() - began
            gauges.set(seconds, window.in_flight, record["outer_loss"])
            if auto and len(busy) < MEASURED[1]:
                busy.append(inner_s + peers_s + aggregate_s)
                if len(busy) == MEASURED[1]:
                    steps = busy[MEASURED[0] - 1 :]
                    of_ranks = all_sum([make_s, sum(steps) / len(steps)])
                    window.add(gather(more_samplers(
                        config, store_path, len(samplers), of_ranks[0] / world, of_ranks[1] / world, rank, say
                    )))  # fmt: skip
            if journal:
                journal.write({**record, **seconds})
                watch.see(record)
            if is_last or paused or halted or leaves:
                break
    if halted or (leaves and not (reached.stopped or ended) and step < config.outer.steps):
        return
    if paused and not (reached.stopped or ended):  # a group of another size goes on from the checkpoint
        if rank == 0:
            (run_dir / PAUSED).touch()
        return
    chosen = checkpoints.best_of(run_dir)
    if chosen is not None and checkpoints.step_of(chosen) != step:
        say(f"the best meta-validation was at meta-step {checkpoints.step_of(chosen)}, whose checkpoint is evaluated")
        of_best = checkpoints.load(chosen, keep=model.fast_shards.keep if model.fast_shards else None).meta
        meta = {name: of_best[name].to(value.device) for name, value in meta.items()}
    finish(
        model, meta, store, config, run_dir, step, reached.best if chosen else None, rank, world, device, say,
        watch.warnings,
    )  # fmt: skip


def tasks_have_come(stream: Stream | None, config: Config, step: int) -> bool:
    """Whether those of meta-step `step` have, after waiting for them; the same on every rank."""
    return stream is None or step > config.outer.steps or stream.wait(step * config.outer.meta_batch_size - 1)


def tasks_so_far(stream: Stream, config: Config, step: int) -> TaskStore:
    """The store with what has arrived by the end of meta-step `step`."""
    return stream.at(step * config.outer.meta_batch_size - 1)


def own_algorithm(config: Config) -> Any:
    """The algorithm's module. Raises InputError where the configuration is not what it needs."""
    algorithm = load_algorithm(config.algorithm)
    try:
        check_settings(config, getattr(algorithm, "SETTINGS", {}))
    except ValueError as error:
        raise InputError(str(error)) from None
    return algorithm


def start(
    config: Config, run_dir: Path, model: TaskModel, device: torch.device, say: Say
) -> tuple[MetaEngine, Reached]:
    """The engine at the newest whole checkpoint, or at the initial values, and what was reached so far."""
    values = initial_values(config, model)
    if config.outer.optimizer.startswith("cpu_"):
        say(f"outer.optimizer = {config.outer.optimizer}: DeepSpeed compiles it at its first use here, for minutes")
    found = checkpoints.newest_whole(run_dir, say)
    if found is None:
        return make_engine(values, config, model, device), Reached()
    saved = checkpoints.load(found, optimizer=True, keep=model.fast_shards.keep if model.fast_shards else None)
    check_format(found, saved.format, model)
    engine = make_engine({name: saved.meta[name] for name in values}, config, model, device)
    engine.load_optimizer_state(saved.optimizer, saved.step)
    say(f"continuing from {found.name}")
    before, state = saved.config, saved.state
    if before.outer.steps != config.outer.steps and schedule_of(config)[0] in ("cosine", "linear"):
        say(
            f"outer.steps is {config.outer.steps} and was {before.outer.steps}: the outer rate follows the schedule of "
            f"{config.outer.steps} meta-steps from here on, which is another curve"
        )
    reached = Reached(**{key: state[key] for key in Reached.__dataclass_fields__ if key in state})
    if any(getattr(before.outer, key) != getattr(config.outer, key) for key in ("until", "stop_after")):
        reached.stopped = False
    reached.best = still_kept(run_dir, comparable(reached.best, before, config))
    return engine, reached


def fast_shards(config: Config, device: torch.device) -> FastShards | None:
    """Where all parameters go that a group adapts together; None where each rank has episodes of its own."""
    if config.cluster.episode == "rank":
        return None
    return FastShards(device, persistence_threshold(config))


def make_engine(values: Params, config: Config, model: TaskModel, device: torch.device) -> MetaEngine:
    if model.fast_shards is None:
        return MetaEngine(values, config, device)
    return GroupEngine(values, config, device, model.fast_shards)


def initial_values(config: Config, model: TaskModel) -> Params:
    """All meta-parameters as they begin: what adapts, what is shared, the logarithms of learnt inner rates."""
    return {**model.fast, **model.shared, **initial_log_rates(config.inner, model.adapted)}


def shown_rate(model: TaskModel, meta: Params, config: Config) -> float:
    """The mean inner learning rate; all ranks ask for it together."""
    rates = split_meta(model, meta)[2]
    if model.fast_shards is None:
        return mean_rate(config.inner, rates)
    return mean_rate_in_group(config, rates, model.fast_shards)


def validate(
    model: TaskModel, meta: Params, store: TaskStore, config: Config, rank: int, world: int, device: torch.device
) -> tuple[dict[str, float], dict[str, Any], dict[str, float]]:
    """Mean metrics over the meta-validation episodes after adaptation, their curves, and the mean loss by data source.

    The same on every rank.
    """
    config = config.of_evaluation()
    fast, shared, rates = split_meta(model, meta)
    mine = episodes_of_rank(config, config.eval.validation_episodes, rank, world)
    episodes = [sample_episode(store, config.task, config.run.seed, "validation", i) for i in mine]
    loop = inner_loop(config.inner, rates, config.eval.steps)
    with model.of_ways(config.ways):
        if model.fast_shards is None:
            score = scorer(config, store)
            scored = gather(score(model, fast, shared, loop, episodes, config, store.pad_id, device))
        else:
            scored = score_in_group(model, fast, shared, loop, episodes, config, store.pad_id, device)
    found = curves(scored)
    by_source: dict[str, list[float]] = {}
    for one in scored if config.data.sources else ():
        source = domain_of(one, config.task.family == "domain", from_sources=True)
        by_source.setdefault(source, []).append(float(one.loss[-1]))
    means = {name: curve["mean"][-1] for name, curve in found.items()}
    return means, found, {name: float(np.mean(losses)) for name, losses in sorted(by_source.items())}


def mixture_by(
    validations: list[dict[str, Any]], config: Config, store: TaskStore
) -> Callable[[int], dict[str, float] | None]:
    """The weights of the data sources for the episode of an index, by the meta-validations so far."""
    size, sources = config.outer.meta_batch_size, list(store.sources["train"])
    if config.task.mixture != "curriculum":
        return lambda index: None
    return lambda index: curriculum(config.task, sources, validations, index // size + 1)


def is_asked_to_pause(run_dir: Path, rank: int) -> bool:
    """Whether the driver has room for more ranks; as rank 0 sees it, the same on all."""
    return all_sum([float(rank == 0 and (run_dir / GROW).exists())])[0] > 0


def refuse_skipped(config: Config, reached: Reached, step: int, lost: list[Diverged], say: Say) -> None:
    """Say what was skipped in a meta-step. Raises OuterDiverged where outer.max_skipped has been passed."""
    if not lost:
        return
    share = config.outer.max_skipped
    so_far = f"{reached.skipped} of {reached.tasks_seen} episodes so far are skipped"
    say(f"meta-step {step}: {lost[-1]}; {so_far}")
    if reached.skipped > (max(share * reached.tasks_seen, LEAST_SKIPPED) if share else 0):
        raise OuterDiverged(f"meta-step {step}: {lost[-1]}; {so_far}, more than outer.max_skipped = {share:g} allows")


def save(saver: Saver, config: Config, store: TaskStore, classes: int, engine: MetaEngine, reached: Reached) -> None:
    """Begin to write a checkpoint; all ranks call it. The step's record is not in the journal yet."""
    state = {
        **asdict(reached), "classes": classes, "labels": store.labels, "vocab_size": store.vocab_size,
        "pad_id": store.pad_id, "store_key": store.key,
    }  # fmt: skip
    # Copies of this rank's part only: the whole state may be larger than a rank's memory.
    parts = saver.shares({name: 3 * 4 * shape.numel() for name, shape in engine.whole_shapes.items()})
    mine = parts[saver.rank] if saver.rank < len(parts) else []
    optimizer = engine.optimizer_state(mine)
    own = engine.parameters(mine)

    def write_part(draft: Path) -> None:
        if mine:
            checkpoints.write_tensors(draft, own, optimizer, saver.rank, len(parts))

    saver.save(
        reached.step, write_part, lambda draft: checkpoints.write_rest(draft, config, state, store.tokenizer_file),
        reached.best,
    )  # fmt: skip


def finish(
    model: TaskModel, meta: Params, store: TaskStore, config: Config, run_dir: Path, step: int,
    best: Best | None, rank: int, world: int, device: torch.device, say: Say, warnings: list[health.Sign] | None = None,
) -> None:  # fmt: skip
    """Evaluate on meta-test episodes, divided over the ranks; rank 0 writes json, with the meta-step that it is of.

    step: the run's last. best: the meta-validation whose checkpoint `meta` is; None where it is the last one's.
    """
    if rank == 0:
        (run_dir / LEAVE).unlink(missing_ok=True)  # it came with the last meta-step
        (run_dir / EVALUATING).touch()
    if model.fast_shards is None:
        result = evaluate_methods(model, meta, store, config, device, rank=rank, world=world, gather=gather, say=say)
    else:
        result = evaluate_methods(model, meta, store, config, device, score=score_in_group, say=say)
    if rank == 0:
        result.details["settings"] |= {
            "meta_step": best["step"] if best else step, "checkpoint": "best" if best else "last", "last_step": step,
        }  # fmt: skip
        if best:
            result.details["settings"]["best"] = best
        result.details["encoding"] = store.encoding
        result.details["warnings"] = [*signs(read(run_dir)), *(warnings or []), *result.details["warnings"]]
        for epsilon in privacy.spent(config, store, step).values():
            result.details["privacy"] = privacy.guarantee(config, epsilon)
            say(privacy.sentence(result.details["privacy"]))
        arrived = regret(run_dir)
        if arrived is not None:
            result.details["arrivals"] = arrived
            say(sentence(arrived))
        result.save(run_dir)
