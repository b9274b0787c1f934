"""What memory does an exact meta-gradient over a frozen base in ZeRO-3 shards take?

    python benchmarks/zero3_memory.py [--layers 12] [--width 1024] [--ranks 2] [--order exact] [--json FILE]

Two ways over the same decoder (float32, LoRA, 2 inner steps, a tiny batch), each in a group of its own:

    distmeta      linears that gather their weight for each product and drop it (distmeta.models.sharding)
    deepspeed     plain linears under DeepSpeed's own hooks: stage 3 over the whole model, its default limits

Growth is the peak of resident memory during the meta-gradient, over what was resident before it: the graph, gathered
weights, communication buffers. Gathered bytes are counted, in the first way, for as long as anybody holds them.
"""

from __future__ import annotations

import argparse
import ctypes
import gc
import json
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from ranks import about, run_group
from records import RESULTS
from safetensors.torch import load_file, save_file

from distmeta.config import Config, make_config
from distmeta.config.algorithms import load_algorithm
from distmeta.learner.gradients import meta_gradients
from distmeta.learner.ranks import share
from distmeta.models.build import build_model
from distmeta.models.sharding import frozen_shards
from distmeta.models.task_model import TaskModel
from distmeta.tasks.build import build_store
from distmeta.tasks.episodes.episode import sample_episode
from distmeta.tasks.store import open_store

WAYS = ("distmeta", "deepspeed")
ALGORITHM = {"exact": "maml", "first_order": "fomaml"}
SEED = 0
CPU = torch.device("cpu")


def config(layers: int, width: int, ranks: int, order: str) -> Config:
    return make_config({
        "model": {
            "architecture": "llama", "max_tokens": 12, "vocab_size": 200,
            "config": {"hidden_size": width, "num_hidden_layers": layers, "num_attention_heads": width // 64,
                       "num_key_value_heads": width // 64, "intermediate_size": 4 * width},
        },
        "task": {"shots": 1, "queries": 1}, "algorithm": ALGORITHM[order],
        "inner": {"adapt": "lora", "lr": 0.01, "steps": 2, "buckets": 1},
        "outer": {"base": "freeze", "meta_batch_size": ranks},
        "deepspeed": {"zero_optimization": {"stage": 3}}, "run": {"seed": SEED}, "cluster": {"workers": ranks},
    })  # fmt: skip


def under_hooks(model: TaskModel, settings: Config) -> Any:
    """DeepSpeed's stage 3 over the whole model; its hooks gather and release each layer's weights."""
    import deepspeed

    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False  # no compiler needed
    # Its hooks read every parameter that they find in a layer, and stumble over fast weights in the adapters' place.
    for module in model.modules():
        for name in [n for n in module._parameters if "lora_" in n]:
            value = module._parameters.pop(name)
            module.register_buffer(name, value.detach())
    model.unused = torch.nn.Parameter(torch.zeros(1))  # it needs something to train
    return deepspeed.initialize(
        model=model, optimizer=torch.optim.SGD([model.unused], lr=0.0), dist_init_required=False,
        config={
            "train_micro_batch_size_per_gpu": 1, "zero_allow_untested_optimizer": True, "gradient_clipping": 0.0,
            "zero_optimization": {"stage": 3, "reduce_bucket_size": 500_000, "overlap_comm": False,
                                  "memory_efficient_linear": False},
        },
    )[0]  # fmt: skip


def resident(key: str) -> int:
    """Bytes of VmRSS (now) or VmHWM (the peak since it was last reset)."""
    line = next(x for x in Path("/proc/self/status").read_text().splitlines() if x.startswith(key))
    return int(line.split()[1]) * 1024


def main_rank(
    rank: int, world: int, folder: Path, way: str, store_path: Path, layers: int, width: int, order: str
) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/group-{way}", world_size=world, rank=rank)
    settings = config(layers, width, world, order)
    store = open_store(store_path)
    shards = frozen_shards(settings, CPU) if way == "distmeta" else None
    model = build_model(settings, store.vocab_size, store.pad_id, len(store.labels), shards)
    parameters = getattr(model, "numbers", None) or sum(p.numel() for p in model.parameters())
    generator = torch.Generator().manual_seed(SEED)  # B of LoRA starts at zero: nothing would reach A
    meta = {n: v.detach() + 0.01 * torch.randn(v.shape, generator=generator) for n, v in model.fast.items()}
    meta |= {n: v.detach().clone() for n, v in model.shared.items()}
    engine = under_hooks(model, settings) if way == "deepspeed" else None
    episodes = [sample_episode(store, settings.task, SEED, "train", j) for j in share(world, rank, world)]
    algorithm = load_algorithm(settings.algorithm)
    gc.collect()
    ctypes.CDLL("libc.so.6").malloc_trim(0)
    dist.barrier()
    before = resident("VmRSS")
    Path("/proc/self/clear_refs").write_text("5")  # the peak starts anew
    began = time.perf_counter()
    grads, sums = meta_gradients(model, meta, algorithm, settings, store, episodes, 1, CPU)
    seconds = time.perf_counter() - began
    growth = resident("VmHWM") - before
    save_file({n: g.contiguous() for n, g in grads.items()}, folder / f"{way}-{rank}.safetensors")
    report = {
        "parameters": parameters, "resident_before": before, "growth": growth, "seconds": seconds, "loss": sums[0],
        "grad_norm": float(torch.stack([g.norm() for g in grads.values()]).norm()),
    }  # fmt: skip
    if shards is not None:
        linear = [s.shape.numel() * 4 for s in shards.weights if s.part.dim() == 1]
        report |= {
            "weights": len(linear), "base_bytes": sum(linear), "largest_weight": max(linear),
            "one_layer": sum(linear) // layers, "gathered_peak": shards.peak, "gathered_after": shards.alive,
        }  # fmt: skip
    del engine
    dist.barrier()
    dist.destroy_process_group()
    print(json.dumps(report))


def measure(layers: int, width: int, ranks: int, order: str) -> dict[str, Any]:
    settings = config(layers, width, ranks, order)
    store = build_store(settings.data, settings.task, settings.model)
    result: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as folder:
        for way in WAYS:
            result[way] = run_group(__file__, ranks, folder, way, str(store), str(layers), str(width), order)
        apart = 0.0
        for rank in range(ranks):
            ours, theirs = (load_file(Path(folder) / f"{way}-{rank}.safetensors") for way in WAYS)
            norm = max(float(t.norm()) for t in theirs.values())
            apart = max(apart, *(float((ours[n] - t).norm()) / norm for n, t in theirs.items()))
    growth = {way: max(r["growth"] for r in result[way]) for way in WAYS}
    return {
        **about(), "seeds": [SEED], "layers": layers, "width": width, "ranks": ranks, "order": order,
        "growth": growth, "ratio": growth["distmeta"] / growth["deepspeed"], "gradients_apart": apart,
        "by_rank": result,
    }  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--layers", type=int, default=12)
    parser.add_argument("--width", type=int, default=1024)
    parser.add_argument("--ranks", type=int, default=2)
    parser.add_argument("--order", choices=list(ALGORITHM), default="exact")
    parser.add_argument("--json", type=Path, default=RESULTS / "zero3_memory.json")
    arguments = parser.parse_args()
    result = measure(arguments.layers, arguments.width, arguments.ranks, arguments.order)
    arguments.json.write_text(json.dumps(result, indent=1) + "\n")
    for way in WAYS:
        first = result["by_rank"][way][0]
        growth = result["growth"][way] / 1e6
        print(f"{way:10} growth {growth:8.1f} MB   {first['seconds']:6.1f} s   loss {first['loss']:.6f}")
    ours = result["by_rank"]["distmeta"][0]
    print(f"ratio {result['ratio']:.3f}, gradients apart {result['gradients_apart']:.1e} of the largest's norm")
    print(
        f"gathered at most {ours['gathered_peak'] / 1e6:.1f} MB at once: the largest weight has "
        f"{ours['largest_weight'] / 1e6:.1f}, a layer {ours['one_layer'] / 1e6:.1f}, "
        f"the base {ours['base_bytes'] / 1e6:.1f}"
    )


if __name__ == "__main__":
    if sys.argv[1:2] == ["--rank"]:
        rank, world, folder, way, store, layers, width, order = sys.argv[2:]
        main_rank(int(rank), int(world), Path(folder), way, Path(store), int(layers), int(width), order)
    else:
        main()
