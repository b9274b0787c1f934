"""One rank of a gloo group that trains small runs through `learn`. Prints one JSON document.

main(world, rank, FOLDER, CASES.json): {name: configuration}. Of each: the records of the run (in FOLDER/name-WORLD),
and the bytes of gathered base weights, or of all weights where the group works on one episode. In a group of several,
`uneven` says how ranks fare that use weights in different orders and numbers.
"""

import json
from pathlib import Path

import small
import torch
import torch.distributed as dist

from distmeta.config import make_config
from distmeta.learner import worker
from distmeta.models import sharding
from distmeta.tasks.build import build_store


def uneven(world, rank):
    """Each rank gathers other weights, another number of times, looks ids up in between; then the last one fails."""
    generator = torch.Generator().manual_seed(0)
    weights = [torch.randn(7, 5 + i, generator=generator) for i in range(3)]
    table = torch.randn(11, 5, generator=generator)
    shards = sharding.Shards(torch.device("cpu"), 60)
    fetch = [shards.add_linear(w) for w in weights]
    look_up = shards.add_embedding(table)
    right = True
    with shards.together():
        for i in range(3 + 4 * rank):
            place = (i * (rank + 1) + rank) % 3
            right &= torch.equal(fetch[place](), weights[place])
            if i % 2 == rank % 2:
                ids = torch.arange(2 + rank).view(1, -1)
                right &= torch.equal(look_up(ids), table[ids])
    found = {"right": right, "peak": shards.peak, "alive": shards.alive}
    held = fetch[0] if rank else None
    with shards.together():  # a weight that is still held is not written over
        if held is not None:
            kept = held()
            other = fetch[1]()
            found["kept"] = torch.equal(kept, weights[0]) and torch.equal(other, weights[1])
    try:
        with shards.together():
            if rank == world - 1:
                raise ArithmeticError("of its own")
            for _ in range(100):
                fetch[0]()
    except (ArithmeticError, sharding.RankFailed) as error:
        found["error"] = f"{type(error).__name__}: {error}"
    return found


def main(world, rank, folder, cases):
    folder = Path(folder)
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/group-{world}", world_size=world, rank=rank)
    kept = []

    def frozen_shards(*args):
        kept.append(sharding.frozen_shards(*args))
        return kept[-1]

    def fast_shards(*args):
        whole_weights.append(right_fast_shards(*args))
        return whole_weights[-1]

    right_fast_shards, whole_weights = worker.fast_shards, []
    worker.frozen_shards, worker.fast_shards = frozen_shards, fast_shards
    report = {}
    for name, settings in json.loads(Path(cases).read_text()).items():
        config = make_config(settings)
        run = folder / f"{name}-{world}"
        run.mkdir(exist_ok=True)
        store = build_store(config.data, config.task, config.model)
        worker.learn(config, run, store, [], rank, world, torch.device("cpu"))
        shards, fast = kept.pop() if kept else None, whole_weights.pop()
        if fast is not None:
            sizes = {k: -(-shape.numel() // world) * world * 4 for k, shape in fast.shapes.items()}
            report[name] = {
                "peak": fast.peak, "alive": fast.alive, "largest": max(sizes.values()), "all": sum(sizes.values()),
                "small": sum(sizes[k] for k in fast.small),
            }  # fmt: skip
        elif shards is None:
            report[name] = {"shards": 0}
        else:
            sizes = [s.shape.numel() * s.part.element_size() for s in shards.weights if s.part.dim() == 1]
            report[name] = {
                "shards": len(shards.weights), "peak": shards.peak, "alive": shards.alive,
                "largest": max(sizes, default=0),
            }  # fmt: skip
        report[name]["records"] = small.records(run)
    if world > 1:
        report["uneven"] = uneven(world, rank)
    dist.destroy_process_group()
    print(json.dumps(report))
