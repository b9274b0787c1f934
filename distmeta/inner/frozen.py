"""A linear map whose weight is frozen, lean at every order of differentiation.

x -> x W^T has the derivative dy -> dy W, which is again a linear map with the same frozen weight, the other
way round. So one autograd function serves forward, backward and every derivative of these; it saves no
activation and holds not the weight but a way to fetch it, which lets a sharded weight be gathered for each
use and dropped after. In forward mode it costs one product where torch's own linear costs two, since that
fills in a zero tangent of W.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

Fetch = Callable[[], Tensor]
_SPACE, _NONE = threading.local(), torch.empty(0)


def frozen_linear(x: Tensor, weight: Tensor | Fetch, bias: Tensor | None = None) -> Tensor:
    """x [.., inputs] @ weight.T [inputs, outputs] + bias [outputs] -> [.., outputs].

    weight: [outputs, inputs], or a function that returns it whenever it is needed, the same values each time; it is
    made x's dtype for each product.
    No derivative reaches it, whatever its requires_grad. It must not be batched by an enclosing vmap; x may
    be. bias is differentiated as usual.
    """
    fetch = (lambda: weight) if isinstance(weight, Tensor) else weight
    if bias is None or bias.requires_grad:
        out = _apply(x, fetch, None, False)
        return out if bias is None else out + bias
    return _apply(x, fetch, bias, False)


class _FrozenLinear(torch.autograd.Function):
    """x W^T + bias, or x W if flipped."""

    @staticmethod
    def forward(x: Tensor, fetch: Fetch, bias: Tensor | None, flipped: bool) -> Tensor:
        weight = in_dtype(fetch(), x.dtype)
        return F.linear(x, weight.t() if flipped else weight, bias)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, Fetch, Tensor | None, bool], output: Tensor) -> None:
        _, ctx.fetch, _, ctx.flipped = inputs

    @staticmethod
    def backward(ctx: Any, *cotangents: Any) -> Any:
        return _apply(cotangents[0], ctx.fetch, None, not ctx.flipped), None, None, None

    @staticmethod
    def jvp(ctx: Any, *tangents: Any) -> Any:
        return _apply(tangents[0], ctx.fetch, None, ctx.flipped)

    @staticmethod
    def vmap(info: Any, in_dims: Any, *args: Any) -> Any:
        x, fetch, bias, flipped = args
        if in_dims[2] is not None:
            raise ValueError("frozen_linear: a bias that is frozen cannot be batched by vmap")
        return _apply(x.movedim(in_dims[0], 0), fetch, bias, flipped), 0


def in_dtype(weight: Tensor, dtype: torch.dtype) -> Tensor:
    """`weight` in `dtype`, until this thread asks again: on a CPU, new memory would cost three times the copy."""
    if weight.dtype == dtype or weight.device.type != "cpu":
        return weight.to(dtype)
    size = weight.numel() * dtype.itemsize
    if size > getattr(_SPACE, "bytes", _NONE).numel():
        _SPACE.bytes = torch.empty(size, dtype=torch.uint8)
    out: Tensor = _SPACE.bytes[:size].view(dtype).view(weight.shape)
    return out.copy_(weight)


def _apply(x: Tensor, fetch: Fetch, bias: Tensor | None, flipped: bool) -> Tensor:
    out: Tensor = _FrozenLinear.apply(x, fetch, bias, flipped)  # type: ignore[no-untyped-call]
    return out
