"""Machines that share storage may have clocks that differ: what one of them reads on its own decides nothing."""

import os
import re
import threading
import time
from pathlib import Path

import pytest
import small

import distmeta
from distmeta.config.paths import age_s
from distmeta.learner.engine import wait_for_build
from distmeta.runs.checkpoint import only_holder
from distmeta.tasks.build import build_store

DAYS = 3 * 86400
# The time of day is read where a person is told of it, and nowhere else.
TOLD = {"drive/submit.py", "runs/directory.py", "runs/trackers.py", "search/trial.py", "serve/shapes.py"}


@pytest.fixture(params=[-DAYS, DAYS], ids=["behind", "ahead"])
def skewed(request, monkeypatch):
    """This machine's clock is days behind, or ahead of, that of the storage."""
    right = time.time
    monkeypatch.setattr(time, "time", lambda: right() + request.param)
    assert abs(time.time() - right()) > DAYS / 2


def test_the_time_of_day_is_read_only_to_be_told():
    root = Path(distmeta.__file__).parent
    reads = re.compile(r"\btime\.time\(|\bdatetime\.now\(|\butcnow\(|\btime_ns\(")
    assert {str(file.relative_to(root)) for file in root.rglob("*.py") if reads.search(file.read_text())} == TOLD


@pytest.mark.usefixtures("skewed")
def test_an_age_is_by_the_clock_of_the_storage(tmp_path):
    (tmp_path / "new").touch()
    assert -1 < age_s(tmp_path / "new") < 60
    os.utime(tmp_path / "new", (time.monotonic(), 0))
    assert age_s(tmp_path / "new") > DAYS


@pytest.mark.usefixtures("skewed")
def test_what_another_machine_builds_is_left_alone(tmp_path, words_csv):
    """A token cache, a native optimizer, a run."""
    given = small.config(words_csv, data={"cache": str(tmp_path / "cache")})
    theirs, left = tmp_path / "cache" / ".theirs.1", tmp_path / "cache" / ".left.1"
    for folder in (theirs, left):
        folder.mkdir(parents=True)
    os.utime(left, (0, 0))
    build_store(given.data, given.task, given.model)
    assert theirs.is_dir() and not left.exists()

    lock = tmp_path / "lock"
    lock.touch()
    threading.Timer(0.3, lock.unlink).start()
    wait_for_build(lock, "x")
    with only_holder(tmp_path / ".lock", 0.1), pytest.raises(distmeta.InputError), only_holder(tmp_path / ".lock", 0.1):
        pass
