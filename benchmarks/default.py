"""The record of a recipe's run, as `distmeta train` leaves it.

    distmeta train && python benchmarks/default.py runs/default
    distmeta train captions && python benchmarks/default.py runs/captions
    distmeta train default eval.baselines=false --seeds 1,2,3,4 --run-dir runs/seeds
    python benchmarks/default.py runs/default runs/seeds/*

Writes benchmarks/results/NAME.json: scores of the meta-test tasks, the checkpoint that was kept, and what share of
a meta-step the ranks spent on handing gradients over; of further runs, which differ in their seed, the accuracy. A
run follows the rounding of its processor as it does its seed: expect another machine's score among those of the seeds.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

from records import RESULTS

from distmeta import Run
from distmeta.runs.checkpoint import read_config, write_text


def main() -> None:
    run = Run(Path(sys.argv[1]))
    environment = json.loads((run.path / "environment.json").read_text(encoding="utf-8"))
    name = read_config(run.path / "config.yaml").run.name
    steps = [record for record in run.metrics if "inner_s" in record]
    parts = ("wait_s", "inner_s", "peers_s", "aggregate_s", "checkpoint_s")
    record = {
        "command": f"distmeta train {name}".removesuffix(" default"),
        "hardware": {key: environment[key] for key in ("platform", "cores")},
        "versions": environment["versions"],
        "date": environment["started"][:10],
        "meta_steps": steps[-1]["step"],
        "kept": run.checkpoint.name,
        "comm_share": sum(step["comm_s"] for step in steps) / sum(step[part] for step in steps for part in parts),
        "evaluation": run.evaluation,
    }
    if others := [Run(Path(path)) for path in sys.argv[2:]]:
        seeds = [read_config(other.path / "config.yaml").run.seed for other in others]
        record["other_seeds"] = {
            str(seed): other.evaluation["meta_trained"]["accuracy"] for seed, other in zip(seeds, others, strict=True)
        }
    write_text(RESULTS / f"{name}.json", json.dumps(record, indent=1) + "\n")


if __name__ == "__main__":
    main()
