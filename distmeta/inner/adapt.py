"""Forward through the inner loop: `adapt`, and the descent that the meta-gradient walks back."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from . import optimizers
from .budget import Budget
from .lists import Sum, Tensors, minus
from .loop import Diverged, InnerLoop
from .problem import Loss, Named, Problem, Start, TaskAxis, gradient, listed, start_values, values
from .rates import Rates

Graph = tuple[Tensors, Tensors]  # (inputs, gradients) of one micro-batch, the gradients with their graph


@dataclass(frozen=True)
class Adapted:
    """What `adapt` returns, everything detached. With a task axis all tensors lead with it.

    params: the fast weights after the last step, those of `start` included. inner_losses: [K + 1] or [T, K +
    1], the support loss after 0..K steps ([.., K] without last_inner_loss). trajectory: the fast weights
    after 0..K steps, None unless asked for.
    """

    params: Named
    inner_losses: Tensor
    trajectory: list[Named] | None


@dataclass
class Step:
    """What is kept of one step: only the fields that were asked for."""

    k: int
    theta: Tensors = field(default_factory=list)  # before the step
    before: optimizers.State = ()  # the state before it
    gradient: Tensors = field(default_factory=list)  # before it is clipped
    state: optimizers.State = ()  # after the step
    direction: Tensors = field(default_factory=list)
    graphs: list[Graph] = field(default_factory=list)  # one for each micro-batch; empty: recompute


@dataclass
class Descent:
    """theta: after the last step. losses: [] or [T] for each evaluation. steps: what was kept of each step.

    of_losses: the gradient (of the fast weights, then of shared) of the weighted losses before the steps, each taken at
    the weights there; [] where these have no weights.
    """

    theta: Tensors
    losses: list[Tensor]
    steps: list[Step]
    of_losses: Tensors


def adapt(
    loss: Loss,
    params: Mapping[str, Tensor],
    support: Any,
    inner: InnerLoop,
    *,
    shared: Mapping[str, Tensor] | None = None,
    start: Start | None = None,
    task_axis: TaskAxis = False,
    has_aux: bool = False,
    steps: int | None = None,
    trajectory: bool = False,
    last_inner_loss: bool = True,
    names: Sequence[str] | None = None,
    check: bool = True,
    by_step: bool = False,
) -> Adapted:
    """The fast weights after `steps` (default: inner.steps) steps on the support set; arguments as
    `meta_gradient`.

    Steps beyond those that have a rate of their own use the last one's. Raises Diverged; with check=False the
    losses and weights of a loop that diverges are returned as they are, not finite. by_step: there is no loss after
    the last step.
    """
    count = inner.steps if steps is None else steps
    posed = pose(loss, params, support, inner, shared, task_axis, has_aux, by_step, count)
    problem, theta = begun(posed, params, support, start)
    rates = Rates(inner, problem.names, theta, problem.per_task)
    keep = frozenset({"theta"}) if trajectory else frozenset()
    descent = descend(problem, inner, rates, theta, count, keep)
    if last_inner_loss and not by_step:
        descent.losses.append(support_loss(problem, descent.theta, count))
    if check:
        refuse_divergence(descent.losses, None, count, names)
    adapted = named(problem, descent.theta)
    path = [named(problem, step.theta) for step in descent.steps] + [adapted] if trajectory else None
    return Adapted(adapted, stacked(problem, descent.losses, adapted), path)


def follow(
    loss: Loss,
    params: Mapping[str, Tensor],
    support: Any,
    inner: InnerLoop,
    *,
    shared: Mapping[str, Tensor] | None = None,
    start: Start | None = None,
    task_axis: TaskAxis = False,
    has_aux: bool = False,
    by_step: bool = False,
) -> Iterator[Named]:
    """The fast weights after 0, 1, ... inner.steps steps, one after another, so that no more than two are held at once.

    Arguments as `adapt`; those of a loop that diverges are not finite.
    """
    posed = pose(loss, params, support, inner, shared, task_axis, has_aux, by_step, inner.steps)
    problem, theta = begun(posed, params, support, start)
    rates = Rates(inner, problem.names, theta, problem.per_task)
    anchor = theta
    state: optimizers.State = ()
    yield named(problem, theta)
    for k in range(inner.steps):
        g = pulled(inner, _step_gradient(problem, theta, k, None)[1], theta, anchor)
        direction, state = optimizers.update(inner, k, optimizers.clipped(inner, g, problem.per_task), state)
        theta = minus(theta, rates.at(k), direction)
        yield named(problem, theta)


def begun(problem: Problem, params: Mapping[str, Tensor], support: Any, start: Start | None) -> tuple[Problem, Tensors]:
    """The problem with the names of all fast weights, and their values before step 0, those of `start` included."""
    first = dict(params)
    if start is not None:
        with torch.no_grad():
            first |= checked(start_values(problem, start, {**problem.shared, **first}, support), params)
    return with_names(problem, first)


def pulled(inner: InnerLoop, gradient: Tensors, theta: Tensors, anchor: Tensors) -> Tensors:
    """The gradient with that of the pull to the initial weights."""
    if not inner.proximal:
        return gradient
    return [g + inner.proximal * (t - z) for g, t, z in zip(gradient, theta, anchor, strict=True)]


def pose(
    loss: Loss,
    params: Mapping[str, Tensor],
    support: Any,
    inner: InnerLoop,
    shared: Mapping[str, Tensor] | None,
    task_axis: TaskAxis,
    has_aux: bool,
    by_step: bool,
    steps: int,
) -> Problem:
    """The problem, with the names of `params` alone so far."""
    if not params:
        raise ValueError("params is empty: there is nothing to adapt")
    if task_axis not in (True, False, "native"):
        raise ValueError(f'task_axis is True, False or "native", not {task_axis!r}')
    for name, tensor in params.items():
        if not tensor.is_floating_point():
            raise ValueError(f"params[{name!r}] is a tensor of {tensor.dtype}; only floating point can be adapted")
    if by_step and not (isinstance(support, list) and len(support) == steps):
        length = f"a list of {len(support)}" if isinstance(support, list) else f"a {type(support).__name__}"
        raise ValueError(f"by_step: support is a list of one batch for each of {steps} steps, not {length}")
    batches = [listed(batch) for batch in support] if by_step else listed(support)
    if not all(batches) if by_step else not batches:
        raise ValueError("support is an empty list of micro-batches")
    tasks = None
    if task_axis:
        sizes = {name: t.shape[0] if t.ndim else None for name, t in params.items()}
        if None in sizes.values() or len(set(sizes.values())) > 1:
            raise ValueError(f"task_axis: all of params need the same leading task axis; found {sizes}")
        tasks = next(iter(sizes.values()))
    detached = {name: t.detach() for name, t in (shared or {}).items()}
    return Problem(loss, tuple(params), detached, batches, has_aux, task_axis, tasks, inner.seed, by_step)


def with_names(problem: Problem, first: Named) -> tuple[Problem, Tensors]:
    """The problem with the names of all fast weights, and their values before step 0, detached."""
    whole = Problem(**{**problem.__dict__, "names": tuple(first)})
    return whole, [t.detach() for t in first.values()]


def checked(started: Mapping[str, Tensor], params: Mapping[str, Tensor]) -> Named:
    """What `start` returned, which must not have a name that params has."""
    twice = sorted(set(started) & set(params))
    if twice:
        raise ValueError(f"start returned {twice[0]!r}, which is in params: it cannot be both given and computed")
    return dict(started)


def descend(
    problem: Problem,
    inner: InnerLoop,
    rates: Rates,
    theta: Tensors,
    steps: int,
    keep: frozenset[str] = frozenset(),
    budget: Budget | None = None,
    *,
    begin: Step | None = None,
    anchor: Tensors | None = None,
    every: int = 1,
    weights: Sequence[float] = (),
) -> Descent:
    """Run the inner loop up to step `steps`, from step 0 or from `begin`, whose theta and state it goes on from.

    keep: fields of Step to record, of every `every`-th step. budget: keeps graphs; without one none is built. anchor:
    the fast weights before step 0. weights: of the losses before the steps, for `of_losses`.
    """
    anchor = theta if anchor is None else anchor
    state: optimizers.State = begin.before if begin else ()
    first = begin.k if begin else 0
    losses: list[Tensor] = []
    record: list[Step] = []
    of_losses = Sum()
    shelf: Shelf | None = None
    for k in range(first, steps):
        loss, grads, graphs = _step_gradient(problem, theta, k, budget, of_shared=bool(weights))
        if weights:
            of_losses.add(grads, alpha=weights[k])
        g = pulled(inner, grads[: len(theta)], theta, anchor)
        before = state
        direction, state = optimizers.update(inner, k, optimizers.clipped(inner, g, problem.per_task), state)
        kept = keep and (k - first) % every == 0
        if kept:
            fields = {"theta": theta, "before": before, "gradient": g, "state": state, "direction": direction}
            record.append(Step(k, **{name: fields[name] for name in keep}, graphs=graphs))  # type: ignore[arg-type]
        theta = minus(theta, rates.at(k), direction)
        if inner.memory == "walk" and "theta" in keep and every == 1:
            shelf = shelf or Shelf([*theta, loss], steps - first)
            *theta, loss = shelf.put(k - first, [*theta, loss])
        losses.append(loss)
    return Descent(theta, losses, record, of_losses.tensors)


class Shelf:
    """One allocation for what outlives its step: fast weights and loss of each.

    Small tensors that stay pin the freed pages around them: with 0.13 MB of fast weights a step, resident memory
    grew by 0.5 MB a step.
    """

    def __init__(self, row: Tensors, rows: int) -> None:
        self._row = sum(_aligned(t) for t in row)
        self._storage = torch.empty(rows * self._row, dtype=torch.uint8, device=row[0].device).untyped_storage()

    def put(self, k: int, row: Tensors) -> Tensors:
        """Copies in row k: tensors of their own on the one storage, so that a write to one is none to another."""
        offset, out = k * self._row, []
        for t in row:
            t = t.contiguous()
            out.append(t.new_empty(0).set_(self._storage, offset // t.element_size(), t.shape, t.stride()))
            offset += _aligned(t)
        torch._foreach_copy_(out, row)
        return out


def _aligned(tensor: Tensor) -> int:
    """Bytes, to whole cache lines."""
    return -(-tensor.numel() * tensor.element_size() // 64) * 64


def _step_gradient(
    problem: Problem, theta: Tensors, k: int, budget: Budget | None, of_shared: bool = False
) -> tuple[Tensor, Tensors, list[Graph]]:
    """(loss, gradient, kept graphs) of step k's support set, one micro-batch after the other; of_shared: the gradient
    of shared comes after that of the fast weights."""
    losses, total = Sum(), Sum()
    graphs: list[Graph] = []
    n = len(theta)
    for j, batch in enumerate(problem.batches(k)):
        key = ("support", k, j)
        if budget is not None and budget.open:
            with budget.watch(k):
                loss, _, inputs, grads = gradient(
                    problem, theta, batch, key, create_graph=True, of_shared=of_shared
                )  # fmt: skip
            graphs.append((inputs, grads[:n]))
            grads = [g.detach() for g in grads]
            del inputs
            if not budget.fits(k):
                graphs.clear()
        else:
            loss, _, _, grads = gradient(problem, theta, batch, key, of_shared=of_shared)
        losses.add([loss])
        total.add(grads)
    if budget is not None:
        budget.end_step(k)
    return losses.tensors[0], total.tensors, graphs


def support_loss(problem: Problem, theta: Tensors, k: int) -> Tensor:
    """The support loss at theta, without gradient: [] or [T]."""
    total = Sum()
    with torch.no_grad():
        for j, batch in enumerate(problem.batches(k)):
            total.add([values(problem, theta, problem.shared, batch, ("support", k, j))[0]])
    return total.tensors[0]


def refuse_divergence(losses: list[Tensor], query: Tensor | None, steps: int, names: Sequence[str] | None) -> None:
    """Raise Diverged if a loss is not finite: the one host synchronisation of an inner loop, after its end."""
    every = losses if query is None else [*losses, query]
    if not every:
        return
    finite = torch.isfinite(torch.stack(every))  # [evaluations] or [evaluations, T]
    if bool(finite.all()):
        return
    by_step = finite if finite.ndim == 1 else finite.all(dim=1)
    step = int((~by_step).nonzero()[0])
    which = "query" if query is not None and step == len(losses) else "support"
    tasks: list[int] = [] if finite.ndim == 1 else [int(t) for t in (~finite[step]).nonzero().flatten()]
    worst = every[step][tasks[0]] if tasks else every[step]
    concerned = [] if names is None else ([names[t] for t in tasks] if tasks else list(names))
    raise Diverged(steps if which == "query" else step, steps, float(worst), which, tasks, concerned)


def stacked(problem: Problem, losses: list[Tensor], adapted: Named) -> Tensor:
    """[evaluations], or [T, evaluations]."""
    if losses:
        return torch.stack(losses, dim=-1)
    like = next(iter(adapted.values()))
    return like.new_zeros((0,) if problem.tasks is None else (problem.tasks, 0))


def named(problem: Problem, tensors: Tensors) -> Named:
    return dict(zip(problem.names, tensors, strict=True))
