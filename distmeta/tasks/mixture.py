"""Several data sources in one run: which of them an episode comes from, a pure function of (seed, split, index).

The tasks (family domain) or classes (family classes) of the source NAME are called NAME/..., so that no two sources
share one, and lie side by side in the task store. The weights are those of T5 (Raffel et al. 2020, section 3.5.2):
proportional to the examples of a source, or to their 1/T-th power.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from distmeta.config import TaskConfig
from distmeta.errors import InputError, nearest
from distmeta.tasks.draws import Draws

if TYPE_CHECKING:
    from distmeta.tasks.store import Groups, TaskStore

ONE = 1 << 31  # draws are integers below this


def named_batches(batches: Iterator[Any], source: str, role: str) -> Iterator[Any]:
    """Batches of one source with NAME/ before the names of `role`, and a split column, empty where it had none."""
    for batch in batches:
        columns = {name: batch.column(name) for name in batch.schema.names}
        columns.setdefault("split", pa.array([""] * len(batch), pa.large_string()))
        names = columns[role].dictionary_encode()
        prefixed = pa.array([f"{source}/{name}" for name in names.dictionary.to_pylist()], pa.large_string())
        columns[role] = pa.DictionaryArray.from_arrays(names.indices, prefixed).dictionary_decode()
        yield pa.RecordBatch.from_pydict(columns)


def weights(sources: dict[str, Groups], task: TaskConfig) -> NDArray[np.float64]:
    """How likely each source is, [sources]; they add up to 1."""
    examples = np.array([groups.examples for groups in sources.values()], float)
    if isinstance(task.mixture, dict):
        chosen = np.array([task.mixture[name] for name in sources])
    else:
        powers = {"uniform": 0.0, "curriculum": 0.0, "proportional": 1.0, "temperature": 1 / task.temperature}
        chosen = (examples / examples.max()) ** powers[task.mixture]
    shares: NDArray[np.float64] = chosen / chosen.sum()
    return shares


def curriculum(
    task: TaskConfig, sources: Sequence[str], validations: Sequence[dict[str, Any]], step: int
) -> dict[str, float] | None:
    """The weights that meta-step `step` goes by: sources with a higher meta-validation loss more often; None: equal.

    validations: {step, loss, sources: {name: loss}} in order. Those of the last `task.lag` steps are not looked at, so
    that a run that goes on from a checkpoint finds the same, whatever was asked for ahead. A source without
    meta-validation tasks counts as the mean of the others.
    """
    known = [v["sources"] for v in validations if v["step"] <= step - task.lag]
    if not known:
        return None
    losses = known[-1]
    mean = sum(losses.values()) / len(losses)
    return {name: max(losses.get(name, mean), 1e-6) ** (1 / task.temperature) for name in sources}


def drawn_groups(store: TaskStore, task: TaskConfig, split: str, draws: Draws) -> Groups:
    """The groups of the source that the episode comes from; of all the split where there are no sources."""
    sources = store.sources[split]
    if not sources:
        return store.groups[split]
    ends = np.rint(np.cumsum(weights(sources, task)) * ONE)
    index = np.searchsorted(ends, draws.below(np.array([ONE]))[0], side="right")
    return list(sources.values())[min(int(index), len(sources) - 1)]


def check_mixture(store: TaskStore, task: TaskConfig, splits: Sequence[str]) -> None:
    """Raises InputError if task.mixture does not give every source a weight, or none that a split has."""
    names = sorted({name for sources in store.sources.values() for name in sources})
    if not names or not isinstance(task.mixture, dict):  # no sources: other data, on which a mixed run is evaluated
        return
    for name in task.mixture:
        if name not in names:
            raise InputError(
                f"task.mixture: no source '{name}'; data.sources has {', '.join(names)}.{nearest(name, names)}"
            )
    for name in names:
        if name not in task.mixture:
            raise InputError(f"task.mixture: the source '{name}' has no weight; name every source, 0 for none of it")
    for split in splits:
        if store.sources[split] and not any(task.mixture[name] > 0 for name in store.sources[split]):
            raise InputError(
                f"task.mixture: no source with tasks in the split '{split}' has a weight; they are "
                f"{', '.join(store.sources[split])}"
            )
