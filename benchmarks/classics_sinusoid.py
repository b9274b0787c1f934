"""Sinusoid regression (Finn et al. 2017, arXiv 1703.03400, section 5.1).

A task is x -> A sin(x - p) with A in [0.1, 5], p in [0, pi], x in [-5, 5]; the network 1-40-40-1 with ReLU; one inner
step at rate 0.01 in training, 25 tasks a meta-step, Adam. After it 5 points are given of each of 1,000 new tasks.

The rival is the same network trained on the pooled points of as many tasks, then fine-tuned on the same 5 points at
the step size that does best on other tasks, chosen anew for each number of steps.

Letters: T tasks, n points.
"""

from __future__ import annotations

import functools
import math
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from classics_shared import Named, Trained, figure, generator, mean_over_tasks, parameters, shown, stack, train
from torch import Tensor, nn
from torch.func import functional_call

from distmeta.inner import InnerLoop, adapt, compiled, meta_gradient

Batch = tuple[Tensor, Tensor]  # x [T, n, 1], y [T, n, 1]
RATES = (0.001, 0.003, 0.01, 0.02, 0.05, 0.1)  # of fine-tuning


def network() -> nn.Module:
    return nn.Sequential(nn.Linear(1, 40), nn.ReLU(), nn.Linear(40, 40), nn.ReLU(), nn.Linear(40, 1))


def loss(module: nn.Module, params: Named, batch: Batch) -> Tensor:
    """Mean squared error of one task."""
    return F.mse_loss(functional_call(module, params, (batch[0],)), batch[1])


def tasks(count: int, points: int, *key: object) -> Batch:
    """`points` points of each of `count` tasks; they depend on the key alone."""
    g = generator("sinusoid", *key)
    amplitude, phase = torch.rand(2, count, 1, 1, generator=g)
    x = 10 * torch.rand(count, points, 1, generator=g) - 5
    return x, (0.1 + 4.9 * amplitude) * torch.sin(x - math.pi * phase)


def split(batch: Batch, points: int) -> tuple[Batch, Batch]:
    """(support of the first `points` points, query of the others)."""
    x, y = batch
    return (x[:, :points], y[:, :points]), (x[:, points:], y[:, points:])


def meta_train(order: str, seed: int, options: Any, function: Any, file: Path) -> Trained:
    _, start = parameters(network, seed)
    loop = InnerLoop(steps=1, lr=0.01, memory="unroll")

    def gradient(params: Named, step: int) -> tuple[Named, float]:
        support, query = split(tasks(options.meta_batch, 2 * options.points, "train", seed, step), options.points)
        result = function(stack(params, options.meta_batch), support, query, loop)
        return mean_over_tasks(result.grads), float(result.loss.mean())

    return train(start, gradient, options.steps, 1e-3, file, every=5000)


def pretrain(seed: int, options: Any, file: Path) -> Trained:
    """On the points of the same tasks, pooled."""
    module, start = parameters(network, seed)

    def gradient(params: Named, step: int) -> tuple[Named, float]:
        leaves = {name: p.requires_grad_() for name, p in params.items()}
        value = loss(module, leaves, tasks(options.meta_batch, 2 * options.points, "train", seed, step))
        return dict(zip(leaves, torch.autograd.grad(value, list(leaves.values())), strict=True)), value.item()

    return train(start, gradient, options.steps, 1e-3, file, every=5000)


def errors(params: Named, lr: float, steps: int, batch: Batch, points: int = 5) -> Tensor:
    """Mean squared error after 0..steps steps on the first `points` points of each task, [T, steps + 1]."""
    module, _ = parameters(network, 0)
    support, query = split(batch, points)
    one = functools.partial(loss, module)
    result = adapt(one, stack(params, len(batch[0])), support, InnerLoop(steps=steps, lr=lr), task_axis=True,
                  trajectory=True, check=False)  # fmt: skip
    assert result.trajectory is not None
    with torch.no_grad():
        curve = torch.stack([torch.vmap(one)(fast, query) for fast in result.trajectory], 1)
    return curve.nan_to_num(nan=1e4, posinf=1e4).clamp(max=1e4)


def run(options: Any) -> dict[str, Any]:
    module, _ = parameters(network, 0)
    test = tasks(options.tasks, 5 + 100, "test")
    validation = tasks(options.tasks, 5 + 100, "validation")
    trained: dict[str, list[Trained]] = {}
    curves: dict[str, list[Tensor]] = {}
    for order in ("exact", "first_order"):
        settings: dict[str, Any] = {"order": order, "task_axis": True, "last_inner_loss": False}
        one = functools.partial(loss, module)
        function = compiled(one, **settings) if options.compiled else functools.partial(meta_gradient, one, **settings)
        for seed in options.seeds:
            file = options.run_dir / f"sinusoid-{order}-{seed}.safetensors"
            found = meta_train(order, seed, options, function, file)
            trained.setdefault(order, []).append(found)
            curves.setdefault(order, []).append(errors(found.params, 0.01, 10, test))
    chosen = []
    for seed in options.seeds:
        found = pretrain(seed, options, options.run_dir / f"sinusoid-pretrained-{seed}.safetensors")
        trained.setdefault("pretrained", []).append(found)
        tried = {lr: errors(found.params, lr, 10, validation).mean(0) for lr in RATES}
        best = [min(RATES, key=lambda lr, k=k: float(tried[lr][k])) for k in range(11)]
        chosen.append({"after_1": best[1], "after_10": best[10]})
        by_rate = {lr: errors(found.params, lr, 10, test) for lr in RATES}
        curve = torch.stack([by_rate[lr][:, k] for k, lr in enumerate(best)], 1)
        curves.setdefault("pretrained", []).append(curve)
    methods = {}
    for name, by_seed in curves.items():
        methods[name] = {f"mse_after_{k}": figure([c[:, k] for c in by_seed]) for k in (0, 1, 10)}
        methods[name]["curve"] = figure(by_seed)["curve"]
        methods[name]["seconds"] = [t.seconds for t in trained[name]]
    ratios = {
        f"after_{k}": {
            "mean": methods["pretrained"][f"mse_after_{k}"]["mean"] / methods["exact"][f"mse_after_{k}"]["mean"],
            "by_seed": [
                b / a
                for a, b in zip(
                    *(methods[m][f"mse_after_{k}"]["by_seed"] for m in ("exact", "pretrained")), strict=True
                )
            ],
        }
        for k in (1, 10)
    }
    return {
        "protocol": {
            "points_in_training": options.points, "points_at_test": 5, "test_tasks": options.tasks, "inner_lr": 0.01,
            "inner_steps": 1, "meta_batch": options.meta_batch, "meta_steps": options.steps, "outer": "Adam 1e-3",
            "compiled": options.compiled, "fine_tuning_rates": RATES, "chosen_rates": chosen,
        },
        "methods": methods,
        "pretrained_over_exact": ratios,
        "holds": {"at least 3 times lower after one step": ratios["after_1"]["mean"] >= 3},
    }  # fmt: skip


COLUMNS = ("mse after 0", "after 1 step", "after 10", "seconds a seed")


def rows(result: dict[str, Any]) -> list[tuple[str, ...]]:
    names = {"exact": "MAML, exact", "first_order": "MAML, first order", "pretrained": "pretrained, fine-tuned"}
    return [
        (names[n], *(shown(m[f"mse_after_{k}"]) for k in (0, 1, 10)), f"{sum(m['seconds']) / len(m['seconds']):.0f}")
        for n, m in result["methods"].items()
    ]
