"""Online meta-learning: each task that arrives is scored before it is learnt from, and the scores are summed up."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from distmeta.algorithms.rates import inner_loop
from distmeta.evaluation.evaluate import scorer
from distmeta.evaluation.fine_tuning import LENGTH
from distmeta.evaluation.scoring import Scoring, curves, split_meta
from distmeta.learner.group import score_in_group
from distmeta.learner.ranks import Rank, episodes_of_rank, gather
from distmeta.models.task_model import TaskModel
from distmeta.runs.journal import records
from distmeta.tasks.arrivals import arriving
from distmeta.tasks.episodes.episode import sample_episode
from distmeta.tasks.passages import readable
from distmeta.tasks.store import TaskStore

Params = dict[str, Tensor]


def score_arrivals(rank: Rank, model: TaskModel, meta: Params, store: TaskStore, step: int) -> list[dict[str, Any]]:
    """Each task that arrives with this meta-step, scored before it is learnt from; the same on every rank.

    online: adapted from the meta-parameters as they are. from_scratch: from the initial weights, in LENGTH times the
    steps; a document is read in as many as it has chunks. Means over `eval.validation_episodes` episodes of the task.
    """
    config = rank.config
    size, out = config.outer.meta_batch_size, []
    steps = config.inner.steps if config.eval.steps is None else config.eval.steps
    longer = 1 if config.task.family == "document" else LENGTH
    tasks = readable(store, store.groups["train"], config.task).ids if config.task.arrive_every else ()
    for k in arriving(config.task, len(tasks), (step - 1) * size, step * size):
        share = episodes_of_rank(config, config.eval.validation_episodes, rank.number, rank.world)
        episodes = [sample_episode(store, config.task, config.run.seed, "train", i, only=k) for i in share]
        scores: dict[str, Any] = {"task": store.tasks[tasks[k]]}
        for name, (fast, shared, rates), count in (
            ("online", split_meta(model, meta), steps),
            ("from_scratch", (model.fast, model.shared, {}), max(1, steps) * longer),
        ):
            loop = inner_loop(config.inner, rates, count, config.noise_seed)
            scoring = Scoring(model, fast, shared, loop, config, store.pad_id, rank.device)
            if model.fast_shards is None:
                scored = gather(scorer(config, store)(scoring, episodes))
            else:
                scored = score_in_group(scoring, episodes)
            scores[name] = {metric: curve["mean"][-1] for metric, curve in curves(scored).items()}
        out.append(scores)
    return out


def sentence(arrived: dict[str, Any]) -> str:
    """`regret`'s result in a line."""
    metric = next(iter(arrived["online"]))
    online, scratch = (float(np.mean(arrived[name][metric])) for name in ("online", "from_scratch"))
    return (
        f"{len(arrived['tasks'])} tasks, each scored on its arrival: mean {metric} {online:.3f}, from scratch "
        f"{scratch:.3f}; cumulative loss {arrived['cumulative_regret'][-1]:+.2f} against from scratch"
    )


def regret(run_dir: Path) -> dict[str, Any] | None:
    """What the tasks that arrived were scored, in order, and the cumulative losses; None where none arrived."""
    tasks = [task for record in records(run_dir) for task in record.get("arrivals", [])]
    if not tasks:
        return None
    out: dict[str, Any] = {"tasks": [task["task"] for task in tasks]}
    metric = "accuracy" if "accuracy" in tasks[0]["online"] else "loss"
    for name in ("online", "from_scratch"):
        out[name] = {
            metric: [task[name][metric] for task in tasks],
            "cumulative_loss": np.cumsum([task[name]["loss"] for task in tasks]).tolist(),
        }
    out["cumulative_regret"] = (
        np.array(out["online"]["cumulative_loss"]) - out["from_scratch"]["cumulative_loss"]
    ).tolist()
    return out
