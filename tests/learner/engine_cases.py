"""One rank of a gloo group that runs all cases of test_engine.py in one process start. Prints one JSON document.

main(world, rank, FOLDER): each group does three steps, writes its optimizer state, waits for the state that the group
of another size wrote (1 reads what 2 wrote, 2 reads 3, 3 reads 1), and goes on from that one for two steps.
"""

import itertools
import json
import time
from pathlib import Path

import small
import torch
import torch.distributed as dist
from safetensors.torch import load_file, save_file

from distmeta.learner.engine import MetaEngine, make_optimizer, set_lr
from distmeta.learner.ranks import share

WORLDS = (1, 2, 3)
PARTS = 6  # of a meta-batch: whole shares for each group
SHAPES = {"matrix": (7, 5), "scalar": (), "bias": (3,), "wide": (2, 3, 4), "log_lr.wide": (2,)}
OPTIMIZERS = {
    "adamw": {"optimizer": "adamw", "eps": 1e-2, "weight_decay": 0.1},  # a large eps shows a wrong gradient's scale
    "momentum": {"optimizer": "sgd", "momentum": 0.9},
    "sgd": {"optimizer": "sgd"},
    "rates": {"optimizer": "sgd", "momentum": 0.9, "rate_lr": 0.5},
}
CASES = list(itertools.product((0, 1, 2, 3), ("adamw", "rates"), (0.5,)))  # "rates" has momentum, in two groups
CASES += [(stage, "sgd", 0.5) for stage in (1, 3)]
CASES += [(stage, "adamw", 0.0) for stage in (0, 2)] + [(stage, "adamw", 0.5, "offload") for stage in (1, 3)]
LR = {1: 0.05, 2: 0.02, 3: 0.05, 4: 0.01, 5: 0.03}  # of each step: a schedule must reach the shards


def config(stage, optimizer, clip, offload=None):
    zero = {"stage": stage} | ({"offload_optimizer": {"device": "cpu"}} if offload else {})
    return small.config(
        outer={"lr": 0.05, **OPTIMIZERS[optimizer]},
        deepspeed={"zero_optimization": zero, "gradient_clipping": clip},
    )


def values():
    generator = torch.Generator().manual_seed(0)
    return {name: torch.randn(shape, generator=generator) for name, shape in SHAPES.items()}


def gradients(step, parts):
    """The mean over some of the parts of a meta-batch."""
    total = {name: torch.zeros(shape) for name, shape in SHAPES.items()}
    for part in parts:
        generator = torch.Generator().manual_seed(100 * step + part)
        for name, shape in SHAPES.items():
            total[name] += torch.randn(shape, generator=generator) / len(parts)
    return total


def of_rank(step, world, rank):
    return gradients(step, share(PARTS, rank, world))


def reference(case):
    """Parameters and gradient norms after 1..5 steps of plain torch in one process."""
    settings = config(*case)
    params = {name: torch.nn.Parameter(value) for name, value in values().items()}
    optimizer = make_optimizer(params, settings)
    after, norms = [], []
    for step in range(1, 6):
        for name, g in gradients(step, range(PARTS)).items():
            params[name].grad = g
        limit = case[2] or float("inf")
        norms.append(float(torch.nn.utils.clip_grad_norm_(params.values(), limit)))
        set_lr(optimizer, LR[step])
        optimizer.step()
        after.append({name: p.detach().clone() for name, p in params.items()})
    return after, norms


def apart(found, expected):
    return max(float((found[name] - expected[name]).abs().max()) for name in SHAPES)


def write(folder, world, name, tensors):
    draft = folder / f".draft-{world}-{name}"
    save_file(tensors, draft)
    draft.rename(folder / f"{world}-{name}")


def wait(file):
    for _ in range(5000):  # on a machine with other work as well
        if file.exists():
            return load_file(file)
        time.sleep(0.1)
    raise TimeoutError(file)


def main(world, rank, folder):
    folder = Path(folder)
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/store-{world}", world_size=world, rank=rank)
    report = {}
    for case in CASES:
        after, norms = reference(case)
        name = "-".join(map(str, case))
        engine = MetaEngine(values(), config(*case), torch.device("cpu"))
        found = [engine.step(of_rank(s, world, rank), LR[s]) for s in (1, 2, 3)]
        state, meta = engine.optimizer_state(), engine.snapshot()
        report[name] = {
            "apart": apart(meta, after[2]),
            "norm": max(abs(a - b) / b for a, b in zip(found, norms, strict=False)),
            "keys": sorted(state),
        }
        if rank == 0:
            write(folder, world, name, {**{f"meta:{k}": v for k, v in meta.items()}, **state})
        undisturbed = [engine.step(of_rank(s, world, rank), LR[s]) for s in (4, 5)]
        report[name]["undisturbed"] = apart(engine.snapshot(), after[4])
        report[name]["continued"] = {}
        for source in (world, world % 3 + 1):  # its own state: the very same numbers; the other group's: to rounding
            saved = wait(folder / f"{source}-{name}")
            start = {k: saved.pop(f"meta:{k}") for k in SHAPES}
            again = MetaEngine(start, config(*case), torch.device("cpu"))
            again.load_optimizer_state(saved, 3)
            more = [again.step(of_rank(s, world, rank), LR[s]) for s in (4, 5)]
            ended, meta = engine.snapshot(), again.snapshot()  # by all ranks, whatever each of them finds
            same = all(torch.equal(v, ended[k]) for k, v in meta.items())
            report[name]["continued"][source] = {
                "apart": apart(meta, after[4]), "identical": same and more == undisturbed,
            }  # fmt: skip
        dist.barrier()
    dist.destroy_process_group()
    print(json.dumps(report))
