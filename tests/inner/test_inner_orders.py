"""first_order, finite_difference and implicit: what each name promises, and its distance from exact."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from inner_networks import (
    F64,
    Named,
    close,
    differ,
    mlp_loss,
    mlp_params,
    mlp_shared,
    regression,
    task,
    unrolled,
)
from torch import Tensor

from distmeta.inner import InnerLoop, meta_gradient

SUPPORT, QUERY = regression(6, seed=1), regression(5, seed=2)


@pytest.mark.parametrize("optimizer", ["sgd", "momentum", "adam"])
def test_first_order_is_the_gradient_at_the_adapted_weights(optimizer: Any) -> None:
    inner = InnerLoop(steps=3, lr=0.1, optimizer=optimizer)
    params, shared = mlp_params(), mlp_shared()
    found = meta_gradient(mlp_loss, params, SUPPORT, QUERY, inner, "first_order", shared=shared)
    exact = meta_gradient(mlp_loss, params, SUPPORT, QUERY, inner, "exact", shared=shared)
    leaves = {n: t.clone().requires_grad_() for n, t in {**shared, **exact.adapted}.items()}
    grads = dict(zip(leaves, torch.autograd.grad(mlp_loss(leaves, QUERY), list(leaves.values())), strict=True))
    assert differ(found.grads, {n: grads[n] for n in params}) < 1e-13
    assert differ(found.shared_grads, {n: grads[n] for n in shared}) < 1e-13
    assert differ(found.grads, exact.grads) > 0.05


@pytest.mark.parametrize("kind", ["scalar", "per_step", "per_parameter"])
def test_first_order_rates_treat_inner_gradients_as_constants(kind: str) -> None:
    params, steps = mlp_params(), 3
    lr: Any = {
        "scalar": torch.tensor(0.1, dtype=F64),
        "per_step": torch.tensor([0.1, 0.05, 0.08], dtype=F64),
        "per_parameter": {n: torch.full_like(p, 0.1) for n, p in params.items()},
    }[kind]
    found = meta_gradient(mlp_loss, params, SUPPORT, QUERY, InnerLoop(steps=steps, lr=lr), "first_order")
    rates = (
        {n: r.clone().requires_grad_() for n, r in lr.items()} if isinstance(lr, dict) else lr.clone().requires_grad_()
    )
    theta = dict(params)
    for k in range(steps):
        leaves = {n: t.detach().requires_grad_() for n, t in theta.items()}
        grads = torch.autograd.grad(mlp_loss(leaves, SUPPORT), list(leaves.values()))
        theta = {
            n: t - (rates[n] if isinstance(rates, dict) else rates[k] if kind == "per_step" else rates) * g
            for (n, t), g in zip(theta.items(), grads, strict=True)
        }
    loss = mlp_loss(theta, QUERY)
    if isinstance(rates, dict):
        expected = dict(zip(rates, torch.autograd.grad(loss, list(rates.values())), strict=True))
        assert isinstance(found.lr_grads, dict)
        assert differ(found.lr_grads, expected) < 1e-12
    else:
        assert isinstance(found.lr_grads, Tensor)
        assert close(found.lr_grads, torch.autograd.grad(loss, rates)[0], 1e-12)


@pytest.mark.parametrize("order", ["first_order", "finite_difference"])
def test_needs_no_double_backward(order: Any) -> None:
    """As with a fused attention kernel: an operation whose backward cannot be differentiated."""

    class Once(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, x: Tensor) -> Tensor:
            ctx.save_for_backward(x)
            return torch.tanh(x)

        @staticmethod
        @torch.autograd.function.once_differentiable
        def backward(ctx: Any, grad: Tensor) -> Tensor:
            return grad * (1 - torch.tanh(ctx.saved_tensors[0]) ** 2)

    def loss(p: Named, batch: dict[str, Any]) -> Tensor:
        hidden = Once.apply(batch["x"] @ p["w1"] + p["b1"])  # type: ignore[no-untyped-call]
        return ((hidden @ p["w2"] + p["b2"] - batch["y"]) ** 2).mean()

    inner = InnerLoop(steps=2)
    meta_gradient(loss, mlp_params(), SUPPORT, QUERY, inner, order)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        meta_gradient(loss, mlp_params(), SUPPORT, QUERY, inner, "exact")


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-8), (torch.float32, 3e-3)])
@pytest.mark.parametrize("optimizer", ["sgd", "momentum", "adam"])
def test_finite_difference_is_close_to_exact(optimizer: Any, dtype: torch.dtype, tolerance: float) -> None:
    def cast(named: dict[str, Any]) -> dict[str, Any]:
        return {n: t.to(dtype) if isinstance(t, Tensor) else t for n, t in named.items()}

    tasks = 2
    params, shared = cast(mlp_params(tasks)), cast(mlp_shared())
    support, query = cast(regression(6, tasks)), cast(regression(5, tasks, seed=2))
    inner = InnerLoop(steps=3, lr=torch.tensor([0.1, 0.0, 0.05], dtype=dtype), optimizer=optimizer)
    if optimizer == "adam":
        inner = InnerLoop(steps=3, lr=torch.tensor([0.1, 0.0, 0.05], dtype=dtype), optimizer="adam", eps=1e-3)
    args: Any = {"shared": shared, "task_axis": True}
    found = meta_gradient(mlp_loss, params, support, query, inner, "finite_difference", **args)
    exact = meta_gradient(mlp_loss, params, support, query, inner, "exact", **args)
    first = meta_gradient(mlp_loss, params, support, query, inner, "first_order", **args)
    assert differ(found.grads, exact.grads) < tolerance
    assert differ(found.shared_grads, exact.shared_grads) < tolerance
    assert close(found.lr_grads, exact.lr_grads, tolerance)  # type: ignore[arg-type]
    assert differ(first.grads, exact.grads) > 20 * tolerance
    one = meta_gradient(
        mlp_loss, task(params, 1), task(support, 1), task(query, 1), inner, "finite_difference", shared=shared
    )
    assert differ(task(found.grads, 1), one.grads) < tolerance


def quadratic() -> tuple[Any, Named, Named, Tensor, Tensor, Tensor]:
    """Support loss 1/2 (t - M s)' A (t - M s), query loss 1/2 |t - b + s|^2."""
    g = torch.Generator().manual_seed(4)
    root = torch.randn(5, 5, generator=g, dtype=F64)
    a, m, b = root @ root.T / 5, torch.randn(5, 5, generator=g, dtype=F64), torch.randn(5, generator=g, dtype=F64)

    def loss(p: Named, batch: str) -> Tensor:
        t, s = p["t"], p["s"]
        if batch == "support":
            return (t - m @ s) @ a @ (t - m @ s) / 2
        return (t - b + s).square().sum() / 2

    draw = torch.randn(2, 5, generator=g, dtype=F64)
    return loss, {"t": draw[0]}, {"s": draw[1]}, a, m, b


@pytest.mark.parametrize("memory", ["walk", "unroll"])
def test_implicit_on_a_quadratic(memory: Any) -> None:
    """Converged: theta* = (A + lam)^-1 (A M s + lam t_0), so d/dt_0 = lam (A + lam)^-1 and d/ds likewise."""
    loss, theta, shared, a, m, b = quadratic()
    lam = 0.7
    inner = InnerLoop(steps=400, lr=0.15, proximal=lam, cg_steps=5, memory=memory)
    found = meta_gradient(loss, theta, "support", "query", inner, "implicit", shared=shared)
    inverse = torch.linalg.inv(a + lam * torch.eye(5, dtype=F64))
    adapted = inverse @ (a @ m @ shared["s"] + lam * theta["t"])
    residual = adapted - b + shared["s"]
    assert close(found.adapted["t"], adapted, 1e-9)
    assert close(found.grads["t"], lam * inverse @ residual, 1e-8)
    assert close(found.shared_grads["s"], residual + m.T @ a @ inverse @ residual, 1e-8)
    assert found.lr_grads is None
    walked = meta_gradient(loss, theta, "support", "query", inner, "exact", shared=shared)
    assert close(walked.grads["t"], found.grads["t"], 1e-8)
    assert close(walked.shared_grads["s"], found.shared_grads["s"], 1e-8)


def test_implicit_with_a_task_axis_solves_each_task() -> None:
    tasks = 3
    params, support, query = mlp_params(tasks), regression(6, tasks), regression(5, tasks, seed=2)
    inner = InnerLoop(steps=40, lr=torch.full((40,), 0.05, dtype=F64), proximal=3.0, cg_steps=6)
    args: Any = {"order": "implicit", "shared": mlp_shared()}
    both = meta_gradient(mlp_loss, params, support, query, inner, task_axis=True, **args)
    total = {n: torch.zeros_like(t) for n, t in mlp_shared().items()}
    for t in range(tasks):
        one = meta_gradient(mlp_loss, task(params, t), task(support, t), task(query, t), inner, **args)
        assert differ(task(both.grads, t), one.grads) < 1e-9
        total = {n: s + one.shared_grads[n] for n, s in total.items()}
    assert differ(both.shared_grads, total) < 1e-9
    assert torch.equal(both.lr_grads, torch.zeros(tasks, 40, dtype=F64))  # type: ignore[arg-type]


def test_implicit_of_an_exact_solution_does_not_become_nan() -> None:
    """The residual reaches 0 before the last conjugate gradient step."""

    def loss(p: Named, batch: float) -> Tensor:
        return (p["t"] - batch).square().sum() / 2

    inner = InnerLoop(steps=3, lr=0.5, proximal=1.0, cg_steps=10)
    found = meta_gradient(loss, {"t": torch.ones(3)}, 2.0, 0.0, inner, "implicit")
    assert close(found.grads["t"], found.adapted["t"] / 2, 1e-6)


def test_the_reference_is_itself_right() -> None:
    """The plain unrolled loop that other tests compare with, against finite differences."""
    params = {n: p.requires_grad_() for n, p in mlp_params().items()}
    leaf = params["w1"].detach().clone().requires_grad_()

    def value(w1: Tensor) -> Tensor:
        return unrolled(mlp_loss, {**params, "w1": w1}, SUPPORT, QUERY, 2, lambda k, n: 0.1)

    (grad,) = torch.autograd.grad(value(leaf), leaf)
    step = torch.zeros_like(leaf)
    step[1, 2] = 1e-5
    slope = (value(leaf + step) - value(leaf - step)) / 2e-5
    assert abs(float(slope - grad[1, 2])) < 1e-8
