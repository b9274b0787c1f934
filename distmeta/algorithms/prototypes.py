"""Prototypical networks (Snell et al. 2017, arXiv 1703.05175, equations 1 and 2): metric-based, without an inner loop.

    mean_c = mean of the features of class c's support examples,    p(c | x) = softmax_c( -s |f(x) - mean_c|^2 )

The query loss is differentiated through query features and means alike; the scale s is meta-learnt. Unbiased. Cost of a
task: one gradient over support and query sets. A new task costs one forward pass over its support set.
"""

from __future__ import annotations

from typing import Any

from distmeta import inner

ORDER = "first_order"  # one derivative only, so fused attention serves
ADAPTS = False


def meta_gradient(loss: Any, params: Any, support: Any, query: Any, loop: Any, **options: Any) -> inner.MetaGradient:
    return inner.meta_gradient(loss, params, support, query, loop, order="exact", **options)
