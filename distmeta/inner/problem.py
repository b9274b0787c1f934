"""One adaptation problem: how the loss is called, with or without a task axis, and its gradients."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal, cast

import torch
from torch import Tensor
from torch.utils._pytree import tree_flatten, tree_map, tree_unflatten

from .derivatives import once
from .lists import Tensors

Named = dict[str, Tensor]
Loss = Callable[[Named, Any], Any]
Start = Callable[[Named, Any], Mapping[str, Tensor]]
TaskAxis = bool | Literal["native"]


@dataclass(frozen=True)
class Problem:
    """The loss with everything that stays the same over the inner steps.

    names: of the fast weights, in the order of every list of tensors. support: micro-batches whose losses add
    up, or with `by_step` a list of them for each step.
    shared: detached tensors that the loss reads too. tasks: T, or None without a task axis. Losses are [] or
    [T].
    """

    loss: Loss
    names: tuple[str, ...]
    shared: Named
    support: list[Any]
    has_aux: bool
    task_axis: TaskAxis
    tasks: int | None
    seed: int | None
    by_step: bool = False

    def batches(self, k: int) -> list[Any]:
        """The micro-batches that step k adapts to."""
        return cast(list[Any], self.support[k]) if self.by_step else self.support

    @property
    def per_task(self) -> bool:
        return self.tasks is not None


def values(problem: Problem, fast: Tensors, shared: Named, batch: Any, key: tuple[object, ...]) -> tuple[Tensor, Any]:
    """(loss, aux) on one micro-batch; loss is [] or [T]. key: of the random numbers drawn."""
    named = dict(zip(problem.names, fast, strict=True))
    with seeded(problem.seed, key, fast[0].device):
        if problem.task_axis is True:
            loss, aux = _vmapped(problem, named, shared, batch)
        else:
            out = problem.loss({**shared, **named}, batch)
            loss, aux = _parts(out, problem.has_aux)
    expected = () if problem.tasks is None else (problem.tasks,)
    if tuple(loss.shape) != expected:
        raise ValueError(f"the loss has shape {list(loss.shape)}; expected {list(expected)}{_meaning(problem)}")
    return loss, aux


def gradient(
    problem: Problem,
    fast: Tensors,
    batch: Any,
    key: tuple[object, ...],
    *,
    create_graph: bool = False,
    of_shared: bool = False,
    weight: Tensor | None = None,
) -> tuple[Tensor, Any, Tensors, Tensors]:
    """(loss, aux, inputs, gradients) on one micro-batch; loss and aux detached.

    inputs: new leaves for the fast weights and then, if create_graph or of_shared, for the floating point
    tensors of `shared`. gradients: with respect to the fast weights and then, if of_shared, to those of
    shared; zeros where the loss does not depend on an input. Tasks are independent, so one sum serves all of
    them. weight ([] or [T]): times the loss before it is differentiated.
    """
    with torch.enable_grad(), once(not create_graph):
        leaves = [t.detach().requires_grad_() for t in fast]
        shared, shared_leaves = problem.shared, []
        if create_graph or of_shared:
            shared = {name: t.requires_grad_() if t.is_floating_point() else t for name, t in _fresh(shared)}
            shared_leaves = [t for t in shared.values() if t.requires_grad]
        loss, aux = values(problem, leaves, shared, batch, key)
        wanted = leaves + shared_leaves if of_shared else leaves
        total = loss if weight is None else loss * weight
        total = total.sum() if problem.per_task else total
        if not total.requires_grad:
            raise ValueError(
                "the loss depends on no parameter: it has no gradient, and nothing could be learnt from it"
            )
        grads = list(torch.autograd.grad(total, wanted, create_graph=create_graph, materialize_grads=True))
    return loss.detach(), _detached(aux), leaves + shared_leaves, grads


def start_values(problem: Problem, start: Start, everything: Named, support: Any) -> Mapping[str, Tensor]:
    """`start` called on the meta-parameters and the support set, under vmap if task_axis is True."""
    with seeded(problem.seed, ("start",), next(iter(everything.values())).device):
        if problem.task_axis is not True:
            return start(everything, support)
        dims = {name: 0 if name in problem.names else None for name in everything}
        return torch.vmap(lambda p, b: dict(start(p, b)), (dims, _dims(support)), randomness="different")(
            everything, support
        )


def float_names(tensors: Named) -> list[str]:
    """Names of those that a derivative can be taken of."""
    return [name for name, t in tensors.items() if t.is_floating_point()]


def listed(batches: Any) -> list[Any]:
    """One batch or a list of micro-batches, as a list."""
    return batches if isinstance(batches, list) else [batches]


def refuse_other_draws(problem: Problem, before: Tensor | None, device: torch.device) -> None:
    """Raises ValueError where the loss has drawn random numbers since `before`, its generator's state then."""
    if before is not None and problem.seed is None and not torch.equal(before, generator_state(device)):
        raise ValueError(
            "the loss draws random numbers (dropout?) and steps are recomputed: give InnerLoop(seed=...), so "
            'that both times see the same, or keep all graphs with memory="unroll"'
        )


@contextmanager
def seeded(seed: int | None, key: tuple[object, ...], device: torch.device) -> Iterator[None]:
    """Random numbers from (seed, key); afterwards the generators are as before. No host synchronisation."""
    if seed is None:
        yield
        return
    digest = hashlib.blake2b(repr((seed, *key)).encode(), digest_size=8).digest()
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        value = int.from_bytes(digest, "little") >> 1
        torch.default_generator.manual_seed(value)
        if device.type == "cuda":
            torch.cuda.default_generators[device.index or 0].manual_seed(value)
        yield


def generator_state(device: torch.device) -> Tensor:
    """State of the generators that a loss on `device` draws from; reading it does not wait for the device."""
    state = torch.get_rng_state()
    return torch.cat([state, torch.cuda.get_rng_state(device)]) if device.type == "cuda" else state


def _vmapped(problem: Problem, fast: Named, shared: Named, batch: Any) -> tuple[Tensor, Any]:
    dims = _dims(batch)
    if 0 not in tree_flatten(dims)[0]:
        raise ValueError(
            f"task_axis=True: the batch is a {type(batch).__name__} in which no tensor was found; allowed: tensors, "
            "and dicts, lists and tuples of them, with a leading task axis"
        )
    # Only tensors may leave vmap: what else aux holds is carried around it.
    around: list[Any] = []
    gap = object()

    def one(params: Named, part: Any) -> tuple[Tensor, list[Tensor]]:
        loss, aux = _parts(problem.loss({**shared, **params}, part), problem.has_aux)
        leaves, spec = tree_flatten(aux)
        around[:] = [spec, [gap if isinstance(x, Tensor) else x for x in leaves]]
        return loss, [x for x in leaves if isinstance(x, Tensor)]

    loss, tensors = torch.vmap(one, (0, dims), randomness="different")(fast, batch)
    spec, leaves = around
    rest = iter(tensors)
    return loss, tree_unflatten([next(rest) if x is gap else x for x in leaves], spec)


def _dims(batch: Any) -> Any:
    """vmap's in_dims: 0 for tensors with at least one axis, None for all else."""
    return tree_map(lambda x: 0 if isinstance(x, Tensor) and x.ndim > 0 else None, batch)


def _parts(out: Any, has_aux: bool) -> tuple[Tensor, Any]:
    if has_aux:
        if not (isinstance(out, Sequence) and len(out) == 2):
            raise ValueError("has_aux: the loss must return (loss, aux)")
        loss, aux = out
    else:
        loss, aux = out, None
    if not isinstance(loss, Tensor):
        raise ValueError(f"the loss returned a {type(loss).__name__}, not a tensor")
    return loss, aux


def _fresh(tensors: Named) -> Iterator[tuple[str, Tensor]]:
    return ((name, t.detach()) for name, t in tensors.items())


def _detached(aux: Any) -> Any:
    return None if aux is None else tree_map(lambda x: x.detach() if isinstance(x, Tensor) else x, aux)


def _meaning(problem: Problem) -> str:
    if problem.task_axis == "native":
        return ', one loss for each task (task_axis="native")'
    return ", a number for each task" if problem.task_axis else ", a single number"
