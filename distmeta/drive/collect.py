"""The driver's part of a growing source (`data.follow`): each file that comes is made a task store and written down."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from threading import Event, Thread
from typing import Any

from distmeta.config import Config
from distmeta.errors import InputError
from distmeta.runs.checkpoint import write_text
from distmeta.tasks.build import build_store
from distmeta.tasks.families import check_feasible
from distmeta.tasks.sources import Source, list_sources
from distmeta.tasks.store import TaskStore, open_store
from distmeta.tasks.stream import POLL_S, Stream, read


@contextmanager
def collecting(config: Config, run_dir: Path, store: Path, say: Callable[[str], None]) -> Iterator[Stream | None]:
    """Collects files in a thread, for the length of the block; gives what reads of them, None without data.follow.

    A run that is continued has the stores that it had, in their order, and looks for further files again.
    """
    if config.data.follow is None:
        yield None
        return
    file = run_dir / "stream.json"
    before = read(file) if file.exists() else {"files": [sources_of(config)[0].name], "stores": [str(store)]}
    write(file, {**before, "ended": False, "left_out": {}, "failed": None})
    stop = Event()
    thread = Thread(target=collect_or_tell, args=(config, file, say, stop), daemon=True)
    thread.start()
    try:
        yield Stream(file, config.task, config.data.follow + config.run.timeout_s)
    finally:
        stop.set()
        thread.join(timeout=60)


def collect_or_tell(config: Config, file: Path, say: Callable[[str], None], stop: Event) -> None:
    """`collect`; what it fails of is written down, so that those who wait are told."""
    try:
        collect(config, file, say, stop)
    except Exception as error:
        write(file, {**read(file), "failed": f"data.follow: {error}"})


def collect(config: Config, file: Path, say: Callable[[str], None], stop: Event) -> None:
    """Makes a store of every file that comes, until none has for `data.follow` seconds; it is the only writer.

    A file is taken when it has not changed from one look to the next. One that cannot be used is named, with the
    reason, and left out.
    """
    assert config.data.follow is not None
    state, changes, last = read(file), dict[str, tuple[int, Any]](), time.monotonic()
    seen = {name for path in state["stores"] for name in open_store(path).tasks}
    while not stop.wait(POLL_S):
        for source in sources_of(config):
            if source.name in state["files"] or source.name in state["left_out"]:
                continue
            info = source.filesystem.get_file_info(source.path)
            change = (info.size, info.mtime_ns)
            if changes.get(source.name) != change:
                changes[source.name], last = change, time.monotonic()
                continue
            if info.size == 0:
                continue
            last = time.monotonic()
            try:
                store = store_of(config, source, Path(state["stores"][0]), seen, before=state["files"][0])
            except InputError as error:
                state["left_out"][source.name] = str(error)
                say(f"{source.name} is left out: {error}")
            else:
                seen |= set(store.tasks)
                state["files"].append(source.name)
                state["stores"].append(str(store.path))
                say(f"{len(store.groups['train'].ids)} tasks have come with {source.name}")
            write(file, state)
        if time.monotonic() - last > config.data.follow:
            state["ended"] = True
            write(file, state)
            say(f"no further file for data.follow={config.data.follow:g} s: the source has ended")
            return


def sources_of(config: Config) -> list[Source]:
    assert config.data.path is not None
    return list_sources(config.data.path)


def store_of(config: Config, source: Source, first: Path, seen: set[str], before: str) -> TaskStore:
    """One file's store, with the first one's tokenizer and labels. Raises InputError where it cannot be used."""
    if source.name < before:
        raise InputError(f"its name comes before {before}, which the run begins with; name it after that one")
    base = open_store(first)
    data = config.data.model_copy(update={"path": source.name, "follow": None, "cache": str(first.parent)})
    path = build_store(
        data, config.task, config.model, tokenizer_file=base.tokenizer_file, labels=base.labels, only="train"
    )
    store = open_store(path)
    check_feasible(store, config.task, ["train"])
    again = sorted(set(store.tasks) & seen)
    if again:
        raise InputError(f"the task '{again[0]}' is in an earlier file; a task comes whole, in one file")
    return store


def write(file: Path, state: dict[str, Any]) -> None:
    write_text(file, json.dumps(state, ensure_ascii=False, indent=1))
