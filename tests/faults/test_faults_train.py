"""SIGKILL of the driver, of a learner, of a sampler: the run ends as if nothing had happened, byte for byte."""

import contextlib
import os
import re
import signal
import subprocess
import time

import pytest
import small


def lines(file):
    return len(file.read_text().splitlines()) if file.exists() else 0


def wait_for_lines(process, file, count, seconds=150):
    deadline = time.monotonic() + seconds
    while lines(file) < count:
        assert process.poll() is None, process.communicate()[1][-3000:]
        assert time.monotonic() < deadline, "no progress"
        time.sleep(0.02)


def descendants(pid):
    """Process ids below `pid`."""
    children = {}
    for entry in os.listdir("/proc"):
        if entry.isdecimal():
            try:
                with open(f"/proc/{entry}/stat") as stream:
                    parent = int(stream.read().rsplit(")", 1)[1].split()[1])
            except OSError:
                continue
            children.setdefault(parent, []).append(int(entry))
    found, todo = [], [pid]
    while todo:
        for child in children.get(todo.pop(), []):
            found.append(child)
            todo.append(child)
    return found


def title(pid):
    try:
        with open(f"/proc/{pid}/cmdline") as stream:
            return stream.read().replace("\0", " ")
    except OSError:
        return ""


class Frozen:
    """A training process that was stopped in the middle: its samplers sleep, so its learners wait for episodes."""

    def __init__(self, place, data, at):
        command = small.start_command(place, data, "sampling.window=4")  # two steps ahead at most
        self.process = subprocess.Popen(command, cwd=place, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        journal = place / "runs" / "tiny" / "metrics.jsonl"
        wait_for_lines(self.process, journal, at)
        self.family = descendants(self.process.pid)
        self.samplers = self.named("ray::Sampler")
        assert len(self.samplers) == 2
        self.signal(self.samplers, signal.SIGSTOP)
        while True:
            reached = lines(journal)
            time.sleep(0.5)
            if lines(journal) == reached:
                break
        self.reached = reached
        assert at <= reached < 20, "the run was over before it could be stopped"

    def named(self, name):
        return [pid for pid in self.family if name in title(pid)]

    def signal(self, pids, number):
        for pid in pids:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, number)

    def end(self):
        """Whatever is left of it."""
        self.signal([pid for pid in self.family if "ray" in title(pid)], signal.SIGKILL)
        self.process.kill()
        self.process.wait()


@pytest.fixture
def frozen(words_csv, tmp_path):
    made = Frozen(tmp_path, words_csv, at=7)
    yield made
    made.end()


def continued_from(run):
    return [int(n) for n in re.findall(r"continuing from step-(\d+)", (run / "log.txt").read_text())]


def test_the_driver_is_killed_and_the_same_command_resumes(frozen, undisturbed, words_csv, tmp_path):
    """At once, while the learners of the dead driver are still there: they end before the new ones begin."""
    frozen.process.send_signal(signal.SIGKILL)
    frozen.process.wait()
    assert len(frozen.named("ray::RayTrainWorker")) == 2
    resumed = small.train_command(tmp_path, words_csv, "--resume")
    assert frozen.named("ray::RayTrainWorker") == []
    # For a moment Ray starts samplers again, and the orphaned learners may go on: from no earlier step, then.
    (step,) = continued_from(resumed.run)
    assert step in range(frozen.reached // 5 * 5, 21, 5)
    assert resumed.records == undisturbed.records
    assert resumed.weights == undisturbed.weights
    assert (resumed.run / "evaluation.json").read_bytes() == (undisturbed.run / "evaluation.json").read_bytes()


def test_a_learner_is_killed_and_its_group_goes_on(frozen, undisturbed, tmp_path):
    run = tmp_path / "runs" / "tiny"
    workers = frozen.named("ray::RayTrainWorker")
    assert len(workers) == 2
    os.kill(workers[-1], signal.SIGKILL)
    os.kill(frozen.samplers[0], signal.SIGKILL)  # and a sampler, which Ray starts again
    frozen.signal(frozen.samplers[1:], signal.SIGCONT)
    _, err = frozen.process.communicate(timeout=250)
    assert frozen.process.returncode == 0, err[-3000:]
    assert continued_from(run) == [frozen.reached // 5 * 5]
    assert small.records(run) == undisturbed.records
    assert small.weights(run) == undisturbed.weights
