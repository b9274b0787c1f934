"""Learnt weights of the training data: which sources, tasks or examples are worth adapting to.

    l(theta) = 1/n sum_i w(s_i) l_i(theta),    w(s) = 2 sigmoid(s),    s: a learnt number of each source, task or row

w stands before each support example's loss, and not before a query example's: the meta-gradient with respect to s is
the derivative of the query loss through the inner steps (DataRater, arXiv 2505.17895, has the idea; here through all
steps, exactly, at the memory of one). All weights begin at 1. A number that no episode needed stays where it is.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

if TYPE_CHECKING:
    from distmeta.config import Config
    from distmeta.tasks.store import TaskStore

NAME = "data_weights"  # of the meta-parameter


def units(config: Config, store: TaskStore) -> list[str]:
    """What has a weight of its own, by name; rows by their numbers."""
    by = config.outer.data_weights.by if config.outer.data_weights is not None else ""
    if by == "source":
        return sorted(config.data.sources or {})
    if by == "task":
        return store.labels if store.family == "classes" else store.tasks
    return [str(row) for row in range(store.rows)] if by == "example" else []


def unit_of(config: Config, store: TaskStore, rows: NDArray[np.int64]) -> NDArray[np.int64]:
    """The number of each of the store's `rows`' unit, [n]."""
    assert config.outer.data_weights is not None
    by = config.outer.data_weights.by
    if by == "example":
        return rows
    group = (store.label_ids if store.family == "classes" else store.task_ids)[rows].astype(np.int64)
    if by == "task":
        return group
    number = {name: i for i, name in enumerate(units(config, store))}
    groups = store.labels if store.family == "classes" else store.tasks
    return np.array([number[groups[i].split("/")[0]] for i in group], np.int64)


def initial(config: Config, store: TaskStore) -> dict[str, Tensor]:
    """The learnt numbers as they begin, by the meta-parameter's name; {} without outer.data_weights."""
    return {NAME: torch.zeros(len(units(config, store)))} if config.outer.data_weights is not None else {}


def weights(numbers: Tensor) -> Tensor:
    """w(s), from 0 to 2."""
    return 2 * torch.sigmoid(numbers)


def with_units(batches: Sequence[Any], config: Config, store: TaskStore) -> list[Any]:
    """Batches of a support set that know the unit of each of their rows, [T, n]."""

    def units_of(batch: Any) -> Tensor:
        numbers = unit_of(config, store, batch.store_rows).reshape(batch.labels.shape)
        return torch.as_tensor(numbers, device=batch.labels.device)

    return [replace(batch, units=units_of(batch)) for batch in batches]
