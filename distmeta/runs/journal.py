"""What a run writes as it goes: log.txt for a person, metrics.jsonl for programs."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from distmeta.runs import checkpoint as checkpoints


class Log:
    """log.txt: plain lines for a person; the driver shows them as they come."""

    def __init__(self, run_dir: Path) -> None:
        self.path = run_dir / "log.txt"

    def say(self, line: str) -> None:
        with self.path.open("a", encoding="utf-8") as stream:
            stream.write(line + "\n")


class Journal:
    """metrics.jsonl: one record a meta-step. Records after the step that the run continues from are dropped.

    `last` is that step's record: a process killed between its checkpoint and its journal had not written it.
    """

    def __init__(self, run_dir: Path, step: int, last: dict[str, Any] | None = None) -> None:
        self.path = run_dir / "metrics.jsonl"
        kept = [record for record in records(run_dir) if record["step"] <= step]
        if last is not None and len(kept) == step - 1:
            kept.append(last)
        checkpoints.write_text(self.path, "".join(json.dumps(record) + "\n" for record in kept))

    def write(self, record: dict[str, Any]) -> None:
        with self.path.open("a", encoding="utf-8") as stream:
            stream.write(json.dumps(record) + "\n")

    def sync(self) -> None:
        """What was written is on the disk before a checkpoint that counts on it."""
        checkpoints.sync(self.path)


def records(run_dir: Path) -> Iterator[dict[str, Any]]:
    """Whole lines of metrics.jsonl, which may be growing; none before there is one."""
    try:
        text = (run_dir / "metrics.jsonl").read_text(encoding="utf-8")
    except FileNotFoundError:
        return
    for line in text.splitlines():
        try:
            yield json.loads(line)
        except ValueError:
            return  # the last line of a process that is writing it, or was killed
