"""What a meta-validation costs a run, in line and beside training (eval.beside):  python benchmarks/beside.py

The learners' inner loops are waited instead of computed (distmeta.bench.timed), so that they and the process beside
them do not want the same cores; meta-validations compute. The same run three times: without meta-validations, with
them in line, and with them beside. Of each meta-validation: for how long the ranks stop (the scores or, beside, the
hand-over, its checkpoint, and the wait for what it finds), and how much longer the meta-steps from it to the next one
take than in the run without, in which whatever else the machine does is told as well.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
from collections.abc import Iterable
from typing import Any

from records import RESULTS

import distmeta
from distmeta.bench.measure import setting, write_json
from distmeta.bench.scaling import interval
from distmeta.runs.report.files import PHASES

TASK_S, TASKS, RANKS, EVERY, BESIDE = 1.0, 12, 2, 3, 2  # seconds of a task, and tasks of a rank's meta-step
STOPS = ("validation_s", "checkpoint_s")


def seconds(steps: int, episodes: int, every: int, beside: int) -> list[dict[str, Any]]:
    """The records of a run."""
    with tempfile.TemporaryDirectory(prefix="distmeta-beside-") as place:
        run = distmeta.train(
            "default", algorithm="distmeta.bench.timed",
            inner={"lr": TASK_S, "momentum": 0.0, "learn_lr": "none", "schedule": "constant", "task_batch": 1},
            outer={"meta_batch_size": TASKS * RANKS, "steps": steps, "until": None},
            cluster={"workers": RANKS, "cpus_per_worker": 0.01, "cpus_per_sampler": 0.01},
            sampling={"actors": 1}, run={"dir": f"{place}/run"},
            eval={"every": every, "beside": beside, "validation_episodes": episodes, "episodes": 2, "baselines": False},
        )  # fmt: skip
        return run.metrics


def spans(records: list[dict[str, Any]], phases: Iterable[str]) -> list[float]:
    """Seconds of these phases from each meta-validation's meta-step to before the next one's; not of the run's last
    one, which nothing goes on beside."""
    of_step = [sum(record.get(name, 0.0) for name in phases) for record in records]
    return [sum(of_step[at - 1 : at - 1 + EVERY]) for at in range(EVERY, len(records) - EVERY + 1, EVERY)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=18, help=f"meta-steps of a run, a multiple of {EVERY}")
    parser.add_argument("--episodes", type=int, default=200, help="of a meta-validation")
    asked = parser.parse_args()
    ways = {"none": (0, 0), "in_line": (EVERY, 0), "beside": (EVERY, BESIDE)}
    found = {name: seconds(asked.steps, asked.episodes, *way) for name, way in ways.items()}
    took = {name: spans(records, PHASES) for name, records in found.items()}
    stopped = {name: spans(records, STOPS) for name, records in found.items()}
    step = statistics.mean(took["none"]) / EVERY
    record = {
        **setting({"run": 0}), "ranks": RANKS, "every": EVERY, "beside": BESIDE, "validation_episodes": asked.episodes,
        "step_s": step, "took_s": took, "stopped_s": stopped,
        "slower_by_steps": {name: interval([s / step - EVERY for s in took[name]]) for name in ways},
        "stopped_steps": {name: interval([s / step for s in stopped[name]]) for name in ways},
    }  # fmt: skip
    write_json(RESULTS / "beside.json", record)
    for name in ways:
        stop, slower = record["stopped_steps"][name], record["slower_by_steps"][name]
        print(f"{name:8} stopped {stop['mean']:.3f} of a step [{stop['low']:.3f}, {stop['high']:.3f}], "
              f"slower by {slower['mean']:+.3f} [{slower['low']:+.3f}, {slower['high']:+.3f}]")  # fmt: skip


if __name__ == "__main__":
    main()
