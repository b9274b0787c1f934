"""Ctrl-C, SIGTERM and a second Ctrl-C, sent to every verb that writes: its exit code, its last line, what it leaves."""

import contextlib
import json
import os
import shutil
import signal
import subprocess
import time

import outside
import pytest
import small
import yaml

CODES = {"Ctrl-C": 130, "SIGTERM": 143, "Ctrl-C twice": 130}
PRETRAIN = {"path": "text.txt", "steps": 100_000, "every": 0, "validation_rows": 16}


class Verb:
    """A `distmeta` process in a session of its own, whose descendants can be told by the mark in their environment."""

    def __init__(self, place, *words):
        self.mark, self.log = str(place), place / "log.txt"
        with self.log.open("w") as log:
            self.process = subprocess.Popen(
                [*small.CLI, *words], cwd=place, stdout=log, stderr=log, start_new_session=True,
                env={**os.environ, outside.MARK: self.mark},
            )  # fmt: skip

    def wait_for_steps(self, folder, before, journals=1, seconds=400.0):
        """Until so many journals in it have a record, and they together more than `before` characters."""
        deadline = time.monotonic() + seconds
        while len(sizes := written(folder)) < journals or sum(sizes) <= before:
            assert self.process.poll() is None, self.log.read_text()[-3000:]
            assert time.monotonic() < deadline, "it did not come so far"
            time.sleep(0.05)

    def end(self, how):
        """(exit code, last line, seconds to the end); nothing that it had started is left."""
        began = time.monotonic()
        if how == "SIGTERM":
            self.process.send_signal(signal.SIGTERM)
        else:
            os.killpg(self.process.pid, signal.SIGINT)
        if how == "Ctrl-C twice":
            time.sleep(0.3)
            os.killpg(self.process.pid, signal.SIGINT)
        code = self.process.wait(timeout=outside.END_S)
        seconds = time.monotonic() - began
        while (left := outside.marked(self.mark)) and time.monotonic() < began + seconds + outside.GONE_S:
            time.sleep(0.2)
        for pid in left:
            os.kill(pid, signal.SIGKILL)
        assert left == {}
        return code, self.log.read_text().splitlines()[-1], seconds


@pytest.fixture(autouse=True)
def nothing_is_left(tmp_path):
    """Also of a test that has failed."""
    yield
    for pid in outside.marked(str(tmp_path)):
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)


def configured(place, data, **sections):
    config = small.config(
        data, cluster={"workers": 1}, sampling={"actors": 0}, eval={"every": 2, "baselines": False},
        outer={"steps": 4000}, run={"name": "tiny"}, **sections,
    )  # fmt: skip
    (place / "tiny.yaml").write_text(yaml.safe_dump(config.model_dump(mode="json")))
    (place / "text.txt").write_text("\n".join(line.split(",")[0] for line in data.read_text().splitlines()[1:]) + "\n")


def written(folder):
    """The sizes of the journals in it that have a record."""
    return [size for file in folder.glob("**/metrics.jsonl") if (size := file.stat().st_size)]


@pytest.mark.long
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("words", [
    ("export", "{run}", "--out", "written"),
    ("adapt", "{run}", "--support", "few.csv", "--out", "written"),
], ids=lambda words: words[0])  # fmt: skip
def test_a_verb_that_makes_a_directory_leaves_it_whole_or_not_at_all(words, undisturbed, tmp_path):
    """At any moment; and the line says which."""
    (tmp_path / "few.csv").write_text("text,label\n" + "a red thing,yes\na blue thing,no\n" * 3)
    words = [word.format(run=undisturbed.run) for word in words]
    began, out = time.monotonic(), tmp_path / "written"
    verb = Verb(tmp_path, *words)
    assert verb.process.wait(timeout=200) == 0
    length, whole = time.monotonic() - began, {file.name for file in out.iterdir()}
    shutil.rmtree(out)
    for share, how in ((0.4, "Ctrl-C"), (0.6, "Ctrl-C twice"), (0.8, "SIGTERM")):
        verb = Verb(tmp_path, *words)
        time.sleep(share * length)
        over = verb.process.poll() == 0
        code, line, _ = verb.end(how) if not over else (0, verb.log.read_text(), 0)
        # What comes while the interpreter itself ends finds no handler any more: the process ends by the signal.
        by_signal = -(signal.SIGTERM if how == "SIGTERM" else signal.SIGINT)
        assert over or code in (CODES[how], by_signal), line
        is_there = out.exists()
        assert not is_there or {file.name for file in out.iterdir()} == whole
        assert line != "distmeta: interrupted; nothing was written" or not is_there
        assert [entry.name for entry in tmp_path.iterdir() if entry.name.startswith(".")] == []
        shutil.rmtree(out, ignore_errors=True)


@pytest.mark.long
@pytest.mark.timeout(1800)
def test_a_search_keeps_its_trials_and_says_how_to_go_on(words_csv, tmp_path):
    configured(tmp_path, words_csv, tune={
        "space": {"inner.lr": {"grid": [0.5, 0.02]}}, "searcher": "grid", "scheduler": "none", "rivals": [],
        "max_concurrent": 1,
    })  # fmt: skip
    sweep = tmp_path / "search"
    for how, words in (("Ctrl-C", ()), ("SIGTERM", ("--resume",)), ("Ctrl-C twice", ("--resume",))):
        before = sum(written(sweep))
        verb = Verb(tmp_path, "tune", "tiny.yaml", "--run-dir", "search", *words)
        verb.wait_for_steps(sweep, before)
        code, line, seconds = verb.end(how)
        assert code == CODES[how], line
        if how == "Ctrl-C twice":
            assert seconds < 20
        else:
            assert line.endswith(
                f"trials so far are kept in {sweep}; the same command with --resume continues the search"
            )
        assert len(written(sweep / "trials")) == 1


@pytest.mark.long
@pytest.mark.timeout(1800)
def test_a_pretraining_saves_its_last_step_and_goes_on_from_it(words_csv, tmp_path):
    configured(tmp_path, words_csv, pretrain=PRETRAIN)
    run = tmp_path / "lm"
    for how, words in (("SIGTERM", ()), ("Ctrl-C", ("--resume",)), ("Ctrl-C twice", ("--resume",))):
        before = sum(written(run))
        verb = Verb(tmp_path, "pretrain", "tiny.yaml", "run.dir=lm", *words)
        verb.wait_for_steps(run, before)
        code, line, seconds = verb.end(how)
        assert code == CODES[how], line
        if how == "Ctrl-C twice":
            assert seconds < 20
        else:
            (newest,) = sorted((run / "checkpoints").glob("step-*"))[-1:]
            assert f"{newest.name} is kept in {run}" in line and "--resume" in line
            assert json.loads((newest / "state.json").read_text())["step"] == int(newest.name.removeprefix("step-"))


@pytest.mark.long
@pytest.mark.timeout(1800)
def test_a_pipeline_keeps_what_was_done_and_goes_on_with_the_same_command(words_csv, tmp_path):
    configured(tmp_path, words_csv, pretrain={**PRETRAIN, "steps": 4})
    folder = tmp_path / "p"
    for how, journals in (("SIGTERM", 1), ("Ctrl-C", 2), ("Ctrl-C twice", 2)):
        before = sum(written(folder))
        verb = Verb(tmp_path, "pipeline", "tiny.yaml", "run.dir=p")
        verb.wait_for_steps(folder, before, journals)
        code, line, seconds = verb.end(how)
        assert code == CODES[how], line
        if how == "Ctrl-C twice":
            assert seconds < 20
        else:
            assert line.endswith(f"what was done is kept in {folder}; the same command continues the pipeline")


@pytest.mark.long
@pytest.mark.timeout(1800)
def test_a_pretraining_ends_by_its_time_limit_and_is_no_failure(words_csv, tmp_path):
    configured(tmp_path, words_csv, pretrain=PRETRAIN)
    verb = Verb(tmp_path, "pretrain", "tiny.yaml", "run.dir=lm", "run.max_hours=0.01")
    assert verb.process.wait(timeout=600) == 0
    line = verb.log.read_text().splitlines()[-1]
    (newest,) = sorted((tmp_path / "lm" / "checkpoints").glob("step-*"))[-1:]
    assert f"run.max_hours = 0.01 is over; interrupted; {newest.name} is kept" in line
