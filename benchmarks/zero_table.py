"""Is the sharded outer step the single-process one? Every ZeRO stage, adaptation, order and number of ranks.

    python benchmarks/zero_table.py [--worlds 1 2 3] [--stages 0 1 2 3] [--json FILE]

Each cell: three AdamW steps with clipping, by the learner's own functions (meta_gradients, MetaEngine, frozen_shards),
and the largest difference of any meta-parameter from plain torch in one process, in float32 as well. eps is 1e-2, so
that a gradient of the wrong scale shows: with a small one Adam would hide it. The meta-batch (5 episodes) divides by no
number of ranks but one, and stage 3 shards every frozen matrix of the adapter runs. The rows "group" are
cluster.episode=group: all ranks on each episode, its fast weights in shards, against one process that has them whole.
"""

from __future__ import annotations

import argparse
import itertools
import json
import sys
import tempfile
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from ranks import about, run_group
from records import RESULTS
from safetensors.torch import load_file, save_file
from torch import Tensor

from distmeta.algorithms.rates import initial_log_rates
from distmeta.config import Config, make_config
from distmeta.config.algorithms import load_algorithm
from distmeta.errors import InputError
from distmeta.learner.engine import make_optimizer
from distmeta.learner.gradients import meta_gradients
from distmeta.learner.ranks import episodes_of_rank
from distmeta.learner.state import fast_shards, initial_values, make_engine
from distmeta.models.build import build_model
from distmeta.models.sharding import frozen_shards
from distmeta.models.task_model import TaskModel
from distmeta.tasks.build import build_store
from distmeta.tasks.episodes.episode import sample_episode
from distmeta.tasks.store import TaskStore, open_store

STAGES = (0, 1, 2, 3)
WORLDS = (1, 2, 3)
ADAPT = {
    "adapter": {"inner": {"adapt": "lora", "learn_lr": "per_layer"}, "outer": {"base": "freeze"}},
    "all parameters": {"inner": {"adapt": "all"}},
}
ORDERS = {"first_order": "fomaml", "exact": "maml", "reptile": "reptile"}
STEPS, SEED = 3, 0
CPU = torch.device("cpu")


def config(stage: int, adapt: str, order: str, episode: str = "rank") -> Config:
    inner = {"lr": 0.2, "steps": 2, "task_batch": 2, **ADAPT[adapt]["inner"]}
    if order == "reptile":
        inner.pop("learn_lr", None)  # it learns no rates
    return make_config({
        "model": {
            "architecture": "llama", "max_tokens": 16, "vocab_size": 200,
            "config": {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "num_key_value_heads": 1,
                       "intermediate_size": 64},
        },
        "task": {"shots": 3, "queries": 4}, "inner": inner, "algorithm": ORDERS[order],
        "outer": {"lr": 0.01, "eps": 1e-2, "weight_decay": 0.01, "meta_batch_size": 5, "steps": STEPS,
                  **ADAPT[adapt].get("outer", {})},
        "deepspeed": {
            "zero_optimization": {"stage": stage, "stage3_param_persistence_threshold": 0}, "gradient_clipping": 0.05,
        },
        "run": {"seed": SEED, "timeout_s": 120}, "cluster": {"workers": 1, "episode": episode},
    })  # fmt: skip


def kinds(stages: list[int]) -> list[tuple[int, str]]:
    """(stage, who works on an episode): the whole group only at stage 3."""
    return [(stage, "rank") for stage in stages] + ([(3, "group")] if 3 in stages else [])


def cell(stage: int, episode: str, adapt: str, order: str, world: int) -> str:
    return f"{stage}{' group' if episode == 'group' else ''}/{adapt}/{order}/{world}"


def start(settings: Config, store: TaskStore) -> tuple[TaskModel, dict[str, Tensor]]:
    model = build_model(settings, store.vocab_size, store.pad_id, len(store.labels))
    return model, {**model.fast, **model.shared, **initial_log_rates(settings.inner, model.adapted)}


def gradients(
    model: TaskModel, meta: dict[str, Tensor], settings: Config, store: TaskStore, step: int, mine: range
) -> dict[str, Tensor]:
    total = settings.outer.meta_batch_size
    episodes = [sample_episode(store, settings.task, SEED, "train", (step - 1) * total + j) for j in mine]
    algorithm = load_algorithm(settings.algorithm)
    return meta_gradients(model, meta, algorithm, settings, store, episodes, step, CPU)[0]


def reference(settings: Config, store: TaskStore) -> tuple[dict[str, Tensor], list[float]]:
    """Plain torch, one process; the gradient norms too, which clipping must reach."""
    model, values = start(settings, store)
    params = {name: torch.nn.Parameter(value.detach().clone()) for name, value in values.items()}
    optimizer = make_optimizer(params, settings)
    total, norms = settings.outer.meta_batch_size, []
    for step in range(1, STEPS + 1):
        meta = {name: p.detach().clone() for name, p in params.items()}
        for name, g in gradients(model, meta, settings, store, step, range(total)).items():
            params[name].grad = g / total
        limit = settings.deepspeed["gradient_clipping"]
        norms.append(float(torch.nn.utils.clip_grad_norm_(params.values(), limit)))
        optimizer.step()
    return {name: p.detach().clone() for name, p in params.items()}, norms


def sharded(settings: Config, store: TaskStore, rank: int, world: int) -> dict[str, Tensor]:
    """The learner's way, on this rank of a group."""
    shards = fast_shards(settings, CPU) or frozen_shards(settings, CPU)
    model = build_model(settings, store.vocab_size, store.pad_id, len(store.labels), shards)
    engine = make_engine(initial_values(settings, model), settings, model, CPU)
    total = settings.outer.meta_batch_size
    for step in range(1, STEPS + 1):
        episodes = episodes_of_rank(settings, total, rank, world)
        grads = gradients(model, engine.snapshot(), settings, store, step, episodes)
        engine.step({name: g * (engine.averaged_over / total) for name, g in grads.items()}, settings.outer.lr)
    return engine.parameters(list(engine.shapes))


def main_rank(rank: int, world: int, folder: Path, store_path: Path, stages: list[int]) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/group-{world}", world_size=world, rank=rank)
    store = open_store(store_path)
    cells = {}
    for adapt, order, (stage, episode) in itertools.product(ADAPT, ORDERS, kinds(stages)):
        expected = load_file(folder / f"{adapt}-{order}.safetensors")
        name = cell(stage, episode, adapt, order, world)
        try:
            result = sharded(config(stage, adapt, order, episode), store, rank, world)
        except InputError as refused:
            cells[name] = {"refused": str(refused)}
            continue
        cells[name] = {"difference": max(float((result[n] - v).abs().max()) for n, v in expected.items())}
    dist.destroy_process_group()
    print(json.dumps(cells))


def measure(worlds: list[int], stages: list[int]) -> dict[str, Any]:
    torch.set_num_threads(1)
    settings = config(1, "adapter", "exact")
    store_path = build_store(settings.data, settings.task, settings.model)
    store = open_store(store_path)
    cells: dict[str, Any] = {}
    moved, norms = {}, {}
    with tempfile.TemporaryDirectory() as folder:
        for adapt, order in itertools.product(ADAPT, ORDERS):
            settings = config(1, adapt, order)
            after, norms[f"{adapt}/{order}"] = reference(settings, store)
            before = start(settings, store)[1]
            moved[f"{adapt}/{order}"] = max(float((after[n] - v).abs().max()) for n, v in before.items())
            save_file(after, Path(folder) / f"{adapt}-{order}.safetensors")
        for world in worlds:
            reports = run_group(__file__, world, folder, str(store_path), *map(str, stages))
            for name in reports[0]:
                refused = reports[0][name].get("refused")
                worst = max((r[name]["difference"] for r in reports if "difference" in r[name]), default=None)
                cells[name] = {"refused": refused} if refused else {"difference": worst}
    return {**about(), "seeds": [SEED], "steps": STEPS, "moved": moved, "gradient_norms": norms, "cells": cells}


def table(result: dict[str, Any], worlds: list[int], stages: list[int]) -> str:
    lines = ["| stage | ranks | " + " | ".join(f"{a}, {o}" for a in ADAPT for o in ORDERS) + " |"]
    lines.append("|---" * (2 + len(ADAPT) * len(ORDERS)) + "|")
    for (stage, episode), world in itertools.product(kinds(stages), worlds):
        row = [result["cells"][cell(stage, episode, a, o, world)] for a in ADAPT for o in ORDERS]
        cells = ["refused" if c.get("refused") else f"{c['difference']:.1e}" for c in row]
        lines.append(f"| {stage}{', group' if episode == 'group' else ''} | {world} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--worlds", type=int, nargs="+", default=list(WORLDS))
    parser.add_argument("--stages", type=int, nargs="+", default=list(STAGES))
    parser.add_argument("--json", type=Path, default=RESULTS / "zero_table.json")
    arguments = parser.parse_args()
    result = measure(arguments.worlds, arguments.stages)
    arguments.json.write_text(json.dumps(result, indent=1) + "\n")
    print(table(result, arguments.worlds, arguments.stages))
    worst = max(cell.get("difference", 0.0) for cell in result["cells"].values())
    print(f"largest difference {worst:.1e}; the parameters moved by {min(result['moved'].values()):.1e} and more")
    sys.exit(0 if worst <= 1e-5 else 1)


if __name__ == "__main__":
    if sys.argv[1:2] == ["--rank"]:
        rank, world, folder, store, *stages = sys.argv[2:]
        main_rank(int(rank), int(world), Path(folder), Path(store), [int(stage) for stage in stages])
    else:
        main()
