"""Sampler actors: stateless makers of episodes. Any of them can make any episode, so that none is missed."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from distmeta.config import TaskConfig
from distmeta.tasks.episodes.episode import sample_episode
from distmeta.tasks.rows import Episode
from distmeta.tasks.store import TaskStore, open_store
from distmeta.tasks.stream import Stream


class Sampler:
    """Makes episodes of one task store; in this process, or as a Ray actor from `start_samplers`.

    The store is opened at the first call: a store that a node cannot read is then an error with a name, not
    an actor that dies while it starts.
    """

    def __init__(self, store: str | Path | TaskStore | Stream, task: TaskConfig, seed: int) -> None:
        self._store, self._task, self._seed = store, task, seed

    def sample(self, indices: Sequence[int], split: str, mixture: dict[str, float] | None = None) -> list[Episode]:
        """The episodes of these indices, in their order, those of the split train augmented by `task.augment`.

        mixture: in the place of `task.mixture`.
        """
        if isinstance(self._store, str | Path):
            self._store = open_store(self._store)
        task = self._task if mixture is None else self._task.model_copy(update={"mixture": mixture})
        learnt = split == "train"
        store = self._store if isinstance(self._store, TaskStore) else self._store.at(max(indices) if learnt else 0)
        return [sample_episode(store, task, self._seed, split, index, augment=learnt) for index in indices]


def start_samplers(
    store: str | Path | Stream, task: TaskConfig, seed: int, actors: int, cpus: float = 0.25, **options: Any
) -> list[Any]:
    """Handles of `actors` sampler actors, spread over the nodes; Ray must be initialised.

    Ray restarts a sampler that dies and repeats the calls that it owes, without end. The store must be
    readable under the same path on every node.
    """
    import ray

    remote = ray.remote(Sampler).options(  # type: ignore[attr-defined]
        num_cpus=cpus, num_gpus=0, max_restarts=-1, max_task_retries=-1, scheduling_strategy="SPREAD", **options
    )
    return [remote.remote(store, task, seed) for _ in range(actors)]
