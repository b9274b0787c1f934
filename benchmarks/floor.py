"""The matrix-product FLOPs that a meta-gradient of BERT needs, whatever the implementation: the leanest path, counted.

That is: no padding; layers below the lowest adapted one once for each row; in the last layer queries, projection and
feed-forward of the pooled token alone; no derivative of frozen weights, none below the lowest adapted layer; nothing
recomputed. The path is run with a row or two of a few tokens, and counted by torch.

Every product works on rows that do not meet, so the count is a sum over rows of a + b L + c L^2, L being the row's
tokens; counts at three small L give the polynomials, exactly.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from distmeta.bench.measure import matrix_flops

Layer = dict[str, Tensor]


@dataclass(frozen=True)
class Shape:
    """BERT, and what adapts: all, LoRA of `rank` on query and value from layer `lowest` up, or the head.

    kept: what the layers below the lowest adapted one make of the rows is known already.
    """

    layers: int
    width: int
    heads: int
    intermediate: int
    classes: int
    adapt: str = "all"
    rank: int = 8
    lowest: int = 0
    kept: bool = False


def lean_flops(shape: Shape, support: Sequence[int], query: Sequence[int], steps: int, first_order: bool) -> float:
    """Of one task; support, query: the tokens of each row."""
    lengths = np.array([2.0, 3.0, 5.0])
    of_query, of_support = [], []
    for length in lengths.astype(int).tolist():
        one = _count(shape, length, 1, 1, steps, first_order)
        of_query.append(_count(shape, length, 1, 2, steps, first_order) - one)
        of_support.append(one - of_query[-1])
    powers = np.vander(lengths, 3)
    total = 0.0
    for counts, rows in ((of_support, support), (of_query, query)):
        total += float((np.vander(np.asarray(rows, float), 3) @ np.linalg.solve(powers, counts)).sum())
    return total


@functools.cache
def _count(shape: Shape, length: int, support: int, query: int, steps: int, first_order: bool) -> int:
    if steps > 3:  # from the second step on, each costs the same
        two, three = (_count(shape, length, support, query, k, first_order) for k in (2, 3))
        return two + (steps - 2) * (three - two)
    return matrix_flops(lambda: _meta_gradient(shape, length, support, query, steps, first_order))


def _meta_gradient(shape: Shape, length: int, support: int, query: int, steps: int, first_order: bool) -> None:
    body, start = _weights(shape, length)
    known = {n: (torch.zeros(n, length, shape.width), 0) for n in {support, query}}
    if shape.kept:
        features = {0: (known[support][0], shape.lowest), 1: (known[query][0], shape.lowest)}
    elif shape.adapt != "all":
        with torch.no_grad():
            features = {r: _run(shape, body, {}, known[n], to=shape.lowest) for r, n in ((0, support), (1, query))}
    else:
        features = {0: known[support], 1: known[query]}
    fast = start
    for _ in range(steps):
        loss = _loss(shape, body, fast, features[0])
        grads = torch.autograd.grad(loss, list(fast.values()), create_graph=not first_order)
        fast = {name: p - 0.1 * g for (name, p), g in zip(fast.items(), grads, strict=True)}
        if first_order:
            fast = {name: p.detach().requires_grad_() for name, p in fast.items()}
    torch.autograd.grad(_loss(shape, body, fast, features[1]), list((fast if first_order else start).values()))


def _weights(shape: Shape, length: int) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """(all weights, those that adapt)."""
    d, f = shape.width, shape.intermediate
    sizes: dict[str, tuple[int, ...]] = {"embedding": (length, d), "head": (shape.classes, d)}
    low_rank: dict[str, tuple[int, ...]] = {}
    for i in range(shape.layers):
        sizes |= {f"{i}.{name}": (d, d) for name in ("query", "key", "value", "out")}
        sizes |= {f"{i}.up": (f, d), f"{i}.down": (d, f)}
        if shape.adapt == "lora" and i >= shape.lowest:
            for name in ("query", "value"):
                low_rank |= {f"{i}.{name}.A": (shape.rank, d), f"{i}.{name}.B": (d, shape.rank)}
    weights = {name: torch.zeros(size) for name, size in (sizes | low_rank).items()}
    adapted = {"all": list(sizes), "lora": [*low_rank, "head"], "head": ["head"]}[shape.adapt]
    return weights, {name: weights[name].requires_grad_() for name in adapted}


def _loss(shape: Shape, body: dict[str, Tensor], fast: dict[str, Tensor], features: tuple[Tensor, int]) -> Tensor:
    states, _ = _run(shape, body, fast, features, to=shape.layers)
    logits = states[:, 0] @ {**body, **fast}["head"].T
    return logits.logsumexp(-1).mean()


def _run(
    shape: Shape, body: dict[str, Tensor], fast: dict[str, Tensor], features: tuple[Tensor, int], to: int
) -> tuple[Tensor, int]:
    """States after `to` layers, from (states, layers that they have gone through)."""
    w = {**body, **fast}
    x, done = features
    if done == 0:
        x = F.layer_norm(x + w["embedding"], x.shape[-1:])
    for i in range(done, to):
        x = _layer(shape, w, i, x)
    return x, to


def _layer(shape: Shape, w: dict[str, Tensor], i: int, x: Tensor) -> Tensor:
    read = x[:, :1] if i == shape.layers - 1 else x  # the head reads the first token alone

    def linear(name: str, y: Tensor) -> Tensor:
        out = y @ w[f"{i}.{name}"].T
        return out + (y @ w[f"{i}.{name}.A"].T) @ w[f"{i}.{name}.B"].T if f"{i}.{name}.A" in w else out

    def split(y: Tensor) -> Tensor:
        return y.unflatten(-1, (shape.heads, -1)).transpose(1, 2)

    q, k, v = split(linear("query", read)), split(linear("key", x)), split(linear("value", x))
    mixed = torch.softmax(q @ k.transpose(-1, -2), -1) @ v
    x = F.layer_norm(read + linear("out", mixed.transpose(1, 2).flatten(2)), x.shape[-1:])
    return F.layer_norm(x + linear("down", F.gelu(linear("up", x))), x.shape[-1:])


def of_config(hf_config: Any, classes: int, **adapt: Any) -> Shape:
    return Shape(
        hf_config.num_hidden_layers, hf_config.hidden_size, hf_config.num_attention_heads,
        hf_config.intermediate_size, classes, **adapt,
    )  # fmt: skip
