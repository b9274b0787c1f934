"""A run's directory: claimed by one process at a time, continued only as the same run, described by two files."""

from __future__ import annotations

import contextlib
import datetime
import itertools
import json
import os
import platform
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from distmeta.algorithms.schedule import schedule_of
from distmeta.config import Config, dump_config
from distmeta.config.paths import absolute
from distmeta.errors import InputError
from distmeta.runs import checkpoint as checkpoints

# What may differ between a run and its continuation; all else would make it another run.
RESUMABLE = ("cluster", "sampling", "run.name", "run.dir", "run.checkpoint_every", "run.keep", "run.timeout_s",
             "run.max_hours", "run.trackers", "eval", "tune", "pretrain", "outer.steps", "outer.until",
             "outer.stop_after", "outer.max_skipped", "inner.memory", "inner.budget_mb", "inner.task_batch",
             "inner.buckets", "inner.part_tokens", "inner.prefix_mb",
             "deepspeed.zero_optimization", "data.path", "data.cache", "data.follow")  # fmt: skip
ENVIRONMENT = "environment.json"
HOLD_S = 30  # a resumed run's directory: learners of a driver that was killed outlive it by seconds


@contextlib.contextmanager
def run_directory(
    config: Config, resume: bool, store: Path, may_differ: Callable[[str], bool] | None = None
) -> Iterator[tuple[Path, bool]]:
    """Hold the run's directory for the length of the block: the directory, and whether it is new.

    The directory is this process's alone: another that asks for the same name gets the next number, and one that
    asks for the same run.dir is refused. An InputError in the block takes away what the block wrote, and only where
    no checkpoint has been written. Raises InputError when the directory is taken, or cannot be continued.
    """
    base = Path(config.cluster.storage or ".")
    named = base / (config.run.dir or f"runs/{config.run.name}")
    if resume and (existing := newest_of(named, numbered=config.run.dir is None)):
        check_resumable(existing, config, store, may_differ)
        with checkpoints.only_holder(existing / ".lock", HOLD_S):
            yield existing.resolve(), False
        return
    numbers = itertools.count(2) if config.run.dir is None else ()
    for path in itertools.chain([named], (named.with_name(f"{named.name}-{n}") for n in numbers)):
        if is_used(path):
            continue
        with contextlib.ExitStack() as stack:
            try:
                stack.enter_context(new_directory(path))
            except BlockingIOError:
                continue  # another process has claimed it since
            yield path.resolve(), True
            return
    raise InputError(f"run.dir = {named}: not empty; --resume continues a run, or give another run.dir")


def newest_of(named: Path, numbered: bool) -> Path | None:
    """The directory whose run began last, of `named` and, where they are `numbered`, NAME-2, NAME-3 and so on."""
    others = named.parent.glob(f"{named.name}-*") if numbered else ()
    paths = [named, *(path for path in others if path.name.removeprefix(f"{named.name}-").isdecimal())]
    started = [path for path in paths if (path / "config.yaml").is_file()]
    return max(started, key=lambda path: (path / "config.yaml").stat().st_mtime, default=None)


@contextlib.contextmanager
def new_directory(path: Path) -> Iterator[None]:
    """Make an unused directory and hold it; raises BlockingIOError when another process has it.

    An InputError in the block takes away what is new in the directory, unless it holds checkpoints.
    """
    made = [place for place in (path, path.parent) if not place.exists()]
    try:
        path.mkdir(parents=True, exist_ok=True)
        before = {entry.name for entry in path.iterdir()}
        locks = contextlib.ExitStack()
        locks.enter_context(checkpoints.only_holder(path / ".lock", 0))
    except (InputError, FileNotFoundError):
        raise BlockingIOError(f"{path}: another process has just claimed it") from None
    with locks:
        if is_used(path):
            raise BlockingIOError(f"{path}: another process has used it since")
        try:
            yield
        except InputError:
            if not (path / "checkpoints").exists():
                take_away((entry for entry in path.iterdir() if entry.name not in before), made)
            raise


def take_away(entries: Iterable[Path], directories: Iterable[Path]) -> None:
    """Remove these entries, and then those of the directories that are empty."""
    for entry in list(entries):
        if entry.is_dir() and not entry.is_symlink():
            shutil.rmtree(entry, ignore_errors=True)
        else:
            entry.unlink(missing_ok=True)
    for directory in directories:
        with contextlib.suppress(OSError):
            directory.rmdir()


def refuse_limit(config: Config, verb: str) -> None:
    """Raises InputError where run.max_hours is set for a verb that has no time limit."""
    if config.run.max_hours is not None:
        raise InputError(
            f"run.max_hours = {config.run.max_hours:g} limits `distmeta train` and `pretrain`; `distmeta {verb}` has "
            "no time limit: leave run.max_hours out"
        )


def is_used(path: Path) -> bool:
    """Whether something is at `path` that a new run must not touch; not what a driver killed at once has left."""
    if not path.is_dir():
        return path.exists()
    return any(not entry.name.startswith(".") and entry.name != "environment.json" for entry in path.iterdir())


def check_resumable(
    run_dir: Path, config: Config, store: Path, may_differ: Callable[[str], bool] | None = None
) -> None:
    """Raises InputError naming the first key whose value makes `config` another run than the one in `run_dir`.

    store: what the run learns from, known by its name. may_differ: keys of which this is not so.
    """
    may_differ = may_differ or is_resumable
    old = checkpoints.read_config(run_dir / "config.yaml")
    with contextlib.suppress(InputError):  # a model that is no longer there differs by its name
        old = absolute(old)
    before, now = flatten(old.model_dump(mode="json")), flatten(config.model_dump(mode="json"))
    same = {"outer.schedule", "outer.warmup_steps"} if schedule_of(old) == schedule_of(config) else set()
    for key in sorted({*before, *now} - same):
        if before.get(key) != now.get(key) and not may_differ(key):
            raise InputError(
                f"--resume: {key} is {now.get(key)!r} but {run_dir} was run with {before.get(key)!r}; "
                "continue with the same value, or begin another run"
            )
    before_store = Path(json.loads((run_dir / "environment.json").read_text(encoding="utf-8"))["store"])
    if before_store.name != store.name:
        raise InputError(
            f"--resume: the data or its tokenizer is not what {run_dir} was run with (task store {store.name} instead "
            f"of {before_store.name}); bring the data back, or begin another run"
        )


def is_resumable(key: str) -> bool:
    moved = re.fullmatch(r"data\.sources\..+\.path", key)
    return moved is not None or any(key == r or key.startswith(r + ".") for r in RESUMABLE)


def flatten(tree: Mapping[str, Any], prefix: str = "", mark: str = ".") -> dict[str, Any]:
    """Nested dictionaries as one, with dotted keys, or keys joined by another mark."""
    out: dict[str, Any] = {}
    for key, value in tree.items():
        name = f"{prefix}{key}"
        out |= flatten(value, f"{name}{mark}", mark) if isinstance(value, dict) and value else {name: value}
    return out


def write_setting(run_dir: Path, config: Config, store: Path) -> None:
    """config.yaml and environment.json; of a run that is continued, the day of its start and how often it was."""
    from importlib.metadata import version

    packages = ("torch", "ray", "deepspeed", "transformers", "pyarrow", "tokenizers", "numpy", "safetensors")
    before: dict[str, Any] = {}
    if (run_dir / "config.yaml").is_file() and (run_dir / ENVIRONMENT).is_file():
        before = json.loads((run_dir / ENVIRONMENT).read_text(encoding="utf-8"))
    environment = {
        "started": before.get("started", now()), "continued": before.get("continued", -1) + 1, "commit": commit(),
        "command": sys.argv, "directory": os.getcwd(), "python": platform.python_version(),
        "platform": platform.platform(), "host": platform.node(), "cores": os.cpu_count(), "store": str(store),
        "versions": {"distmeta": version("distmeta"), **{name: version(name) for name in packages}},
    }  # fmt: skip
    checkpoints.write_text(run_dir / ENVIRONMENT, json.dumps(environment, indent=1))
    checkpoints.write_text(run_dir / "config.yaml", dump_config(config))


def note(run_dir: Path, **facts: Any) -> None:
    """Write down in environment.json what is known of a run only once it has run."""
    file = run_dir / ENVIRONMENT
    if file.is_file():
        known = json.loads(file.read_text(encoding="utf-8"))
        checkpoints.write_text(file, json.dumps({**known, **facts}, indent=1))


def now() -> str:
    """The time in the form of ISO 8601, to the second, with its distance from UTC."""
    return datetime.datetime.now().astimezone().isoformat(timespec="seconds")


def commit() -> str | None:
    """The commit of the working directory, + where files differ from it; None where it is no repository."""
    words = ["git", "describe", "--always", "--exclude=*", "--abbrev=12", "--dirty=+"]
    try:
        return subprocess.run(words, capture_output=True, text=True, timeout=5, check=True).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return None
