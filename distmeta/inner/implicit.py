"""The implicit meta-gradient (iMAML, Rajeswaran et al. 2019, arXiv 1909.04630).

If theta* minimises support loss + lam/2 |theta - theta_0|^2, then d query / d theta_0 = x with (I + H / lam)
x = query gradient, whatever the path to theta*: no derivative of the steps, none of their rates.
Bias: that of an inner loop that has not converged, and of the solver stopped after `cg_steps` steps: conjugate
gradient, or the Neumann series x = sum_j (-H / lam)^j (query gradient) (Lorraine et al. 2020, arXiv 1911.02590).
"""

from __future__ import annotations

from typing import Protocol

import torch

from . import products
from .adapt import Graph
from .budget import Budget
from .lists import Sum, Tensors, along, dots, times, wide, zeros_like
from .loop import InnerLoop
from .problem import Problem, generator_state, gradient, refuse_other_draws


class Matrix(Protocol):
    """Products of the Hessian at the adapted weights."""

    def __call__(self, vector: Tensors, check: bool = False) -> products.Product: ...


def solve(
    problem: Problem, inner: InnerLoop, theta: Tensors, cotangent: Tensors, of_shared: Tensors
) -> tuple[Tensors, Tensors]:
    """(x, derivative of shared) at the adapted weights theta; one system for each task.

    The derivative of shared is the direct one minus d/dshared <g, x> / lam.
    """
    graphs, device = _graphs(problem, inner, theta), theta[0].device

    def product(vector: Tensors, check: bool = False) -> products.Product:
        before = None if graphs else generator_state(device)  # else the loss is taken anew for each product
        out = products.exact(problem, theta, vector, inner.steps, graphs, retain=True, check=check)
        refuse_other_draws(problem, before, device)
        return out

    x = (_neumann if inner.solver == "neumann" else _conjugate_gradient)(product, problem, inner, cotangent)
    shared = Sum(of_shared)
    if of_shared:
        shared.add(product(x).shared, alpha=-1 / inner.proximal)
    return x, shared.tensors


def _conjugate_gradient(product: Matrix, problem: Problem, inner: InnerLoop, cotangent: Tensors) -> Tensors:
    x = zeros_like(cotangent)
    r = [t.clone() for t in cotangent]
    p = r
    rr = dots(r, r, problem.per_task, wide(r))
    for i in range(inner.cg_steps):
        ap = list(torch._foreach_add(p, product(p, check=i == 0).theta, alpha=1 / inner.proximal))
        curvature = dots(p, ap, problem.per_task, rr.dtype)
        # No step along a direction of negative curvature, or once the residual is 0; decided on the device.
        alpha = torch.where(curvature > 0, rr / curvature, 0.0)
        torch._foreach_add_(x, times(p, along(alpha, p)))
        r = list(torch._foreach_sub(r, times(ap, along(alpha, ap))))
        new = dots(r, r, problem.per_task, rr.dtype)
        beta = torch.where(rr > 0, new / rr, 0.0)
        p = list(torch._foreach_add(r, times(p, along(beta, p))))
        rr = new
    return x


def _neumann(product: Matrix, problem: Problem, inner: InnerLoop, cotangent: Tensors) -> Tensors:
    term, x = cotangent, Sum(cotangent)
    for i in range(inner.cg_steps):
        term = list(torch._foreach_mul(product(term, check=i == 0).theta, -1 / inner.proximal))
        x.add(term)
    return x.tensors


def _graphs(problem: Problem, inner: InnerLoop, theta: Tensors) -> list[Graph]:
    """The graphs of the support gradient at theta, for all products; [] where they exceed the budget."""
    budget = Budget(inner)
    graphs: list[Graph] = []
    for j, batch in enumerate(problem.support):
        if not budget.open:
            return []
        with budget.watch(0):
            _, _, inputs, grads = gradient(problem, theta, batch, ("support", inner.steps, j), create_graph=True)
        graphs.append((inputs, grads))
        budget.fits(0)
    return graphs if budget.open else []
