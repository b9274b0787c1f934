"""Meta-SGD (Li et al. 2017, arXiv 1707.09835, equation 1): MAML with a learnt rate for each adapted number.

    theta_{k+1} = theta_k - alpha * grad L_support(theta_k),    minimise over (theta, alpha)  E_task L_query(theta_K)

The paper takes one step and lets alpha take any sign; here there may be several, and alpha is held as a logarithm, so
that it stays positive. Exact for that objective; cost as MAML's, with twice the meta-parameters.
"""

from distmeta.algorithms.maml import ORDER, meta_gradient

__all__ = ["ORDER", "meta_gradient"]
