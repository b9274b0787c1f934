"""Second derivatives of the support loss times a vector: exactly, and by a central difference."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from .adapt import Graph
from .lists import Sum, Tensors, along, dots, times, wide, zeros_like
from .problem import Problem, gradient


@dataclass(frozen=True)
class Product:
    """At fast weights theta, for a vector v: H v, d/dshared <g, v>, and the support gradient g if asked for."""

    theta: Tensors
    shared: Tensors
    gradient: Tensors


def exact(
    problem: Problem,
    theta: Tensors,
    vector: Tensors,
    k: int,
    graphs: list[Graph],
    *,
    want_gradient: bool = False,
    retain: bool = False,
    check: bool = False,
) -> Product:
    """Reverse over reverse, one micro-batch after the other; kept graphs are used up unless `retain`.

    check: refuse a loss with an operation that torch would silently take for a constant.
    """
    products, gradients = Sum(), Sum()
    for j in range(len(problem.batches(k))):
        graph = graphs[j] if graphs else _graph(problem, theta, k, j)
        if want_gradient:
            gradients.add([g.detach() for g in graph[1]])
        if check and j == 0:
            refuse_constants(graph[1])
        products.add(_of_graph(graph, vector, retain))
        del graph
        if graphs and not retain:
            graphs[j] = ([], [])
    n = len(theta)
    return Product(products.tensors[:n], products.tensors[n:], gradients.tensors)


def central_difference(problem: Problem, theta: Tensors, vector: Tensors, k: int) -> Product:
    """|v| (g(theta + r u) - g(theta - r u)) / 2r for u = v / |v|: as in DARTS (1806.09055), SAMA
    (2310.05674).

    Needs no double backward, so fused attention kernels will do. Its bias is r^2 / 6 times the third
    derivative of the gradient along u, and rounding adds about eps |g| / r, eps being that of the dtype; r =
    cbrt(eps) * max(1, |theta|) balances the two. The product's gradient is left out.
    """
    per_task = problem.per_task
    size = dots(vector, vector, per_task, wide(vector)).sqrt()
    weight = dots(theta, theta, per_task, size.dtype).sqrt().clamp(min=1.0)
    radius = weight * torch.finfo(theta[0].dtype).eps ** (1 / 3)
    size = torch.where(size > 0, size, 1.0)
    offset = times(vector, along(radius / size, vector))
    # Each task's loss is weighted before the sum over tasks that the gradient of shared is.
    scale = size / (2 * radius)
    above, below = Sum(), Sum()
    for side, total in ((1.0, above), (-1.0, below)):
        moved = list(torch._foreach_add(theta, offset, alpha=side))
        for j, batch in enumerate(problem.batches(k)):
            key = ("support", k, j)
            total.add(gradient(problem, moved, batch, key, of_shared=True, weight=scale)[3])
    n = len(theta)
    difference = list(torch._foreach_sub(above.tensors, below.tensors))
    return Product(difference[:n], difference[n:], [])


def _graph(problem: Problem, theta: Tensors, k: int, j: int) -> Graph:
    _, _, inputs, grads = gradient(problem, theta, problem.batches(k)[j], ("support", k, j), create_graph=True)
    return inputs, grads


def _of_graph(graph: Graph, vector: Tensors, retain: bool) -> Tensors:
    inputs, grads = graph
    pairs = [(g, v) for g, v in zip(grads, vector, strict=True) if g.requires_grad]
    if not pairs:
        return zeros_like(inputs)
    outputs, cotangents = zip(*pairs, strict=True)
    return list(torch.autograd.grad(outputs, inputs, cotangents, retain_graph=retain, materialize_grads=True))


def refuse_constants(gradients: Tensors) -> None:
    """Raise if the graph of `gradients` holds the output of a backward marked once_differentiable.

    torch hangs an error on such an output, but autograd.grad towards given inputs passes it by: the second
    derivative would silently lack that part. (Operations that are merely not implemented do raise.)
    """
    seen: set[object] = set()
    todo = [g.grad_fn for g in gradients]
    while todo:
        node = todo.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        if node.name().endswith("::Error"):
            raise RuntimeError(
                "the loss uses an operation whose backward is once_differentiable (a fused attention kernel?), "
                'so it has no exact second derivative: use an eager implementation, or order="first_order" or '
                '"finite_difference"'
            )
        todo.extend(following for following, _ in node.next_functions)
