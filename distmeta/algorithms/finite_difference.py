"""MAML by the two-point product (SAMA, Choe et al. 2023, arXiv 2310.05674, equation 5; DARTS, arXiv 1806.09055).

    H v  is  ( grad L(theta + r v/|v|) - grad L(theta - r v/|v|) ) |v| / 2r       at each inner step, on the way back

Needs first derivatives only, so fused attention kernels serve, and frozen weights in shards are gathered twice a
product. Biased by r^2 / 6 times a third derivative, and by rounding: about 1e-3 of the product in float32. Cost of a
task: K + 1 gradients, and two for each step back.
"""

from __future__ import annotations

from typing import Any

from distmeta import inner

ORDER = "finite_difference"


def meta_gradient(loss: Any, params: Any, support: Any, query: Any, loop: Any, **options: Any) -> inner.MetaGradient:
    return inner.meta_gradient(loss, params, support, query, loop, order="finite_difference", **options)
