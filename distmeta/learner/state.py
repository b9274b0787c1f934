"""How far a run has come: begun at its newest whole checkpoint, or at the initial values, and saved as it goes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from distmeta.algorithms import data_weights, subgroups
from distmeta.algorithms.rates import initial_log_rates
from distmeta.algorithms.schedule import schedule_of
from distmeta.config import Config
from distmeta.learner.best import Best, better, comparable, is_over, is_reached, still_kept
from distmeta.learner.engine import MetaEngine
from distmeta.learner.group import GroupEngine
from distmeta.learner.ranks import Rank
from distmeta.learner.saver import Saver
from distmeta.models.build import check_format
from distmeta.models.fast_shards import FastShards
from distmeta.models.sharding import persistence_threshold
from distmeta.models.task_model import TaskModel
from distmeta.runs import checkpoint as checkpoints
from distmeta.tasks.store import TaskStore

Params = dict[str, Tensor]


@dataclass
class Reached:
    """How far a run has come, beside its engine; what a checkpoint's state.json has of it.

    skipped: of the episodes seen, those whose loss or meta-gradient was not finite. stopped: by outer.until or
    outer.stop_after. record: the step's. validations: {step, loss, sources}, in order. subgroup_weights: q of
    distmeta.algorithms.subgroups; {} without outer.worst_subgroup. pending: the meta-step whose meta-validation
    is under way beside training.
    """

    step: int = 0
    tasks_seen: int = 0
    skipped: int = 0
    stopped: bool = False
    record: dict[str, Any] | None = None
    validations: list[dict[str, Any]] = field(default_factory=list)
    best: Best | None = None
    subgroup_weights: dict[str, float] = field(default_factory=dict)
    pending: int | None = None

    def counts(self, store: TaskStore) -> list[float]:
        """What a row of each subgroup counts in the next meta-step; [] without outer.worst_subgroup."""
        return subgroups.factors(self.subgroup_weights, store) if self.subgroup_weights else []

    def follow_subgroups(self, sums: list[float], store: TaskStore) -> list[float]:
        """Take in what the meta-step's sums (`meta_gradients`) say of subgroups; the others."""
        if not self.subgroup_weights:
            return sums
        known = len(sums) - 2 * len(store.subgroups)
        self.subgroup_weights = subgroups.raised(self.subgroup_weights, sums[known:], store)
        return sums[:known]

    def validated(self, config: Config, step: int, metrics: Mapping[str, float], sources: dict[str, float]) -> bool:
        """Take in a meta-validation, and whether it ends the run; True where it is the best so far."""
        self.validations.append({"step": step, "loss": metrics["loss"], "sources": sources})
        new = better(config, metrics, step, self.best)
        self.best = new or self.best
        self.stopped = is_reached(config.outer.until, metrics) or is_over(config, self.validations, self.best)
        return new is not None


def start(rank: Rank, model: TaskModel, has_best: bool, store: TaskStore) -> tuple[MetaEngine, Reached]:
    """The engine at the newest whole checkpoint, or at the initial values, and what was reached so far.

    has_best: whether there are meta-validations, of which one is the best.
    """
    engine, reached = _restored(rank, model, store)
    if rank.config.outer.worst_subgroup:
        reached.subgroup_weights = reached.subgroup_weights or subgroups.uniform(store)
    reached.best = reached.best if has_best else None
    if rank.number == 0:  # a group that died between writing a checkpoint and this left one too many
        checkpoints.write_best(rank.run_dir, reached.best)
        checkpoints.prune(rank.run_dir, rank.config.run.keep, reached.step, reached.pending)
    return engine, reached


def _restored(rank: Rank, model: TaskModel, store: TaskStore) -> tuple[MetaEngine, Reached]:
    config, device, say = rank.config, rank.device, rank.say
    values = initial_values(config, model) | data_weights.initial(config, store)
    if config.outer.optimizer.startswith("cpu_"):
        say(f"outer.optimizer = {config.outer.optimizer}: DeepSpeed compiles it at its first use here, for minutes")
    newest = checkpoints.newest_whole(rank.run_dir, say)
    if newest is None:
        return make_engine(values, config, model, device), Reached()
    saved = checkpoints.load(newest, optimizer=True, keep=model.fast_shards.keep if model.fast_shards else None)
    check_format(newest, saved.format, model)
    engine = make_engine({name: saved.meta[name] for name in values}, config, model, device)
    engine.load_optimizer_state(saved.optimizer, saved.step)
    say(f"continuing from {newest.name}")
    before, state = saved.config, saved.state
    if before.outer.steps != config.outer.steps and schedule_of(config)[0] in ("cosine", "linear"):
        say(
            f"outer.steps is {config.outer.steps} and was {before.outer.steps}: the outer rate follows the schedule of "
            f"{config.outer.steps} meta-steps from here on, which is another curve"
        )
    reached = Reached(**{key: state[key] for key in Reached.__dataclass_fields__ if key in state})
    if any(getattr(before.outer, key) != getattr(config.outer, key) for key in ("until", "stop_after")):
        reached.stopped = False
    reached.best = still_kept(rank.run_dir, comparable(reached.best, before, config))
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


def save(saver: Saver, config: Config, store: TaskStore, engine: MetaEngine, reached: Reached) -> None:
    """Begin to write a checkpoint; all ranks call it. The step's record is not in the journal yet."""
    state = {
        **asdict(reached), "classes": config.ways or len(store.labels), "labels": store.labels,
        "vocab_size": store.vocab_size, "pad_id": store.pad_id, "store_key": store.key,
    }  # fmt: skip
    # Copies of this rank's part only: the whole state may be larger than a rank's memory.
    parts = saver.shares({name: 3 * 4 * shape.numel() for name, shape in engine.whole_shapes.items()})
    names = parts[saver.rank] if saver.rank < len(parts) else []
    optimizer = engine.optimizer_state(names)
    values = engine.parameters(names)

    def write_part(draft: Path) -> None:
        if names:
            checkpoints.write_tensors(draft, values, optimizer, saver.rank, len(parts))

    saver.save(
        reached.step, write_part, lambda draft: checkpoints.write_rest(draft, config, state, store.tokenizer_file),
        reached.best, reached.pending,
    )  # fmt: skip
