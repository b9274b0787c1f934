"""One rank of a gloo group that trains with outer.keep_base: main(world, rank, STORE, FOLDER, CONFIG)."""

import json
from pathlib import Path

import torch
import torch.distributed as dist

from distmeta.config import Config
from distmeta.drive.train import prepare_store
from distmeta.learner.worker import learn


def main(world, rank, store, folder, text):
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{store}", world_size=world, rank=rank)
    config = Config.model_validate(json.loads(text))
    Path(folder).mkdir(exist_ok=True)
    learn(config, Path(folder), prepare_store(config), [], rank, world, torch.device("cpu"))
    dist.destroy_process_group()
