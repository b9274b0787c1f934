"""Ctrl-C and SIGTERM: a process ends with 130 or 143, a training run saves its last whole step first.

The command line installs `catch`. Work that can end well on request is waited for by `wait`.
"""

from __future__ import annotations

import contextlib
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import FrameType
from typing import Any

LEAVE = ".leave"  # in the run directory, the driver's request: save after the meta-step at hand, and end
GROW = ".grow"  # likewise: end at the next checkpoint, for a group of more ranks
PAUSED = ".paused"  # the learners' answer, after that checkpoint
STOP = ".stop"  # likewise: end after the meta-step at hand, without evaluation
PLACEMENT = ".placement"  # the id of the placement group of the newest group of learners
EVALUATING = ".evaluating"  # the learners': training has ended and is saved
POLL_S = 0.2
MARGIN_S = 120.0  # before run.max_hours is over: for the meta-step at hand, its checkpoint and the end of Ray

_caught: list[int] = []  # signals so far
_installed: list[bool] = []
_run_dir: list[Path] = []  # of the run that this process drives
_kept: list[str] = []  # of a verb that is no single run: what `farewell` says


def catch() -> None:
    """From now on the first SIGINT or SIGTERM raises KeyboardInterrupt, and a second ends the process at once."""
    for noted in (_caught, _run_dir, _kept):  # of an earlier verb in this process
        noted.clear()
    _install()


def catch_again() -> None:
    """As before, where `catch` was called: Ray puts handlers of its own in their place."""
    if _installed and threading.current_thread() is threading.main_thread():
        _install()


@contextlib.contextmanager
def while_ray_starts() -> Iterator[None]:
    """What Ray's handlers make of a SIGTERM while ray.init has put them in place is an interrupt like any other."""
    try:
        yield
    except SystemExit as error:
        if not _installed or error.code not in (signal.SIGTERM, 1):
            raise
        _caught.append(signal.SIGTERM)
        raise KeyboardInterrupt from None
    finally:
        catch_again()


def _install() -> None:
    _installed[:] = [True]
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, _interrupt)


def _interrupt(number: int, frame: FrameType | None) -> None:
    _caught.append(number)
    if len(_caught) > 1:
        for pid in descendants(os.getpid()):  # Ray's, which would outlive this process by a minute
            with contextlib.suppress(OSError):
                os.kill(pid, signal.SIGKILL)
        os._exit(128 + number)
    raise KeyboardInterrupt


def descendants(pid: int) -> list[int]:
    """The processes that `pid` has started, and those that these have; none where there is no /proc."""
    children: dict[int, list[int]] = {}
    for file in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):  # it has ended
            parent = file.read_text(encoding="utf-8", errors="replace").rpartition(")")[2].split()[1]
            children.setdefault(int(parent), []).append(int(file.parent.name))
    out, todo = [], [pid]
    while todo:
        started = children.get(todo.pop(), [])
        out += started
        todo += started
    return out


def exit_code() -> int | None:
    """128 and the number of the first signal, as shells count; None where there was none."""
    return 128 + _caught[0] if _caught else None


def is_caught() -> bool:
    """Whether this process is a verb of the command line."""
    return bool(_installed)


def check() -> None:
    """Raises KeyboardInterrupt if there was a signal that some library's code has swallowed."""
    if _caught:
        raise KeyboardInterrupt


def driving(run_dir: Path) -> None:
    """Note whose checkpoints `farewell` is to speak of."""
    _run_dir[:] = [run_dir]
    for name in (LEAVE, EVALUATING):
        (run_dir / name).unlink(missing_ok=True)


def keeping(what: str) -> None:
    """Note what `farewell` is to say of a verb that is no single run: what is kept, and how to go on."""
    _kept[:] = [what]


def farewell() -> str:
    """What a person reads who has ended this process: what is kept, and how to go on."""
    return f"interrupted; {kept()}"


def kept() -> str:
    """What there is of the work of this process, and how to go on with it."""
    if _kept:
        return _kept[0]
    if not _run_dir:
        return "nothing was written"
    from distmeta.runs.checkpoint import checkpoints_of

    whole = checkpoints_of(_run_dir[0])
    what = f"{whole[0].name} is kept in {_run_dir[0]}" if whole else f"no checkpoint was written yet in {_run_dir[0]}"
    return f"{what}; the same command with --resume continues the run"


def wait(work: Callable[[], Any], run_dir: Path, ends_at: float | None = None, grace_s: float = 600.0) -> Any:
    """work() in a thread of its own, watched here; returns what it returns, and raises what it raises.

    run_dir: where the learners are asked to save and end, by a file. That is done at an interrupt, which is raised
    once they have ended (`grace_s` later at most), or at once where they have nothing to save; and at `ends_at`, of
    time.monotonic(), after which this returns as if the work had come to its end.
    """
    result: dict[str, Any] = {}

    def run() -> None:
        try:
            result["value"] = work()
        except BaseException as error:
            result["error"] = error
        finally:
            done.set()

    journal = run_dir / "metrics.jsonl"
    before = journal.stat().st_size if journal.exists() else 0
    interrupted: float | None = None
    done = threading.Event()
    threading.Thread(target=run, daemon=True).start()
    while not done.is_set():  # an interrupted Thread.join() takes the thread for ended in Python 3.11
        try:
            done.wait(POLL_S)
            check_deadline(run_dir, ends_at)
            if interrupted is None:
                check()
            elif time.monotonic() - interrupted > grace_s:
                break
        except KeyboardInterrupt:
            has_learnt = journal.exists() and journal.stat().st_size > before
            if interrupted is not None or not has_learnt or (run_dir / EVALUATING).exists():
                raise
            interrupted = time.monotonic()
            (run_dir / LEAVE).touch()
    if interrupted is not None:
        raise KeyboardInterrupt
    if "error" in result:
        raise result["error"]
    return result.get("value")


def check_deadline(run_dir: Path, ends_at: float | None) -> None:
    """Ask the learners to save and end once it is time."""
    if ends_at is not None and time.monotonic() > ends_at and not (run_dir / EVALUATING).exists():
        (run_dir / LEAVE).touch()


def deadline(max_hours: float | None, began: float) -> float | None:
    """When the learners of a run that began then (time.monotonic()) are asked to end; None: never."""
    if max_hours is None:
        return None
    return began + max(0.9 * max_hours * 3600, max_hours * 3600 - MARGIN_S)
