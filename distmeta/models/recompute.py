"""A layer that keeps its inputs alone and is run again on the way back, in a second derivative too.

Activation checkpointing (Chen et al. 2016, arXiv 1604.06174) runs a layer again for its gradient; what that second run
saves then stays alive in the gradient's graph, so that a Hessian-vector product has all layers in memory at once. Here
the gradient of a layer is a node of its own, which keeps nothing but its inputs: for y = f(h, w) and a cotangent c,

    forward       y                                      run once, without a graph
    gradient      (h', w') = d<c, y> / d(h, w)           run again
    its gradient  d<(h', w'), (a, v)> / d(c, h, w)       run again, a double backward within the layer

so that the graph of a gradient holds h and c of each layer, and one layer's own graph exists at a time.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.utils._pytree import tree_flatten, tree_unflatten

from distmeta.inner.derivatives import once
from distmeta.inner.products import refuse_constants

Run = Callable[..., Any]
Optional = Sequence[Tensor | None]
NOT_A_TENSOR = object()


def recompute(run: Run, *inputs: Tensor, draws: bool = False) -> Any:
    """run(*inputs), of which autograd keeps the inputs; it may be differentiated twice, and not three times.

    run returns a tensor, or a tree that holds some. It must be a function of its inputs, of autocast's state and, if it
    `draws`, of random numbers, both of which it meets again as they are now.
    """
    setting = _Setting(run, _Surroundings.now(inputs[0].device, draws))
    outputs: Any = _Forward.apply(setting, *inputs)  # type: ignore[no-untyped-call]
    tensors = iter(outputs)
    return tree_unflatten([next(tensors) if x is NOT_A_TENSOR else x for x in setting.leaves], setting.spec)


@dataclass(frozen=True)
class _Surroundings:
    """What a forward pass depends on beside its inputs."""

    device: torch.device
    cast: tuple[torch.dtype, bool]
    random: tuple[Tensor, Tensor | None] | None

    @classmethod
    def now(cls, device: torch.device, draws: bool) -> _Surroundings:
        cast = torch.get_autocast_dtype(device.type), torch.is_autocast_enabled(device.type)
        on_gpu = device.type == "cuda"
        random = (torch.get_rng_state(), torch.cuda.get_rng_state(device) if on_gpu else None) if draws else None
        return cls(device, cast, random)

    @contextlib.contextmanager
    def restored(self) -> Iterator[None]:
        dtype, enabled = self.cast
        with contextlib.ExitStack() as stack:
            # cache_enabled: a weight that was cast in one graph must not be used in another
            stack.enter_context(torch.autocast(self.device.type, dtype, enabled=enabled, cache_enabled=False))
            if self.random is not None:
                of_cpu, of_gpu = self.random
                stack.enter_context(torch.random.fork_rng(devices=[] if of_gpu is None else [self.device]))
                torch.set_rng_state(of_cpu)
                if of_gpu is not None:
                    torch.cuda.set_rng_state(of_gpu, self.device)
            yield


class _Setting:
    """`run` in its surroundings, and the tree that it returned."""

    def __init__(self, run: Run, surroundings: _Surroundings) -> None:
        self._run, self._surroundings = run, surroundings

    def first(self, inputs: Sequence[Tensor]) -> tuple[Tensor, ...]:
        leaves, self.spec = tree_flatten(self._run(*inputs))
        self.leaves = [NOT_A_TENSOR if isinstance(x, Tensor) else x for x in leaves]
        return tuple(x for x in leaves if isinstance(x, Tensor))

    def again(self, inputs: Sequence[Tensor], cotangents: Optional) -> tuple[list[Tensor], list[Tensor]]:
        """(outputs with a cotangent that depend on the inputs, their cotangents)."""
        with self._surroundings.restored():
            outputs = [x for x in tree_flatten(self._run(*inputs))[0] if isinstance(x, Tensor)]
        pairs = [(y, c) for y, c in zip(outputs, cotangents, strict=True) if y.requires_grad and c is not None]
        return [y for y, _ in pairs], [c for _, c in pairs]


class _Forward(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, setting: _Setting, *inputs: Tensor) -> tuple[Tensor, ...]:
        ctx.setting = setting
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(*inputs)
        return setting.first(inputs)

    @staticmethod
    def backward(ctx: Any, *cotangents: Any) -> Any:
        wanted = ctx.needs_input_grad[1:]
        tensors = (*cotangents, *ctx.saved_tensors)
        return None, *_Gradient.apply(ctx.setting, wanted, len(cotangents), *tensors)  # type: ignore[no-untyped-call]


class _Gradient(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, setting: _Setting, wanted: tuple[bool, ...], outputs: int, *tensors: Any) -> Any:
        ctx.setting, ctx.wanted, ctx.outputs = setting, wanted, outputs
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(*tensors)
        with _graph_of_its_own(), once():
            inputs = _leaves(tensors[outputs:], wanted)
            y, c = setting.again(inputs, tensors[:outputs])
            grads = torch.autograd.grad(y, _where(inputs, wanted), c, allow_unused=True) if y else ()
        return _spread(grads, wanted)

    @staticmethod
    @once_differentiable  # type: ignore[untyped-decorator]
    def backward(ctx: Any, *vectors: Any) -> Any:
        tensors, wanted, outputs = ctx.saved_tensors, ctx.wanted, ctx.outputs
        with _graph_of_its_own(), once(False):
            inputs = _leaves(tensors[outputs:], wanted)
            cotangents = [None if c is None else c.detach().requires_grad_() for c in tensors[:outputs]]
            y, c = ctx.setting.again(inputs, cotangents)
            leaves = _where(inputs, wanted)
            grads = torch.autograd.grad(y, leaves, c, create_graph=True, allow_unused=True) if y else ()
            pairs = [
                (g, v) for g, v in zip(grads, _where(vectors, wanted), strict=bool(y))
                if g is not None and g.requires_grad and v is not None
            ]  # fmt: skip
            if not pairs:
                return (None,) * (3 + len(tensors))
            refuse_constants([g for g, _ in pairs])
            tops = [c for c in cotangents if c is not None]
            seconds = torch.autograd.grad(
                [g for g, _ in pairs], [*tops, *leaves], [v for _, v in pairs], allow_unused=True
            )
        has_top = tuple(c is not None for c in cotangents)
        of_inputs = _spread(seconds[len(tops) :], wanted)
        return None, None, None, *_spread(seconds[: len(tops)], has_top), *of_inputs


@contextlib.contextmanager
def _graph_of_its_own() -> Iterator[None]:
    """A graph that lives and dies here: who counts what autograd saves (Budget) does not count it."""
    with torch.enable_grad(), torch.autograd.graph.saved_tensors_hooks(_same, _same):
        yield


def _same(tensor: Tensor) -> Tensor:
    return tensor


def _leaves(inputs: Sequence[Tensor], wanted: Sequence[bool]) -> list[Tensor]:
    return [t.detach().requires_grad_() if w else t.detach() for t, w in zip(inputs, wanted, strict=True)]


def _where(tensors: Sequence[Any], wanted: Sequence[bool]) -> list[Any]:
    return [t for t, w in zip(tensors, wanted, strict=True) if w]


def _spread(tensors: Sequence[Any], wanted: Sequence[bool]) -> tuple[Any, ...]:
    """Tensors in the places that are wanted, in order; None in the others, and in all where there are no tensors."""
    rest = iter(tensors)
    return tuple(next(rest, None) if w else None for w in wanted)
