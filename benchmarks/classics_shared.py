"""Shared by the classics: draws that depend on a key alone, Adam over meta-steps that continues from a file, figures.

Letters: T tasks, E test tasks, S seeds.
"""

from __future__ import annotations

import hashlib
import os
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from distmeta.evaluation.metrics import interval

Named = dict[str, Tensor]
RESULTS = Path(__file__).parent / "results"


def generator(*key: object) -> torch.Generator:
    """Random numbers that depend on `key` alone: the task of a key is the same in every run, resumed or not."""
    digest = hashlib.blake2b(repr(key).encode(), digest_size=8).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest, "little") >> 1)


def parameters(build: Callable[[], nn.Module], seed: int) -> tuple[nn.Module, Named]:
    """A network at its initial values for `seed`, and these values."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        module = build()
    return module, {name: p.detach().clone() for name, p in module.named_parameters()}


def stack(params: Mapping[str, Tensor], tasks: int) -> Named:
    """[T, ...]: all tasks start from the same values."""
    return {name: p.expand(tasks, *p.shape) for name, p in params.items()}


def mean_over_tasks(grads: Mapping[str, Tensor]) -> Named:
    return {name: g.mean(0) for name, g in grads.items()}


@dataclass
class Trained:
    """seconds: of the CPU, over all meta-steps, also those of an earlier process. losses: of each meta-step."""

    params: Named
    losses: list[float]
    seconds: float


Gradient = Callable[[Named, int], tuple[Named, float]]


def train(
    params: Named, gradient: Gradient, steps: int, lr: float, file: Path, every: int = 100, decay: bool = False
) -> Trained:
    """Adam on gradient(params, step) -> (gradients, loss), a function of these two alone; saved to `file` every so
    often, and continued from there. decay: to zero along a half cosine."""
    leaves = {name: nn.Parameter(p.clone()) for name, p in params.items()}
    optimizer = torch.optim.Adam(leaves.values(), lr)
    losses: list[float] = []
    seconds = 0.0
    if file.is_file():
        saved = load_file(file)
        losses, seconds = saved.pop("losses").tolist(), float(saved.pop("seconds"))
        for name, p in leaves.items():
            p.data.copy_(saved[name])
            state = {key: saved[f"{key}.{name}"] for key in ("exp_avg", "exp_avg_sq")}
            optimizer.state[p] = {"step": torch.tensor(float(len(losses))), **state}
    for step in range(len(losses), steps):
        began = time.process_time()
        for group in optimizer.param_groups:
            group["lr"] = lr * 0.5 * (1 + np.cos(np.pi * step / steps)) if decay else lr
        grads, loss = gradient({name: p.detach() for name, p in leaves.items()}, step)
        for name, p in leaves.items():
            p.grad = grads[name]
        optimizer.step()
        losses.append(loss)
        seconds += time.process_time() - began
        if len(losses) % every == 0 or len(losses) == steps:
            _save(file, leaves, optimizer, losses, seconds)
            recent = float(np.mean(losses[-every:]))
            print(f"{file.stem}: {len(losses)}/{steps}, loss {recent:.4f}, {seconds:.0f} s", flush=True)
    return Trained({name: p.detach() for name, p in leaves.items()}, losses, seconds)


def _save(file: Path, leaves: Mapping[str, Tensor], optimizer: Any, losses: list[float], seconds: float) -> None:
    """Whole or not at all."""
    state = {f"{key}.{n}": optimizer.state[p][key] for n, p in leaves.items() for key in ("exp_avg", "exp_avg_sq")}
    about = {"losses": torch.tensor(losses, dtype=torch.float64), "seconds": torch.tensor(seconds, dtype=torch.float64)}
    file.parent.mkdir(parents=True, exist_ok=True)
    part = file.with_name(f".{file.name}.{os.getpid()}")
    save_file({**{n: p.detach() for n, p in leaves.items()}, **state, **about}, part)
    os.replace(part, file)


def figure(by_seed: Sequence[Tensor]) -> dict[str, Any]:
    """Mean and 95% interval of values [E] or curves [E, steps] over test tasks, each first averaged over the seeds."""
    values = torch.stack([v.double() for v in by_seed]).numpy()
    return {**interval(values.mean(0)), "by_seed": [interval(v)["mean"] for v in values]}


def shown(entry: Mapping[str, Any], digits: int = 3) -> str:
    return f"{entry['mean']:.{digits}f} [{entry['low']:.{digits}f}, {entry['high']:.{digits}f}]"
