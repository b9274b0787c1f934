"""Inner optimisers as pure functions, and their derivatives written out.

An optimiser turns the gradient g of step k (from 0) and its state into a direction d and a new state; the
fast weights then move by -rate * d. `pullback` is the transposed derivative of that map. Both are
elementwise, so they hold for tensors with and without a task axis. State: () for sgd and before the first
step, (m,) for momentum, (m, v) for adam; each a list of tensors like the fast weights. A gradient is clipped before
the optimiser sees it, which is one more such map.
"""

from __future__ import annotations

from typing import cast

import torch
from torch import Tensor

from .lists import Tensors, along, dots, times, wide
from .loop import InnerLoop

State = tuple[Tensors, ...]


def clipped(inner: InnerLoop, gradient: Tensors, per_task: bool) -> Tensors:
    """The gradient g scaled down to the norm c = inner.clip where it is longer: g min(1, c / |g|), of each task."""
    if inner.clip is None:
        return gradient
    return times(gradient, along((inner.clip / _norm(gradient, per_task)).clamp(max=1.0), gradient))


def clip_pullback(inner: InnerLoop, gradient: Tensors, cotangent: Tensors, per_task: bool) -> Tensors:
    """The transposed derivative of `clipped` at g, applied to v: c / |g| (v - g <g, v> / |g|^2) where it clips, else v.

    inner.clip_norm = constant: c / |g| v.
    """
    if inner.clip is None:
        return cotangent
    norm = _norm(gradient, per_task)
    scale = (inner.clip / norm).clamp(max=1.0)
    if inner.clip_norm == "exact":
        share = dots(gradient, cotangent, per_task, norm.dtype) / norm.square()
        share = torch.where(norm > inner.clip, share, 0.0)
        cotangent = [v - g * s for v, g, s in zip(cotangent, gradient, _spread(share, gradient), strict=True)]
    return times(cotangent, along(scale, cotangent))


def _norm(gradient: Tensors, per_task: bool) -> Tensor:
    """|g| over all tensors, [] or [T]."""
    return dots(gradient, gradient, per_task, wide(gradient)).sqrt()


def _spread(scalar: Tensor, tensors: Tensors) -> list[Tensor]:
    return cast(list[Tensor], along(scalar, tensors))


def update(inner: InnerLoop, k: int, gradient: Tensors, state: State) -> tuple[Tensors, State]:
    """(direction, new state) of step k."""
    if inner.optimizer == "sgd":
        return gradient, ()
    if inner.optimizer == "momentum":
        if not state:
            return gradient, (gradient,)
        m = list(torch._foreach_add(gradient, state[0], alpha=inner.momentum))
        return m, (m,)
    b1, b2 = inner.betas
    m = list(torch._foreach_mul(gradient, 1 - b1))
    v = list(torch._foreach_mul(torch._foreach_mul(gradient, gradient), 1 - b2))
    if state:
        torch._foreach_add_(m, state[0], alpha=b1)
        torch._foreach_add_(v, state[1], alpha=b2)
    return direction(inner, k, (m, v)), (m, v)


def direction(inner: InnerLoop, k: int, state: State) -> Tensors:
    """Adam's direction from the state after step k: (m / c1) / (sqrt(v / c2) + eps)."""
    c1, c2 = _corrections(inner, k)
    return [(m / c1) / ((v / c2).sqrt_().add_(inner.eps)) for m, v in zip(*state, strict=True)]


def pullback(
    inner: InnerLoop, k: int, gradient: Tensors, state: State, cotangent: Tensors, cotangent_state: State
) -> tuple[Tensors, State]:
    """(cotangent of g, cotangent of the state before), given those of the direction and of the state after.

    gradient, state: g of step k and the state AFTER it; only adam reads them.
    """
    if inner.optimizer == "sgd":
        return cotangent, ()
    if inner.optimizer == "momentum":
        total = list(torch._foreach_add(cotangent, cotangent_state[0])) if cotangent_state else cotangent
        return total, (list(torch._foreach_mul(total, inner.momentum)),)
    b1, b2 = inner.betas
    c1, c2 = _corrections(inner, k)
    to_g, to_m, to_v = [], [], []
    for i, (g, m, v, c) in enumerate(zip(gradient, *state, cotangent, strict=True)):
        root = (v / c2).sqrt_()
        scale = root + inner.eps
        dm = c / (scale * c1)
        dv = _of_root(root, -c * (m / c1) / scale.square(), c2) if inner.adam_root == "exact" else torch.zeros_like(v)
        if cotangent_state:
            dm = dm + cotangent_state[0][i]
            dv = dv + cotangent_state[1][i]
        to_g.append((1 - b1) * dm + (2 * (1 - b2)) * g * dv)
        to_m.append(b1 * dm)
        to_v.append(b2 * dv)
    return to_g, (to_m, to_v)


def _of_root(root: Tensor, cotangent: Tensor, c2: float) -> Tensor:
    """Cotangent of v from that of sqrt(v / c2) = root.

    v = 0 means that every gradient so far was exactly 0 (a row of an embedding that no example used). There d
    = m / eps, whose derivative is already in dm, and sqrt's infinite derivative meets m = 0: its limit is 0.
    """
    return torch.where(root > 0, cotangent / (2 * c2 * root), 0.0)


def _corrections(inner: InnerLoop, k: int) -> tuple[float, float]:
    b1, b2 = inner.betas
    return 1 - b1 ** (k + 1), 1 - b2 ** (k + 1)
