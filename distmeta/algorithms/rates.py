"""Learnt inner learning rates as meta-parameters (Meta-SGD, arXiv 1707.09835; MAML++, arXiv 1810.09502, section 4).

They are held as logarithms, so that a rate stays positive and an outer step changes it by a factor, whatever its
size: rate = exp(log_rate), d loss / d log_rate = rate * d loss / d rate.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from torch import Tensor

from distmeta.config import InnerConfig
from distmeta.inner import InnerLoop

PREFIX = "log_lr"


def initial_log_rates(config: InnerConfig, adapted: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Meta-parameters for the inner learning rates, by name; empty when they are not learnt.

    scalar: one, []. per_step: [steps]. per_layer: one for each adapted tensor, []. per_parameter: one for each
    adapted number, in its tensor's shape.
    """
    start = math.log(config.lr)
    if config.learn_lr == "scalar":
        return {PREFIX: torch.tensor(start)}
    if config.learn_lr == "per_step":
        return {PREFIX: torch.full((config.steps,), start)}
    if config.learn_lr == "per_layer":
        return {f"{PREFIX}.{name}": torch.tensor(start) for name in adapted}
    if config.learn_lr == "per_parameter":
        return {f"{PREFIX}.{name}": torch.full_like(value, start) for name, value in adapted.items()}
    return {}


def rates_of(config: InnerConfig, log_rates: Mapping[str, Tensor]) -> float | Tensor | dict[str, Tensor]:
    """What `InnerLoop(lr=...)` takes, from the configuration or from the learnt logarithms."""
    if not log_rates:
        return config.lr
    if config.learn_lr in ("scalar", "per_step"):
        return log_rates[PREFIX].exp()
    return {name.removeprefix(f"{PREFIX}."): value.exp() for name, value in log_rates.items()}


def log_rate_gradients(
    log_rates: Mapping[str, Tensor], lr_grads: Tensor | Mapping[str, Tensor] | None
) -> dict[str, Tensor]:
    """Chain rule to the logarithms; a leading task axis of `lr_grads` is summed."""
    grads = {}
    for name, value in log_rates.items():
        g = lr_grads[name.removeprefix(f"{PREFIX}.")] if isinstance(lr_grads, Mapping) else lr_grads
        assert isinstance(g, Tensor)
        grads[name] = value.exp() * (g.sum(0) if g.dim() > value.dim() else g)
    return grads


def inner_loop(
    config: InnerConfig, log_rates: Mapping[str, Tensor], steps: int | None = None, seed: int | None = None
) -> InnerLoop:
    """The inner loop of a configuration. With more `steps` than rates per step, the last rate is repeated."""
    steps = config.steps if steps is None else steps
    lr = rates_of(config, log_rates)
    if config.learn_lr == "per_step" and isinstance(lr, Tensor) and lr.numel() != steps:
        lr = torch.cat([lr, lr[-1:].expand(max(0, steps - lr.numel()))])[:steps]
    return InnerLoop(
        steps=steps, lr=lr, optimizer=config.optimizer, momentum=config.momentum,
        memory=config.memory, budget_mb=config.budget_mb, seed=seed,
        lr_per="parameter",  # a bias of as many numbers as there are steps
    )  # fmt: skip


def mean_rate(config: InnerConfig, log_rates: Mapping[str, Tensor]) -> float:
    """One number for logs: the (mean) inner learning rate."""
    if not log_rates:
        return config.lr
    return float(torch.cat([value.detach().exp().flatten() for value in log_rates.values()]).mean())
