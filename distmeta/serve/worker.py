"""The one thread that has the model, and the requests that wait for it.

A job is done at once, with others of its kind. A stream is made a piece at a time: all streams that run, and the jobs
that came meanwhile, have their turns one after another, so that nobody waits for a long answer's end.

Ray Serve's own `serve.batch` needs a replica around it and runs on the loop that answers HTTP; here the loop stays
free, and all of it works without Ray.
"""

from __future__ import annotations

import asyncio
import queue
import threading
import time
from collections.abc import AsyncGenerator, Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import Any

from distmeta.serve.tasks import Refused

Work = Callable[[Sequence[Any]], Sequence[Any]]  # results, or exceptions, in the order of what it was given
END = object()  # after the last piece of a stream


@dataclass(frozen=True)
class Job:
    kind: str
    item: Any
    result: Future[Any] = field(default_factory=Future)


@dataclass(eq=False)
class Stream:
    """start: called in the worker's thread, gives the pieces. say: told each piece, an exception, or END.

    size: its part of what may run at once. left: whether nobody waits for it any more.
    """

    start: Callable[[], Iterator[Any]]
    size: int
    say: Callable[[Any], Any]
    left: bool = False
    pieces: Iterator[Any] | None = None

    def goes_on(self) -> bool:
        """Make one piece; whether there may be another."""
        try:
            if self.pieces is None:
                self.pieces = self.start()
            piece = next(self.pieces, END)
        except Exception as error:
            self._tell(error)
            return False
        self._tell(piece)
        return piece is not END and not self.left

    def _tell(self, piece: Any) -> None:
        try:
            self.say(piece)
        except RuntimeError:  # the loop that asked has ended
            self.left = True


class Worker:
    """Runs each kind of work on what has come together, and streams piece by piece.

    most: jobs of a batch; wait_s: for others after the first one; waiting: jobs and streams that may wait, more are
    refused (503); room: the sizes of the streams that run add up to at most this, the others wait in their order.
    seen: told the size of each batch, by kind.
    """

    def __init__(
        self, kinds: Mapping[str, Work], most: int, wait_s: float, waiting: int,
        seen: Callable[[str, int], None] = lambda kind, size: None, room: int = 1,
    ) -> None:  # fmt: skip
        self._kinds, self._most, self._wait_s, self._seen = kinds, most, wait_s, seen
        self._limit, self._room = waiting, room
        self._queue: queue.Queue[Job | Stream | None] = queue.Queue(waiting)
        self._streams: list[Stream] = []  # in the order in which they came: those that run, then those that wait
        self._ended = False
        self._thread = threading.Thread(target=self._run, name="model", daemon=True)
        self._thread.start()

    async def do(self, kind: str, item: Any) -> Any:
        """The result of one item. A caller that is cancelled before its batch begins costs nothing."""
        return await asyncio.wrap_future(self.submit(kind, item))

    def submit(self, kind: str, item: Any) -> Future[Any]:
        job = Job(kind, item)
        self._put(job)
        return job.result

    async def stream(self, start: Callable[[], Iterator[Any]], size: int = 1) -> AsyncGenerator[Any, None]:
        """Each piece that start() gives. A caller that stops, or is cancelled, ends it after the piece in work."""
        if size > self._room:
            raise ValueError(f"a stream of size {size} in a worker with room for {self._room}")
        loop, pieces = asyncio.get_running_loop(), asyncio.Queue[Any]()
        stream = Stream(start, size, lambda piece: loop.call_soon_threadsafe(pieces.put_nowait, piece))
        self._put(stream)
        try:
            while (piece := await pieces.get()) is not END:
                if isinstance(piece, Exception):
                    raise piece
                yield piece
        finally:
            stream.left = True

    def _put(self, item: Job | Stream) -> None:
        try:
            if self.waiting >= self._limit:
                raise queue.Full
            self._queue.put_nowait(item)
        except queue.Full:
            raise Refused(503, f"{self._limit} requests wait already; try again later") from None

    @property
    def waiting(self) -> int:
        return self._queue.qsize() + sum(stream.pieces is None for stream in self._streams)

    @property
    def streams(self) -> int:
        """How many are not at their end."""
        return len(self._streams)

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
        while not self._ended or self._streams:
            jobs = self._gather()
            for kind, work in self._kinds.items():
                chosen = [job for job in jobs if job.kind == kind and job.result.set_running_or_notify_cancel()]
                if chosen:
                    self._seen(kind, len(chosen))
                    finish(work, chosen)
            self._turn()

    def _gather(self) -> list[Job]:
        """The next jobs, which are waited for only where no stream is; after the last ones `_ended` is set."""
        jobs: list[Job] = []
        try:
            item = self._queue.get(block=not self._streams)
            until = time.monotonic() + self._wait_s
            while item is not None:
                if isinstance(item, Stream):
                    self._streams = [*self._streams, item]
                else:
                    jobs.append(item)
                if len(jobs) == self._most:
                    return jobs
                item = self._queue.get(timeout=0 if self._streams else max(0.0, until - time.monotonic()))
        except queue.Empty:
            return jobs
        self._ended = True
        return jobs

    def _turn(self) -> None:
        """A piece of each stream that there is room for, from the oldest on: so one that has begun goes on."""
        kept, used = [], 0
        for stream in self._streams:
            if stream.left:
                continue
            used += stream.size
            if used > self._room or stream.goes_on():
                kept.append(stream)
        self._streams = kept


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
