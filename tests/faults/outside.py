"""Faults from outside of a run, seeded: refused starts, double starts, Ctrl-C and SIGTERM at any moment.

A run is started again and again with --resume, until all of its faults were fired or it has come to its end. Each
start is ended by a signal; while it goes on, others are started that must be refused, or that are the same once more.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from distmeta.runs import checkpoint

MARK = "DISTMETA_OUTSIDE"  # in the environment of all that is started here
# The codes of a process; one that has not come to its handlers yet ends by the signal, which a shell shows alike.
SIGNALS = {"Ctrl-C": (130, -2), "SIGTERM": (143, -15), "Ctrl-C twice": (130, -2)}
REFUSED = 2
LATEST_S = 25.0  # after its start a process gets its signal, or after the first step of those that are to learn,
SOON_S = 5.0  # this
LEARNS_S = 150.0  # how long that step may take to come
END_S = 200.0  # how long it may take to save and to end
GONE_S = 60.0  # how long what it had started may take to end
# By the stage that refuses it: the words of a command on the run in {run}, with the data in {data}.
REFUSALS = {
    "configuration": "train tiny.yaml --resume inner.lrate=1",
    "data": "train tiny.yaml --resume data.path={run}/nothing.csv",
    "directory": "train tiny.yaml",
    "continuation": "train tiny.yaml --resume outer.lr=0.5",
    "cluster": "train tiny.yaml --resume cluster.address=127.0.0.1:1",
    "room": "train tiny.yaml --resume cluster.gpus_per_worker=1000",
    "pretrain": "pretrain tiny.yaml",
    "pipeline": "pipeline tiny.yaml",
    "tune": "tune tiny.yaml tune.dir={run}",
    "export": "export {run} --out {run}",
    "adapt": "adapt {run} --support {data} --out {run}",
}


@dataclass
class Outcome:
    run: Path
    fired: Counter[str] = field(default_factory=Counter)  # faults by kind
    wrong: list[str] = field(default_factory=list)  # what was not as it should be, a line each
    rounds: int = 0
    seconds: float = 0.0


class Outside:
    """The faults of one run in `place`, whose configuration is there as tiny.yaml, with run.dir."""

    def __init__(self, place: Path, run: Path, data: Path, seed: int) -> None:
        self.place, self.data = place, data
        self.rng = np.random.default_rng(seed)
        self.out = Outcome(run)
        self.mark = f"{place}-{seed}"

    def start(self, words: str) -> subprocess.Popen[bytes]:
        command = [sys.executable, "-m", "distmeta.cli", *words.format(run=self.out.run, data=self.data).split()]
        environment = {**os.environ, MARK: self.mark, "OMP_NUM_THREADS": "1"}
        with (self.place / "outside.log").open("a") as log:
            log.write(f"--- {words}\n")
            log.flush()
            return subprocess.Popen(
                command, cwd=self.place, stdout=log, stderr=log, env=environment, start_new_session=True
            )

    def newest(self) -> int:
        path = checkpoint.newest_whole(self.out.run, lambda line: None)
        return 0 if path is None else checkpoint.step_of(path)

    def await_step(self, process: subprocess.Popen[bytes], records: int) -> None:
        """Until there are more records than that."""
        until = time.monotonic() + LEARNS_S
        while self.records() <= records and process.poll() is None and time.monotonic() < until:
            time.sleep(0.05)

    def records(self) -> int:
        journal = self.out.run / "metrics.jsonl"
        return len(journal.read_text().splitlines()) if journal.exists() else 0

    def round(self, signals: list[str], refused: list[str], learns: bool) -> bool:
        """As many starts of the run as there are signals, all but the first late; whether one came to its end.

        learns: the signals wait until the first start has done a step.
        """
        before, records = self.newest(), self.records()
        resume = " --resume" if self.out.rounds else ""
        self.out.rounds += 1
        ends = np.sort(self.rng.uniform(0.1, SOON_S if learns else LATEST_S, len(signals)))
        begins = [0.0, *(self.rng.uniform(0, ends[i]) * self.rng.integers(2) for i in range(1, len(signals)))]
        todo: list[tuple[float, Callable[[], None]]] = []
        runs: dict[int, subprocess.Popen[bytes]] = {}
        starts: list[tuple[str, subprocess.Popen[bytes]]] = []
        finished = []

        def begin(i: int) -> None:
            runs[i] = self.start(f"train tiny.yaml{resume}")
            if i:
                self.out.fired["double start"] += 1

        def end(i: int) -> None:
            if runs[i].poll() is None:
                self.out.fired[signals[i]] += 1
                self.send(runs[i], signals[i])

        def refuse(stage: str) -> None:
            if stage in ("directory", "pretrain", "pipeline", "adapt") and not (self.out.run / "config.yaml").exists():
                return  # there is nothing yet that it would be refused for
            starts.append((stage, self.start(REFUSALS[stage])))

        begin(0)
        if learns:
            self.await_step(runs[0], records)
        began = time.monotonic()
        todo.append((float(ends[0]), lambda: end(0)))
        for i in range(1, len(signals)):
            todo += [(float(begins[i]), lambda i=i: begin(i)), (float(ends[i]), lambda i=i: end(i))]
        todo += [(float(self.rng.uniform(0, ends[-1])), lambda stage=stage: refuse(stage)) for stage in refused]
        for moment, act in sorted(todo, key=lambda one: one[0]):
            time.sleep(max(0.0, began + moment - time.monotonic()))
            act()
        for i, process in runs.items():
            code = self.code(process)
            finished.append(code == 0)
            if code not in (0, REFUSED, *SIGNALS[signals[i]]):
                self.out.wrong.append(f"round {self.out.rounds}: {signals[i]} at {ends[i]:.1f} s ended with {code}")
        for stage, process in starts:
            self.out.fired[f"refused: {stage}"] += 1
            code = self.code(process)
            if code != REFUSED:
                self.out.wrong.append(f"round {self.out.rounds}: refusal of {stage} ended with {code}")
        if self.newest() < before:
            self.out.wrong.append(f"round {self.out.rounds}: checkpoint {before} is gone")
        left = self.left()
        if left:
            self.out.wrong.append(f"round {self.out.rounds}: left behind: {left}")
        return any(finished)

    def send(self, process: subprocess.Popen[bytes], name: str) -> None:
        """SIGTERM to the process, as from a scheduler; Ctrl-C to all of its group, as from a terminal."""
        if name == "SIGTERM":
            process.send_signal(signal.SIGTERM)
            return
        os.killpg(process.pid, signal.SIGINT)
        if name == "Ctrl-C twice":
            time.sleep(float(self.rng.uniform(0.1, 2.0)))
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGINT)

    def code(self, process: subprocess.Popen[bytes]) -> int | str:
        try:
            return process.wait(timeout=END_S)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            return f"nothing, after {END_S:g} s"

    def left(self) -> list[str]:
        """Processes of this run that have not ended within GONE_S."""
        until = time.monotonic() + GONE_S
        while (found := marked(self.mark)) and time.monotonic() < until:
            time.sleep(0.2)
        for pid in found:
            os.kill(pid, signal.SIGKILL)
        return list(found.values())


def marked(mark: str) -> dict[int, str]:
    """The processes whose environment has the mark, and what they are."""
    found = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdecimal():
            try:
                if f"{MARK}={mark}\0".encode() in (entry / "environ").read_bytes() + b"\0":
                    found[int(entry.name)] = (entry / "cmdline").read_text().replace("\0", " ")[:80]
            except OSError:
                continue
    return found


def run_to_end(place: Path, config: Any, data: Path, seed: int, rounds: int) -> Outcome:
    """`rounds` starts of the run of `config` that are ended by signals, and one to its end. seed: of all chance."""
    import yaml

    place.mkdir(parents=True)
    run = place / "runs" / "outside"
    content = config.model_dump(mode="json")
    content["run"]["dir"] = str(run)
    (place / "tiny.yaml").write_text(yaml.safe_dump(content))
    faults = Outside(place, run, data, seed)
    began = time.monotonic()
    names, stages = list(SIGNALS), list(REFUSALS)
    for number in range(rounds):
        starts = 2 if number % 3 == 0 else 1
        signals = [names[(number + seed + i) % 3] for i in range(starts)]
        refused = [stages[(8 * (number - 1) + i) % len(stages)] for i in range(8)] if number else []
        over = faults.round(signals, refused, learns=number % 2 == 1)
        kept = run / "kept.txt"
        if number and run.is_dir() and not kept.exists():
            kept.write_text("a person's own")
        if over:
            break
    process = faults.start("train tiny.yaml --resume")
    if process.wait(timeout=280) != 0:
        faults.out.wrong.append(f"the last start ended with {process.returncode}")
    if rounds and not (run / "kept.txt").exists():
        faults.out.wrong.append("a person's file in the run directory is gone")
    if sorted(entry.name for entry in (place / "runs").iterdir()) != ["outside"]:
        faults.out.wrong.append(f"more than the run was made: {json.dumps(os.listdir(place / 'runs'))}")
    faults.out.seconds = time.monotonic() - began
    return faults.out
