"""Meta-validation beside training: a process of its own scores a meta-step's meta-parameters while the ranks go on.

What it finds takes effect `eval.beside` meta-steps later, where the ranks wait for it, so that a run does not depend on
the clock. The meta-step is saved as it is handed over, and its checkpoint is kept until its score is in: a run that was
cut off in between has it scored again.

              consumes                              produces               waits for
    rank 0    -                                     meta-parameters        the scores, eval.beside meta-steps later
    process   meta-parameters, its own episodes     scores                 -
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from distmeta.config import Config
from distmeta.learner.evaluation import Validation, validate
from distmeta.learner.ranks import Rank, gather
from distmeta.learner.state import Reached
from distmeta.models.build import build_model
from distmeta.models.task_model import TaskModel
from distmeta.runs import checkpoint as checkpoints
from distmeta.tasks.store import TaskStore, open_store

Params = dict[str, Tensor]
Ask = Callable[
    [Params], Callable[[], Validation]
]  # hands meta-parameters over; what is returned waits for their scores


class Validator:
    """The model and the episodes of a run's meta-validations."""

    def __init__(self, config: Config, run_dir: Path, store_path: Path, world: int) -> None:
        device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        self._rank = Rank(0, world, device, config, run_dir, lambda line: None)
        self._store = store = open_store(store_path)
        classes = config.ways or len(store.labels)
        model = build_model(config, store.vocab_size, store.pad_id, classes, labels=len(store.labels))
        self._model = model.to(device)

    def scores(self, meta: Params) -> Validation:
        """What the ranks themselves would find of `meta`: each one's share as it would score it."""
        meta = {name: value.to(self._rank.device) for name, value in meta.items()}
        return validate(self._rank, self._model, meta, self._store, range(self._rank.world))


def in_process(*arguments: Any) -> Ask:
    """Without a process of its own: the scores are made when they are waited for."""
    validator = Validator(*arguments)
    return lambda meta: functools.partial(validator.scores, meta)


def as_actor(config: Config, *arguments: Any) -> Ask:
    """In an actor with the resources of a rank, which Ray starts again if it dies, and which ends with this process."""
    import ray

    class Process(Validator):
        def __init__(self, *arguments: Any) -> None:
            if not torch.cuda.is_available():
                torch.set_num_threads(max(1, int(config.cluster.cpus_per_worker)))
            super().__init__(config, *arguments)

    c = config.cluster
    gpus = float(torch.cuda.is_available()) if c.gpus_per_worker is None else c.gpus_per_worker
    remote: Any = ray.remote(Process)
    actor = remote.options(
        num_cpus=c.cpus_per_worker, num_gpus=gpus, max_restarts=-1, max_task_retries=-1, scheduling_strategy="SPREAD"
    ).remote(*arguments)
    return lambda meta: functools.partial(ray.get, actor.scores.remote(meta), timeout=config.run.timeout_s)


class Beside:
    """The meta-validation under way, of which there is one at most; all ranks call its methods together."""

    def __init__(self, rank: Rank, reached: Reached, ask: Callable[..., Ask], store_path: Path) -> None:
        self._rank, self._reached = rank, reached
        config, run_dir = rank.config, rank.run_dir
        self._ask = ask(config, run_dir, store_path, rank.world) if rank.number == 0 else None
        if reached.pending is not None and rank.number == 0:
            path = run_dir / "checkpoints" / f"step-{reached.pending:06d}"
            self.begin(reached.pending, checkpoints.load(path).meta)

    def begin(self, step: int, meta: Params) -> None:
        """Hand over the meta-parameters of `step`."""
        self._reached.pending = step
        if self._ask is not None:
            self._wait = self._ask({name: value.detach().to("cpu", copy=True) for name, value in meta.items()})

    def due(self, step: int) -> int | None:
        """The meta-step whose scores take effect at `step`, if there is one; at the last but one at the latest, so that
        there are not two at the last."""
        past, last = self._reached.pending, self._rank.config.outer.steps
        if past is None or step < min(past + self._rank.config.eval.beside, last - (past < last)):
            return None
        return past

    def scores(self) -> Validation:
        """The scores of the meta-step that is due, the same on every rank; waits for them."""
        found: list[Validation] = gather([self._wait()] if self._rank.number == 0 else [])
        self._reached.pending = None
        return found[0]


class Validations:
    """The run's meta-validations, in line or beside training; all ranks call `at` together.

    every: meta-steps between two of them; 0: none.
    """

    def __init__(self, rank: Rank, reached: Reached, ask: Callable[..., Ask], store_path: Path, every: int) -> None:
        self._rank, self._reached, self._every = rank, reached, every
        beside = every > 0 and (rank.config.eval.beside > 0 or reached.pending is not None)
        self._beside = Beside(rank, reached, ask, store_path) if beside else None

    def at(self, step: int, model: TaskModel, meta: Params, store: TaskStore) -> tuple[dict[str, Any], bool]:
        """What the record of `step` has of the scores that take effect with it, and whether it has to be saved."""
        config, must_save = self._rank.config, False
        past = step if self._every and (step % self._every == 0 or step == config.outer.steps) else None
        if self._beside is not None:
            if past is not None:
                self._beside.begin(step, meta)
                must_save = True
            past = self._beside.due(step)
        if past is None:
            return {}, must_save
        scores = self._beside.scores() if self._beside else validate(self._rank, model, meta, store)
        metrics, curves, by_source = scores
        is_best = self._reached.validated(config, past, metrics, by_source)
        about = {"validated": past} if past != step else {}
        return {"validation": metrics, "validation_curves": curves} | about, must_save or (is_best and past == step)
