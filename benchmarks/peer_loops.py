"""The peers: each library's own way to a meta-gradient, with one signature.

    peer(module, support, query, steps, lr, first_order) -> (query loss, {parameter name: its derivative})

`module(batch)` returns the mean loss; its parameters that require a gradient are adapted, the others are frozen. Each
loop follows its library's own examples: the whole support set a step, the graph of all steps kept.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call

Named = dict[str, Tensor]
Peer = Callable[[nn.Module, Any, Any, int, float, bool], tuple[Tensor, Named]]


def trainable(module: nn.Module) -> Named:
    return {name: p for name, p in module.named_parameters() if p.requires_grad}


def hand(module: nn.Module, support: Any, query: Any, steps: int, lr: float, first_order: bool) -> tuple[Tensor, Named]:
    """A hand-written loop of torch.autograd.grad over functional_call."""
    start = trainable(module)
    fast = dict(start)
    for _ in range(steps):
        loss = functional_call(module, fast, (support,))
        grads = torch.autograd.grad(loss, list(fast.values()), create_graph=not first_order)
        fast = {name: p - lr * g for (name, p), g in zip(fast.items(), grads, strict=True)}
        if first_order:
            fast = {name: p.detach().requires_grad_() for name, p in fast.items()}
    loss = functional_call(module, fast, (query,))
    return loss.detach(), _named(start, torch.autograd.grad(loss, list((fast if first_order else start).values())))


def with_higher(
    module: nn.Module, support: Any, query: Any, steps: int, lr: float, first_order: bool
) -> tuple[Tensor, Named]:
    """higher's innerloop_ctx; first order is its track_higher_grads=False and the last weights' gradient."""
    import higher

    start = trainable(module)
    optimizer = torch.optim.SGD(list(start.values()), lr=lr)
    options = {"copy_initial_weights": False, "track_higher_grads": not first_order}
    with higher.innerloop_ctx(module, optimizer, **options) as (fast, inner):
        for _ in range(steps):
            inner.step(fast(support))
        loss = fast(query)
        last = [p for p in fast.parameters() if p.requires_grad]
        grads = torch.autograd.grad(loss, last if first_order else list(start.values()))
    return loss.detach(), _named(start, grads)


def with_torchopt(
    module: nn.Module, support: Any, query: Any, steps: int, lr: float, first_order: bool
) -> tuple[Tensor, Named]:
    """TorchOpt's functional optimiser; its MetaSGD refuses modules with frozen parameters."""
    import torchopt

    start = trainable(module)
    fast = dict(start)
    optimizer = torchopt.sgd(lr=lr)
    state = optimizer.init(fast)
    for _ in range(steps):
        loss = functional_call(module, fast, (support,))
        grads = _named(fast, torch.autograd.grad(loss, list(fast.values()), create_graph=not first_order))
        updates, state = optimizer.update(grads, state, inplace=False)
        fast = torchopt.apply_updates(fast, updates, inplace=False)
        if first_order:
            fast = {name: p.detach().requires_grad_() for name, p in fast.items()}
    loss = functional_call(module, fast, (query,))
    return loss.detach(), _named(start, torch.autograd.grad(loss, list((fast if first_order else start).values())))


def with_learn2learn(
    module: nn.Module, support: Any, query: Any, steps: int, lr: float, first_order: bool
) -> tuple[Tensor, Named]:
    """learn2learn's MAML wrapper."""
    import learn2learn

    start = trainable(module)
    learner = learn2learn.algorithms.MAML(module, lr=lr, first_order=first_order, allow_unused=True, allow_nograd=True)
    fast = learner.clone()
    for _ in range(steps):
        fast.adapt(fast(support))
    loss = fast(query)
    return loss.detach(), _named(start, torch.autograd.grad(loss, list(start.values())))


def _named(names: Named, tensors: Any) -> Named:
    return dict(zip(names, tensors, strict=True))


EVERY: dict[str, Peer] = {
    "hand-written": hand,
    "higher": with_higher,
    "torchopt": with_torchopt,
    "learn2learn": with_learn2learn,
}


def importable() -> tuple[dict[str, Peer], dict[str, str]]:
    """(peers that can run here, why the others cannot)."""
    absent = {name: _reason(name) for name in EVERY if name != "hand-written" and not importlib.util.find_spec(name)}
    return {name: peer for name, peer in EVERY.items() if name not in absent}, absent


def _reason(name: str) -> str:
    if name == "learn2learn":
        return "not installable on this Python: its build needs the private header longintrepr.h, gone since 3.11"
    return "not installed: pip install distmeta[peers]"
