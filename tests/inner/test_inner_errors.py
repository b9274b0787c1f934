"""Divergence, unusable settings and unusable arguments: each names what is wrong and what is allowed."""

from __future__ import annotations

import pickle
from typing import Any

import pytest
import torch
from inner_networks import F64, Named, mlp_loss, mlp_params, regression
from torch import Tensor

from distmeta.inner import Diverged, InnerLoop, adapt, meta_gradient

SUPPORT, QUERY = regression(6, seed=1), regression(5, seed=2)


@pytest.mark.parametrize("order", ["exact", "first_order", "finite_difference"])
def test_divergence_names_the_step(order: Any) -> None:
    with pytest.raises(Diverged, match=r"after \d+ of 80 inner steps.*smaller inner\.lr") as caught:
        meta_gradient(mlp_loss, mlp_params(), SUPPORT, QUERY, InnerLoop(steps=80, lr=90.0), order)
    losses = []
    inner = InnerLoop(steps=80, lr=90.0)
    for k in range(caught.value.step + 1):
        try:
            losses.append(float(adapt(mlp_loss, mlp_params(), SUPPORT, inner, steps=k).inner_losses[-1]))
        except Diverged as error:
            assert error.step == k == caught.value.step
    assert len(losses) == caught.value.step


@pytest.mark.parametrize("axis", [True, "native"])
def test_divergence_names_step_task_and_episode(axis: Any) -> None:
    def loss(p: Named, batch: Tensor) -> Tensor:
        return torch.where(p["t"] < batch, torch.nan, -p["t"])

    params = {"t": torch.tensor([0.0, 0.0, 0.0])}
    limits = torch.tensor([-9.0, -9.0, -9.0])
    inner = InnerLoop(steps=4, lr=1.0)
    assert meta_gradient(loss, params, limits, limits, inner, task_axis=axis).loss.shape == (3,)

    def falls(p: Named, batch: Tensor) -> Tensor:
        return torch.where(p["t"] < batch, torch.inf, p["t"])

    limits = torch.tensor([-9.0, -1.5, -2.5])
    with pytest.raises(Diverged) as caught:
        meta_gradient(falls, params, limits, limits, inner, task_axis=axis, names=["a", "b", "c"])
    assert (caught.value.step, caught.value.tasks, caught.value.names) == (2, [1], ["b"])
    assert "task 1 (episode b)" in str(caught.value)
    again = pickle.loads(pickle.dumps(caught.value))
    assert (str(again), again.step, again.names) == (str(caught.value), 2, ["b"])


def test_divergence_of_the_query_alone() -> None:
    def loss(p: Named, batch: float) -> Tensor:
        return p["t"] * batch

    with pytest.raises(Diverged, match="query loss") as caught:
        meta_gradient(loss, {"t": torch.tensor(1.0)}, 1.0, float("nan"), InnerLoop(steps=3))
    assert caught.value.step == 3


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"steps": -1}, "steps is a whole number"),
        ({"steps": 1.5}, "steps is a whole number"),
        ({"steps": True}, "steps is a whole number"),
        ({"lr": -0.1}, "lr is a finite number"),
        ({"lr": float("nan")}, "lr is a finite number"),
        ({"lr": "fast"}, "lr is a number or a tensor, not str"),
        ({"lr": torch.tensor([0.1, 0.1])}, r"allowed: .*\[steps\] = \[1\]"),
        ({"lr": torch.tensor(1)}, "floating point"),
        ({"lr": {"w": "x"}}, r"lr\['w'\]"),
        ({"optimizer": "lion"}, "sgd, momentum, adam"),
        ({"memory": "all"}, "auto, walk, unroll"),
        ({"lr_per": "x"}, "auto, step, parameter"),
        ({"momentum": 1.0}, "momentum is at least"),
        ({"betas": (0.9, 1.0)}, "betas is at least"),
        ({"betas": (0.9,)}, "pair"),
        ({"eps": 0.0}, "eps is a positive"),
        ({"budget_mb": 0}, "budget_mb is a positive"),
        ({"proximal": -1.0}, "proximal is a number"),
        ({"cg_steps": 0}, "cg_steps is a whole number"),
        ({"seed": 1.0}, "seed is a whole number"),
    ],
)
def test_settings_are_checked(settings: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        InnerLoop(**settings)


def attempt(inner: InnerLoop = InnerLoop(), **kwargs: Any) -> Any:  # noqa: B008
    args = {"loss": mlp_loss, "params": mlp_params(), "support": SUPPORT, "query": QUERY, **kwargs}
    return meta_gradient(inner=inner, **args)


def test_arguments_are_checked() -> None:
    with pytest.raises(ValueError, match="order is one of exact"):
        attempt(order="second")
    with pytest.raises(ValueError, match="proximal"):
        attempt(order="implicit")
    with pytest.raises(ValueError, match="params is empty"):
        attempt(params={})
    with pytest.raises(ValueError, match="support is an empty list"):
        attempt(support=[])
    with pytest.raises(ValueError, match="query is an empty list"):
        attempt(query=[])
    with pytest.raises(ValueError, match="task_axis is True"):
        attempt(task_axis="vmap")
    with pytest.raises(ValueError, match=r"params\['w1'\].*int64"):
        attempt(params={"w1": torch.ones(3, 6, dtype=torch.int64)})
    with pytest.raises(ValueError, match="same leading task axis"):
        attempt(task_axis=True)
    with pytest.raises(ValueError, match=r"shape \[6, 1\]; expected \[\], a single number"):
        attempt(loss=lambda p, b: b["y"] * p["b2"])
    with pytest.raises(ValueError, match="returned a float, not a tensor"):
        attempt(loss=lambda p, b: 1.0)
    with pytest.raises(ValueError, match=r"\(loss, aux\)"):
        attempt(has_aux=True)
    with pytest.raises(ValueError, match=r"one loss for each task"):
        attempt(params=mlp_params(6), task_axis="native", loss=lambda p, b: p["w1"].sum())
    with pytest.raises(ValueError, match="no tensor was found"):
        attempt(params=mlp_params(2), task_axis=True, support="x")
    with pytest.raises(ValueError, match="returned 'w1', which is in params"):
        attempt(start=lambda p, s: {"w1": p["w1"]})


def test_rates_are_checked() -> None:
    rates: Any = dict.fromkeys(mlp_params(), 0.1)
    missing = {n: r for n, r in rates.items() if n != "b1"}
    with pytest.raises(ValueError, match="no rate for 'b1'"):
        attempt(InnerLoop(lr=missing))
    with pytest.raises(ValueError, match="rate for 'w9', which is not adapted"):
        attempt(InnerLoop(lr={**rates, "w9": 0.1}))
    with pytest.raises(ValueError, match=r"lr\['w1'\] has shape \[2\]"):
        attempt(InnerLoop(lr={**rates, "w1": torch.ones(2)}))


def test_a_rate_with_two_readings_is_refused_until_one_is_named() -> None:
    """b1 has 6 numbers and there are 6 steps."""
    rates: Any = dict.fromkeys(mlp_params(), 0.1)
    both = {**rates, "b1": torch.linspace(0.0, 0.2, 6, dtype=F64)}
    with pytest.raises(ValueError, match=r"lr\['b1'\].*lr_per"):
        attempt(InnerLoop(steps=6, lr=both))
    by_step = attempt(InnerLoop(steps=6, lr=both, lr_per="step"))
    by_element = attempt(InnerLoop(steps=6, lr=both, lr_per="parameter"))
    assert not torch.allclose(by_step.adapted["b1"], by_element.adapted["b1"])
    expanded = {**rates, "b1": both["b1"].expand(2, 6)[0]}
    assert torch.equal(attempt(InnerLoop(steps=6, lr=expanded, lr_per="step")).loss, by_step.loss)
    # One step and one number: both readings are the same, so there is nothing to refuse.
    assert attempt(InnerLoop(steps=1, lr={**rates, "b2": torch.ones(1)})).lr_grads["b2"].shape == (1,)
