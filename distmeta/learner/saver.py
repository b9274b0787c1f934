"""Checkpoints in the background: a thread of each rank writes, while the learner goes on with private copies.

One checkpoint at a time: the next waits for the one before. Above PART_BYTES each rank writes its own part of the
meta-parameters and of their optimizer's state; rank 0 writes the manifest and gives the directory its name once all
parts are there. The ranks' threads speak over a gloo group of their own, so that they never meet the learner's
collectives. A write that fails is an error of every rank, raised in the learner at its next step at the latest.

              consumes                    produces                     waits for
    learner   -                           copies of the state          the thread before, at the next checkpoint
    thread    copies                      its part, on the disk        the threads of the other ranks, twice
"""

from __future__ import annotations

import contextlib
import datetime
import threading
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch.distributed as dist

from distmeta.runs import checkpoint as checkpoints

WRITE_S = 3600.0  # longest wait for another rank's disk, which may be slow
SAY_S = 30.0
PART_BYTES = 64 * 2**20  # of meta-parameters and optimizer state; a smaller checkpoint is written by rank 0 alone


class WriteError(OSError):
    """A checkpoint that could not be written."""


class Saver:
    """Writes a run's checkpoints. All ranks make it, and call `save` and `wait`, together.

    say: is told where the learner waits for the disk.
    """

    def __init__(
        self, run_dir: Path, keep: int, rank: int, world: int, say: Callable[[str], None] = lambda line: None
    ) -> None:
        self.run_dir, self.keep, self.rank, self.world, self.say = run_dir, keep, rank, world, say
        self._thread: threading.Thread | None = None
        self._error: BaseException | None = None
        self._group: Any = None
        if world > 1:
            self._group = dist.new_group(backend="gloo", timeout=datetime.timedelta(seconds=WRITE_S))

    def __enter__(self) -> Saver:
        return self

    def __exit__(self, kind: type[BaseException] | None, *error: object) -> None:
        if kind is None:
            self.wait()
        else:  # the learner's own error is the one to tell; what was begun is finished if the others are still there
            with contextlib.suppress(Exception):
                self.wait()

    def shares(self, sizes: Mapping[str, int]) -> list[list[str]]:
        """Names of what each part holds: one part, or consecutive ones of about the same bytes, one a rank."""
        total = sum(sizes.values())
        if total < PART_BYTES or self.world == 1:
            return [list(sizes)]
        parts: list[list[str]] = [[] for _ in range(self.world)]
        before = 0
        for name, size in sizes.items():
            parts[min(self.world - 1, (2 * before + size) * self.world // (2 * total))].append(name)
            before += size
        return parts

    def save(
        self, step: int, write_part: Callable[[Path], None], write_rest: Callable[[Path], None],
        best: dict[str, Any] | None = None, pending: int | None = None,
    ) -> None:  # fmt: skip
        """Begin to write the checkpoint of `step`: write_part on every rank, write_rest on rank 0.

        best: what best.json says once the checkpoint is there, its step being this one's or an earlier one's.
        pending: a meta-step whose checkpoint is kept as well.
        """
        self.wait()
        path = self.run_dir / "checkpoints" / f"step-{step:06d}"
        self._thread = threading.Thread(
            target=self._run, args=(path, write_part, write_rest, best, pending), name=path.name, daemon=True
        )
        self._thread.start()

    def check(self) -> None:
        """Raises WriteError if a checkpoint could not be written; does not wait."""
        if self._error is not None and (self._thread is None or not self._thread.is_alive()):
            error, self._error = self._error, None
            raise error

    def wait(self) -> None:
        """Until what was begun is on the disk. Raises WriteError."""
        if self._thread is not None:
            self._thread.join(SAY_S)
            if self._thread.is_alive():
                self.say(f"waiting for the disk: {self._thread.name} is still being written")
                self._thread.join()
            self._thread = None
        self.check()

    def _run(
        self, path: Path, write_part: Callable[[Path], None], write_rest: Callable[[Path], None],
        best: dict[str, Any] | None, pending: int | None,
    ) -> None:  # fmt: skip
        draft = checkpoints.draft_of(path)
        try:
            with self._told(path):
                if self.rank == 0:
                    checkpoints.begin(draft)
            with self._told(path):
                write_part(draft)
            with self._told(path):
                if self.rank == 0:
                    write_rest(draft)
                    checkpoints.publish(draft, path)
                    if best is not None:
                        checkpoints.write_best(self.run_dir, best)
                    checkpoints.prune(self.run_dir, self.keep, checkpoints.step_of(path), pending)
        except BaseException as error:
            self._error = error if isinstance(error, WriteError) else WriteError(f"checkpoint {path}: {error}")
            self._error.__cause__ = error

    @contextlib.contextmanager
    def _told(self, path: Path) -> Iterator[None]:
        """Each rank's part of a phase; at its end all know of all, and an error of one is an error of every one."""
        failure = None
        try:
            yield
        except Exception as error:
            failure = f"{type(error).__name__}: {error}"
        failures = [failure]
        if self._group is not None:
            failures = [None] * self.world
            dist.all_gather_object(failures, failure, group=self._group)
        for rank, what in enumerate(failures):
            if what is not None:
                raise WriteError(f"checkpoint {path} could not be written by rank {rank}: {what}")
