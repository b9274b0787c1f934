"""Does MAML++ reach MAML's accuracy in two thirds of its meta-steps? The built-in reviews, the same model and tasks.

    python benchmarks/maml_pp.py --seeds 0,1,2 --steps 300

MAML is the recipe `maml` for --steps meta-steps, MAML++ the recipe `maml_pp` for two thirds of them, with the settings
below, which were chosen on meta-validation tasks. How many steps to adapt with, from 0 to twice the recipe's, is chosen
there too; the score is over meta-test episodes that no choice has seen. In one process, on one thread. Writes
benchmarks/results/maml_pp.json after every run, and goes on from there.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ["LOCAL_RANK"] = "0"
import torch
import torch.distributed as dist
from algorithms import scored, train_here
from records import RESULTS

from distmeta.bench.measure import setting
from distmeta.config import load_config
from distmeta.evaluation.scoring import curves, summarise
from distmeta.runs.checkpoint import write_text

SETTINGS = {"maml": [], "maml_pp": ["inner.lr=0.4", "outer.lr=4e-3", "outer.rate_lr=0.04"]}


def one(recipe: str, words: list[str], run: Path, validation: int, episodes: int) -> dict[str, Any]:
    """Trains, chooses the number of adaptation steps on meta-validation episodes, scores on meta-test episodes."""
    config = load_config(recipe, [*words, "eval.baselines=false", "cluster.workers=1", "sampling.actors=0"])
    trained, seconds = train_here(config, run)
    curve = curves(scored("validation", validation, 2 * config.inner.steps, *trained))["accuracy"]["mean"]
    best = max(range(len(curve)), key=curve.__getitem__)
    test = summarise(scored("test", episodes, best, *trained))["accuracy"]
    return {"meta_steps": config.outer.steps, "cpu_s": seconds, "validation": curve, "adapt_steps": best, "test": test}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", default="0,1,2")
    parser.add_argument("--steps", type=int, default=300, help="MAML's meta-steps")
    parser.add_argument("--validation", type=int, default=150, help="meta-validation episodes")
    parser.add_argument("--episodes", type=int, default=600, help="meta-test episodes")
    parser.add_argument("--out", type=Path, default=RESULTS / "maml_pp.json")
    options = parser.parse_args()
    torch.set_num_threads(1)
    seeds = [int(seed) for seed in options.seeds.split(",")]
    steps = {"maml": options.steps, "maml_pp": options.steps * 2 // 3}
    record: dict[str, Any] = json.loads(options.out.read_text()) if options.out.exists() else {"runs": {}}
    asked = {"steps": steps, "validation": options.validation, "episodes": options.episodes, "settings": SETTINGS}
    if other := [key for key, value in asked.items() if record.get(key, value) != value]:
        parser.error(
            f"{options.out} was begun with another value of {', '.join(other)}; move it away, or give another --out"
        )
    with tempfile.TemporaryDirectory(prefix="distmeta-maml-pp-") as place:
        dist.init_process_group("gloo", init_method=f"file://{place}/group", world_size=1, rank=0)
        for seed in seeds:
            for recipe, words in SETTINGS.items():
                name = f"{recipe}-{seed}"
                if name not in record["runs"]:
                    more = [*words, f"outer.steps={steps[recipe]}", f"run.seed={seed}"]
                    record["runs"][name] = one(recipe, more, Path(place) / name, options.validation, options.episodes)
                    record |= {**setting({"runs": seeds}), "command": " ".join(sys.argv), **asked}
                    write_text(options.out, json.dumps(record, indent=1))
                entry = record["runs"][name]
                print(name, entry["meta_steps"], entry["adapt_steps"], entry["test"]["mean"], flush=True)
        dist.destroy_process_group()


if __name__ == "__main__":
    main()
