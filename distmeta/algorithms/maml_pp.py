"""MAML++ (Antoniou et al. 2019, arXiv 1810.09502, section 4): MAML, trained in a way that is stable and quick.

    minimise over (theta, alpha)   E_task  sum_k w_k L_query(theta_k),    theta_{k+1} = theta_k - alpha_k * g_k

alpha: a learnt rate for each layer and inner step. w: the multi-step loss, equal weights that move to the last step
over the first ANNEALED of the run. Derivatives are of first order for the first FIRST_ORDER of the run, then exact. The
outer rate follows a cosine. (The paper's remedies for batch normalisation do not concern a transformer, whose
normalisation has no running statistics.) Unbiased from FIRST_ORDER on. Cost of a task as MAML's, and a query gradient
for each step whose weight is not 0.
"""

from __future__ import annotations

from typing import Any

from distmeta import inner

ORDER = "exact"
ANNEALED = 0.15
FIRST_ORDER = 0.15


def meta_gradient(
    loss: Any, params: Any, support: Any, query: Any, loop: Any, *, progress: float = 1.0, **options: Any
) -> inner.MetaGradient:
    """progress: how far the run is, from 0 to 1."""
    order: inner.Order = "first_order" if progress < FIRST_ORDER else "exact"
    weights = step_weights(loop.steps, progress)
    return inner.meta_gradient(loss, params, support, query, loop, order, step_weights=weights, **options)


def step_weights(steps: int, progress: float) -> list[float] | None:
    """Weights of the query losses after 1..K steps, which add up to 1: equal at first, at last all on the last."""
    if progress >= ANNEALED or steps == 0:
        return None
    early = (1 - progress / ANNEALED) / steps
    return [early] * (steps - 1) + [1 - early * (steps - 1)]
