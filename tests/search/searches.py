"""Small searches as processes of their own, for the tests of this folder."""

import contextlib
import dataclasses
import json
import os
import signal
import subprocess
import time
from pathlib import Path

import small
import yaml

from distmeta.search import Search

# Two points, one that only the learner can refuse, and (by default) a rival with learnt rates: four trials.
SPACE = {
    "inner.adapt": {"grid": ["all", "nothing_of_that_name"]},
    "inner.lr": {"grid": [0.5, 0.02], "when": {"inner.adapt": "all"}},
}
GRID = {"searcher": "grid", "scheduler": "asha", "reduction": 2, "grace": 4, "max_concurrent": 1}


@dataclasses.dataclass
class Process:
    """A `distmeta tune` that is running. Files rather than pipes: nobody reads while it runs."""

    place: Path
    words: tuple[str, ...] = ()
    address: str | None = None

    def __post_init__(self):
        env = {**os.environ, **({"RAY_ADDRESS": self.address} if self.address else {})}
        with (self.place / "stdout").open("w") as out, (self.place / "stderr").open("w") as err:
            self.process = subprocess.Popen(
                [*small.CLI, "tune", "tiny.yaml", "--run-dir", "search", "--json", *self.words],
                cwd=self.place, stdout=out, stderr=err, env=env,
            )  # fmt: skip

    @property
    def path(self):
        return self.place / "search"

    def trial(self, number):
        return self.path / "trials" / f"trial-{number:04d}"

    def finished(self, seconds=240) -> Search:
        code = self.process.wait(timeout=seconds)
        stderr = (self.place / "stderr").read_text()
        assert code == 0, stderr[-3000:]
        printed = json.loads((self.place / "stdout").read_text())  # one document and nothing else
        search = Search(self.path, "accuracy")
        assert [t["number"] for t in printed["trials"]] == [t["number"] for t in search.trials]
        return search

    def wait_for(self, condition, seconds=150):
        deadline = time.monotonic() + seconds
        while not condition():
            assert self.process.poll() is None, (self.place / "stderr").read_text()[-3000:]
            assert time.monotonic() < deadline, "no progress"
            time.sleep(0.05)

    def kill(self, family=()):
        self.process.send_signal(signal.SIGKILL)
        self.process.wait()
        for pid in family:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)


def start(place, data, *words, address=None, **tune) -> Process:
    place.mkdir(exist_ok=True)
    write(place, data, **tune)
    return Process(place, words, address)


def write(place, data, steps=12, **tune) -> None:
    """tiny.yaml."""
    tiny = small.config(
        data, cluster={"workers": 1}, sampling={"actors": 0}, run={"name": "tiny", "checkpoint_every": 4},
        outer={"steps": steps}, eval={"every": 4}, tune={"space": SPACE, **GRID, **tune},
    )  # fmt: skip
    (place / "tiny.yaml").write_text(yaml.safe_dump(tiny.model_dump(mode="json")))


def numbers(search: Search) -> list[dict]:
    """What must not depend on what happened to a search."""
    kept = ("number", "kind", "status", "params", "value", "low", "high", "adapt_steps", "curve", "test_accuracy")
    return [{key: row[key] for key in kept} for row in search.trials]
