"""Inner learning rates: what a step uses, and the derivative with respect to those that are learnt."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from .lists import Rate, Tensors, dots
from .loop import InnerLoop, LearningRate


@dataclass
class Learnt:
    """One learnt tensor: its kind (one, step, parameter), the fast weights it governs, its derivative."""

    tensor: Tensor
    kind: str
    indices: list[int]
    sums: dict[int, Tensor] = field(default_factory=dict)


class Rates:
    """`InnerLoop.lr` resolved against the fast weights.

    names, tensors: of the fast weights, in order. per_task: tensors carry a leading task axis, rates do not.
    """

    def __init__(self, inner: InnerLoop, names: Sequence[str], tensors: Tensors, per_task: bool) -> None:
        self._lr, self._per_task = inner.lr, per_task
        self._tensors_meta = [(t.dtype, t.device) for t in tensors]
        self._steps, self._tasks = inner.steps, tensors[0].shape[0] if per_task else None
        self.learnt: dict[str | None, Learnt] = {}
        self._fixed: dict[int, float] = {}
        if not isinstance(inner.lr, Mapping):
            if isinstance(inner.lr, Tensor):
                kind = "step" if inner.lr.ndim else "one"
                self.learnt[None] = Learnt(inner.lr.detach(), kind, list(range(len(names))))
            return
        _check_names(inner.lr, names)
        for i, name in enumerate(names):
            rate = inner.lr[name]
            if isinstance(rate, Tensor):
                shape = tuple(tensors[i].shape[1:] if per_task else tensors[i].shape)
                self.learnt[name] = Learnt(rate.detach(), _kind(inner, name, rate, shape), [i])
            else:
                self._fixed[i] = float(rate)

    @property
    def by_step(self) -> bool:
        """Whether a learnt rate has a value for each step."""
        return any(entry.kind == "step" for entry in self.learnt.values())

    def at(self, k: int) -> Rate:
        """The rate of step k (from 0). Beyond the last step that has a rate of its own, the last one's."""
        if isinstance(self._lr, int | float):
            return float(self._lr)
        if not isinstance(self._lr, Mapping):
            entry = self.learnt[None]
            value = _value(entry, k)
            dtypes = set(self._tensors_meta)
            if len(dtypes) == 1:
                dtype, device = self._tensors_meta[0]
                return value.to(device=device, dtype=dtype)
            return [value.to(device=device, dtype=dtype) for dtype, device in self._tensors_meta]
        rates: list[float | Tensor] = [self._fixed.get(i, 0.0) for i in range(len(self._tensors_meta))]
        for entry in self.learnt.values():
            for i in entry.indices:
                dtype, device = self._tensors_meta[i]
                rates[i] = _value(entry, k).to(device=device, dtype=dtype)
        return rates

    def accumulate(self, k: int, cotangent: Tensors, direction: Tensors) -> None:
        """Add step k's part, -<cotangent, direction>, from theta' = theta - rate * direction."""
        for entry in self.learnt.values():
            left, right = [cotangent[i] for i in entry.indices], [direction[i] for i in entry.indices]
            if entry.kind == "parameter":
                part = (left[0] * right[0]).to(entry.tensor.dtype)
            else:
                part = dots(left, right, self._per_task, dtype=entry.tensor.dtype)
            slot = k if entry.kind == "step" else 0
            entry.sums[slot] = entry.sums[slot] - part if slot in entry.sums else -part

    def gradients(self) -> Tensor | dict[str, Tensor] | None:
        """The derivatives in the structure of `InnerLoop.lr`, with a leading task axis if there is one."""
        gradients = {name: self._gradient(entry) for name, entry in self.learnt.items()}
        if isinstance(self._lr, Mapping):
            return {name: value for name, value in gradients.items() if name is not None}
        return gradients.get(None)

    def _gradient(self, entry: Learnt) -> Tensor:
        lead = () if self._tasks is None else (self._tasks,)
        device = self._tensors_meta[entry.indices[0]][1]
        if entry.kind == "step":
            empty = torch.zeros(lead, dtype=entry.tensor.dtype, device=device)
            parts = [entry.sums.get(k, empty) for k in range(self._steps)]
            return torch.stack(parts, dim=-1) if parts else empty.new_zeros((*lead, 0))
        if 0 in entry.sums:
            return entry.sums[0]
        shape = tuple(entry.tensor.shape) if entry.kind == "parameter" else ()
        return torch.zeros((*lead, *shape), dtype=entry.tensor.dtype, device=device)


def _value(entry: Learnt, k: int) -> Tensor:
    return entry.tensor[min(k, len(entry.tensor) - 1)] if entry.kind == "step" else entry.tensor


def _check_names(lr: LearningRate, names: Sequence[str]) -> None:
    assert isinstance(lr, Mapping)
    missing = [name for name in names if name not in lr]
    if missing:
        raise ValueError(f"InnerLoop.lr has no rate for {_listed(missing)}; a dict names every fast weight")
    unknown = [name for name in lr if name not in set(names)]
    if unknown:
        raise ValueError(f"InnerLoop.lr has a rate for {_listed(unknown)}, which is not adapted")


def _kind(inner: InnerLoop, name: str, rate: Tensor, shape: tuple[int, ...]) -> str:
    if rate.ndim == 0:
        return "one"
    per_parameter, stepwise = tuple(rate.shape) == shape, tuple(rate.shape) == (inner.steps,)
    if per_parameter and stepwise and inner.steps > 1 and inner.lr_per == "auto":
        raise ValueError(
            f"InnerLoop.lr[{name!r}] of shape {list(rate.shape)} can mean a rate for each of {inner.steps} steps or "
            f'for each element of the parameter: say which by InnerLoop(lr_per="step") or "parameter"'
        )
    if stepwise and not (per_parameter and inner.lr_per == "parameter"):
        return "step"
    if per_parameter:
        return "parameter"
    raise ValueError(
        f"InnerLoop.lr[{name!r}] has shape {list(rate.shape)}; allowed: a number, [], [steps] = [{inner.steps}] "
        f"or the parameter's own shape {list(shape)}"
    )


def _listed(names: Sequence[str]) -> str:
    shown = ", ".join(repr(name) for name in names[:3])
    return shown if len(names) <= 3 else f"{shown} and {len(names) - 3} more"
