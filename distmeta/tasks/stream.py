"""A data source that grows while a run learns from it: the files of `data.path`, each a task store of its own.

    data.path  --files-->  distmeta/drive/collect.py  --stores-->  RUN/stream.json  --read by-->  learners, samplers

The first file is the run's own store: tokenizer, label names, meta-validation and meta-test tasks are its. Of later
ones the meta-train tasks are added behind those that are there. Which tasks an episode may be of is a function of its
index alone (`arrivals`): the run waits for those to come, so that files which come late change nothing but the clock,
and ends where the source does.
"""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from distmeta.config import TaskConfig
from distmeta.errors import InputError
from distmeta.tasks.arrivals import arrived
from distmeta.tasks.passages import readable
from distmeta.tasks.store import Groups, TaskStore, open_store

POLL_S = 0.5


@dataclass(frozen=True)
class JoinedStore(TaskStore):
    """Several stores as one: the first with the meta-train tasks of the others behind its own."""

    stores: tuple[TaskStore, ...] = field(repr=False)
    begins: NDArray[np.int64] = field(repr=False)  # [stores + 1]: where the rows of each begin
    token_begins: NDArray[np.int64] = field(repr=False)  # [stores + 1]: where its tokens do

    def read(self, rows: NDArray[np.int64]) -> tuple[NDArray[np.int32], NDArray[np.int64]]:
        """As `TaskStore.read`; the rows are of one task, and so of one store."""
        part = int(np.searchsorted(self.begins, rows[0], "right")) - 1
        return self.stores[part].read(rows - self.begins[part])

    def span(self, begin: int, end: int) -> NDArray[np.int32]:
        part = int(np.searchsorted(self.token_begins, begin, "right")) - 1
        first = int(self.token_begins[part])
        return self.stores[part].span(begin - first, end - first)

    def text(self, row: int) -> str:
        part = int(np.searchsorted(self.begins, row, "right")) - 1
        return self.stores[part].text(int(row - self.begins[part]))

    def __reduce__(self) -> tuple[Any, ...]:
        return join, (self.stores,)


def join(stores: Sequence[TaskStore]) -> JoinedStore:
    """Tokens and texts stay where they are; what is copied is a number or two of each row and task."""
    first, train = stores[0], [store.groups["train"] for store in stores]
    begins = np.cumsum([0, *(store.rows for store in stores)])
    token_begins = np.cumsum([0, *(int(store.offsets[-1]) for store in stores)])
    tasks = np.cumsum([0, *(len(store.tasks) for store in stores)])
    values: dict[str, Any] = {f.name: getattr(first, f.name) for f in fields(TaskStore)}
    values["tasks"] = [name for store in stores for name in store.tasks]
    ends = [store.offsets[1:] + n for store, n in zip(stores, token_begins)]
    values["offsets"] = np.concatenate([first.offsets[:1], *ends])
    if first.heads is not None:
        values["heads"] = np.concatenate([store.heads for store in stores if store.heads is not None])
    values["label_ids"] = np.concatenate([store.label_ids for store in stores])
    values["task_ids"] = np.concatenate([store.task_ids + n for store, n in zip(stores, tasks)]).astype(np.int32)
    values["groups"] = first.groups | {
        "train": Groups(
            np.concatenate([groups.ids + n for groups, n in zip(train, tasks)]).astype(np.int32),
            np.concatenate([groups.start + n for groups, n in zip(train, begins)]),
            np.concatenate([groups.count for groups in train]),
        )
    }
    return JoinedStore(**values, stores=tuple(stores), begins=begins, token_begins=token_begins)


class Stream:
    """The reader's side: what has come so far, as RUN/stream.json says; it only ever grows. Can be pickled.

    timeout_s: the longest that `wait` goes on while nothing is written, not even the source's end.
    """

    def __init__(self, file: Path, task: TaskConfig, timeout_s: float) -> None:
        self.file, self.task, self.timeout_s = file, task, timeout_s
        self._ended = False
        self._stores: list[TaskStore] = []
        self._tasks: list[int] = []  # of each store: how many an episode may be of
        self._joined: JoinedStore | None = None

    def __reduce__(self) -> tuple[Any, ...]:
        return Stream, (self.file, self.task, self.timeout_s)

    def covers(self, index: int) -> bool:
        """Whether the tasks that arrive up to episode `index` have come. Raises InputError if no more can be."""
        if self._is_short(index):
            state = read(self.file)
            if state["failed"]:
                raise InputError(state["failed"])
            self._ended = state["ended"]
            for path in state["stores"][len(self._stores) :]:
                self._stores.append(store := open_store(path))
                self._tasks.append(len(readable(store, store.groups["train"], self.task).ids))
        return not self._is_short(index)

    def wait(self, index: int) -> bool:
        """Until they have come; False where the source has ended before. Raises InputError, TimeoutError."""
        began, known = time.monotonic(), 0
        while not self.covers(index):
            if self._ended:
                return False
            if len(self._stores) > known:
                began, known = time.monotonic(), len(self._stores)
            if time.monotonic() - began > self.timeout_s:
                raise TimeoutError(f"{self.file}: nothing was written for {self.timeout_s:g} s; is the driver alive?")
            time.sleep(POLL_S)
        return True

    def at(self, index: int) -> TaskStore:
        """Of the files that the tasks up to episode `index` need, and of no more: the same in every process."""
        self.wait(index)
        ends = np.cumsum(self._tasks)
        count = min(int(np.searchsorted(ends, arrived(self.task, index))) + 1, len(self._stores))
        if self._joined is None or len(self._joined.stores) != count:
            self._joined = join(self._stores[:count])
        return self._joined

    def _is_short(self, index: int) -> bool:
        return arrived(self.task, index) > sum(self._tasks)


def read(file: Path) -> dict[str, Any]:
    content: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
    return content
