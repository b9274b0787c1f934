"""Losses before the steps, a batch for each step, clipping, and a tree of snapshots: against plain double backward."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
import torch
from inner_networks import (
    F64,
    Named,
    central,
    close,
    differ,
    mlp_loss,
    mlp_native,
    mlp_params,
    mlp_shared,
    regression,
    task,
)
from torch import Tensor

from distmeta.inner import InnerLoop, adapt, meta_gradient
from distmeta.inner.adapt import follow
from distmeta.inner.snapshots import held, levels, width

STEPS = 5
PARTS = [regression(4, seed=10 + k) for k in range(STEPS)]
LAST = regression(4, seed=20)
WEIGHTS = [0.5, 1.0, 0.0, 2.0, 1.5, 3.0]


def plain(p: Named, shared: Named, lr: Any, loop: InnerLoop, parts: list[Any], last: Any) -> Tensor:
    """The weighted sum of the losses before each step and after the last, as one differentiable expression."""
    total: Any = 0.0
    m = {n: torch.zeros_like(t) for n, t in p.items()}
    v = {n: torch.zeros_like(t) for n, t in p.items()}
    for k, part in enumerate(parts):
        loss = mlp_loss({**shared, **p}, part)
        total = total + WEIGHTS[k] * loss
        grads = dict(zip(p, torch.autograd.grad(loss, list(p.values()), create_graph=True), strict=True))
        if loop.clip is not None:
            norm = torch.sqrt(sum((g * g).sum() for g in grads.values()))
            norm = norm if loop.clip_norm == "exact" else norm.detach()
            if norm > loop.clip:
                grads = {n: g * loop.clip / norm for n, g in grads.items()}
        moved = {}
        for n, g in grads.items():
            if loop.optimizer == "sgd":
                d = g
            elif loop.optimizer == "momentum":
                d = m[n] = loop.momentum * m[n] + g
            else:
                b1, b2 = loop.betas
                m[n], v[n] = b1 * m[n] + (1 - b1) * g, b2 * v[n] + (1 - b2) * g**2
                root = (v[n] / (1 - b2 ** (k + 1))).sqrt()
                d = m[n] / (1 - b1 ** (k + 1)) / ((root if loop.adam_root == "exact" else root.detach()) + loop.eps)
            moved[n] = p[n] - (lr[k] if isinstance(lr, Tensor) else lr) * d
        p = moved
    return total + WEIGHTS[-1] * mlp_loss({**shared, **p}, last)


@pytest.mark.parametrize("memory", ["walk", "unroll", "auto"])
@pytest.mark.parametrize("optimizer", ["sgd", "momentum", "adam"])
@pytest.mark.parametrize(
    "settings", [{}, {"clip": 0.4}, {"clip": 0.4, "clip_norm": "constant"}, {"adam_root": "constant"}]
)
def test_the_summed_objective_equals_plain_double_backward(settings: Any, optimizer: Any, memory: Any) -> None:
    lr = torch.linspace(0.05, 0.09, STEPS, dtype=F64)
    loop = InnerLoop(steps=STEPS, lr=lr, optimizer=optimizer, memory=memory, snapshots=4, **settings)
    params, shared = mlp_params(), mlp_shared()
    result = meta_gradient(mlp_loss, params, PARTS, LAST, loop, shared=shared, by_step=True, loss_weights=WEIGHTS)

    p, s = ({n: t.clone().requires_grad_() for n, t in group.items()} for group in (params, shared))
    rate = lr.clone().requires_grad_()
    total = plain(p, s, rate, loop, PARTS, LAST)
    grads = torch.autograd.grad(total, [*p.values(), *s.values(), rate])
    assert differ(result.grads, dict(zip(p, grads[:4], strict=True))) < 1e-10
    assert differ(result.shared_grads, dict(zip(s, grads[4:6], strict=True))) < 1e-10
    assert isinstance(result.lr_grads, Tensor)
    assert close(result.lr_grads, grads[6], 1e-10)
    weighted = (result.inner_losses * torch.tensor(WEIGHTS, dtype=F64)).sum()
    assert close(weighted, total.detach(), 1e-12)


def test_the_summed_objective_equals_finite_differences() -> None:
    loop = InnerLoop(steps=STEPS, lr=0.07, clip=0.4)
    params, shared = mlp_params(), mlp_shared()

    def objective(p: Named) -> Tensor:
        after = adapt(mlp_loss, p, PARTS, loop, shared=shared, by_step=True)
        losses = [*after.inner_losses, mlp_loss({**shared, **after.params}, LAST)]
        return sum((w * loss for w, loss in zip(WEIGHTS, losses, strict=True)), torch.zeros((), dtype=F64))

    result = meta_gradient(mlp_loss, params, PARTS, LAST, loop, shared=shared, by_step=True, loss_weights=WEIGHTS)
    for n in params:
        assert close(result.grads[n], central(lambda t, n=n: objective({**params, n: t}), params[n], 1e-4), 1e-8), n


@pytest.mark.parametrize("learnt", [False, True])
def test_first_order_is_the_sum_of_the_gradients_where_they_were_taken(learnt: bool) -> None:
    loop = InnerLoop(steps=STEPS, lr=torch.tensor(0.07, dtype=F64) if learnt else 0.07, clip=0.4)
    params, shared = mlp_params(), mlp_shared()
    options: Any = {"shared": shared, "by_step": True, "loss_weights": WEIGHTS}
    result = meta_gradient(mlp_loss, params, PARTS, LAST, loop, "first_order", **options)
    expected = {n: torch.zeros_like(t) for n, t in params.items()}
    path = follow(mlp_loss, params, PARTS, loop, shared=shared, by_step=True)
    for weight, part, theta in zip(WEIGHTS, [*PARTS, LAST], path, strict=True):
        leaves = {n: t.clone().requires_grad_() for n, t in theta.items()}
        grads = torch.autograd.grad(mlp_loss({**shared, **leaves}, part), list(leaves.values()))
        expected = {n: e + weight * g for (n, e), g in zip(expected.items(), grads, strict=True)}
    assert differ(result.grads, expected) < 1e-12
    if learnt:  # with steps of one tenth of a thousandth, the second order that is left out is small
        tiny = dataclasses.replace(loop, lr=torch.tensor(1e-5, dtype=F64))
        both = [meta_gradient(mlp_loss, params, PARTS, LAST, tiny, o, **options) for o in ("exact", "first_order")]
        assert close(both[1].lr_grads, both[0].lr_grads, 1e-3)  # type: ignore[arg-type]


def test_finite_differences_of_gradients_come_near() -> None:
    loop = InnerLoop(steps=STEPS, lr=torch.tensor(0.07, dtype=F64), clip=0.4, optimizer="adam")
    options: Any = {"shared": mlp_shared(), "by_step": True, "loss_weights": WEIGHTS}
    exact, near = (
        meta_gradient(mlp_loss, mlp_params(), PARTS, LAST, loop, order, **options)
        for order in ("exact", "finite_difference")
    )  # fmt: skip
    assert differ(near.grads, exact.grads) < 1e-6
    assert close(near.lr_grads, exact.lr_grads, 1e-6)  # type: ignore[arg-type]


@pytest.mark.parametrize("axis", [True, "native"])
@pytest.mark.parametrize("optimizer", ["sgd", "adam"])
def test_task_axis_equals_task_by_task(axis: Any, optimizer: Any) -> None:
    tasks = 3
    params, shared = mlp_params(tasks), mlp_shared()
    parts = [regression(4, tasks, seed=10 + k) for k in range(STEPS)]
    last = regression(4, tasks, seed=20)
    loop = InnerLoop(steps=STEPS, lr=torch.tensor(0.07, dtype=F64), clip=0.5, optimizer=optimizer, snapshots=4)
    options: Any = {"shared": shared, "by_step": True, "loss_weights": WEIGHTS}
    loss = mlp_native if axis == "native" else mlp_loss
    together = meta_gradient(loss, params, parts, last, loop, task_axis=axis, **options)
    each = [
        meta_gradient(mlp_loss, task(params, t), task(parts, t), task(last, t), loop, **options) for t in range(tasks)
    ]
    for t, alone in enumerate(each):
        assert differ(task(together.grads, t), alone.grads) < 1e-12
        assert close(together.inner_losses[t], alone.inner_losses, 1e-12)
        assert close(together.lr_grads[t], alone.lr_grads, 1e-12)  # type: ignore[index, arg-type]
    total = {n: sum(alone.shared_grads[n] for alone in each) for n in shared}
    assert differ(together.shared_grads, total) < 1e-12  # type: ignore[arg-type]


def test_micro_batches_of_a_step_add_up() -> None:
    from inner_networks import chunks

    loop = InnerLoop(steps=STEPS, lr=0.07, clip=0.4)
    cut = [chunks(part, [1, 3]) for part in PARTS]
    options: Any = {"by_step": True, "loss_weights": WEIGHTS}
    whole, parts = (meta_gradient(mlp_loss, mlp_params(), s, LAST, loop, **options) for s in (PARTS, cut))
    assert differ(parts.grads, whole.grads) < 1e-12


@pytest.mark.parametrize("optimizer", ["sgd", "momentum", "adam"])
@pytest.mark.parametrize("snapshots", [4, 6, 9])
def test_a_tree_of_snapshots_gives_the_same_bits(snapshots: int, optimizer: Any) -> None:
    steps = 23
    parts = [regression(3, seed=30 + k) for k in range(steps)]
    options: Any = {"shared": mlp_shared(), "by_step": True, "loss_weights": [1.0] * (steps + 1)}
    loop = InnerLoop(
        steps=steps, lr=torch.full((steps,), 0.03, dtype=F64), optimizer=optimizer, memory="walk", clip=1.0
    )
    all_kept = meta_gradient(mlp_loss, mlp_params(), parts, LAST, loop, **options)
    tree = dataclasses.replace(loop, snapshots=snapshots)
    assert levels(width(tree, steps, 1), steps) > 1
    few = meta_gradient(mlp_loss, mlp_params(), parts, LAST, tree, **options)
    for n, grad in all_kept.grads.items():
        assert torch.equal(few.grads[n], grad)
    assert torch.equal(few.lr_grads, all_kept.lr_grads)  # type: ignore[arg-type]


def test_a_tree_with_a_pull_to_the_initial_weights() -> None:
    loop = InnerLoop(steps=9, lr=0.05, proximal=0.3, memory="walk")
    whole = meta_gradient(mlp_loss, mlp_params(), PARTS[0], LAST, loop)
    tree = meta_gradient(mlp_loss, mlp_params(), PARTS[0], LAST, dataclasses.replace(loop, snapshots=6))
    assert all(torch.equal(tree.grads[n], whole.grads[n]) for n in whole.grads)


@pytest.mark.parametrize("steps", [1, 2, 3, 16, 100, 256, 1000])
def test_snapshots_keep_within_their_number(steps: int) -> None:
    for room in (16, 24, 40, 2000):
        chosen = width(InnerLoop(steps=steps, snapshots=room), steps, 1)
        assert chosen ** levels(chosen, steps) >= steps
        least = min(held(w, steps) for w in range(2, 20)) if steps > 1 else 1
        assert held(chosen, steps) <= max(room, least)
    assert width(InnerLoop(steps=steps, memory="unroll", snapshots=2), steps, 1) == steps
    assert width(InnerLoop(steps=256, budget_mb=32), 256, 2**20) == 16  # two levels of sixteen


def test_a_gradient_of_zero_is_not_clipped() -> None:
    still = {"x": torch.zeros(2, 3, dtype=F64), "y": torch.zeros(2, 1, dtype=F64), "total": 2}
    params = {n: torch.zeros_like(t) for n, t in mlp_params().items()}
    result = meta_gradient(mlp_loss, params, [still, still], still, InnerLoop(steps=2, clip=0.1), by_step=True)
    assert all(bool(g.isfinite().all()) for g in result.grads.values())


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"support": PARTS[:2]}, "one batch for each of 5 steps, not a list of 2"),
        ({"support": PARTS[0]}, "not a dict"),
        ({"loss_weights": [1.0]}, "one number for each of InnerLoop.steps \\+ 1 = 6"),
        ({"order": "implicit", "inner": InnerLoop(steps=STEPS, proximal=1.0)}, "not for order implicit"),
        ({"inner": InnerLoop(steps=STEPS, proximal=1.0)}, "do not go with"),
        ({"step_weights": [0.2] * STEPS}, "do not go with"),
    ],
)
def test_what_does_not_go_together_is_refused(change: Any, words: str) -> None:
    arguments: Any = {
        "support": PARTS, "query": LAST, "inner": InnerLoop(steps=STEPS), "by_step": True, "loss_weights": WEIGHTS,
    }  # fmt: skip
    with pytest.raises(ValueError, match=words):
        meta_gradient(mlp_loss, mlp_params(), **{**arguments, **change})
