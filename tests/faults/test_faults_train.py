"""SIGKILL of a learner, of a sampler, of the driver: the run ends as if nothing had happened, byte for byte."""

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
        self.journal = place / "runs" / "tiny" / "metrics.jsonl"
        self.freeze(at)

    def freeze(self, at):
        """Once there are `at` meta-steps."""
        wait_for_lines(self.process, self.journal, at)
        self.family = descendants(self.process.pid)
        self.samplers = self.named("ray::Sampler")
        assert len(self.samplers) == 2
        self.signal(self.samplers, signal.SIGSTOP)
        while True:
            reached = lines(self.journal)
            time.sleep(0.5)
            if lines(self.journal) == reached:
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


def continued_from(run):
    return [int(n) for n in re.findall(r"continuing from step-(\d+)", (run / "log.txt").read_text())]


def same(run, undisturbed):
    assert small.records(run) == undisturbed.records
    assert small.weights(run) == undisturbed.weights
    assert (run / "evaluation.json").read_bytes() == (undisturbed.run / "evaluation.json").read_bytes()


def test_a_learner_and_a_sampler_are_killed(undisturbed, words_csv, tmp_path):
    run = tmp_path / "runs" / "tiny"
    frozen = Frozen(tmp_path, words_csv, at=7)
    try:
        workers = frozen.named("ray::RayTrainWorker")
        assert len(workers) == 2
        os.kill(workers[-1], signal.SIGKILL)
        os.kill(frozen.samplers[0], signal.SIGKILL)  # which Ray starts again
        frozen.signal(frozen.samplers[1:], signal.SIGCONT)
        _, told = frozen.process.communicate(timeout=280)
        assert frozen.process.returncode == 0, told[-3000:]
    finally:
        frozen.end()
    assert continued_from(run) == [frozen.reached // 5 * 5]
    same(run, undisturbed)


@pytest.mark.long
def test_the_driver_is_killed(undisturbed, words_csv, tmp_path):
    run = tmp_path / "runs" / "tiny"
    frozen = Frozen(tmp_path, words_csv, at=7)
    try:
        # The same command resumes, at once, while learners of the dead driver are there: they end before others begin.
        frozen.process.send_signal(signal.SIGKILL)
        frozen.process.wait()
        assert len(frozen.named("ray::RayTrainWorker")) == 2
        small.train_command(tmp_path, words_csv, "--resume")
        assert frozen.named("ray::RayTrainWorker") == []
    finally:
        frozen.end()
    # For a moment Ray starts samplers again, and the orphaned learners may go on: from no earlier step, then.
    (begun,) = continued_from(run)
    assert begun in range(frozen.reached // 5 * 5, 21, 5)
    same(run, undisturbed)
