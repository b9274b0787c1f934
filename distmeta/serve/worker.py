"""The one thread that has the model, and the requests that wait for it.

Ray Serve's own `serve.batch` needs a replica around it and runs on the loop that answers HTTP; here the loop stays
free, and all of it works without Ray.
"""

from __future__ import annotations

import asyncio
import queue
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import Any

from distmeta.serve.tasks import Refused

Work = Callable[[Sequence[Any]], Sequence[Any]]  # results, or exceptions, in the order of what it was given


@dataclass(frozen=True)
class Job:
    kind: str
    item: Any
    result: Future[Any] = field(default_factory=Future)


class Worker:
    """Runs each kind of work on what has come together.

    most: jobs of a batch; wait_s: for others after the first one; waiting: jobs that may wait, more are refused (503).
    seen: told the size of each batch, by kind.
    """

    def __init__(
        self, kinds: Mapping[str, Work], most: int, wait_s: float, waiting: int,
        seen: Callable[[str, int], None] = lambda kind, size: None,
    ) -> None:  # fmt: skip
        self._kinds, self._most, self._wait_s, self._seen = kinds, most, wait_s, seen
        self._queue: queue.Queue[Job | None] = queue.Queue(waiting)
        self._ended = False
        self._thread = threading.Thread(target=self._run, name="model", daemon=True)
        self._thread.start()

    async def do(self, kind: str, item: Any) -> Any:
        """The result of one item. A caller that is cancelled before its batch begins costs nothing."""
        return await asyncio.wrap_future(self.submit(kind, item))

    def submit(self, kind: str, item: Any) -> Future[Any]:
        job = Job(kind, item)
        try:
            self._queue.put_nowait(job)
        except queue.Full:
            raise Refused(503, f"{self._queue.maxsize} requests wait already; try again later") from None
        return job.result

    @property
    def waiting(self) -> int:
        return self._queue.qsize()

    @property
    def alive(self) -> bool:
        return self._thread.is_alive()

    def close(self) -> None:
        """End after what waits now; returns within seconds, whatever runs."""
        try:
            self._queue.put(None, timeout=1)
        except queue.Full:
            return
        self._thread.join(timeout=5)

    def _run(self) -> None:
        while not self._ended:
            jobs = self._gather()
            for kind, work in self._kinds.items():
                mine = [job for job in jobs if job.kind == kind and job.result.set_running_or_notify_cancel()]
                if mine:
                    self._seen(kind, len(mine))
                    finish(work, mine)

    def _gather(self) -> list[Job]:
        """The next jobs; after the last ones `_ended` is set."""
        job, jobs = self._queue.get(), []
        until = time.monotonic() + self._wait_s
        while job is not None:
            jobs.append(job)
            if len(jobs) == self._most:
                return jobs
            try:
                job = self._queue.get(timeout=max(0.0, until - time.monotonic()))
            except queue.Empty:
                return jobs
        self._ended = True
        return jobs


def finish(work: Work, jobs: Sequence[Job]) -> None:
    """Give every job its result. Where the work on several fails it is done again one by one: it is one's own fault."""
    try:
        results = work([job.item for job in jobs])
    except Exception as error:
        if len(jobs) == 1:
            jobs[0].result.set_exception(error)
            return
        for job in jobs:
            finish(work, [job])
        return
    for job, result in zip(jobs, results, strict=True):
        if isinstance(result, Exception):
            job.result.set_exception(result)
        else:
            job.result.set_result(result)
