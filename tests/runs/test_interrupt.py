"""Ctrl-C and SIGTERM: exit codes at the command line, and a driver that lets its learners save."""

import contextlib
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from distmeta import cli
from distmeta.runs import interrupt


@pytest.fixture(autouse=True)
def handlers(monkeypatch):
    """Those of pytest come back, and nothing is remembered."""
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    monkeypatch.setattr(interrupt, "_caught", [])
    monkeypatch.setattr(interrupt, "_installed", [])
    monkeypatch.setattr(interrupt, "_run_dir", [])
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
@pytest.mark.parametrize("ending", ["raises", "swallows and fails"])
def test_an_interrupted_verb_ends_with_the_signal_s_code_and_one_line(number, code, ending, monkeypatch, capsys):
    def verb(**_):
        try:
            os.kill(os.getpid(), number)
            time.sleep(5)
        except KeyboardInterrupt:
            if ending == "raises":
                raise
            raise RuntimeError("what a library made of it") from None

    monkeypatch.setattr(cli, "app", verb)
    with pytest.raises(SystemExit) as stop:
        cli.main()
    assert stop.value.code == code
    assert capsys.readouterr().err == "distmeta: interrupted; nothing was written\n"


def test_a_verb_that_came_to_its_end_does_not_say_that_nothing_was_written(monkeypatch, capsys):
    """A destructor swallows what is raised in it, and the verb goes on."""

    def verb(**_):
        with contextlib.suppress(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGTERM)
            time.sleep(5)

    monkeypatch.setattr(cli, "app", verb)
    with pytest.raises(SystemExit) as stop:
        cli.main()
    assert stop.value.code == 143
    assert capsys.readouterr().err == "distmeta: interrupted too late: the command had come to its end\n"


def test_a_signal_that_a_library_swallows_is_noticed_later():
    interrupt.catch()
    with pytest.raises(KeyboardInterrupt):
        os.kill(os.getpid(), signal.SIGINT)
    with pytest.raises(KeyboardInterrupt):
        interrupt.check()


def test_a_sigterm_that_ray_s_own_handler_gets_while_it_starts_ends_alike(monkeypatch, capsys):
    def verb(**_):
        with interrupt.while_ray_starts():
            signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(number))  # as ray.init does
            os.kill(os.getpid(), signal.SIGTERM)
            time.sleep(5)

    monkeypatch.setattr(cli, "app", verb)
    with pytest.raises(SystemExit) as stop:
        cli.main()
    assert stop.value.code == 143
    assert capsys.readouterr().err == "distmeta: interrupted; nothing was written\n"
    assert signal.getsignal(signal.SIGTERM) is interrupt._interrupt


def learner(run_dir, steps=1000):
    """Appends to the journal until it is asked to leave."""
    with (run_dir / "metrics.jsonl").open("a") as journal:
        for step in range(steps):
            journal.write(f"{step}\n")
            journal.flush()
            time.sleep(0.02)
            if (run_dir / interrupt.LEAVE).exists():
                (run_dir / "saved").touch()
                return "left"
    return "done"


@pytest.fixture(autouse=True)
def plain_signals(monkeypatch):
    """Python's own handler of SIGINT: one of ours, left by another test, would end the process at the second."""
    monkeypatch.setattr(interrupt, "_installed", [])
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


def test_an_interrupted_run_waits_for_its_learners_to_save(tmp_path):
    threading.Timer(0.3, os.kill, (os.getpid(), signal.SIGINT)).start()
    with pytest.raises(KeyboardInterrupt):
        interrupt.wait(lambda: learner(tmp_path), tmp_path)
    assert (tmp_path / "saved").exists()


def test_an_interrupt_before_the_first_step_or_while_scoring_ends_at_once(tmp_path):
    for marker in (None, interrupt.EVALUATING):
        (tmp_path / "metrics.jsonl").write_text("" if marker is None else "0\n")
        if marker is not None:
            (tmp_path / marker).touch()
        threading.Timer(0.2, os.kill, (os.getpid(), signal.SIGINT)).start()
        began = time.monotonic()
        with pytest.raises(KeyboardInterrupt):
            interrupt.wait(lambda: time.sleep(3), tmp_path)
        assert time.monotonic() - began < 2 and not (tmp_path / interrupt.LEAVE).exists()


def test_a_time_limit_asks_the_learners_to_save_and_is_no_failure(tmp_path):
    assert interrupt.wait(lambda: learner(tmp_path), tmp_path, time.monotonic() + 0.3) == "left"
    assert (tmp_path / "saved").exists()
    assert interrupt.deadline(None, 5.0) is None
    assert interrupt.deadline(10.0, 5.0) == 5.0 + 36000 - interrupt.MARGIN_S
    assert interrupt.deadline(0.01, 0.0) == pytest.approx(32.4)


def test_what_the_work_returns_and_raises_is_handed_on(tmp_path):
    assert interrupt.wait(lambda: 3, tmp_path) == 3
    with pytest.raises(ZeroDivisionError):
        interrupt.wait(lambda: 1 / 0, tmp_path)


def test_a_second_signal_leaves_nothing_that_was_started(tmp_path):
    """Also what a child has started, which ends by itself a minute later where Ray is."""
    script = """
import subprocess, sys, time
from distmeta.runs import interrupt

interrupt.catch()
shell = subprocess.Popen(["sh", "-c", "sleep 300 & echo $! > pid; wait"])
try:
    print("ready", flush=True)
    time.sleep(60)
except KeyboardInterrupt:
    print("ending", flush=True)
    time.sleep(60)
"""
    process = subprocess.Popen([sys.executable, "-c", script], cwd=tmp_path, stdout=subprocess.PIPE, text=True)
    assert process.stdout.readline() == "ready\n"
    deadline = time.monotonic() + 30
    while not (tmp_path / "pid").is_file() or not (tmp_path / "pid").read_text().strip():
        assert time.monotonic() < deadline
        time.sleep(0.01)
    child = int((tmp_path / "pid").read_text())
    process.send_signal(signal.SIGTERM)
    assert process.stdout.readline() == "ending\n"
    os.kill(child, 0)  # it is there
    process.send_signal(signal.SIGTERM)
    assert process.wait(timeout=30) == 128 + signal.SIGTERM
    while is_running(child):
        assert time.monotonic() < deadline + 30
        time.sleep(0.01)


def is_running(pid):
    try:
        return " Z " not in Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return False
