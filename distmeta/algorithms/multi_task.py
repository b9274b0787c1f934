"""Pooled training on all tasks at once: the baseline that a meta-learner has to beat (as in Chen et al. 2019, arXiv
1904.04232, and Tian et al. 2020, arXiv 2003.11539).

    minimise over theta   E_task  ( L_support(theta) + L_query(theta) ) / 2        no inner loop

Tasks that share their labels (family domain) share the head. Where every episode has classes of its own (family
classes), what is trained is one classifier over all classes of the data, and a new task begins with a new head.
Unbiased for that objective, which is not that of adapting. Cost of a task: one gradient over support and query sets.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import torch

from distmeta import inner
from distmeta.inner.problem import listed

ORDER = "first_order"
INNER_STEPS = 0  # whatever inner.steps says
ADAPTS = False


def meta_gradient(
    loss: Any,
    params: Any,
    support: Any,
    query: Any,
    loop: Any,
    *,
    pooled: Any = None,
    start: Any = None,
    by_step: bool = False,
    loss_weights: Any = None,
    **options: Any,
) -> inner.MetaGradient:
    """pooled: the loss of a classifier over all classes of the data, in the place of `loss`.

    by_step: the support set is a list of chunks, which count like the query set.
    """
    still = dataclasses.replace(loop, steps=0, lr=0.0)
    episode_start = start if pooled is None else None
    sets = [*support, query] if by_step else [support, query]
    batches = [*listed(query), *(batch for part in sets[:-1] for batch in listed(part))]
    result = inner.meta_gradient(pooled or loss, params, sets[0], batches, still, start=episode_start, **options)
    half = {name: g / len(sets) for name, g in result.grads.items()}
    shared = {name: g / len(sets) for name, g in result.shared_grads.items()}
    with torch.no_grad():
        loss_now = result.loss / len(sets)
    return dataclasses.replace(
        result, grads=half, shared_grads=shared, loss=loss_now, aux=result.aux[: len(listed(query))]
    )
