"""frozen_linear: equal to torch's linear at every order, in every mode, and it holds no weight."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from inner_networks import F64, Named
from torch import Tensor

from distmeta.inner import InnerLoop, meta_gradient
from distmeta.inner.frozen import frozen_linear

G = torch.Generator().manual_seed(0)
WEIGHT, BIAS = torch.randn(5, 4, generator=G, dtype=F64), torch.randn(5, generator=G, dtype=F64)
X = torch.randn(2, 3, 4, generator=G, dtype=F64)


@pytest.mark.parametrize("bias", [None, BIAS, BIAS.clone().requires_grad_()])
@pytest.mark.parametrize("fetched", [True, False])
def test_values_and_derivatives_of_three_orders(bias: Tensor | None, fetched: bool) -> None:
    weight: Any = (lambda: WEIGHT) if fetched else WEIGHT
    results = []
    for linear in (lambda x: frozen_linear(x, weight, bias), lambda x: F.linear(x, WEIGHT, bias)):
        x = X.clone().requires_grad_()
        out = linear(x)
        inputs = [x] if bias is None or not bias.requires_grad else [x, bias]
        chain = [out]
        value = torch.sin(out).sum()
        for _ in range(3):
            grads = torch.autograd.grad(value, inputs, create_graph=True)
            chain += grads
            value = sum(torch.sin(g * 1.3).sum() for g in grads)  # type: ignore[assignment]
        results.append(chain)
    for found, expected in zip(*results, strict=True):
        assert torch.allclose(found, expected, rtol=1e-12, atol=1e-13)


def test_gradcheck() -> None:
    x = X.clone().requires_grad_()
    assert torch.autograd.gradcheck(lambda x: frozen_linear(x, WEIGHT, BIAS), x, check_forward_ad=True)
    assert torch.autograd.gradgradcheck(lambda x: frozen_linear(x, WEIGHT, BIAS).tanh(), x)


def test_under_vmap_and_function_transforms() -> None:
    def value(x: Tensor) -> Tensor:
        return torch.tanh(frozen_linear(x, WEIGHT, BIAS)).sum()

    def plain(x: Tensor) -> Tensor:
        return torch.tanh(F.linear(x, WEIGHT, BIAS)).sum()

    assert torch.allclose(torch.vmap(value, in_dims=1)(X), torch.vmap(plain, in_dims=1)(X))
    assert torch.allclose(torch.vmap(torch.func.grad(value))(X), torch.vmap(torch.func.grad(plain))(X))
    assert torch.allclose(torch.func.hessian(value)(X[0, 0]), torch.func.hessian(plain)(X[0, 0]))


def test_the_weight_is_fetched_for_each_use_and_not_kept() -> None:
    fetches = []

    def fetch() -> Tensor:
        fetches.append(1)
        return WEIGHT

    x = X.clone().requires_grad_()
    saved: list[Tensor] = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: saved.append(t) or t, lambda t: t):
        out = frozen_linear(x, fetch, BIAS)
    assert not saved
    assert len(fetches) == 1
    (g,) = torch.autograd.grad(out.sum(), x, create_graph=True)
    assert len(fetches) == 2
    assert torch.allclose(g, WEIGHT.sum(0).expand_as(g))


@pytest.mark.parametrize("axis", [False, True])
def test_in_the_meta_gradient_of_a_low_rank_adapter(axis: bool) -> None:
    """W frozen, B A adapted: the same meta-gradient as with torch's own linear."""

    def make(linear: Any) -> Any:
        def loss(p: Named, batch: Tensor) -> Tensor:
            hidden = torch.tanh(linear(batch, WEIGHT, BIAS) + (batch @ p["a"]) @ p["b"])
            return (hidden @ p["head"]).square().mean()

        return loss

    lead = (3,) if axis else ()
    g = torch.Generator().manual_seed(1)
    shapes = {"a": (4, 2), "b": (2, 5), "head": (5, 1)}
    params = {n: torch.randn(*lead, *s, generator=g, dtype=F64) for n, s in shapes.items()}
    support, query = torch.randn(2, *lead, 6, 4, generator=g, dtype=F64)
    inner = InnerLoop(steps=3, lr=0.1, memory="walk")
    found = meta_gradient(make(frozen_linear), params, support, query, inner, task_axis=axis)
    expected = meta_gradient(make(F.linear), params, support, query, inner, task_axis=axis)
    for n in params:
        assert torch.allclose(found.grads[n], expected.grads[n], rtol=1e-11, atol=1e-13)
