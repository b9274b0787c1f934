"""No meta-training at all: the initial weights, adapted to each task as they are: the baseline under every
table (Chen et al. 2019, arXiv 1904.04232).

    g = 0,  so that the meta-parameters stay what the pretrained model is

Cost of a task: K + 1 gradients, to score what adapting gives. Search inner.lr and inner.steps to make the most of it.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import torch

from distmeta import inner

ORDER = "first_order"


def meta_gradient(loss: Any, params: Any, support: Any, query: Any, loop: Any, **options: Any) -> inner.MetaGradient:
    scored = inner.meta_gradient(loss, params, support, query, loop, order="first_order", **options)
    return dataclasses.replace(
        scored,
        grads={name: torch.zeros_like(g) for name, g in scored.grads.items()},
        shared_grads={name: torch.zeros_like(g) for name, g in scored.shared_grads.items()},
    )
