"""Implicit MAML (Rajeswaran et al. 2019, arXiv 1909.04630, equation 6 and algorithm 2).

    theta* = argmin L_support(theta) + lam/2 |theta - theta_0|^2,    (I + H / lam) g = grad L_query(theta*)

g does not depend on the path to theta*, so memory does not grow with the inner steps, whatever the inner optimizer.
`inner.proximal` is lam, `inner.solver` and `inner.cg_steps` say how the system is solved. Biased where the inner loop
has not converged, and by the solver's last steps. Cost of a task: K gradients, `cg_steps` Hessian-vector products.
"""

from __future__ import annotations

from typing import Any

from distmeta import inner

ORDER = "implicit"


def meta_gradient(loss: Any, params: Any, support: Any, query: Any, loop: Any, **options: Any) -> inner.MetaGradient:
    return inner.meta_gradient(loss, params, support, query, loop, order="implicit", **options)
