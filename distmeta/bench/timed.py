"""An algorithm that only waits: the orchestration's cost, measured at more ranks than there are cores.

    algorithm: distmeta.bench.timed

In the place of the inner loop, a rank waits as long as a real one took, task by task, and hands over zeros in the
meta-gradient's shape. Sampling, the object store, the hand-over, the collectives, the outer step and checkpoints stay
what they are. DISTMETA_TIMED = "MEAN_S,SPREAD" says how long: seconds of a task, and their relative deviation.
"""

from __future__ import annotations

import os
import random
import time
from typing import Any

import torch

from distmeta.inner import MetaGradient

ORDER = "first_order"
VARIABLE = "DISTMETA_TIMED"


def meta_gradient(loss: Any, params: Any, support: Any, query: Any, loop: Any, **options: Any) -> MetaGradient:
    """Zeros, after the wait."""
    mean, deviation = (float(x) for x in os.environ[VARIABLE].split(","))
    names = options["names"]
    for _ in names:
        time.sleep(max(0.0, random.gauss(mean, mean * deviation)))
    tasks = (len(names),) if options["task_axis"] else ()
    rates = loop.lr if isinstance(loop.lr, dict) else {"": loop.lr}
    zeros = {name: torch.zeros((*tasks, *r.shape)) for name, r in rates.items() if isinstance(r, torch.Tensor)}
    shape = next(iter(params.values())).shape[: len(tasks)]
    logits = [torch.zeros(*batch.labels.shape, 2) for batch in query]
    return MetaGradient(
        grads={name: torch.zeros_like(t) for name, t in params.items()},
        lr_grads=(zeros if isinstance(loop.lr, dict) else zeros.get("")),
        shared_grads={name: torch.zeros_like(t) for name, t in (options.get("shared") or {}).items()},
        loss=torch.zeros(shape),
        inner_losses=torch.zeros(*shape, loop.steps + 1),
        adapted=dict(params),
        aux=logits,
    )
