"""Learnt weights of the training data: which sources, tasks or examples are worth adapting to.

    l(theta) = 1/n sum_i w(s_i) l_i(theta),    w(s) = 2 sigmoid(s),    s: a learnt number of each source, task or row

w stands before each support example's loss, and not before a query example's: the meta-gradient with respect to s is
the derivative of the query loss through the inner steps (DataRater, arXiv 2505.17895, has the idea; here through all
steps, exactly, at the memory of one). All weights begin at 1. Influences differ by orders of magnitude and shrink as
the model learns, so that only their signs are followed (signSGD, arXiv 1802.04434): a number moves by
outer.data_weights.lr in each meta-step that has an episode with it, and otherwise stays where it is.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import torch
from numpy.typing import NDArray
from torch import Tensor

if TYPE_CHECKING:
    from distmeta.config import Config
    from distmeta.tasks.store import TaskStore

NAME = "data_weights"  # of the meta-parameter
LOW = 0.5  # a weight below this is called turned down
SHOWN = 10  # units that are named


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


def row_weights(config: Config, store: TaskStore, numbers: Tensor) -> NDArray[np.float64]:
    """The weight of each row of the store, [rows]; 1 in splits that are not learnt from."""
    out, groups = np.ones(store.rows), store.groups["train"]
    first = int(groups.start.min())
    rows = np.arange(first, first + groups.examples)
    out[rows] = weights(numbers.double()).cpu().numpy()[unit_of(config, store, rows)]
    return out


def described(config: Config, store: TaskStore, numbers: Tensor) -> dict[str, Any]:
    """by; how many meta-train units there are, how many are turned down, and the lowest of these by name."""
    assert config.outer.data_weights is not None
    of_rows, groups = row_weights(config, store, numbers), store.groups["train"]
    first, by = int(groups.start.min()), config.outer.data_weights.by
    rows = np.arange(first, first + groups.examples)
    unit, index = np.unique(unit_of(config, store, rows), return_index=True)
    values, names = of_rows[rows[index]], units(config, store)
    lowest = [i for i in np.argsort(values, kind="stable")[:SHOWN] if values[i] < LOW]
    shown = [{"name": store.text(int(unit[i])) if by == "example" else names[unit[i]], "weight": round(values[i], 4)}
             for i in lowest]  # fmt: skip
    return {"by": by, "units": len(unit), "turned_down": int((values < LOW).sum()), "lowest": shown}


def sentence(about: dict[str, Any]) -> str:
    """`described`, for a person."""
    unit = {"source": "sources", "task": "tasks", "example": "examples"}[about["by"]]
    lowest = ", ".join(f"{one['name'][:60]} ({one['weight']:.2f})" for one in about["lowest"][:3])
    return (
        f"Learnt weights: {about['turned_down']} of {about['units']} {unit} are below {LOW}"
        + (f", the lowest {lowest}" if lowest else "")
        + "; `distmeta weights` writes them all."
    )


def table(config: Config, store: TaskStore, numbers: Tensor) -> pa.Table:
    """All rows under the data's own column names, with `split` and `weight`: data to filter and to train on again."""
    from distmeta.tasks.splits import SPLITS

    data, rows = config.data, np.arange(store.rows)
    columns: dict[str, Any] = {
        data.text: pa.concat_arrays([store.texts_of(split) for split in SPLITS]),
        data.label: pa.array(store.labels).take(pa.array(store.label_ids)),
    }
    if store.family != "classes":
        columns[data.task] = pa.array(store.tasks).take(pa.array(store.task_ids))
    columns["split"] = pa.array(np.repeat(list(SPLITS), [store.groups[split].examples for split in SPLITS]))
    if data.trusted is not None:
        groups, is_trusted = store.groups["train"], rows >= store.groups["train"].examples
        assert groups.trusted is not None
        for first, count in zip(groups.start.ravel().tolist(), groups.trusted.ravel().tolist(), strict=True):
            is_trusted[first : first + count] = True
        columns[data.trusted] = pa.array(is_trusted)
    if store.subgroup_ids is not None and data.subgroup is not None:
        columns[data.subgroup] = pa.array(store.subgroups).take(pa.array(store.subgroup_ids))
    return pa.table({**columns, "weight": pa.array(row_weights(config, store, numbers))})
