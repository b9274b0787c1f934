"""Class means that move to the texts to be classified: soft k-means (Ren et al. 2018, arXiv 1803.00676, equation 3).

Letters: n texts, D width, C classes.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor


def soft_k_means(x: Tensor, sums: Tensor, counts: Tensor, scale: float, rounds: int) -> Iterator[Tensor]:
    """The scores [n, C] of the texts' features x [n, D] by class means that have moved for 0, 1, ... `rounds` rounds.

    sums [C, D] and counts [C] are of each class's support examples. A round assigns the texts by softmax and takes the
    means anew, each text counting as much as its probability p_ic:

        score_ic = -scale |x_i - mean_c|^2,    mean_c = (sums_c + sum_i p_ic x_i) / (counts_c + sum_i p_ic)

    The texts are then classified together (transductively): the label of one depends on the others. Nothing assumes
    that classes are equally frequent among them.
    """
    taken, weight = sums, counts
    for last in range(rounds + 1):
        scores = -scale * torch.cdist(x, taken / weight.unsqueeze(1)).pow(2)
        yield scores
        if last < rounds:
            share = scores.softmax(-1)
            taken, weight = sums + share.mT @ x, counts + share.sum(0)
