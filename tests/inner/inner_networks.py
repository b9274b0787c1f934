"""Small networks and an inner loop written a second time, plainly, to check the real one against."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

Named = dict[str, Tensor]
F64 = torch.float64


def generator(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def mlp_params(tasks: int | None = None, seed: int = 0) -> Named:
    """A 3-6-1 network; with `tasks`, one for each along a leading axis."""
    g = generator(seed)
    lead = () if tasks is None else (tasks,)

    def normal(*shape: int) -> Tensor:
        return 0.6 * torch.randn(*lead, *shape, generator=g, dtype=F64)

    return {"w1": normal(3, 6), "b1": normal(6), "w2": normal(6, 1), "b2": normal(1)}


def mlp_shared() -> Named:
    return {"scale": torch.tensor(1.3, dtype=F64), "shift": torch.tensor([0.2, -0.4, 0.1], dtype=F64)}


def mlp_loss(p: Named, batch: dict[str, Any]) -> Tensor:
    """Squared error over `total` rows, so that the losses of micro-batches add up."""
    x = batch["x"] + p["shift"] if "shift" in p else batch["x"]
    hidden = torch.tanh(x @ p["w1"] + p["b1"]) * p.get("scale", 1.0)
    return ((hidden @ p["w2"] + p["b2"] - batch["y"]) ** 2).sum() / batch["total"]


def mlp_native(p: Named, batch: dict[str, Any]) -> Tensor:
    """mlp_loss written for a leading task axis: [T]."""
    x = batch["x"] + p["shift"] if "shift" in p else batch["x"]
    hidden = torch.tanh(x @ p["w1"] + p["b1"][:, None]) * p.get("scale", 1.0)
    return ((hidden @ p["w2"] + p["b2"][:, None] - batch["y"]) ** 2).sum((1, 2)) / batch["total"]


def regression(rows: int, tasks: int | None = None, seed: int = 1) -> dict[str, Any]:
    g = generator(seed)
    lead = () if tasks is None else (tasks,)
    x = torch.randn(*lead, rows, 3, generator=g, dtype=F64)
    y = torch.randn(*lead, rows, 1, generator=g, dtype=F64)
    return {"x": x, "y": y, "total": rows, "note": "not a tensor"}


def chunks(batch: dict[str, Any], cuts: list[int], axis: int = 0) -> list[dict[str, Any]]:
    """The batch as micro-batches of `cuts` rows."""
    xs, ys = batch["x"].split(cuts, axis), batch["y"].split(cuts, axis)
    return [{**batch, "x": x, "y": y} for x, y in zip(xs, ys, strict=True)]


def task(tree: Any, t: int) -> Any:
    """Task t of a dict (or a list of dicts) of stacked tensors."""
    if isinstance(tree, list):
        return [task(part, t) for part in tree]
    return {k: v[t] if isinstance(v, Tensor) and v.ndim else v for k, v in tree.items()}


def unrolled(
    loss: Callable[[Named, Any], Tensor],
    params: Named,
    support: Any,
    query: Any,
    steps: int,
    rate: Callable[[int, str], Any],
    *,
    shared: Named | None = None,
    start: Callable[[Named, Any], Named] | None = None,
    optimizer: str = "sgd",
    proximal: float = 0.0,
    momentum: float = 0.9,
    betas: tuple[float, float] = (0.9, 0.999),
    eps: float = 1e-8,
) -> Tensor:
    """The query loss after adaptation, as one differentiable expression in params, shared and the rates."""
    shared = shared or {}
    # Clones, so that the inner gradient of a weight leaves out its way through what `start` made of it.
    theta = {n: p.clone() for n, p in params.items()}
    theta |= start({**shared, **params}, support) if start else {}
    origin = dict(theta)
    m = {n: torch.zeros_like(t) for n, t in theta.items()}
    v = {n: torch.zeros_like(t) for n, t in theta.items()}
    for k in range(steps):
        value = loss({**shared, **theta}, support)
        value = value + sum(proximal / 2 * ((theta[n] - origin[n]) ** 2).sum() for n in theta)
        grads = torch.autograd.grad(value, list(theta.values()), create_graph=True, materialize_grads=True)
        moved = {}
        for (n, t), g in zip(theta.items(), grads, strict=True):
            if optimizer == "sgd":
                d = g
            elif optimizer == "momentum":
                m[n] = momentum * m[n] + g
                d = m[n]
            else:
                m[n] = betas[0] * m[n] + (1 - betas[0]) * g
                v[n] = betas[1] * v[n] + (1 - betas[1]) * g**2
                d = (m[n] / (1 - betas[0] ** (k + 1))) / ((v[n] / (1 - betas[1] ** (k + 1))).sqrt() + eps)
            moved[n] = t - rate(k, n) * d
        theta = moved
    return loss({**shared, **theta}, query)


def central(function: Callable[[Tensor], Tensor], at: Tensor, step: float = 1e-5) -> Tensor:
    """The gradient of function(at) by central differences of the fourth order, element by element."""
    out = torch.zeros_like(at)
    for i in range(at.numel()):
        unit = torch.zeros(at.numel(), dtype=at.dtype)
        unit[i] = step
        unit = unit.view_as(at)
        near = function(at + unit) - function(at - unit)
        far = function(at + 2 * unit) - function(at - 2 * unit)
        out.view(-1)[i] = (8 * near - far) / (12 * step)
    return out


def close(found: Tensor, expected: Tensor, rtol: float) -> bool:
    """|found - expected| <= rtol * |expected|, over the whole tensor."""
    return bool((found - expected).norm() <= rtol * expected.norm() + 1e-14)


def differ(found: Named, expected: Named) -> float:
    """The relative distance of two dicts of tensors."""
    assert found.keys() == expected.keys()
    num = sum(float((found[n] - expected[n]).square().sum()) for n in expected)
    return (num / sum(float(expected[n].square().sum()) for n in expected)) ** 0.5
