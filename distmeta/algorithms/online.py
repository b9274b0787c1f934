"""Follow the meta-leader (Finn et al. 2019, arXiv 1902.08438, equation 3 and algorithm 1): MAML while tasks arrive.

    theta_{t+1} = argmin over theta of  sum over the tasks 1..t that have arrived  of L_query( theta_K(theta) )

Tasks arrive one after another (`task.arrive_every`). Each is scored before anything is learnt from it; then the outer
steps go on from the weights that there are, on episodes of all tasks so far. The argmin is followed by as many outer
steps as there are between two arrivals; the meta-gradient is MAML's, exact, at its cost.
"""

from distmeta.algorithms.maml import ORDER, meta_gradient

__all__ = ["ORDER", "meta_gradient"]
