"""One rank of a gloo group that trains runs a part of their way, from where the group before left them.

main(world, rank, STORE, FOLDER, DATA, RUN:STEPS...): every variant is trained in FOLDER/VARIANT/RUN up to STEPS.
Checkpoints are written in parts, however small; prints the names of what one of `all` consists of.
"""

import json
from pathlib import Path

import small
import torch
import torch.distributed as dist

from distmeta.learner import saver
from distmeta.learner.worker import learn
from distmeta.tasks.build import build_store

VARIANTS = {
    "adapter over a base in shards": {
        "inner": {"adapt": "lora", "learn_lr": "per_layer"}, "outer": {"base": "freeze"},
        "deepspeed": {"zero_optimization": {"stage": 3, "stage3_param_persistence_threshold": 500}},
    },
    "all": {"deepspeed": {"zero_optimization": {"stage": 3}}},
    "group": {
        "cluster": {"episode": "group"}, "algorithm": "fomaml", "inner": {"learn_lr": "per_layer"},
        "deepspeed": {"zero_optimization": {"stage": 3, "stage3_param_persistence_threshold": 500}},
    },
}  # fmt: skip


def setting(data, variant, steps):
    short = {"outer": {"steps": steps}, "run": {"checkpoint_every": 1}, "eval": {"episodes": 2, "baselines": False}}
    return small.config(data, **small.merge(short, VARIANTS[variant]))


def main(world, rank, store, folder, data, *runs):
    torch.set_num_threads(1)
    saver.PART_BYTES = 0
    dist.init_process_group("gloo", init_method=f"file://{store}", world_size=world, rank=rank)
    for variant in VARIANTS:
        for run, steps in (word.split(":") for word in runs):
            config = setting(Path(data), variant, int(steps))
            place = Path(folder) / variant / run
            place.mkdir(parents=True, exist_ok=True)
            tasks = build_store(config.data, config.task, config.model)
            learn(config, place, tasks, [], rank, world, torch.device("cpu"))
            dist.barrier()
    dist.destroy_process_group()
    newest = max((Path(folder) / "all" / "moved" / "checkpoints").glob("step-*"))
    print(json.dumps(sorted(p.name for p in newest.iterdir())))
