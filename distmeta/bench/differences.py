"""Derivatives by differences, which know nothing of our gradients: what these are held against."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence

import torch
from torch import Tensor

Params = dict[str, Tensor]

DIRECTIONS = 3  # for each group of meta-parameters
STEPS = (1e-3, 1e-4, 1e-5, 1e-6, 1e-7)  # of the differences, tried in this order
EXACT = 1e-5  # relative error of a derivative that agrees, in float64


def directions(meta: Params, part: Sequence[str], seed: int) -> Iterator[Params]:
    """Random directions within `part`, of length 1."""
    generator = torch.Generator().manual_seed(seed + 1)
    for _ in range(DIRECTIONS):
        v = {n: torch.randn(meta[n].shape, generator=generator, dtype=torch.float64).to(meta[n].device) for n in part}
        length = norm(v)
        yield {name: value / length for name, value in v.items()}


def derivative(f: Callable[[Params], float], point: Params, v: Params) -> float:
    """df/dv by differences, at the step that changes least from the one before: it knows nothing of our gradient.

    A smooth loss is settled at the first two. ReLU, or Adam's quotient at a small gradient, needs a smaller step.
    """
    estimates = [central_difference(f, point, v, STEPS[0])]
    gaps = []
    for h in STEPS[1:]:
        estimates.append(central_difference(f, point, v, h))
        gaps.append(abs(estimates[-1] - estimates[-2]))
        if gaps[-1] <= 0.1 * EXACT * abs(estimates[-1]):
            break
    return estimates[gaps.index(min(gaps)) + 1]


def central_difference(f: Callable[[Params], float], point: Params, v: Params, h: float) -> float:
    """df/dv by the five-point rule, (8 (f(h) - f(-h)) - (f(2h) - f(-2h))) / 12h, with an error of order h^4."""

    def moved(s: float) -> float:
        return f({name: value + s * v[name] if name in v else value for name, value in point.items()})

    return (8 * (moved(h) - moved(-h)) - (moved(2 * h) - moved(-2 * h))) / (12 * h)


def dot(a: Mapping[str, Tensor], v: Mapping[str, Tensor]) -> float:
    return float(sum(float((a[name] * value).sum()) for name, value in v.items()))


def norm(v: Mapping[str, Tensor]) -> float:
    return math.sqrt(dot(v, v))


def relative(measured: Sequence[float], expected: Sequence[float]) -> float:
    """|found - expected| / |expected|, as vectors."""
    gap = math.hypot(*(x - y for x, y in zip(measured, expected, strict=True)))
    return gap / max(math.hypot(*expected), 1e-300)
