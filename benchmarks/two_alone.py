"""What two cores give two processes that have nothing to do with each other: the ceiling of scaling from 1 to 2 ranks.

    python benchmarks/two_alone.py

Runs of the default recipe without Ray, one rank each, one thread: one alone, then two at once, in turn. Where a core is
half of a core with two threads, or the processes share its cache and clock, two at once are slower, whatever software
lies between them. Writes benchmarks/results/two_alone.json.
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

from records import RESULTS

os.environ["OMP_NUM_THREADS"] = "1"
STEPS, WARM_UP, ROUNDS = 60, 10, 3


def run_alone() -> None:
    """One run, in this process; prints its tasks per second."""
    import torch
    import torch.distributed as dist

    from distmeta.config import load_config
    from distmeta.drive.train import prepare_store
    from distmeta.learner.worker import learn

    torch.set_num_threads(1)
    os.environ["LOCAL_RANK"] = "0"
    with tempfile.TemporaryDirectory(prefix="distmeta-alone-") as place:
        dist.init_process_group("gloo", init_method=f"file://{place}/group", world_size=1, rank=0)
        words = [f"outer.steps={STEPS}", f"run.checkpoint_every={STEPS}", "eval.baselines=false", "eval.episodes=2"]
        config = load_config("default", [*words, "cluster.workers=1"])
        learn(config, Path(place), prepare_store(config), [], 0, 1, torch.device("cpu"))
        lines = (Path(place) / "metrics.jsonl").read_text().splitlines()[WARM_UP:]
        print(config.outer.meta_batch_size / statistics.mean(json.loads(line)["inner_s"] for line in lines))
        dist.destroy_process_group()


def rates(count: int) -> list[float]:
    """Tasks per second of each of `count` runs at once."""
    running = [
        subprocess.Popen([sys.executable, __file__, "--alone"], stdout=subprocess.PIPE, text=True) for _ in range(count)
    ]
    return [float(process.communicate(timeout=600)[0].split()[-1]) for process in running]


def main() -> None:
    from distmeta.bench.measure import setting, write_json

    one, two = [], []
    for _ in range(ROUNDS):
        one.append(rates(1)[0])
        two.append(statistics.mean(rates(2)))
    ratios = [b / a for a, b in zip(one, two, strict=True)]
    result = {
        **setting({"run": 0}), "alone_tasks_per_s": one, "of_two_at_once_tasks_per_s": two, "ratio": ratios,
        "median_ratio": statistics.median(ratios),
    }  # fmt: skip
    write_json(RESULTS / "two_alone.json", result)
    print(f"two at once go at {statistics.median(ratios):.3f} of one alone ({', '.join(f'{r:.3f}' for r in ratios)})")


if __name__ == "__main__":
    run_alone() if "--alone" in sys.argv else main()
