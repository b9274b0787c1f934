"""One rank of a gloo group that trains small runs through `learn`. Prints one JSON document.

    zero_cases.py WORLD RANK FOLDER CASES.json

CASES.json: {name: configuration}. Of each: the records of the run (in FOLDER/name-WORLD), and the bytes of gathered
base weights.
"""

import json
import sys
from pathlib import Path

import small
import torch
import torch.distributed as dist

from distmeta.config import make_config
from distmeta.learner import worker
from distmeta.models import sharding
from distmeta.tasks.store import build_store


def main(world, rank, folder, cases):
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/group-{world}", world_size=world, rank=rank)
    kept = []

    def shard_frozen(*args):
        kept.append(sharding.shard_frozen(*args))
        return kept[-1]

    worker.shard_frozen = shard_frozen
    report = {}
    for name, settings in json.loads(Path(cases).read_text()).items():
        config = make_config(settings)
        run = folder / f"{name}-{world}"
        run.mkdir(exist_ok=True)
        store = build_store(config.data, config.task, config.model)
        worker.learn(config, run, store, [], rank, world, torch.device("cpu"))
        shards = kept.pop()
        if shards is None:
            report[name] = {"shards": 0}
        else:
            sizes = [s.shape.numel() * s.own.element_size() for s in shards.held if s.own.dim() == 1]
            report[name] = {
                "shards": len(shards.held), "peak": shards.peak, "alive": shards.alive,
                "largest": max(sizes, default=0),
            }  # fmt: skip
        report[name]["records"] = small.records(run)
    dist.destroy_process_group()
    print(json.dumps(report))


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]), Path(sys.argv[3]), sys.argv[4])
