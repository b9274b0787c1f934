"""The meta-gradient: the query loss after adaptation, differentiated with respect to where adaptation began.

Backward over the steps, with theta_{k+1} = theta_k - rate_k * d_k and lambda_K the query gradient at theta_K:

    lambda_k = lambda_{k+1} + H_k mu_k                     H_k: Hessian of the support loss at theta_k
    mu_k     = cotangent of the gradient g_k: -rate_k * lambda_{k+1}, through the optimiser's state
    d/drate_k = -<lambda_{k+1}, d_k>
    d/dshared += d/dshared <g_k, mu_k>                     the same product, one more input
    with a loss after each step, lambda_k also gets the weighted query gradient at theta_k
    with a weight w_k on the support loss before step k, it gets w_k g_k, which is there already

It is MAML's exact gradient (arXiv 1703.03400) by the recursion of MixFlow-MG (arXiv 2505.00793), reverse over
reverse. Nothing of a step but its fast weights has to outlive it, so memory is flat in the number of steps; where even
these are too many, some are kept and the steps between them are run again (distmeta.inner.snapshots).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal, cast

import torch
from torch import Tensor

from . import optimizers, products, snapshots
from .adapt import (
    Descent,
    Step,
    checked,
    descend,
    named,
    pose,
    refuse_divergence,
    stacked,
    support_loss,
    with_names,
)
from .budget import Budget
from .lists import Sum, Tensors, negated, times
from .loop import InnerLoop
from .problem import (
    Loss,
    Named,
    Problem,
    Start,
    TaskAxis,
    float_names,
    generator_state,
    gradient,
    listed,
    refuse_other_draws,
    start_values,
)
from .rates import Rates

Order = Literal["exact", "first_order", "implicit", "finite_difference"]
ORDERS = ("exact", "first_order", "implicit", "finite_difference")
Between = Callable[[int, Tensors, Sum, Sum], None]


@dataclass(frozen=True)
class MetaGradient:
    """What `meta_gradient` returns, everything detached. With a task axis all but shared_grads lead with it.

    grads          as params: d query loss / d params
    lr_grads       in the structure of inner.lr: a tensor, a dict of those that are tensors, or None
    shared_grads   as the floating point part of shared, summed over tasks
    loss           query loss after adaptation, [] or [T]
    inner_losses   support loss after 0..K steps, [K + 1] or [T, K + 1] ([.., K] without last_inner_loss)
    adapted        fast weights after the last step, those of `start` included
    aux            what the loss returned beside itself on each query micro-batch; [] without has_aux
    steps_kept     how many steps' graphs were kept for the way back; the others were recomputed
    """

    grads: Named
    lr_grads: Tensor | dict[str, Tensor] | None
    shared_grads: Named
    loss: Tensor
    inner_losses: Tensor
    adapted: Named
    aux: list[Any]
    steps_kept: int = 0


def meta_gradient(
    loss: Loss,
    params: Mapping[str, Tensor],
    support: Any,
    query: Any,
    inner: InnerLoop,
    order: Order = "exact",
    *,
    shared: Mapping[str, Tensor] | None = None,
    start: Start | None = None,
    task_axis: TaskAxis = False,
    has_aux: bool = False,
    last_inner_loss: bool = True,
    names: Sequence[str] | None = None,
    check: bool = True,
    step_weights: Sequence[float] | None = None,
    by_step: bool = False,
    loss_weights: Sequence[float] | None = None,
) -> MetaGradient:
    """Adapt `params` to `support`, and differentiate the loss on `query` with respect to `params`.

    loss(tensors, batch) returns a scalar, or (scalar, anything) with has_aux; tensors: {**shared, **fast
    weights}.
    support, query: a batch, or a list of micro-batches whose losses add up.
    shared: tensors that the loss reads and that are learnt, but not adapted.
    start({**shared, **params}, support) -> initial values of further fast weights, differentiated through.
    task_axis: False; True (params and batches lead with a task axis T, loss is for one task and is vmapped; a
    leaf of a batch that is no tensor, or a 0-d one, goes to every task); "native" (loss takes the stacked
    dict and returns [T]). shared and inner.lr have no task axis.
    order: exact; first_order (no derivative of the inner gradients; lr_grads treats them as constants too);
    implicit (iMAML, whose result does not depend on the rates: their derivatives are 0); finite_difference
    (exact with each Hessian-vector product replaced by a central difference, biased as `products` says).
    names: of the episodes (one, or T), for the message of Diverged, which is raised when a loss is not
    finite; with check=False such losses and gradients are returned as they are.
    step_weights: [K], what is differentiated is the sum of the query losses after 1..K steps, so weighted (MAML++'s
    multi-step loss, arXiv 1810.09502, section 4); `loss` and `aux` are still those after the last. Not implicit.
    by_step: support is a list of K batches (or lists of micro-batches), and step k adapts to the k-th. The last of
    `inner_losses` is then the query loss.
    loss_weights: [K + 1], what is differentiated is the so weighted sum of the support loss before each of the K steps
    and of the query loss after the last: with `by_step`, of the losses of a text's parts, each before the model steps
    on it (TTT-E2E, arXiv 2512.23675). Not implicit, not with `step_weights`, `start` or a proximal term.
    """
    _check_arguments(inner, order, start, step_weights, by_step, loss_weights)
    queries = listed(query)
    if not queries:
        raise ValueError("query is an empty list of micro-batches")
    problem = pose(loss, params, support, inner, shared, task_axis, has_aux, by_step, inner.steps)
    initial = {name: t.detach() for name, t in params.items()}
    beginning = Beginning(problem, initial, start, support, keep=inner.memory != "walk")
    problem, theta = with_names(problem, beginning.first)
    rates = Rates(inner, problem.names, theta, problem.per_task)

    before = list(loss_weights[:-1]) if loss_weights is not None else []
    tree = Tree(problem, inner, rates, theta, order, before, keep_theta=step_weights is not None)
    descent = tree.descend()
    query_loss, aux, cotangent, of_shared = _query(problem, descent.theta, queries)
    if last_inner_loss:
        descent.losses.append(query_loss if by_step else support_loss(problem, descent.theta, inner.steps))
    last = step_weights[-1] if step_weights is not None else loss_weights[-1] if loss_weights is not None else 1.0
    if last != 1.0:
        cotangent, of_shared = (list(torch._foreach_mul(g, last)) if g else g for g in (cotangent, of_shared))
    if of_losses := descent.of_losses[len(descent.theta) :]:
        of_shared = list(torch._foreach_add(of_shared, of_losses))

    def between(k: int, theta: Tensors, cot: Sum, shared: Sum) -> None:
        """Add the weighted query gradient after k steps to the cotangents there."""
        if step_weights is not None and k > 0 and step_weights[k - 1]:
            _, _, g, of_shared = _query(problem, theta, queries)
            cot.add(g, alpha=step_weights[k - 1])
            shared.add(of_shared, alpha=step_weights[k - 1])

    kept = sum(bool(step.graphs) for step in descent.steps)
    cotangent, of_shared = _back(tree, descent, cotangent, of_shared, between)

    grads, of_shared = beginning.pullback(problem, cotangent, of_shared)
    if check:
        refuse_divergence(descent.losses, query_loss, inner.steps, names)
    adapted = named(problem, descent.theta)
    shared_grads = dict(zip(float_names(problem.shared), of_shared, strict=True))
    losses = stacked(problem, descent.losses, adapted)
    return MetaGradient(grads, rates.gradients(), shared_grads, query_loss, losses, adapted, aux, kept)


def _check_arguments(
    inner: InnerLoop,
    order: Order,
    start: Start | None,
    step_weights: Sequence[float] | None,
    by_step: bool,
    loss_weights: Sequence[float] | None,
) -> None:
    """Raises ValueError for arguments of `meta_gradient` that do not go together."""
    if order not in ORDERS:
        raise ValueError(f"order is one of {', '.join(ORDERS)}, not {order!r}")
    if order == "implicit" and not inner.proximal > 0:
        raise ValueError('order="implicit" needs InnerLoop(proximal=...) > 0, the pull to the initial weights')
    if step_weights is not None and (order == "implicit" or len(step_weights) != inner.steps or not inner.steps):
        raise ValueError(
            f"step_weights are one number for each of InnerLoop.steps = {inner.steps}, and not for order implicit"
        )
    if loss_weights is not None and (len(loss_weights) != inner.steps + 1 or order == "implicit"):
        raise ValueError(
            f"loss_weights are one number for each of InnerLoop.steps + 1 = {inner.steps + 1} losses, and not for "
            "order implicit"
        )
    if loss_weights is not None and (step_weights is not None or start is not None or inner.proximal):
        raise ValueError("loss_weights do not go with step_weights, start or InnerLoop(proximal=...)")
    if by_step and (order == "implicit" or start is not None):
        raise ValueError("by_step: order implicit and `start` take one support set for all steps")


@dataclass(frozen=True)
class Tree:
    """The descent, and what its order needs of each step on the way back: of all at once, or piece after piece.

    weights: of the losses before the steps; [] where they are not part of the objective.
    """

    problem: Problem
    inner: InnerLoop
    rates: Rates
    theta: Tensors
    order: Order
    weights: list[float]
    keep_theta: bool

    @property
    def again(self) -> bool:
        """Whether a step is run again on the way back."""
        return self.order in ("exact", "finite_difference")

    @property
    def gradient_from_product(self) -> bool:
        """Whether the product yields the gradient that the optimizer saw, so that it need not be kept."""
        inner = self.inner
        return self.order == "exact" and inner.optimizer != "adam" and not inner.proximal and inner.clip is None

    @property
    def keep(self) -> frozenset[str]:
        """Fields of Step."""
        inner, keep = self.inner, {"theta"} if self.keep_theta else set()
        learnt = bool(self.rates.learnt) and self.order != "implicit"
        if learnt and (self.order == "first_order" or inner.optimizer == "momentum"):
            keep |= {"direction"}
        if self.again:
            keep |= {"theta"} | ({"gradient", "state"} if inner.optimizer == "adam" else set())
            if (learnt or self.weights or inner.clip is not None) and not self.gradient_from_product:
                keep |= {"gradient"}
        elif self.weights and learnt:
            keep |= {"gradient"}
        return frozenset(keep)

    @cached_property
    def width(self) -> int:
        """How many steps are kept on a level of the tree; all of them where no step is run again."""
        if not self.again:
            return max(1, self.inner.steps)
        copies = len(self.keep) + ("state" in self.keep)
        size = sum(t.numel() * t.element_size() for t in self.theta)
        return snapshots.width(self.inner, self.inner.steps, copies * size)

    @property
    def every(self) -> int:
        """Steps from one that is kept to the next, on the highest level."""
        return int(self.width ** (snapshots.levels(self.width, self.inner.steps) - 1))

    def descend(self) -> Descent:
        """From the first step to the last, keeping all of them, or those that the pieces of the way back begin with."""
        problem, inner, theta, steps = self.problem, self.inner, self.theta, self.inner.steps
        every = self.every
        budget = Budget(inner) if self.order == "exact" and every == 1 else None
        device = theta[0].device
        before = generator_state(device) if problem.seed is None and self.again else None
        keep = self.keep if every == 1 else frozenset({"theta", "before"})
        descent = descend(problem, inner, self.rates, theta, steps, keep, budget, every=every, weights=self.weights)
        if any(not step.graphs for step in descent.steps):
            refuse_other_draws(problem, before, device)
        return descent

    def back(self, steps: list[Step], every: int, last: int) -> Iterator[Step]:
        """The steps below `last`, from the last to the first; `steps`: each `every`-th of them, which are used up."""
        while steps:
            step = steps.pop()
            if every == 1:
                yield step
                continue
            finer = every // self.width
            keep = self.keep if finer == 1 else frozenset({"theta", "before"})
            piece = descend(
                self.problem, self.inner, self.rates, step.theta, last, keep, begin=step, anchor=self.theta,
                every=finer,
            )  # fmt: skip
            yield from self.back(piece.steps, finer, last)
            last = step.k


def _query(problem: Problem, theta: Tensors, queries: list[Any]) -> tuple[Tensor, list[Any], Tensors, Tensors]:
    """(query loss, aux, gradient at theta, gradient of shared)."""
    losses, total, n = Sum(), Sum(), len(theta)
    auxes = []
    for j, batch in enumerate(queries):
        loss, aux, _, grads = gradient(problem, theta, batch, ("query", j), of_shared=True)
        losses.add([loss])
        total.add(grads)
        auxes.append(aux)
        del grads
    return losses.tensors[0], auxes if problem.has_aux else [], total.tensors[:n], total.tensors[n:]


def _back(
    tree: Tree, descent: Descent, cotangent: Tensors, of_shared: Tensors, between: Between
) -> tuple[Tensors, Tensors]:
    """From the derivatives at the adapted weights to those at the initial ones (and of shared)."""
    problem, inner, rates, order = tree.problem, tree.inner, tree.rates, tree.order
    if order == "implicit":
        from .implicit import solve

        return solve(problem, inner, descent.theta, cotangent, of_shared)
    if order == "first_order":
        cot, shared = Sum(cotangent), Sum(of_shared)
        if not rates.learnt:
            cot.add(descent.of_losses[: len(descent.theta)])
        for step in reversed(descent.steps):
            if rates.learnt:
                rates.accumulate(step.k, cot.tensors, step.direction)
                if tree.weights:
                    cot.add(step.gradient, alpha=tree.weights[step.k])
            between(step.k, step.theta, cot, shared)
        return cot.tensors, shared.tensors
    return _walk(tree, descent.steps, cotangent, of_shared, between)


def _walk(
    tree: Tree, steps: list[Step], cotangent: Tensors, of_shared: Tensors, between: Between
) -> tuple[Tensors, Tensors]:
    """The recursion above; `steps` is used up."""
    problem, inner, rates, per_task = tree.problem, tree.inner, tree.rates, tree.problem.per_task
    cot, shared, anchor = Sum(cotangent), Sum(of_shared), Sum()
    cot_state: optimizers.State = ()
    want = tree.gradient_from_product and (bool(rates.learnt) or bool(tree.weights))
    for step in tree.back(steps, tree.every, inner.steps):
        k = step.k
        toward = times(cot.tensors, negated(rates.at(k)))
        gradient = optimizers.clipped(inner, step.gradient, per_task) if step.gradient else []
        mu, cot_state = optimizers.pullback(inner, k, gradient, step.state, toward, cot_state)
        mu = optimizers.clip_pullback(inner, step.gradient, mu, per_task)
        del toward
        if tree.order == "exact":
            last = k == inner.steps - 1
            product = products.exact(problem, step.theta, mu, k, step.graphs, want_gradient=want, check=last)
        else:
            product = products.central_difference(problem, step.theta, mu, k)
        if rates.learnt:
            rates.accumulate(k, cot.tensors, _direction(inner, step, gradient or product.gradient))
        cot.add(product.theta)
        shared.add(product.shared)
        if tree.weights:
            cot.add(step.gradient or product.gradient, alpha=tree.weights[k])
        if inner.proximal:
            cot.add(mu, alpha=inner.proximal)
            anchor.add(mu, alpha=-inner.proximal)
        between(k, step.theta, cot, shared)
        del step, product, mu, gradient
    cot.add(anchor.tensors)
    return cot.tensors, shared.tensors


def _direction(inner: InnerLoop, step: Step, gradient: Tensors) -> Tensors:
    """What the rate of the step multiplied; gradient: what the optimizer saw."""
    if inner.optimizer == "adam":
        return optimizers.direction(inner, step.k, step.state)
    return step.direction or gradient


class Beginning:
    """The fast weights before step 0: params and what `start` computes, and the way back through it."""

    def __init__(self, problem: Problem, params: Named, start: Start | None, support: Any, keep: bool) -> None:
        self._problem, self._params, self._start, self._support = problem, params, start, support
        self._graph: tuple[Named, Named] | None = None
        self.first = dict(params)
        if start is None:
            return
        if keep:
            self._graph = self._run()
            self.first |= {name: t.detach() for name, t in self._graph[1].items()}
        else:
            everything = {**problem.shared, **params}
            with torch.no_grad():
                self.first |= checked(start_values(problem, start, everything, support), params)

    def _run(self) -> tuple[Named, Named]:
        """(leaves, what start computes from them, with its graph)."""
        everything = {**self._problem.shared, **self._params}
        leaves = {name: t.detach().requires_grad_() if t.is_floating_point() else t for name, t in everything.items()}
        with torch.enable_grad():
            started = start_values(self._problem, cast(Start, self._start), leaves, self._support)
        return leaves, checked(started, self._params)

    def pullback(self, problem: Problem, cotangent: Tensors, of_shared: Tensors) -> tuple[Named, Tensors]:
        """(gradient of params, gradient of shared) from the cotangents of all fast weights and of shared."""
        result = named(problem, cotangent)
        grads = {name: result[name] for name in self._params}
        if self._start is None:
            return grads, of_shared
        leaves, started = self._graph or self._run()
        pairs = [(t, result[name]) for name, t in started.items() if t.requires_grad]
        if not pairs:
            return grads, of_shared
        shared_names = float_names(problem.shared)
        inputs = [leaves[name] for name in (*self._params, *shared_names)]
        outputs, cotangents = zip(*pairs, strict=True)
        parts = torch.autograd.grad(outputs, inputs, cotangents, materialize_grads=True)
        n = len(self._params)
        grads = {name: g + part for (name, g), part in zip(grads.items(), parts[:n], strict=True)}
        return grads, [a + b for a, b in zip(of_shared, parts[n:], strict=True)]
