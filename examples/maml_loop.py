"""The whole of meta-training in one flat loop, on `distmeta.inner` alone: sines that are told by ten points.

    python examples/maml_loop.py

About half a minute on one core. Without adaptation the squared error on new sines stays near 3; after five steps on
ten points it falls well below 1. The protocol is that of Finn et al. 2017 (arXiv 1703.03400), section 5.1.
"""

import itertools
import math

import torch
from torch import Tensor

from distmeta.inner import InnerLoop, adapt, meta_gradient

Params = dict[str, Tensor]
Points = tuple[Tensor, Tensor]  # x and y, each [n, 1]


def initial(generator: torch.Generator, width: int = 40) -> Params:
    """A network of two hidden layers."""
    sizes = [1, width, width, 1]
    params = {}
    for i, (inputs, outputs) in enumerate(itertools.pairwise(sizes)):
        bound = math.sqrt(6 / (inputs + outputs))
        params[f"weight{i}"] = (torch.rand(inputs, outputs, generator=generator) * 2 - 1) * bound
        params[f"bias{i}"] = torch.zeros(outputs)
    return params


def loss(params: Params, points: Points) -> Tensor:
    """Mean squared error."""
    x, y = points
    for i in range(2):
        x = torch.tanh(x @ params[f"weight{i}"] + params[f"bias{i}"])
    return (x @ params["weight2"] + params["bias2"] - y).square().mean()


def task(generator: torch.Generator) -> tuple[Points, Points]:
    """Support and query points of a new sine: amplitude in [0.1, 5], phase in [0, pi], x in [-5, 5]."""
    amplitude, phase = torch.rand(2, generator=generator) * torch.tensor([4.9, math.pi]) + torch.tensor([0.1, 0.0])
    x = torch.rand(20, 1, generator=generator) * 10 - 5
    y = amplitude * torch.sin(x - phase)
    return (x[:10], y[:10]), (x[10:], y[10:])


def train(steps: int = 1000, tasks: int = 10, seed: int = 0) -> tuple[Params, InnerLoop]:
    """Meta-parameters, and the inner loop with the rate that was learnt beside them."""
    generator = torch.Generator().manual_seed(seed)
    params = initial(generator)
    rate = torch.tensor(0.02)  # a tensor, so that its gradient comes with the others
    optimizer = torch.optim.Adam([*params.values(), rate], lr=3e-3)
    for step in range(steps):
        optimizer.zero_grad()
        for _ in range(tasks):
            support, query = task(generator)
            meta = meta_gradient(loss, params, support, query, InnerLoop(steps=2, lr=rate), order="exact")
            for name, value in params.items():
                value.grad = meta.grads[name] / tasks + (0 if value.grad is None else value.grad)
            rate.grad = meta.lr_grads / tasks + (0 if rate.grad is None else rate.grad)
        optimizer.step()
        if step % 100 == 0:
            print(f"step {step}  query loss {float(meta.loss):.3f}  inner rate {float(rate):.4f}")
    return params, InnerLoop(steps=5, lr=rate)


def errors(params: Params, inner: InnerLoop, tasks: int = 200, seed: int = 1) -> tuple[float, float]:
    """Mean squared error on new sines, before and after adapting to ten points of each."""
    generator = torch.Generator().manual_seed(seed)
    pairs = [task(generator) for _ in range(tasks)]
    before = sum(float(loss(params, query)) for _, query in pairs) / tasks
    after = sum(float(loss(adapt(loss, params, support, inner).params, query)) for support, query in pairs) / tasks
    return before, after


if __name__ == "__main__":
    before, after = errors(*train())
    print(f"new sines: squared error {before:.2f} before adapting, {after:.2f} after")
