"""What a person sees of a run while it goes on."""

import json
import sys
import time
from types import SimpleNamespace

import pytest
import small

from distmeta.runs import notebook, progress


def test_a_log_line_is_one_line_in_a_file_and_follows_the_meta_step_it_speaks_of(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(progress, "POLL_S", 0.02)
    config = small.config()
    for name in ("metrics.jsonl", "log.txt"):
        (tmp_path / name).touch()
    long = "evaluating " + "word " * 60
    with progress.Display(config, show=True) as display:
        display.follow(tmp_path)
        record = {"step": config.outer.steps, "outer_loss": 1.0, "query_accuracy": 0.5}
        (tmp_path / "metrics.jsonl").write_text(json.dumps(record) + "\n")
        (tmp_path / "log.txt").write_text(long + "\n")
        time.sleep(0.3)
    lines = capsys.readouterr().err.splitlines()
    assert [line.split("] ")[1].split()[0] for line in lines] == ["run", "step", "evaluating"]
    assert lines[-1].endswith(long)


@pytest.fixture
def quick(monkeypatch):
    """Looks at the files, and at the clock, every few milliseconds."""
    monkeypatch.setattr(progress, "POLL_S", 0.01)
    monkeypatch.setattr(progress, "WAIT_S", 0.05)


def write(run, *steps):
    with (run / "metrics.jsonl").open("a") as stream:
        stream.writelines(json.dumps({"step": step, "outer_loss": 1.0}) + "\n" for step in steps)


def said(capsys):
    return [line.split("] ")[1] for line in capsys.readouterr().err.splitlines()]


def test_a_start_is_never_silent_for_long_and_a_run_is_not_chatty(tmp_path, quick, capsys):
    with progress.Display(small.config(), show=True) as display:
        display.waiting("starting Ray")
        time.sleep(0.2)
        display.follow(tmp_path)
        time.sleep(0.2)
        write(tmp_path, 1)
        time.sleep(0.1)
        before = said(capsys)
        time.sleep(0.2)
    assert before.count("still starting Ray") >= 2 and before.count("still waiting for the first step") >= 2
    assert said(capsys) == []


def test_verbose_has_a_line_for_every_step(tmp_path, quick, capsys):
    with progress.Display(small.config(), show="steps") as display:
        display.follow(tmp_path)
        write(tmp_path, 1, 2, 3)
        time.sleep(0.1)
    steps = small.config().outer.steps
    assert [line.split("  ")[0] for line in said(capsys)][1:] == [f"step {n}/{steps}" for n in (1, 2, 3)]


def test_quiet_shows_nothing(tmp_path, quick, capsys):
    with progress.Display(small.config(), show=False) as display:
        display.waiting("starting Ray")
        display.follow(tmp_path)
        write(tmp_path, 1)
        time.sleep(0.1)
    assert capsys.readouterr().err == ""


def test_a_notebook_has_a_bar_without_being_asked(tmp_path, quick, monkeypatch):
    shell = type("ZMQInteractiveShell", (), {})()
    pages = []
    handle = SimpleNamespace(update=pages.append)
    display_it = SimpleNamespace(HTML=str, display=lambda page, display_id: pages.append(page) or handle)
    monkeypatch.setitem(sys.modules, "IPython", SimpleNamespace(get_ipython=lambda: shell))
    monkeypatch.setitem(sys.modules, "IPython.display", display_it)
    assert notebook.is_running()
    with progress.Display(small.config(), show=None) as display:
        display.follow(tmp_path)
        time.sleep(0.05)
        write(tmp_path, 1, 2)
        time.sleep(0.1)
    steps = small.config().outer.steps
    assert f'<progress value="0" max="{steps}">' in pages[0] and f"2/{steps}" in pages[-1]


def test_elsewhere_python_shows_nothing_unless_it_is_asked():
    assert not progress.Display(small.config(), show=None).show
