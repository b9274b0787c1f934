"""How to fine-tune a model on a support set: the optimizer, rate and number of steps that are best on other tasks.

A baseline that is not the best one flatters the method. So the recipe's own inner optimizer is tried at three rates,
and Adam at two, each as one curve over the number of steps; the best two are then tried on more episodes. What that
costs is bounded by what the training cost.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from distmeta.algorithms.rates import inner_loop
from distmeta.config import Config
from distmeta.config.algorithms import ALGORITHMS, load_algorithm
from distmeta.config.rates import INNER_ADAM, trained
from distmeta.evaluation.scoring import WORST_LOSS, Scored, Scoring
from distmeta.inner import InnerLoop

LENGTH = 4  # times the inner steps: how many are tried at most
FEWEST = 3  # steps are tried at least, and inner steps are taken to be where there are fewer
FACTORS = (0.3, 1.0, 3.0)  # of inner.lr
ADAM_FACTORS = (1.0, 5.0)  # of the rate that suits Adam for what is adapted
# Of a policy, which takes few steps: a rate that is half as good is not made up for by more of them.
FINE = tuple(2 ** (k / 2) for k in range(-3, 4))
ADAM_FINE = tuple(2 ** (k / 2) for k in range(5))
ADAM_RANDOM = 1e-2  # where nothing is pretrained
FIRST = 8  # episodes that every candidate is tried on, at most
FINALISTS, MORE = 2, 2  # how many are tried on how many times as many more
RUNS = len(FACTORS) + len(ADAM_FACTORS) + FINALISTS * MORE  # times as many episodes in all

CurveOf = Callable[[Scoring, int, int], Sequence[Any]]  # scores on `count` episodes from `first` on, by steps


@dataclass(frozen=True)
class Effort:
    """Most steps that are tried, and the episodes that every candidate is tried on."""

    steps: int
    episodes: int


def effort_of(config: Config, steps: int) -> Effort:
    """What fine-tuning may take, so that two baselines, each with its choice, cost no more than the training.

    Counted in examples whose gradient is taken; a second derivative counts as two more. steps: inner steps of the
    evaluation, fewer than which, or than FEWEST, are never allowed; of a policy as many, each of which draws rollouts
    that count as its data.
    """
    name, task, outer = config.algorithm, config.task, config.outer
    order = 3 if name in ALGORITHMS and load_algorithm(name).ORDER == "exact" else 1
    reads = task.shots if config.model.head == "context" else 0
    training = outer.steps * outer.meta_batch_size * (order * config.inner.steps * task.shots + reads + task.queries)
    least = max(steps, FEWEST)
    budget = training // config.of_evaluation().task.shots  # steps of one episode
    longest = max(least, min(LENGTH * least, budget // (3 * config.eval.episodes)))
    if task.family == "policy":
        longest = max(1, steps)
    return Effort(longest, max(2, min(FIRST, budget // (6 * RUNS * longest))))


def candidates(config: Config, steps: int) -> list[InnerLoop]:
    """The recipe's inner optimizer and Adam, each at some rates."""
    inner = config.inner.model_copy(update={"learn_lr": "none", "schedule": "constant"})
    constant = inner_loop(inner, {}, steps, config.noise_seed)
    adam = ADAM_RANDOM
    if config.model.pretrained is not None:
        adam = INNER_ADAM[trained(config.inner.adapt, base=False)]
    fine = config.task.family == "policy"
    of_recipe = [replace(constant, lr=config.inner.lr * factor) for factor in (FINE if fine else FACTORS)]
    of_adam = [
        replace(constant, optimizer="adam", lr=adam * factor) for factor in (ADAM_FINE if fine else ADAM_FACTORS)
    ]
    unlike = {(loop.optimizer, f"{loop.lr:.3g}"): loop for loop in of_recipe + of_adam}
    return list(unlike.values())


def best_way(
    scoring: Scoring, effort: Effort, least: int, curve_of: CurveOf | None
) -> tuple[InnerLoop, dict[str, Any]]:
    """The loop that is best by `merit`, in `least` steps or more, and what was tried.

    curve_of: None where there are no other tasks; then it is the recipe's own, in as many steps as are allowed.
    """
    loops = candidates(scoring.config, effort.steps)
    if curve_of is None:
        recipe = next(loop for loop in loops if loop.lr == scoring.config.inner.lr)
        return recipe, {"optimizer": recipe.optimizer, "lr": recipe.lr, "steps": recipe.steps, "episodes": 0}
    count = effort.episodes
    scored = [list(curve_of(replace(scoring, loop=loop), 0, count)) for loop in loops]
    order = sorted(range(len(loops)), key=lambda i: best(scored[i], least)[0], reverse=True)[:FINALISTS]
    for i in order:
        scored[i] += curve_of(replace(scoring, loop=loops[i]), count, MORE * count)
    chosen = max(order, key=lambda i: best(scored[i], least)[0])
    tried = [
        {"optimizer": loop.optimizer, "lr": loop.lr, "steps": step, "loss": -merit[1], "episodes": len(of)}
        | ({"accuracy": merit[0]} if of and isinstance(of[0], Scored) else {})
        for loop, of in zip(loops, scored, strict=True)
        for merit, step in [best(of, least)]
    ]
    loop = replace(loops[chosen], steps=best(scored[chosen], least)[1])
    episodes = sum(map(len, scored))
    about = {
        "optimizer": loop.optimizer, "lr": loop.lr, "steps": loop.steps, "episodes": len(scored[chosen]),
        "most_steps": effort.steps, "tried": tried, "cost": {"inner_steps": episodes * effort.steps},
    }  # fmt: skip
    return loop, about


def best(scored: Sequence[Any], least: int) -> tuple[tuple[float, float], int]:
    """The merit at the best number of steps, and that number; the smallest of those that are equally good."""
    merits = merit(scored)
    step = max(range(least, len(merits)), key=merits.__getitem__, default=least)
    return (merits[step], step) if merits else ((0.0, -WORST_LOSS), least)


def merit(scored: Sequence[Any]) -> list[tuple[float, float]]:
    """After each number of steps what a way is chosen by: accuracy, then minus the loss; of words the loss alone."""
    if not scored:
        return []
    losses = np.stack([one.loss for one in scored])
    finite = np.isfinite(losses)
    worst = max(WORST_LOSS, losses[finite].max(initial=0.0))  # an error may be larger than any cross-entropy
    loss = np.where(finite, losses, worst).mean(0)
    if not isinstance(scored[0], Scored):
        return [(0.0, -x) for x in loss.tolist()]
    accuracy = np.stack([(one.predicted == one.labels).mean(1) for one in scored]).mean(0)
    return list(zip(accuracy.tolist(), (-loss).tolist(), strict=True))
