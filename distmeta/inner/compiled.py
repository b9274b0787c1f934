"""The meta-gradient as one compiled function, for small pure networks whose time goes into calling, not computing.

torch.compile has no double backward, so compiling the network and differentiating twice is impossible. What can be
compiled is what the whole meta-gradient does: it is run once under a tracer, which writes down every operation, those
of both backward passes among them, as one graph without derivatives; that graph is compiled.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_flatten, tree_unflatten

from .adapt import refuse_divergence
from .loop import InnerLoop
from .problem import Loss, Start, TaskAxis, generator_state
from .walk import MetaGradient, Order, meta_gradient

FIELDS = tuple(field.name for field in dataclasses.fields(MetaGradient))
TOLERANCE = {torch.float64: 1e-9, torch.float32: 1e-3}  # relative, of the first call against the plain one


def compiled(
    loss: Loss,
    order: Order = "exact",
    *,
    start: Start | None = None,
    task_axis: TaskAxis = False,
    has_aux: bool = False,
    last_inner_loss: bool = True,
) -> Callable[..., MetaGradient]:
    """`meta_gradient` of this loss, compiled: f(params, support, query, inner, *, shared=None, names=None).

    Arguments and result are those of `meta_gradient`. It is compiled once for each combination of shapes, of settings
    of `inner` and of values in the batches that are no tensors, which takes tens of seconds and a C++ compiler (a CUDA
    device takes none); the first call of each compares with the plain meta-gradient. All graphs are kept while it runs
    (memory="unroll"). Raises ValueError for a loss that draws random numbers, ArithmeticError where the compiled
    function disagrees, Diverged as `meta_gradient` does.
    """
    known: dict[Any, tuple[Callable[..., list[Tensor]], Any]] = {}
    options: dict[str, Any] = {
        "start": start, "task_axis": task_axis, "has_aux": has_aux, "last_inner_loss": last_inner_loss,
    }  # fmt: skip

    def call(
        params: Mapping[str, Tensor],
        support: Any,
        query: Any,
        inner: InnerLoop,
        *,
        shared: Mapping[str, Tensor] | None = None,
        names: Sequence[str] | None = None,
    ) -> MetaGradient:
        leaves, spec = tree_flatten((dict(params), support, query, dict(shared or {}), inner.lr))
        tensors = [x.detach() for x in leaves if isinstance(x, Tensor)]
        rest = tuple(None if isinstance(x, Tensor) else x for x in leaves)
        settings = tuple(getattr(inner, field.name) for field in dataclasses.fields(inner) if field.name != "lr")
        key = (str(spec), rest, settings, tuple((t.shape, t.dtype, t.device) for t in tensors))
        if key not in known:
            known[key] = _compile(loss, order, options, inner, tensors, rest, spec)
        function, out_spec = known[key]
        result = MetaGradient(**dict(zip(FIELDS, tree_unflatten(function(*tensors), out_spec), strict=True)))
        losses = list(result.inner_losses.unbind(-1))
        refuse_divergence(losses, result.loss, inner.steps, names)
        return result

    return call


def _compile(
    loss: Loss,
    order: Order,
    options: dict[str, Any],
    inner: InnerLoop,
    tensors: list[Tensor],
    rest: tuple[Any, ...],
    spec: Any,
) -> tuple[Callable[..., list[Tensor]], Any]:
    """(function of tensors to the tensors of a MetaGradient, their structure), checked on `tensors`."""
    from torch.fx.experimental.proxy_tensor import make_fx

    if inner.seed is not None:
        raise ValueError("InnerLoop.seed: a loss that draws random numbers (dropout) cannot be compiled")
    out_specs: list[Any] = []

    def plain(*given: Tensor) -> list[Tensor]:
        tensor = iter(given)
        leaves = [next(tensor) if x is None else x for x in rest]
        params, support, query, shared, lr = tree_unflatten(leaves, spec)
        loop = dataclasses.replace(inner, lr=lr, memory="unroll")
        result = meta_gradient(loss, params, support, query, loop, order, shared=shared, check=False, **options)
        outputs, out_spec = tree_flatten(tuple(getattr(result, name) for name in FIELDS))
        out_specs[:] = [out_spec]
        return outputs

    before = generator_state(tensors[0].device)
    expected = plain(*tensors)
    if not torch.equal(before, generator_state(tensors[0].device)):
        raise ValueError("the loss draws random numbers (dropout?): such a meta-gradient cannot be compiled")
    function = torch.compile(make_fx(plain)(*tensors), dynamic=False)
    for a, b in zip(function(*tensors), expected, strict=True):
        if isinstance(b, Tensor) and b.is_floating_point() and bool(b.isfinite().all()):
            error = float((a - b).norm())
            if not error <= TOLERANCE.get(b.dtype, 3e-2) * float(b.norm()) + 1e-12:
                raise ArithmeticError(
                    f"the compiled meta-gradient differs from the plain one by {error:g}: do not use it"
                )
    return function, out_specs[0]
