"""Almost no inner loop (Raghu et al. 2020, arXiv 1909.09157, section 4): MAML whose inner loop adapts the head alone.

    head_{k+1} = head_k - lr * grad_head L_support(body, head_k),    minimise over (body, head)  L_query(body, head_K)

Exact for that objective. What lies below the head is run once for an episode, so a task costs one pass through the
body and its pullback, whatever the number of inner steps. It is bound to features that need not change with the task.
"""

from distmeta.algorithms.maml import ORDER, meta_gradient

__all__ = ["ORDER", "meta_gradient"]
