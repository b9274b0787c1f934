"""Body only update in the inner loop (Oh et al. 2021, arXiv 2008.08882): MAML whose inner loop leaves the head alone.

    body_{k+1} = body_k - lr * grad_body L_support(body_k, head),    minimise over (body, head)  L_query(body_K, head)

Exact for that objective; cost as MAML's. The representation has to move, since the classifier does not.
"""

from distmeta.algorithms.maml import ORDER, meta_gradient

__all__ = ["ORDER", "meta_gradient"]
