"""What does task-level privacy cost? The built-in default recipe, cut short, at several amounts of noise.

    python benchmarks/privacy.py

One rank, one thread, one process; the same episodes in every run. 80 meta-train tasks are few: a guarantee that means
something takes noise that is far above what so few tasks can be heard through, as the figures show. Writes
benchmarks/results/privacy.json after every run, and goes on from there.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from pathlib import Path
from typing import Any

from augmentation import accuracies, configured
from records import RESULTS

from distmeta.algorithms import privacy
from distmeta.bench.measure import setting, write_json
from distmeta.drive.train import prepare_store
from distmeta.evaluation.metrics import interval
from distmeta.tasks.store import open_store

SEED = 2**60 + 1  # published, so that nothing is private here: made-up reviews are public
CLIP, DELTA = 0.1, 1e-3


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--noises", default="0.1,1,4")
    parser.add_argument("--steps", type=int, default=60, help="meta-steps of each run")
    parser.add_argument("--episodes", type=int, default=200, help="meta-test episodes")
    parser.add_argument("--out", type=Path, default=RESULTS / "privacy.json")
    options = parser.parse_args()
    import numpy as np
    import torch
    import torch.distributed as dist

    torch.set_num_threads(1)
    record: dict[str, Any] = json.loads(options.out.read_text()) if options.out.exists() else {"runs": {}}
    with tempfile.TemporaryDirectory(prefix="distmeta-group-") as place:
        dist.init_process_group("gloo", init_method=f"file://{place}/group", world_size=1, rank=0)
        for noise in ["none", *options.noises.split(",")]:
            if noise in record["runs"]:
                continue
            asked = [f"outer.privacy={{noise: {noise}, clip: {CLIP}, delta: {DELTA}}}"] if noise != "none" else []
            config = configured("none", SEED, options.steps, asked)
            score = interval(np.array(accuracies(config, options.episodes)))
            spent = privacy.spent(config, open_store(prepare_store(config)), options.steps)
            record["runs"][noise] = {"accuracy": score, **spent}
            print(noise, record["runs"][noise], flush=True)
            record |= {
                **setting({"runs": SEED}), "meta_steps": options.steps, "clip": CLIP, "delta": DELTA,
                "episodes": options.episodes,
            }  # fmt: skip
            write_json(options.out, record)
        dist.destroy_process_group()


if __name__ == "__main__":
    main()
