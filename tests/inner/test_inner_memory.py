"""What is kept while the inner loop runs: nothing that grows (walk), as much as fits (auto), the same masks."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
import torch
from inner_networks import F64, Named, chunks, differ, mlp_loss, mlp_params, mlp_shared, regression
from torch import Tensor

from distmeta.bench.measure import live_peak
from distmeta.inner import InnerLoop, meta_gradient

WIDE = 64


def deep_loss(p: Named, batch: Tensor) -> Tensor:
    """Ten layers on [rows, WIDE] through one adapted vector: activations are large, fast weights small."""
    x = batch
    for _ in range(10):
        x = torch.tanh(x * p["v"])
    return x.square().sum() / 1000


def peak(order: Any, steps: int, memory: Any, cuts: int = 1, **settings: Any) -> int:
    params = {"v": torch.linspace(0.5, 1.5, WIDE, dtype=F64)}
    support = list(torch.ones(128, WIDE, dtype=F64).chunk(cuts))
    query = torch.ones(4, WIDE, dtype=F64)
    loop = InnerLoop(steps=steps, memory=memory, **settings)
    return live_peak(lambda: meta_gradient(deep_loss, params, support, query, loop, order))


ACTIVATION = 128 * WIDE * 8


@pytest.mark.parametrize("optimizer", ["sgd", "momentum", "adam"])
def test_walk_is_flat_in_the_number_of_steps(optimizer: str) -> None:
    few, many = (peak("exact", k, "walk", optimizer=optimizer) for k in (2, 12))
    # Fast weights, gradient and state of a step: 4 vectors of WIDE numbers, and some scalars.
    assert many - few <= 10 * (5 * WIDE * 8 + 64)
    assert many < 80 * ACTIVATION


def test_unroll_grows_and_auto_stops_at_its_budget() -> None:
    few, many = (peak("exact", k, "unroll") for k in (2, 12))
    step = (many - few) / 10
    assert step > 10 * ACTIVATION
    walk = peak("exact", 12, "walk")
    for kept in (2, 5):
        bounded = peak("exact", 12, "auto", budget_mb=(kept + 0.5) * step / 2**20)
        assert walk + (kept - 1.2) * step < bounded < walk + (kept + 1.2) * step
    assert peak("exact", 12, "auto", budget_mb=0.4 * step / 2**20) < walk + step


def test_micro_batches_bound_the_walk() -> None:
    whole, cut = peak("exact", 3, "walk"), peak("exact", 3, "walk", cuts=8)
    assert cut < 0.25 * whole


def test_first_order_builds_no_second_order_graph() -> None:
    few, many = peak("first_order", 2, "auto"), peak("first_order", 12, "auto")
    assert many - few <= 10 * 16  # each step leaves its loss
    assert few < 0.6 * peak("exact", 2, "walk")


@pytest.mark.parametrize("fraction", [0.3, 1.5, 2.5, 99.0])
@pytest.mark.parametrize("optimizer", ["sgd", "adam"])
def test_auto_mixes_kept_and_recomputed_steps_with_the_same_numbers(optimizer: Any, fraction: float) -> None:
    params, shared = mlp_params(), mlp_shared()
    support, query = chunks(regression(6), [4, 2]), regression(5, seed=2)
    lr = torch.full((4,), 0.1, dtype=F64)
    # A step of this network saves some 4 kB; the fraction decides how many steps stay.
    inner = InnerLoop(steps=4, lr=lr, optimizer=optimizer, budget_mb=fraction * 4e3 / 2**20)
    walk = InnerLoop(steps=4, lr=lr, optimizer=optimizer, memory="walk")
    found = meta_gradient(mlp_loss, params, support, query, inner, shared=shared)
    expected = meta_gradient(mlp_loss, params, support, query, walk, shared=shared)
    assert differ(found.grads, expected.grads) < 1e-13
    assert differ(found.shared_grads, expected.shared_grads) < 1e-13


def dropout_loss(p: Named, batch: dict[str, Any]) -> Tensor:
    hidden = torch.nn.functional.dropout(torch.tanh(batch["x"] @ p["w1"] + p["b1"]), 0.4)
    return ((hidden @ p["w2"] + p["b2"] - batch["y"]) ** 2).sum() / batch["total"]


@pytest.mark.parametrize("axis", [False, True])
def test_dropout_draws_the_same_masks_when_recomputed(axis: bool) -> None:
    tasks = 2 if axis else None
    params = mlp_params(tasks)
    support = chunks(regression(6, tasks), [4, 2], axis=int(axis))
    query = regression(5, tasks, seed=2)

    def run(seed: int | None, memory: Any, global_seed: int = 0) -> Named:
        torch.manual_seed(global_seed)
        inner = InnerLoop(steps=3, lr=0.1, memory=memory, seed=seed)
        return meta_gradient(dropout_loss, params, support, query, inner, task_axis=axis).grads

    assert differ(run(1, "walk"), run(1, "unroll")) < 1e-13
    assert differ(run(1, "walk", 1), run(1, "auto", 2)) < 1e-13
    assert differ(run(1, "walk"), run(2, "walk")) > 1e-2
    with pytest.raises(ValueError, match="InnerLoop\\(seed"):
        run(None, "walk")
    run(None, "unroll")


def test_dropout_is_the_gradient_of_its_own_masks() -> None:
    """Against a finite difference: with a seed, the query loss is a fixed function of the initial weights."""
    params, support, query = mlp_params(), chunks(regression(6), [4, 2]), regression(5, seed=2)
    inner = InnerLoop(steps=3, lr=0.1, memory="walk", seed=7)
    found = meta_gradient(dropout_loss, params, support, query, inner)
    step = 1e-6 * torch.randn(3, 6, generator=torch.Generator().manual_seed(0), dtype=F64)
    sides = [
        meta_gradient(dropout_loss, {**params, "w1": params["w1"] + s * step}, support, query, inner).loss
        for s in (1, -1)
    ]
    slope = float(sides[0] - sides[1]) / 2
    assert slope == pytest.approx(float((found.grads["w1"] * step).sum()), rel=1e-6)


def test_the_generator_is_left_as_it_was() -> None:
    torch.manual_seed(3)
    before = torch.get_rng_state()
    meta_gradient(dropout_loss, mlp_params(), regression(6), regression(5), InnerLoop(steps=2, seed=1))
    assert torch.equal(before, torch.get_rng_state())


@pytest.mark.parametrize("order", ["exact", "finite_difference", "implicit"])
def test_dropout_without_a_seed_is_refused_where_the_loss_is_taken_anew(order: Any) -> None:
    params, support, query = mlp_params(), regression(6), regression(5)
    walk = InnerLoop(steps=2, lr=0.05, proximal=1.0, memory="walk")
    with pytest.raises(ValueError, match="draws random numbers"):
        meta_gradient(dropout_loss, params, support, query, walk, order=order)
    meta_gradient(dropout_loss, params, support, query, dataclasses.replace(walk, seed=1), order=order)
    if order != "finite_difference":  # which has no graphs to keep
        meta_gradient(dropout_loss, params, support, query, dataclasses.replace(walk, memory="unroll"), order=order)


def test_many_steps_take_little_more_than_a_few() -> None:
    one, many = peak("exact", 1, "walk"), peak("exact", 36, "walk", snapshots=12)
    planned = 12 * WIDE * 8 + 12 * 64  # twelve vectors and losses, of thirty-six steps
    assert many < one + 1.1 * planned + 4 * WIDE * 8
    assert many < 1.05 * one
