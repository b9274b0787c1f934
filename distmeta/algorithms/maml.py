"""Model-agnostic meta-learning (Finn et al. 2017, arXiv 1703.03400, equation 1 and algorithm 1).

    minimise over theta   E_task  L_query( theta_K(theta) ),    theta_{k+1} = theta_k - lr * grad L_support(theta_k)

The gradient is differentiated through every inner step: unbiased, exact. Cost of a task: K gradients forward, one
Hessian-vector product per step back (about twice a gradient each), one query gradient.
"""

from __future__ import annotations

from typing import Any

from distmeta import inner

ORDER = "exact"


def meta_gradient(loss: Any, params: Any, support: Any, query: Any, loop: Any, **options: Any) -> inner.MetaGradient:
    return inner.meta_gradient(loss, params, support, query, loop, order="exact", **options)
