"""The exact meta-gradient: against finite differences, plain double backward, closed forms, and itself."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from inner_networks import (
    F64,
    Named,
    central,
    chunks,
    close,
    differ,
    mlp_loss,
    mlp_native,
    mlp_params,
    mlp_shared,
    regression,
    task,
    unrolled,
)
from torch import Tensor

from distmeta.inner import InnerLoop, adapt, meta_gradient

STEPS = 3
OPTIMIZERS = ["sgd", "momentum", "adam"]
SUPPORT, QUERY = regression(6, seed=1), regression(5, seed=2)


def learnt_rates(kind: str) -> Any:
    g = torch.Generator().manual_seed(5)

    def near(*shape: int) -> Tensor:
        return 0.05 + 0.05 * torch.rand(shape, generator=g, dtype=F64)

    params = mlp_params()
    if kind == "number":
        return 0.08
    if kind == "scalar":
        return near()
    if kind == "per_step":
        return near(STEPS)
    if kind == "per_layer":
        return {"w1": near(), "b1": 0.07, "w2": near(), "b2": near()}
    if kind == "per_layer_and_step":
        return {n: near(STEPS) for n in params}
    assert kind == "per_parameter"
    return {n: near(*p.shape) for n, p in params.items()}


def rate_function(lr: Any) -> Any:
    def rate(k: int, name: str) -> Any:
        value = lr[name] if isinstance(lr, dict) else lr
        stepwise = isinstance(value, Tensor) and value.shape == (STEPS,)
        return value[k] if stepwise else value

    return rate


KINDS = ["number", "scalar", "per_step", "per_layer", "per_layer_and_step", "per_parameter"]


@pytest.mark.parametrize("memory", ["walk", "unroll", "auto"])
@pytest.mark.parametrize("optimizer", OPTIMIZERS)
@pytest.mark.parametrize("kind", KINDS)
def test_equals_plain_double_backward(kind: str, optimizer: str, memory: str) -> None:
    lr = learnt_rates(kind)
    inner = InnerLoop(steps=STEPS, lr=lr, optimizer=optimizer, memory=memory, proximal=0.3)  # type: ignore[arg-type]
    params, shared = mlp_params(), mlp_shared()
    found = meta_gradient(mlp_loss, params, SUPPORT, QUERY, inner, shared=shared)

    leaves: dict[str, dict[str, Tensor]] = {
        "params": {n: p.clone().requires_grad_() for n, p in params.items()},
        "shared": {n: p.clone().requires_grad_() for n, p in shared.items()},
        "rates": {},
    }
    if isinstance(lr, Tensor):
        leaves["rates"] = {"": lr.clone().requires_grad_()}
    elif isinstance(lr, dict):
        leaves["rates"] = {n: r.clone().requires_grad_() for n, r in lr.items() if isinstance(r, Tensor)}
    own = {**lr, **leaves["rates"]} if isinstance(lr, dict) else leaves["rates"].get("", lr)
    loss = unrolled(
        mlp_loss,
        leaves["params"],
        SUPPORT,
        QUERY,
        STEPS,
        rate_function(own),
        shared=leaves["shared"],
        optimizer=optimizer,
        proximal=0.3,
    )
    flat = [t for group in leaves.values() for t in group.values()]
    grads = iter(torch.autograd.grad(loss, flat))
    expected = {name: {n: next(grads) for n in group} for name, group in leaves.items()}

    assert close(found.loss, loss.detach(), 1e-12)
    assert differ(found.grads, expected["params"]) < 1e-10
    assert differ(found.shared_grads, expected["shared"]) < 1e-10
    if isinstance(lr, dict):
        assert isinstance(found.lr_grads, dict)
        assert differ(found.lr_grads, expected["rates"]) < 1e-10
    elif isinstance(lr, Tensor):
        assert isinstance(found.lr_grads, Tensor)
        assert found.lr_grads.shape == lr.shape
        assert close(found.lr_grads, expected["rates"][""], 1e-10)
    else:
        assert found.lr_grads is None


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_equals_finite_differences(optimizer: str) -> None:
    """Of the whole function: adapt, then the query loss; with respect to params, rates and shared."""
    params, shared, lr = mlp_params(), mlp_shared(), learnt_rates("per_layer_and_step")

    def query_loss(params: Named, shared: Named, lr: Any) -> Tensor:
        inner = InnerLoop(steps=STEPS, lr=lr, optimizer=optimizer)  # type: ignore[arg-type]
        return mlp_loss({**shared, **adapt(mlp_loss, params, SUPPORT, inner, shared=shared).params}, QUERY)

    inner = InnerLoop(steps=STEPS, lr=lr, optimizer=optimizer)  # type: ignore[arg-type]
    found = meta_gradient(mlp_loss, params, SUPPORT, QUERY, inner, shared=shared)
    assert isinstance(found.lr_grads, dict)
    for n in params:
        by_param = central(lambda t, n=n: query_loss({**params, n: t}, shared, lr), params[n], 1e-4)
        assert close(found.grads[n], by_param, 1e-6), n
        by_rate = central(lambda t, n=n: query_loss(params, shared, {**lr, n: t}), lr[n], 1e-4)
        assert close(found.lr_grads[n], by_rate, 1e-6), n
    for n in shared:
        by_shared = central(lambda t, n=n: query_loss(params, {**shared, n: t}, lr), shared[n], 1e-4)
        assert close(found.shared_grads[n], by_shared, 1e-6), n


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
@pytest.mark.parametrize("kind", ["scalar", "per_step", "per_layer", "per_parameter"])
@pytest.mark.parametrize("axis", [True, "native"])
def test_task_axis_equals_task_by_task(axis: Any, kind: str, optimizer: str) -> None:
    tasks = 3
    params, shared = mlp_params(tasks), mlp_shared()
    support = chunks(regression(6, tasks), [4, 2], axis=1)
    query = chunks(regression(5, tasks, seed=2), [1, 4], axis=1)
    lr = learnt_rates(kind)
    inner = InnerLoop(steps=STEPS, lr=lr, optimizer=optimizer, memory="auto")  # type: ignore[arg-type]
    loss = mlp_native if axis == "native" else mlp_loss
    both = meta_gradient(loss, params, support, query, inner, shared=shared, task_axis=axis)
    shared_sum = {n: torch.zeros_like(t) for n, t in shared.items()}
    for t in range(tasks):
        one = meta_gradient(mlp_loss, task(params, t), task(support, t), task(query, t), inner, shared=shared)
        assert differ(task(both.grads, t), one.grads) < 1e-11
        assert differ(task(both.adapted, t), one.adapted) < 1e-11
        assert close(both.loss[t], one.loss, 1e-12)
        assert close(both.inner_losses[t], one.inner_losses, 1e-12)
        if isinstance(one.lr_grads, dict):
            assert isinstance(both.lr_grads, dict)
            assert differ(task(both.lr_grads, t), one.lr_grads) < 1e-11
        else:
            assert isinstance(both.lr_grads, Tensor)
            assert isinstance(one.lr_grads, Tensor)
            assert close(both.lr_grads[t], one.lr_grads, 1e-11)
        shared_sum = {n: s + one.shared_grads[n] for n, s in shared_sum.items()}
    assert differ(both.shared_grads, shared_sum) < 1e-11


@pytest.mark.parametrize("memory", ["walk", "unroll"])
@pytest.mark.parametrize("order", ["exact", "first_order", "implicit", "finite_difference"])
def test_micro_batches_add_up(order: Any, memory: Any) -> None:
    inner = InnerLoop(steps=STEPS, lr=learnt_rates("per_step"), memory=memory, proximal=0.5)
    params, shared = mlp_params(), mlp_shared()
    whole = meta_gradient(mlp_loss, params, SUPPORT, QUERY, inner, order, shared=shared)
    cut = meta_gradient(
        mlp_loss, params, chunks(SUPPORT, [1, 3, 2]), chunks(QUERY, [2, 2, 1]), inner, order, shared=shared
    )
    tolerance = 1e-7 if order == "finite_difference" else 1e-10
    assert differ(cut.grads, whole.grads) < tolerance
    assert differ(cut.shared_grads, whole.shared_grads) < tolerance
    assert close(cut.lr_grads, whole.lr_grads, tolerance)  # type: ignore[arg-type]
    assert close(cut.inner_losses, whole.inner_losses, 1e-12)


def test_closed_form_on_a_quadratic() -> None:
    """Support loss 1/2 (t - a)' A (t - a): theta_K = a + (I - lr A)^K (theta_0 - a)."""
    g = torch.Generator().manual_seed(3)
    root = torch.randn(4, 4, generator=g, dtype=F64)
    a_matrix, a, b = root @ root.T / 4, torch.randn(4, generator=g, dtype=F64), torch.randn(4, generator=g, dtype=F64)

    def loss(p: Named, batch: tuple[str, Tensor]) -> Tensor:
        d = p["t"] - batch[1]
        return (d @ a_matrix @ d if batch[0] == "support" else d @ d) / 2

    theta = {"t": torch.randn(4, generator=g, dtype=F64)}
    found = meta_gradient(loss, theta, ("support", a), ("query", b), InnerLoop(steps=6, lr=0.2))
    contraction = torch.linalg.matrix_power(torch.eye(4, dtype=F64) - 0.2 * a_matrix, 6)
    adapted = a + contraction @ (theta["t"] - a)
    assert close(found.adapted["t"], adapted, 1e-12)
    assert close(found.grads["t"], contraction.T @ (adapted - b), 1e-12)


def prototypes(p: Named, support: Any) -> Named:
    """A head from the mean features of the support set, scaled by its mean target."""
    parts = support if isinstance(support, list) else [support]
    x, y = torch.cat([q["x"] for q in parts]), torch.cat([q["y"] for q in parts])
    features = torch.tanh((x + p["shift"]) @ p["w1"] + p["b1"])
    return {"w2": (features.mean(0) * y.mean())[:, None], "b2": p["scale"] * y.mean(0)}


@pytest.mark.parametrize("memory", ["walk", "unroll"])
@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_start_is_differentiated_through(optimizer: Any, memory: Any) -> None:
    whole = mlp_params()
    params = {n: whole[n] for n in ("w1", "b1")}
    shared = mlp_shared()
    inner = InnerLoop(steps=STEPS, lr=0.1, optimizer=optimizer, memory=memory)
    support = chunks(SUPPORT, [2, 4])
    found = meta_gradient(mlp_loss, params, support, QUERY, inner, shared=shared, start=prototypes)
    leaves = [{n: t.clone().requires_grad_() for n, t in d.items()} for d in (params, shared)]
    loss = unrolled(
        mlp_loss,
        leaves[0],
        SUPPORT,
        QUERY,
        STEPS,
        lambda k, n: 0.1,
        shared=leaves[1],
        start=prototypes,
        optimizer=optimizer,
    )
    grads = torch.autograd.grad(loss, [*leaves[0].values(), *leaves[1].values()])
    assert set(found.adapted) == {"w1", "b1", "w2", "b2"}
    assert differ(found.grads, dict(zip(params, grads[:2], strict=True))) < 1e-10
    assert differ(found.shared_grads, dict(zip(shared, grads[2:], strict=True))) < 1e-10
    assert close(
        adapt(mlp_loss, params, support, inner, shared=shared, start=prototypes).params["w2"],
        found.adapted["w2"],
        1e-12,
    )


@pytest.mark.parametrize("order", ["exact", "first_order", "implicit"])
def test_start_under_a_task_axis(order: Any) -> None:
    tasks = 2
    params = {n: t for n, t in mlp_params(tasks).items() if n in ("w1", "b1")}
    support, query = regression(6, tasks), regression(5, tasks, seed=2)
    inner = InnerLoop(steps=2, lr=torch.tensor(0.1, dtype=F64), proximal=0.5, cg_steps=4)
    args: Any = {"order": order, "shared": mlp_shared(), "start": prototypes}
    both = meta_gradient(mlp_loss, params, support, query, inner, task_axis=True, **args)
    for t in range(tasks):
        one = meta_gradient(mlp_loss, task(params, t), task(support, t), task(query, t), inner, **args)
        assert differ(task(both.grads, t), one.grads) < 1e-10


def embedding_loss(p: Named, batch: dict[str, Tensor]) -> Tensor:
    return ((p["table"][batch["rows"]] * p["w"]).sum(-1) - batch["y"]).square().sum()


@pytest.mark.parametrize("memory", ["walk", "unroll"])
def test_adam_at_gradients_that_are_exactly_zero(memory: Any) -> None:
    """Rows of a table that the support set does not use have g = 0 at every step; the query uses some of them."""
    g = torch.Generator().manual_seed(0)
    params = {
        "table": torch.randn(7, 3, generator=g, dtype=F64),
        "w": torch.randn(3, generator=g, dtype=F64),
        "unused": torch.randn(2, generator=g, dtype=F64),
    }
    support = {"rows": torch.tensor([0, 1, 1, 2]), "y": torch.randn(4, generator=g, dtype=F64)}
    query = {"rows": torch.tensor([1, 2, 3, 4]), "y": torch.randn(4, generator=g, dtype=F64)}
    inner = InnerLoop(steps=3, lr=0.05, optimizer="adam", memory=memory)
    found = meta_gradient(embedding_loss, params, support, query, inner)

    def query_loss(named: Named) -> Tensor:
        return embedding_loss(adapt(embedding_loss, named, support, inner).params, query)

    for n in ("table", "w"):
        by_param = central(lambda t, n=n: query_loss({**params, n: t}), params[n], 1e-4)
        assert close(found.grads[n], by_param, 1e-6), n
    assert torch.equal(found.grads["unused"], torch.zeros(2, dtype=F64))
    assert torch.equal(found.adapted["table"][3:], params["table"][3:])


def test_no_step_is_the_query_gradient() -> None:
    params = mlp_params()
    found = meta_gradient(mlp_loss, params, SUPPORT, QUERY, InnerLoop(steps=0))
    leaves = {n: p.clone().requires_grad_() for n, p in params.items()}
    expected = torch.autograd.grad(mlp_loss(leaves, QUERY), list(leaves.values()))
    assert differ(found.grads, dict(zip(params, expected, strict=True))) < 1e-14
    assert found.inner_losses.shape == (1,)


def test_aux_of_the_query() -> None:
    def loss(p: Named, batch: dict[str, Any]) -> tuple[Tensor, Any]:
        return mlp_loss(p, batch), {"x": batch["x"] * p["b2"], "note": batch["note"], "none": None}

    inner = InnerLoop(steps=2)
    one = meta_gradient(loss, mlp_params(), SUPPORT, chunks(QUERY, [2, 3]), inner, has_aux=True)
    assert [a["x"].shape[0] for a in one.aux] == [2, 3]
    assert not one.aux[0]["x"].requires_grad
    query = regression(5, 2, seed=2)
    both = meta_gradient(loss, mlp_params(2), regression(6, 2), query, inner, has_aux=True, task_axis=True)
    assert both.aux[0]["x"].shape == (2, 5, 3)
    assert both.aux[0]["note"] == "not a tensor"
    assert both.aux[0]["none"] is None


def test_adapt_gives_the_same_weights_and_a_trajectory() -> None:
    inner = InnerLoop(steps=3, lr=learnt_rates("per_step"), optimizer="adam")
    params = mlp_params()
    found = adapt(mlp_loss, params, SUPPORT, inner, trajectory=True)
    mg = meta_gradient(mlp_loss, params, SUPPORT, QUERY, inner)
    assert found.trajectory is not None
    assert len(found.trajectory) == 4
    assert torch.equal(found.trajectory[0]["w1"], params["w1"])
    for n in params:
        assert torch.equal(found.trajectory[3][n], mg.adapted[n])
        assert torch.equal(found.params[n], mg.adapted[n])
        assert not found.params[n].requires_grad
    assert torch.equal(found.inner_losses, mg.inner_losses)
    longer = adapt(mlp_loss, params, SUPPORT, inner, steps=5, trajectory=True)
    assert longer.trajectory is not None
    assert len(longer.trajectory) == 6
    assert torch.equal(longer.trajectory[3]["w1"], found.params["w1"])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("order", ["exact", "first_order", "implicit", "finite_difference"])
@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_dtypes_stay(dtype: torch.dtype, order: Any, optimizer: Any) -> None:
    def cast(batch: dict[str, Any]) -> dict[str, Any]:
        return {k: v.to(dtype) if isinstance(v, Tensor) else v for k, v in batch.items()}

    def loss(p: Named, batch: Any) -> Tensor:
        return mlp_loss(p, batch).double()

    params = {n: p.to(dtype) for n, p in mlp_params().items()}
    lr = {n: r.float() for n, r in learnt_rates("per_parameter").items()}
    inner = InnerLoop(steps=2, lr=lr, optimizer=optimizer, proximal=0.1)
    found = meta_gradient(loss, params, cast(SUPPORT), cast(QUERY), inner, order)
    assert found.loss.dtype == torch.float64
    assert isinstance(found.lr_grads, dict)
    for n in params:
        assert found.grads[n].dtype == found.adapted[n].dtype == dtype
        assert found.lr_grads[n].dtype == torch.float32
        assert bool(torch.isfinite(found.grads[n]).all())
