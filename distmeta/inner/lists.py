"""Arithmetic on lists of tensors: the fast weights, their gradients and cotangents, in one fixed order."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

Tensors = list[Tensor]
Rate = float | Tensor | list[float | Tensor]  # one rate for all tensors, or one for each


class Sum:
    """A running sum of lists of tensors that owns its memory only from the second addend on.

    What autograd returns may be an expanded view, or one tensor under two names, so the first addend is never
    written to; from the second on there is one buffer, added to in place.
    """

    __slots__ = ("_owned", "tensors")

    def __init__(self, tensors: Sequence[Tensor] | None = None) -> None:
        self.tensors: Tensors = list(tensors) if tensors is not None else []
        self._owned = False

    def add(self, tensors: Sequence[Tensor], alpha: float = 1.0) -> None:
        if not tensors:
            return
        if not self.tensors:
            self.tensors = list(tensors) if alpha == 1.0 else list(torch._foreach_mul(list(tensors), alpha))
            self._owned = alpha != 1.0
        elif self._owned:
            torch._foreach_add_(self.tensors, list(tensors), alpha=alpha)
        else:
            self.tensors = list(torch._foreach_add(self.tensors, list(tensors), alpha=alpha))
            self._owned = True


def times(tensors: Tensors, rate: Rate) -> Tensors:
    """rate * tensors, in the dtype of the tensors."""
    if isinstance(rate, list):
        return [t * r for t, r in zip(tensors, rate, strict=True)]
    return list(torch._foreach_mul(tensors, rate))


def negated(rate: Rate) -> Rate:
    return [-r for r in rate] if isinstance(rate, list) else -rate


def minus(tensors: Tensors, rate: Rate, other: Tensors) -> Tensors:
    """tensors - rate * other, fresh."""
    if isinstance(rate, float):
        return list(torch._foreach_sub(tensors, other, alpha=rate))
    if isinstance(rate, Tensor):
        return list(torch._foreach_sub(tensors, torch._foreach_mul(other, rate)))
    return [
        torch.sub(t, o, alpha=r) if isinstance(r, float) else torch.addcmul(t, o, r, value=-1)
        for t, o, r in zip(tensors, other, rate, strict=True)
    ]


def dots(left: Tensors, right: Tensors, per_task: bool, dtype: torch.dtype | None = None) -> Tensor:
    """<left, right> summed over the list: a scalar, or [T] with one number for each leading index."""
    total: Tensor | None = None
    for a, b in zip(left, right, strict=True):
        product = a * b
        if not per_task:
            part = product.sum(dtype=dtype)
        else:
            part = product.reshape(product.shape[0], -1).sum(1, dtype=dtype)
        total = part if total is None else total + part
    assert total is not None
    return total


def along(scalar: Tensor, tensors: Tensors) -> Rate:
    """`scalar` ([] or [T]) as a rate for `tensors`: [T] is broadcast along each tensor's leading axis."""
    if scalar.ndim == 0:
        return [scalar.to(t.dtype) for t in tensors]
    return [scalar.to(t.dtype).view(-1, *[1] * (t.ndim - 1)) for t in tensors]


def zeros_like(tensors: Tensors) -> Tensors:
    return [torch.zeros_like(t) for t in tensors]


def wide(tensors: Tensors) -> torch.dtype:
    """The dtype in which norms of these are summed."""
    return torch.float64 if tensors[0].dtype == torch.float64 else torch.float32
