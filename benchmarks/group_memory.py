"""What memory does a meta-step of all parameters take: the group on one episode, against each rank on its own?

    python benchmarks/group_memory.py [--layers 12] [--width 768] [--ranks 2] [--json FILE]

The same decoder (float32, from config), FOMAML, 2 inner steps, ZeRO 3, a meta-batch of an episode for each rank, each
way in processes of its own:

    group    cluster.episode=group: fast weights, gradients and meta-parameters in shards, a weight gathered at a time
    rank     each rank adapts to an episode of its own, with all fast weights whole; the engine's state is in shards

Resident is the peak of resident memory of the largest rank, less what a process has that has imported everything and
read the tasks. Gathered bytes are counted for as long as anybody holds them.
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
from zero3_memory import resident

from distmeta.config import Config, make_config
from distmeta.config.algorithms import load_algorithm
from distmeta.learner.gradients import meta_gradients
from distmeta.learner.ranks import episodes_of_rank
from distmeta.learner.state import fast_shards, initial_values, make_engine
from distmeta.models.build import build_model
from distmeta.models.fast_shards import keep_heap_whole
from distmeta.tasks.build import build_store
from distmeta.tasks.episodes.episode import sample_episode
from distmeta.tasks.store import open_store

WAYS = ("group", "rank")
SEED = 0
CPU = torch.device("cpu")


def config(layers: int, width: int, ranks: int, episode: str) -> Config:
    return make_config({
        "model": {
            "architecture": "llama", "max_tokens": 12, "vocab_size": 200,
            "config": {"hidden_size": width, "num_hidden_layers": layers, "num_attention_heads": width // 64,
                       "num_key_value_heads": width // 64, "intermediate_size": 4 * width},
        },
        "task": {"shots": 2, "queries": 2}, "algorithm": "fomaml",
        "inner": {"lr": 0.01, "steps": 2, "buckets": 1}, "outer": {"lr": 1e-3, "eps": 1e-2, "meta_batch_size": ranks},
        "deepspeed": {"zero_optimization": {"stage": 3}}, "run": {"seed": SEED},
        "cluster": {"workers": ranks, "episode": episode},
    })  # fmt: skip


def settled() -> int:
    gc.collect()
    ctypes.CDLL("libc.so.6").malloc_trim(0)
    dist.barrier()
    return resident("VmRSS")


def main_rank(rank: int, world: int, folder: Path, way: str, store_path: Path, layers: int, width: int) -> None:
    import deepspeed  # noqa: F401 (its memory is no part of a step's)

    torch.set_num_threads(1)
    keep_heap_whole()  # in both ways
    dist.init_process_group("gloo", init_method=f"file://{folder}/group-{way}", world_size=world, rank=rank)
    settings = config(layers, width, world, way)
    store = open_store(store_path)
    tiny = config(1, 64, world, way)
    build_model(tiny, store.vocab_size, store.pad_id, len(store.labels))  # what is imported at the first model
    bare = settled()
    shards = fast_shards(settings, CPU)
    model = build_model(settings, store.vocab_size, store.pad_id, len(store.labels), shards)
    shapes = shards.shapes if shards else {name: p.shape for name, p in model.fast.items()}
    parameters = sum(shape.numel() for shape in shapes.values())
    engine = make_engine(initial_values(settings, model), settings, model, CPU)
    built = resident("VmHWM") - bare
    at_rest = settled() - bare
    if shards:
        shards.peak, shards.seconds = 0, 0.0
    Path("/proc/self/clear_refs").write_text("5")  # the peak starts anew
    share_ = episodes_of_rank(settings, world, rank, world)
    episodes = [sample_episode(store, settings.task, SEED, "train", j) for j in share_]
    began = time.perf_counter()
    grads, sums = meta_gradients(model, engine.snapshot(), load_algorithm("fomaml"), settings, store, episodes, 1, CPU)
    seconds = time.perf_counter() - began
    norm = engine.step({name: g * (engine.averaged_over / world) for name, g in grads.items()}, settings.outer.lr)
    report = {
        "parameters": parameters, "bare": bare, "built_peak": built, "at_rest": at_rest,
        "step_peak": resident("VmHWM") - bare, "seconds": seconds, "loss": sums[0], "grad_norm": norm,
    }  # fmt: skip
    if shards:
        report |= {
            "gathered_peak": shards.peak, "largest_weight": 4 * max(s.numel() for s in shards.shapes.values()),
            "small": 4 * sum(shards.shapes[name].numel() for name in shards.small), "comm_s": shards.seconds,
        }  # fmt: skip
    after = engine.parameters(["backbone.layers.0.mlp.up_proj.weight", "head_weight"])
    if rank == 0:
        save_file(after, folder / f"{way}.safetensors")
    dist.barrier()
    dist.destroy_process_group()
    print(json.dumps(report))


def measure(layers: int, width: int, ranks: int) -> dict[str, Any]:
    settings = config(layers, width, ranks, "rank")
    store = build_store(settings.data, settings.task, settings.model)
    result: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as folder:
        for way in WAYS:
            result[way] = run_group(__file__, ranks, folder, way, str(store), str(layers), str(width))
        ours, theirs = (load_file(Path(folder) / f"{way}.safetensors") for way in WAYS)
    apart = max(float((ours[name] - t).abs().max()) for name, t in theirs.items())
    peaks = {way: max(r["step_peak"] for r in result[way]) for way in WAYS}
    return {
        **about(), "seeds": [SEED], "layers": layers, "width": width, "ranks": ranks, "step_peak": peaks,
        "ratio": peaks["group"] / peaks["rank"], "parameters_apart": apart, "by_rank": result,
    }  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--layers", type=int, default=12)
    parser.add_argument("--width", type=int, default=768)
    parser.add_argument("--ranks", type=int, default=2)
    parser.add_argument("--json", type=Path, default=RESULTS / "group_memory.json")
    arguments = parser.parse_args()
    result = measure(arguments.layers, arguments.width, arguments.ranks)
    arguments.json.write_text(json.dumps(result, indent=1) + "\n")
    for way in WAYS:
        first = result["by_rank"][way][0]
        numbers = [f"{first[key] / 1e6:8.1f}" for key in ("built_peak", "at_rest")] + [
            f"{result['step_peak'][way] / 1e6:8.1f}"
        ]
        print(f"{way:6} MB built, at rest, in a step: {' '.join(numbers)}   {first['seconds']:6.1f} s")
    ours = result["by_rank"]["group"][0]
    print(f"ratio {result['ratio']:.3f}, parameters after the step apart {result['parameters_apart']:.1e}")
    print(
        f"gathered at most {ours['gathered_peak'] / 1e6:.1f} MB at once: the largest weight has "
        f"{ours['largest_weight'] / 1e6:.1f}, all {ours['parameters'] * 4 / 1e6:.1f}"
    )


if __name__ == "__main__":
    if sys.argv[1:2] == ["--rank"]:
        rank, world, folder, way, store, layers, width = sys.argv[2:]
        main_rank(int(rank), int(world), Path(folder), way, Path(store), int(layers), int(width))
    else:
        main()
