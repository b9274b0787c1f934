"""First-order MAML (Finn et al. 2017, arXiv 1703.03400, section 5.2; Nichol et al. 2018, arXiv 1803.02999, section 4).

    g = grad L_query(theta_K), taken at the adapted weights and applied to theta

Biased: the Jacobian d theta_K / d theta is taken for the identity, an error of order lr * K * Hessian. Cost of a
task: K + 1 gradients. The inner learning rates' gradient is exact in its last factor and misses the same Jacobians.
"""

from __future__ import annotations

from typing import Any

from distmeta import inner

ORDER = "first_order"


def meta_gradient(loss: Any, params: Any, support: Any, query: Any, loop: Any, **options: Any) -> inner.MetaGradient:
    return inner.meta_gradient(loss, params, support, query, loop, order="first_order", **options)
