"""An algorithm that only waits: the orchestration's cost, measured at more ranks than there are cores.

    algorithm: distmeta.bench.timed

In the place of the inner loop, a rank waits as long as a real one took, task by task, and hands over zeros in the
meta-gradient's shape. Sampling, the object store, the hand-over, the collectives, the outer step and checkpoints stay
what they are. `inner.lr` is how long, the seconds of a task, and `inner.momentum` their relative deviation:
two numbers that reach every rank of any cluster.
"""

from __future__ import annotations

import random
import time
from typing import Any

import torch

from distmeta.inner import MetaGradient

ORDER = "first_order"
SETTINGS = {"inner.learn_lr": "none"}


def meta_gradient(loss: Any, params: Any, support: Any, query: Any, loop: Any, **options: Any) -> MetaGradient:
    """Zeros, after the wait."""
    mean, deviation = loop.lr, loop.momentum
    names = options["names"]
    for _ in names:
        time.sleep(max(0.0, random.gauss(mean, mean * deviation)))
    tasks = (len(names),) if options["task_axis"] else ()
    shape = next(iter(params.values())).shape[: len(tasks)]
    return MetaGradient(
        grads={name: torch.zeros_like(t) for name, t in params.items()},
        lr_grads=None,
        shared_grads={name: torch.zeros_like(t) for name, t in (options.get("shared") or {}).items()},
        loss=torch.zeros(shape),
        inner_losses=torch.zeros(*shape, loop.steps + 1),
        adapted=dict(params),
        aux=[torch.zeros(len(names))],
    )
