"""Adapted tasks by their handles: a file each on disk, and the latest used in memory.

    TASKS/HANDLE.safetensors   what was adapted; in its header JSON: checkpoint, about, SHA-256 of the tensors

The directory is the truth, memory only a copy of a part. A file is a function of its handle, takes its name in one step
and never changes, so any number of servers and replicas may share a directory; a task that one of them deletes is gone
for all. Nothing here unpickles.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import json
import os
import re
import threading
import uuid
from collections import OrderedDict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from distmeta.runs import checkpoint as checkpoints

HANDLE = re.compile(r"[0-9a-f]{32}")
SUFFIX = ".safetensors"


class Refused(Exception):
    """A request that is not answered. status: of HTTP; the message is one line."""

    def __init__(self, status: int, line: str) -> None:
        super().__init__(line)
        self.status = status


@dataclass(frozen=True)
class Task:
    """An adapted task. params: what differs from the checkpoint, without the task axis that `fit` may have had."""

    handle: str
    checkpoint: str  # digest of what it was adapted from
    about: dict[str, Any]  # labels, support_loss, steps, rows, and what predictions need
    params: dict[str, Tensor]

    @property
    def bytes(self) -> int:
        return sum(value.numel() * value.element_size() for value in self.params.values())


class TaskStore:
    """The tasks of one checkpoint in a directory. Any thread may call it. Raises Refused."""

    def __init__(self, directory: Path, checkpoint: str, memory_bytes: float, most: int, device: torch.device) -> None:
        self.directory, self.checkpoint, self.device = directory, checkpoint, device
        self.memory_bytes, self.most = memory_bytes, most
        self._kept: OrderedDict[str, Task] = OrderedDict()
        self._used = 0
        self._lock = threading.Lock()
        directory.mkdir(parents=True, exist_ok=True)

    def get(self, handle: str) -> Task:
        """404: no such task. 409: of another checkpoint. 500: its file was damaged."""
        file = self._file(handle)
        if not file.is_file():
            self._forget(handle)
            raise self._unknown(handle)
        with self._lock:
            if handle in self._kept:
                self._kept.move_to_end(handle)
                return self._kept[handle]
        task = read(file, self.device)
        if task.checkpoint != self.checkpoint:
            raise Refused(
                409, f"task {handle} was adapted from another checkpoint ({task.checkpoint}), this server has "
                f"{self.checkpoint}; give its support set again, or serve that checkpoint"
            )  # fmt: skip
        self._keep(task)
        return task

    def find(self, handle: str) -> Task | None:
        """The task if there is an undamaged one."""
        try:
            return self.get(handle)
        except Refused:
            return None

    def room(self) -> None:
        """507: the directory holds as many tasks as it may."""
        if (count := sum(1 for _ in self._files())) >= self.most:
            raise Refused(507, f"{count} tasks are kept already, the limit is {self.most}; delete some")

    def put(self, task: Task) -> None:
        """Keep a task, on the disk when this returns. 507: as `room`, or the disk is full."""
        try:
            with self._writing():
                if not self._file(task.handle).is_file():
                    self.room()
                write(task, self._file(task.handle))
        except OSError as error:
            raise Refused(507, f"the task cannot be written to {self.directory}: {error}") from None
        self._keep(task)

    def delete(self, handle: str) -> None:
        """404: no such task."""
        self._forget(handle)
        try:
            self._file(handle).unlink()
        except FileNotFoundError:
            raise self._unknown(handle) from None

    def list(self) -> list[str]:
        """Handles of all tasks in the directory, those of other checkpoints among them, in order."""
        return sorted(file.name.removesuffix(SUFFIX) for file in self._files())

    def made(self) -> dict[str, int]:
        """As `list`, with when each was made, in seconds of 1970."""
        tasks = {}
        for file in sorted(self._files()):
            with contextlib.suppress(FileNotFoundError):  # it has just been deleted
                tasks[file.name.removesuffix(SUFFIX)] = int(file.stat().st_mtime)
        return tasks

    @property
    def in_memory(self) -> tuple[int, int]:
        """(tasks, bytes)."""
        with self._lock:
            return len(self._kept), self._used

    def _files(self) -> Iterator[Path]:
        return (f for f in self.directory.glob(f"*{SUFFIX}") if HANDLE.fullmatch(f.name.removesuffix(SUFFIX)))

    def _file(self, handle: str) -> Path:
        if not HANDLE.fullmatch(handle):  # so that no handle is a path
            raise self._unknown(handle)
        return self.directory / f"{handle}{SUFFIX}"

    def _unknown(self, handle: str) -> Refused:
        return Refused(404, f"no task {handle[:64]!r}; GET /tasks lists those there are, POST /tasks makes one")

    def _keep(self, task: Task) -> None:
        with self._lock:
            if task.bytes > self.memory_bytes or task.handle in self._kept:
                return
            self._kept[task.handle] = task
            self._used += task.bytes
            while self._used > self.memory_bytes:
                self._used -= self._kept.popitem(last=False)[1].bytes

    def _forget(self, handle: str) -> None:
        with self._lock:
            if (task := self._kept.pop(handle, None)) is not None:
                self._used -= task.bytes

    @contextlib.contextmanager
    def _writing(self) -> Iterator[None]:
        """One writer at a time, so that the number of tasks stays within its limit."""
        with (self.directory / ".lock").open("a") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)  # held for one small file's writing; the system frees it
            yield


def write(task: Task, file: Path) -> None:
    """A task's file, whole or absent."""
    from safetensors.torch import save_file

    params = {name: value.detach().cpu().contiguous() for name, value in task.params.items()}
    header = {"checkpoint": task.checkpoint, "about": task.about, "sha256": _sum(params)}
    draft = file.with_name(f".tmp-{uuid.uuid4().hex}")
    try:
        save_file(params, draft, metadata={"task": json.dumps(header)})  # one key: several come in any order
        checkpoints.sync(draft)
        os.replace(draft, file)
    finally:
        draft.unlink(missing_ok=True)
    checkpoints.sync(file.parent)


def read(file: Path, device: torch.device) -> Task:
    """404: it is gone. 500: it was damaged."""
    from safetensors import SafetensorError, safe_open

    handle = file.name.removesuffix(SUFFIX)
    try:
        with safe_open(file, framework="pt") as opened:
            header = json.loads(opened.metadata()["task"])
            params = {name: opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118 (it is no mapping)
        checkpoint, about = header["checkpoint"], header["about"]
        if header["sha256"] != _sum(params):
            raise ValueError("its tensors were changed")
    except FileNotFoundError:
        raise Refused(404, f"task {handle} has just been deleted") from None
    except (SafetensorError, OSError, KeyError, TypeError, ValueError) as error:
        reason = " ".join(str(error).split())
        raise Refused(500, f"the file of task {handle} is damaged ({reason}); give its support set again") from None
    return Task(handle, checkpoint, about, {name: value.to(device) for name, value in params.items()})


def _sum(params: Mapping[str, Tensor]) -> str:
    sha = hashlib.sha256()
    for name in sorted(params):
        sha.update(f"{name}{params[name].dtype}{tuple(params[name].shape)}".encode())
        sha.update(params[name].reshape(-1).view(torch.uint8).numpy().tobytes())
    return sha.hexdigest()
