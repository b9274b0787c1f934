"""Proto-MAML (Triantafillou et al. 2020, arXiv 1903.03096, section 3.1): MAML whose head begins at the class means.

    w_c = 2 s mean_c,  b_c = -s |mean_c|^2    of the support set's features; then every weight adapts, the head as well

The means are differentiated through, and the scale s is meta-learnt. Exact for that objective; cost as MAML's and one
more pass over the support set each way. It takes any number of classes.
"""

from distmeta.algorithms.maml import ORDER, meta_gradient

__all__ = ["ORDER", "meta_gradient"]
