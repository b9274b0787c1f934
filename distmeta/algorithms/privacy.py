"""Task-level differential privacy of the outer loop: clipped meta-gradients, Gaussian noise, and what they guarantee.

DP-SGD (Abadi et al. 2016, arXiv 1607.00133) with a task in the place of an example (Li et al. 2020, arXiv 1909.05830,
where the meta-learner is not trusted by the users whose tasks they are). Each episode's meta-gradient, learnt inner
rates among it, is clipped to norm C; noise of deviation sigma C is added to the sum once; the sum is divided by
outer.meta_batch_size. What follows (DeepSpeed's own clipping, Adam, weight decay) makes use of nothing else.

What is guaranteed. (epsilon, delta) for two collections of meta-train tasks of which one has a task more, and for all
that is made of the meta-parameters: exports of any of a run's checkpoints (the last one's epsilon is that of all
together), and scores on other tasks. The number of tasks, the labels and all settings are taken as known, but for
run.seed, which makes the noise: whoever has it can take the noise off. So the run's own directory (config.yaml,
checkpoints, the losses of metrics.jsonl, the baselines) stays private, and an export is made without the seed.
Tasks for meta-validation and -test are others: what is chosen by them (outer.until, plateau) tells of them as it does
without noise. A run that stops since its loss is no number tells that much of its tasks. The noise is torch's, in
double precision, from a generator that is no cryptographic one; attacks on floating point (Mironov 2012) are left
aside.

Sampling. Each of the B episodes of a meta-step is of a task drawn uniformly, with replacement, from N. So a task may be
in a meta-batch k times, k being Binomial(B, 1/N), and as in k places it stands where another task would be without it,
the sum moves by 2 k C at most. A mixture of Gaussians with means 2 k C dominates every such mixture of vectors, since
of all directions the same one for every k is the worst (Kahane's inequality for convex functions of log-normal sums;
Choquette-Choo et al. 2024, arXiv 2310.15526, section 4). dp-accounting composes these privacy losses over meta-steps,
rounded upward.
"""

from __future__ import annotations

from functools import cache
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from distmeta.config import Config, PrivacyConfig
from distmeta.errors import InputError

if TYPE_CHECKING:
    from distmeta.tasks.store import TaskStore

Params = dict[str, Tensor]

STREAM = 0x50524956  # of the noise; dropout's is by (seed, step, index), which are far below
GRID = 0.01  # of privacy losses, which are rounded upward; finer ones lower epsilon in the fourth digit
MOST = 100_000  # points of a grid, about: where noise is as good as none, and losses large, it is a coarser one


def clipped(grads: Params, most: float) -> Params:
    """One task's meta-gradient, scaled to a norm over all of it of at most `most`; zero where it is not finite."""
    norm = float(torch.stack([g.double().square().sum() for g in grads.values()]).sum().sqrt())
    if not np.isfinite(norm):
        return {name: torch.zeros_like(g) for name, g in grads.items()}
    within = most * (1 - 1e-6)  # room for rounding
    return {name: g * (within / norm) for name, g in grads.items()} if norm > within else grads


def noise(shapes: dict[str, torch.Size], deviation: float, seed: int, step: int) -> Params:
    """Independent normal numbers of a standard deviation, float64 on the CPU, of (seed, step) alone."""
    words = np.random.SeedSequence([seed, STREAM, step]).generate_state(1, np.uint64)
    generator = torch.Generator().manual_seed(int(words[0] >> np.uint64(1)))
    return {
        name: torch.randn(shapes[name], generator=generator, dtype=torch.float64) * deviation for name in sorted(shapes)
    }


def with_noise(grads: Params, config: Config, step: int, rank: int) -> Params:
    """A rank's sum of clipped meta-gradients, on rank 0 with the noise of the sum over all ranks."""
    privacy = config.outer.privacy
    if privacy is None or rank > 0:
        return grads
    shapes = {name: g.shape for name, g in grads.items()}
    drawn = noise(shapes, privacy.noise * privacy.clip, config.run.seed, step)
    return {name: (g.double() + drawn[name].to(g.device)).to(g.dtype) for name, g in grads.items()}


@cache
def epsilon(privacy: PrivacyConfig, tasks: int, meta_batch_size: int, steps: int) -> float:
    """What `steps` meta-steps on `tasks` meta-train tasks guarantee at `privacy.delta`. Raises InputError."""
    try:
        from dp_accounting.pld import PLDAccountant
    except ImportError:
        raise InputError("outer.privacy needs the package dp-accounting: pip install 'distmeta[privacy]'") from None
    event = meta_step(privacy, tasks, meta_batch_size)
    most = max(shift for shift, chance in zip(event.sensitivities, event.sampling_probs) if chance > 1e-22)
    grid = max(GRID, (most / privacy.noise) ** 2 / MOST)
    accountant = PLDAccountant(value_discretization_interval=grid)
    accountant.compose(event, steps)
    return float(accountant.get_epsilon(privacy.delta))


def meta_step(privacy: PrivacyConfig, tasks: int, meta_batch_size: int) -> Any:
    """One meta-step as dp-accounting's event, in units of the clipping norm."""
    from dp_accounting.dp_event import MixtureOfGaussiansDpEvent
    from scipy.stats import binom

    times = np.arange(meta_batch_size + 1)  # that a task is in the meta-batch
    chances = binom.pmf(times, meta_batch_size, 1 / tasks)
    return MixtureOfGaussiansDpEvent(privacy.noise, (2.0 * times).tolist(), chances.tolist())


def spent(config: Config, store: TaskStore, steps: int) -> dict[str, float]:
    """For metrics.jsonl: privacy_epsilon after that many meta-steps; nothing where privacy is off."""
    privacy = config.outer.privacy
    if privacy is None:
        return {}
    return {"privacy_epsilon": epsilon(privacy, len(store.groups["train"].ids), config.outer.meta_batch_size, steps)}


def guarantee(config: Config, epsilon: float) -> dict[str, Any]:
    """What an epsilon that was found means, for evaluation_details.json and the model card; privacy must be on."""
    assert config.outer.privacy is not None
    return {"epsilon": epsilon, **config.outer.privacy.model_dump(), "neighbours": "one meta-train task more or less"}


def sentence(record: dict[str, Any]) -> str:
    """`guarantee` in a line."""
    return (
        f"({record['epsilon']:.3g}, {record['delta']:g})-differentially private for {record['neighbours']}: "
        f"meta-gradients clipped to {record['clip']:g}, noise {record['noise']:g} times that"
    )
