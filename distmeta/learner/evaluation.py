"""What the learners score: meta-validations on the way, and the run's evaluation once the loop has ended."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from torch import Tensor

from distmeta import health
from distmeta.algorithms import data_weights, privacy
from distmeta.algorithms.rates import inner_loop
from distmeta.evaluation.evaluate import evaluate_methods, scorer
from distmeta.evaluation.scoring import Scoring, curves, split_meta
from distmeta.learner.arrivals import regret, sentence
from distmeta.learner.best import Best
from distmeta.learner.group import score_in_group
from distmeta.learner.ranks import Rank, episodes_of_rank, gather
from distmeta.models.task_model import TaskModel
from distmeta.runs import checkpoint as checkpoints
from distmeta.runs.interrupt import EVALUATING, LEAVE
from distmeta.tasks.episodes.episode import sample_episode
from distmeta.tasks.store import TaskStore
from distmeta.tasks.summary import read, signs

Params = dict[str, Tensor]
Validation = tuple[dict[str, float], dict[str, Any], dict[str, float]]  # means, curves, loss by data source


def validate(
    rank: Rank, model: TaskModel, meta: Params, store: TaskStore, numbers: Sequence[int] | None = None
) -> Validation:
    """Mean metrics over the meta-validation episodes after adaptation, their curves, and the mean loss by data source.

    The same on every rank. numbers: the ranks whose shares are scored here, one after another; None: this one's.
    """
    config = rank.config.of_evaluation()
    fast, shared, rates = split_meta(model, meta)
    total, seed = config.eval.validation_episodes, config.run.seed
    shares = [episodes_of_rank(config, total, number, rank.world) for number in numbers or [rank.number]]
    parts = [[sample_episode(store, config.task, seed, "validation", i) for i in share] for share in shares]
    loop = inner_loop(config.inner, rates, config.eval.steps, config.noise_seed)
    scoring = Scoring(model, fast, shared, loop, config, store.pad_id, rank.device)
    with model.of_ways(config.ways):
        if model.fast_shards is None:
            scored = gather([one for part in parts for one in scorer(config, store)(scoring, part)])
        else:
            scored = score_in_group(scoring, parts[0])
    by_step = curves(scored)
    by_source: dict[str, list[float]] = {}
    for one in scored if config.data.sources else ():
        by_source.setdefault(source_of(one, config.task.family), []).append(float(one.loss[-1]))
    means = {name: curve["mean"][-1] for name, curve in by_step.items()}
    return means, by_step, {name: float(np.mean(losses)) for name, losses in sorted(by_source.items())}


def source_of(scored: Any, family: str) -> str:
    """The data source that an episode is from: names of tasks, of documents and of classes begin with it."""
    name = {"classes": "label_names", "document": "document"}.get(family, "task")
    of: str | tuple[str, ...] = getattr(scored, name)
    return (of if isinstance(of, str) else of[0]).split("/")[0]


def finish(
    rank: Rank, model: TaskModel, meta: Params, store: TaskStore, step: int, best: Best | None,
    warnings: list[health.Sign],
) -> None:  # fmt: skip
    """Evaluate the best checkpoint, or the meta-parameters of the last meta-step `step`; rank 0 writes the result."""
    chosen = checkpoints.best_of(rank.run_dir)
    if chosen is not None and checkpoints.step_of(chosen) != step:
        rank.say(
            f"the best meta-validation was at meta-step {checkpoints.step_of(chosen)}, whose checkpoint is evaluated"
        )
        saved = checkpoints.load(chosen, keep=model.fast_shards.keep if model.fast_shards else None).meta
        meta = {name: saved[name].to(value.device) for name, value in meta.items()}
    evaluate_run(rank, model, meta, store, step, best if chosen else None, warnings)


def evaluate_run(
    rank: Rank, model: TaskModel, meta: Params, store: TaskStore, step: int, best: Best | None,
    warnings: list[health.Sign],
) -> None:  # fmt: skip
    """Evaluate on meta-test episodes, divided over the ranks; rank 0 writes json, with the meta-step that it is of.

    step: the run's last. best: the meta-validation whose checkpoint `meta` is; None where it is the last one's.
    """
    config, run_dir, device, say = rank.config, rank.run_dir, rank.device, rank.say
    if rank.number == 0:
        (run_dir / LEAVE).unlink(missing_ok=True)  # it came with the last meta-step
        (run_dir / EVALUATING).touch()
    if model.fast_shards is None:
        result = evaluate_methods(
            model, meta, store, config, device, rank=rank.number, world=rank.world, gather=gather, say=say
        )
    else:
        result = evaluate_methods(model, meta, store, config, device, score=score_in_group, say=say)
    if rank.number > 0:
        return
    about = result.details["settings"]
    about |= {"meta_step": best["step"] if best else step, "checkpoint": "best" if best else "last", "last_step": step}
    if best:
        about["best"] = best
    result.details["encoding"] = store.encoding
    result.details["warnings"] = [*signs(read(run_dir)), *warnings, *result.details["warnings"]]
    for epsilon in privacy.spent(config, store, step).values():
        result.details["privacy"] = privacy.guarantee(config, epsilon)
        say(privacy.sentence(result.details["privacy"]))
    if data_weights.NAME in meta:
        result.details["data_weights"] = data_weights.described(config, store, meta[data_weights.NAME])
        say(data_weights.sentence(result.details["data_weights"]))
    arrived = regret(run_dir)
    if arrived is not None:
        result.details["arrivals"] = arrived
        say(sentence(arrived))
    result.save(run_dir)
