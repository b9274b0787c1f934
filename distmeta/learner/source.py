"""The meta-train tasks that a run learns from: those of its store, or, of a source that grows, what has come so far."""

from __future__ import annotations

from distmeta.config import Config
from distmeta.models.prefix import StateCache
from distmeta.tasks.store import TaskStore
from distmeta.tasks.stream import Stream


class Source:
    """store: with the tasks that the meta-step at hand may be of. stream: where the store's source grows, else None."""

    def __init__(self, config: Config, store: TaskStore, stream: Stream | None) -> None:
        self.store, self.stream = store, stream
        self._steps, self._size = config.outer.steps, config.outer.meta_batch_size

    @property
    def grows(self) -> bool:
        return self.stream is not None

    def has_tasks_of(self, step: int) -> bool:
        """Whether those of meta-step `step` have come, after waiting for them; the same on every rank."""
        return self.stream is None or step > self._steps or self.stream.wait(step * self._size - 1)

    def reach(self, step: int, cache: StateCache | None) -> None:
        """Have in `store` what has arrived by the end of meta-step `step`, and room for it in the cache."""
        if self.stream is None or step == 0:
            return
        self.store = self.stream.at(step * self._size - 1)
        if cache is not None:
            cache.reach(self.store.rows)
