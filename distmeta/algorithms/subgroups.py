"""outer.worst_subgroup: the outer loss follows the subgroups that are worst off, so that none is left behind.

    minimise over theta, maximise over q:  sum_g q_g L_g,    q_g >= 0,  sum_g q_g = 1

L_g is the mean query loss, after adaptation, of the rows of subgroup g. It is group DRO (Sagawa et al. 2020, arXiv
1911.08731, algorithm 1) with episodes in the place of examples: after each meta-step q_g becomes q_g exp(STEP L_g), and
is divided by its sum. Episodes are drawn as ever, in which g has a share p_g of the query rows; a row of g counts
q_g / p_g, so that the mean over rows is the sum above. Rows without a subgroup are one more of them.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

if TYPE_CHECKING:
    from distmeta.tasks.store import TaskStore

STEP = 0.1  # of the logarithm of q, at a loss of 1


def uniform(store: TaskStore) -> dict[str, float]:
    """q as it begins, by name."""
    names = store.subgroup_shares
    return {name: 1 / len(names) for name in names}


def raised(q: Mapping[str, float], sums: Sequence[float], store: TaskStore) -> dict[str, float]:
    """q after a meta-step with the sums of query losses and the numbers of query rows of each subgroup, [2 G]."""
    number = {name: i for i, name in enumerate(store.subgroups)}
    losses, rows = sums[: len(number)], sums[len(number) :]
    new = {n: v * math.exp(STEP * losses[number[n]] / max(1.0, rows[number[n]])) for n, v in q.items()}
    return {name: value / sum(new.values()) for name, value in new.items()}


def factors(q: Mapping[str, float], store: TaskStore) -> list[float]:
    """What a row of each subgroup counts, [G]."""
    p = store.subgroup_shares
    return [q[name] / p[name] if name in p else 1.0 for name in store.subgroups]


def with_groups(batches: Sequence[Any], counts: Sequence[float], store: TaskStore) -> list[Any]:
    """Batches of a query set that know the subgroup of each of their rows, and what its rows count."""
    assert store.subgroup_ids is not None
    out = []
    for batch in batches:
        of = torch.as_tensor(store.subgroup_ids[batch.store_rows].astype(np.int64), device=batch.labels.device)
        out.append(replace(batch, groups=of.view(batch.labels.shape), factors=torch.tensor(counts, device=of.device)))
    return out
