"""Reptile (Nichol et al. 2018, arXiv 1803.02999, algorithm 1, batched).

    g = theta - theta_K,    so that an outer step moves the initial weights towards the adapted ones

Biased: in expectation it follows, beside the gradient of the mean loss, the inner product of the gradients of
different steps (section 5). Cost of a task: K gradients, and one on the query set, which is only scored. Learns
nothing but what the inner loop adapts, so neither inner learning rates nor shared parameters.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import torch

from distmeta import inner

ORDER = "first_order"
LEARNS_ONLY_FAST = True  # configurations that ask for more are refused


def meta_gradient(loss: Any, params: Any, support: Any, query: Any, loop: Any, **options: Any) -> inner.MetaGradient:
    scored = inner.meta_gradient(loss, params, support, query, loop, order="first_order", **options)
    with torch.no_grad():
        moved = {name: value - scored.adapted[name] for name, value in params.items()}
    return dataclasses.replace(scored, grads=moved)
