"""Inner learning rates by step, layer and parameter, constant or learnt, and their schedule over the inner steps.

Learnt rates are meta-parameters (Meta-SGD, arXiv 1707.09835; MAML++, arXiv 1810.09502, section 4). They are held as
logarithms, so that a rate stays positive and an outer step changes it by a factor, whatever its size.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from distmeta.inner import InnerLoop

if TYPE_CHECKING:
    from distmeta.config import InnerConfig

PREFIX = "log_lr"

LearningRates = float | Tensor | dict[str, Tensor]


def initial_log_rates(config: InnerConfig, adapted: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Meta-parameters for the inner learning rates, by name; empty when they are not learnt.

    scalar: one, []. per_step: [steps]. per_layer: one for each adapted tensor, []. per_layer_step: [steps] for each.
    per_parameter: one for each adapted number, in its tensor's shape.
    """
    start = math.log(config.lr)
    if config.learn_lr == "scalar":
        return {PREFIX: torch.tensor(start)}
    if config.learn_lr == "per_step":
        return {PREFIX: torch.full((config.steps,), start)}
    if config.learn_lr == "per_layer":
        return {f"{PREFIX}.{name}": torch.tensor(start) for name in adapted}
    if config.learn_lr == "per_layer_step":
        return {f"{PREFIX}.{name}": torch.full((config.steps,), start) for name in adapted}
    if config.learn_lr == "per_parameter":
        return {f"{PREFIX}.{name}": torch.full_like(value, start) for name, value in adapted.items()}
    return {}


def schedule(config: InnerConfig, steps: int) -> Tensor | None:
    """Factors of the rate in each of `steps` inner steps, [steps]; those after `inner.steps` are the last one's."""
    if config.schedule == "constant":
        return None
    k = torch.arange(steps).clamp(max=max(0, config.steps - 1)) / max(1, config.steps)
    return {
        "linear": 1 - k,
        "cosine": 0.5 * (1 + torch.cos(math.pi * k)),
        "warmup": k + 1 / max(1, config.steps),
    }[config.schedule]


def warm(config: InnerConfig, progress: float) -> float:
    """The factor of the inner rates when the run is so far, from 0 to 1: from a tenth up to 1 over `inner.lr_warmup`.

    As in TTT-E2E (arXiv 2512.23675), over meta-steps: early meta-gradients go through steps that hardly move.
    """
    return 1.0 if progress >= config.lr_warmup else 0.1 + 0.9 * progress / config.lr_warmup


def rates_of(
    config: InnerConfig, log_rates: Mapping[str, Tensor], steps: int | None = None, factor: float = 1.0
) -> LearningRates:
    """What `InnerLoop(lr=...)` takes for `steps` steps, differentiable with respect to the learnt logarithms.

    With more steps than there are rates, the last rate is repeated. factor: times all of them.
    """
    steps = config.steps if steps is None else steps
    factors = schedule(config, steps)
    if factor != 1.0:
        factors = torch.full((steps,), factor) if factors is None else factors * factor

    def by_step(rate: Tensor) -> Tensor:
        if rate.ndim and len(rate) != steps:
            rate = torch.cat([rate, rate[-1:].expand(max(0, steps - len(rate)))])[:steps]
        return rate if factors is None else rate * factors.to(rate)

    if not log_rates:
        return config.lr if factors is None else config.lr * factors
    if config.learn_lr in ("scalar", "per_step"):
        return by_step(log_rates[PREFIX].exp())
    named = {name.removeprefix(f"{PREFIX}."): value.exp() for name, value in log_rates.items()}
    if config.learn_lr == "per_parameter":
        return named if factor == 1.0 else {name: rate * factor for name, rate in named.items()}
    return {name: by_step(rate) for name, rate in named.items()}


def log_rate_gradients(
    config: InnerConfig, log_rates: Mapping[str, Tensor], lr_grads: Tensor | Mapping[str, Tensor] | None,
    factor: float = 1.0,
) -> dict[str, Tensor]:  # fmt: skip
    """Chain rule from `MetaGradient.lr_grads` to the logarithms; a leading task axis is summed.

    factor: as `rates_of`.
    """
    if not log_rates:
        return {}
    with torch.enable_grad():
        leaves = {name: value.detach().requires_grad_() for name, value in log_rates.items()}
        rates = rates_of(config, leaves, factor=factor)
    outputs = list(rates.values()) if isinstance(rates, dict) else [rates]
    gradients = [lr_grads[name] for name in rates] if isinstance(rates, dict) else [lr_grads]  # type: ignore[index]
    cotangents = [g.sum(0) if g.dim() > rate.dim() else g for g, rate in zip(gradients, outputs, strict=True)]  # type: ignore
    return dict(zip(leaves, torch.autograd.grad(outputs, list(leaves.values()), cotangents), strict=True))  # type: ignore


def inner_loop(
    config: InnerConfig,
    log_rates: Mapping[str, Tensor],
    steps: int | None = None,
    seed: int | None = None,
    budget_mb: float | None = None,
    factor: float = 1.0,
) -> InnerLoop:
    """The inner loop of a configuration, with its own number of steps or another.

    budget_mb: for graphs that an exact order keeps, where the configuration leaves it to the device. factor: of the
    rates, by `warm`.
    """
    steps = config.steps if steps is None else steps
    with torch.no_grad():
        lr = rates_of(config, log_rates, steps, factor)
    return InnerLoop(
        steps=steps, lr=lr, optimizer=config.optimizer, momentum=config.momentum, betas=config.betas,
        # what a layer that is run again keeps of a step is small, and saves a quarter of the operations
        memory="auto" if config.memory == "layers" else config.memory, seed=seed,
        budget_mb=config.budget_mb or budget_mb or InnerLoop.budget_mb,
        proximal=config.proximal, solver=config.solver, cg_steps=config.cg_steps,
        clip=config.clip, clip_norm=config.clip_norm, adam_root=config.adam_root, snapshots=config.snapshots,
        # which of the two a bias means that has as many numbers as there are steps
        lr_per="parameter" if config.learn_lr == "per_parameter" else "step",
    )  # fmt: skip


def mean_rate(config: InnerConfig, log_rates: Mapping[str, Tensor]) -> float:
    """One number for logs: the (mean) inner learning rate, before the schedule."""
    if not log_rates:
        return config.lr
    return float(torch.cat([value.detach().exp().flatten() for value in log_rates.values()]).mean())
