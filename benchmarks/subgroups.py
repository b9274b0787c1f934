"""What does `outer.worst_subgroup` do for a subgroup that is rare?

    python benchmarks/subgroups.py [--seeds 0 1 2] [--share 0.1] [--steps 1000]

The built-in reviews without the names of the products; a share of the rows of every label and domain is in a dialect:
each word is another one. A small encoder from random weights meets those words seldom. Two ways to train on the same
steps, with and without outer.worst_subgroup; meta-test accuracy of each subgroup on the same 300 episodes of domains
never seen. Writes benchmarks/results/subgroups.json.
"""

from __future__ import annotations

import argparse
import json
import os
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
import torch.distributed as dist
from data_weights import REVIEWS
from records import RESULTS

from distmeta.bench.measure import setting
from distmeta.config import load_config
from distmeta.learner.worker import learn
from distmeta.runs.checkpoint import write_text
from distmeta.tasks.build import build_store
from distmeta.tasks.reviews import make_reviews
from distmeta.tasks.store import open_store

RESULT = RESULTS / "subgroups.json"
WAYS = {"plain": False, "worst_subgroup": True}
KEYS = ("accuracy", "accuracy:common", "accuracy:dialect", "worst_subgroup", "subgroup_gap")


def reviews(share: float, seed: int) -> pa.Table:
    """The reviews, with a column `speech`: common or dialect."""
    rng, rows = np.random.default_rng(seed), make_reviews(0).to_pylist()
    for row in rows:
        row["text"] = row["text"].replace(row["task"], "thing")
        row["speech"] = "dialect" if rng.random() < share else "common"
        if row["speech"] == "dialect":
            row["text"] = " ".join(f"{word}ish" if word.isalpha() else word for word in row["text"].split())
    return pa.Table.from_pylist(rows)


def trained(table: pa.Table, keys: list[str]) -> dict[str, Any]:
    """Meta-test scores of each subgroup."""
    with tempfile.TemporaryDirectory() as folder:
        path, run = Path(folder) / "rows.parquet", Path(folder) / "run"
        pq.write_table(table, path)
        config = load_config("default", [*REVIEWS, *keys, f"data.path={path}", f"data.cache={folder}/cache"])
        store = open_store(build_store(config.data, config.task, config.model))
        run.mkdir()
        learn(config, run, store.path, [], 0, 1, torch.device("cpu"))
        scores = json.loads((run / "evaluation.json").read_text())["meta_trained"]
    return {key: {part: round(scores[key][part], 4) for part in ("mean", "low", "high")} for key in KEYS}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--share", type=float, default=0.1, help="of the rows that are in the dialect")
    parser.add_argument("--steps", type=int, default=1000)
    options = parser.parse_args()
    torch.set_num_threads(1)
    os.environ.setdefault("LOCAL_RANK", "0")  # which DeepSpeed asks for
    dist.init_process_group("gloo", init_method=f"file://{tempfile.mkdtemp()}/group", rank=0, world_size=1)
    record: dict[str, Any] = {
        "setting": setting({"runs": options.seeds}),
        "share": options.share,
        "steps": options.steps,
        "runs": [],
    }
    for seed in options.seeds:
        table = reviews(options.share, seed)
        for way, worst in WAYS.items():
            keys = [
                f"outer.steps={options.steps}",
                f"run.seed={seed}",
                "data.subgroup=speech",
                f"outer.worst_subgroup={worst}",
            ]
            record["runs"].append({"seed": seed, "way": way, **trained(table, keys)})
            write_text(RESULT, json.dumps(record, indent=1) + "\n")
            print(seed, way, {key: record["runs"][-1][key]["mean"] for key in KEYS}, flush=True)


if __name__ == "__main__":
    main()
