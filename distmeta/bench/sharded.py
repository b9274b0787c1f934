"""Outer steps as the ranks of a group take them, and as one process does with torch alone: for `distmeta check`.

Both take the same meta-batches, and the learner's own meta-gradients; what differs is the sharing out, the reduction,
the clipping and the optimizer's shards.
"""

from __future__ import annotations

import json
import os
import tempfile
import time
import warnings
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from distmeta.algorithms.schedule import outer_lr
from distmeta.config import Config, make_config
from distmeta.config.algorithms import load_algorithm
from distmeta.learner.engine import make_optimizer, set_lr
from distmeta.learner.gradients import meta_gradients
from distmeta.learner.ranks import episodes_of_rank
from distmeta.learner.state import fast_shards, initial_values, make_engine
from distmeta.models.build import build_for
from distmeta.models.sharding import frozen_shards
from distmeta.tasks.episodes.episode import sample_episode
from distmeta.tasks.rows import Episode
from distmeta.tasks.store import TaskStore, open_store

Params = dict[str, Tensor]

OUTER_STEPS = 3
TIMEOUT_S = 300


def episodes_of(config: Config, store: TaskStore, step: int) -> list[Episode]:
    """The whole meta-batch of meta-step `step`, as a run's ranks have it between them."""
    size = config.outer.meta_batch_size
    return [
        sample_episode(store, config.task, config.run.seed, "train", i) for i in range((step - 1) * size, step * size)
    ]


class ShardedGroup:
    """Processes that take outer steps as the ranks of a run do, on gloo; `result` waits for them."""

    def __init__(self, config: Config, store: TaskStore, ranks: int) -> None:
        from torch.multiprocessing.spawn import start_processes

        self._folder = tempfile.TemporaryDirectory(prefix="distmeta-check-")
        settings = (ranks, config.model_dump(mode="json"), str(store.path), self._folder.name)
        self._context: Any = start_processes(  # type: ignore[no-untyped-call]
            sharded_rank, settings, nprocs=ranks, join=False, daemon=True, start_method="spawn"
        )

    def __enter__(self) -> ShardedGroup:
        return self

    def __exit__(self, *error: object) -> None:
        for process in self._context.processes:
            if process.is_alive():
                process.kill()
            process.join()
        self._folder.cleanup()

    def result(self) -> tuple[Params, list[float]]:
        """(meta-parameters, gradient norms) after the steps. Raises RuntimeError with a rank's traceback."""
        from safetensors.torch import load_file

        deadline = time.monotonic() + TIMEOUT_S
        while not self._context.join(timeout=1):
            if time.monotonic() > deadline:
                raise TimeoutError(f"the ranks of the sharded step did not end within {TIMEOUT_S} s")
        norms = json.loads((Path(self._folder.name) / "norms.json").read_text(encoding="utf-8"))
        return load_file(Path(self._folder.name) / "meta.safetensors"), norms


def sharded_rank(rank: int, ranks: int, content: dict[str, Any], store_path: str, folder: str) -> None:
    """One rank: the learner's own meta-gradients and engine."""
    import torch.distributed as dist
    from safetensors.torch import save_file

    warnings.simplefilter("ignore", FutureWarning)  # torch names a successor of a collective that DeepSpeed uses
    os.environ |= {"RANK": str(rank), "WORLD_SIZE": str(ranks), "LOCAL_RANK": str(rank), "DS_ACCELERATOR": "cpu"}
    torch.set_num_threads(max(1, (os.cpu_count() or 1) // ranks))
    dist.init_process_group("gloo", init_method=f"file://{folder}/store", world_size=ranks, rank=rank)
    config, store = make_config(content), open_store(store_path)
    device = torch.device("cpu")
    model = build_for(config, store, fast_shards(config, device) or frozen_shards(config, device))
    engine = make_engine(initial_values(config, model), config, model, device)
    algorithm = load_algorithm(config.algorithm)
    total = config.outer.meta_batch_size
    norms = []
    for step in range(1, OUTER_STEPS + 1):
        share = [episodes_of(config, store, step)[j] for j in episodes_of_rank(config, total, rank, ranks)]
        grads, _ = meta_gradients(model, engine.snapshot(), algorithm, config, store, share, step, device)
        scale = engine.averaged_over / total
        norms.append(engine.step({name: g * scale for name, g in grads.items()}, outer_lr(config, step)))
    after = engine.parameters(list(engine.shapes))
    if rank == 0:
        save_file(after, Path(folder) / "meta.safetensors")
        (Path(folder) / "norms.json").write_text(json.dumps(norms), encoding="utf-8")
    dist.barrier()
    dist.destroy_process_group()


def plain_steps(config: Config, store: TaskStore) -> tuple[Params, Params, list[float]]:
    """(meta-parameters before, after, gradient norms) of the same steps in one process, with torch alone."""
    device = torch.device("cpu")
    model = build_for(config, store)
    algorithm = load_algorithm(config.algorithm)
    before = {name: value.detach().clone() for name, value in initial_values(config, model).items()}
    params = {name: torch.nn.Parameter(value.clone()) for name, value in before.items()}
    optimizer = make_optimizer(params, config)
    clip = float(config.deepspeed.get("gradient_clipping", 0.0))
    norms = []
    for step in range(1, OUTER_STEPS + 1):
        meta = {name: p.detach().clone() for name, p in params.items()}
        episodes = episodes_of(config, store, step)
        grads, _ = meta_gradients(model, meta, algorithm, config, store, episodes, step, device)
        for name, p in params.items():
            p.grad = grads[name] / len(episodes)
        most = clip if clip > 0 else float("inf")
        norms.append(float(torch.nn.utils.clip_grad_norm_(list(params.values()), most)))
        set_lr(optimizer, outer_lr(config, step))
        optimizer.step()
    return before, {name: p.detach() for name, p in params.items()}, norms
