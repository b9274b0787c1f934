"""The baseline multi_task: the same model trained on all meta-train tasks at once, without an inner loop.

In one process; every rank that asks for it computes the same. Under outer.schedule=plateau the rate stays:
there are no meta-validations on the way.
"""

from __future__ import annotations

import torch
from torch import Tensor

from distmeta.algorithms.schedule import outer_lr
from distmeta.config import Config
from distmeta.evaluation.scoring import group_episodes, load_group, with_ways
from distmeta.inner.problem import seeded
from distmeta.models.backbone import set_attention
from distmeta.models.prefix import StateCache, fixed_prefix, is_frozen
from distmeta.models.sharding import all_together
from distmeta.models.task_model import TaskModel
from distmeta.tasks.episodes.episode import sample_episode
from distmeta.tasks.store import TaskStore

Params = dict[str, Tensor]


@all_together
def train_pooled(model: TaskModel, store: TaskStore, config: Config, device: torch.device) -> tuple[Params, Params]:
    """(fast, shared) after `outer.steps` steps of AdamW at the run's rates, on its training episodes, not augmented.

    Tasks with the same labels share the model's head. Where the classes are each episode's own, or the head is made
    of prototypes, a classifier over all classes of the data is trained, and left behind.
    """
    set_attention(model.backbone, "first_order")
    leaves = {n: v.detach().clone().requires_grad_() for n, v in {**model.fast, **model.shared}.items()}
    if model.classes_differ:
        head = model.pooled_head(len(store.labels), config.run.seed)
        leaves |= {n: v.to(device).requires_grad_() for n, v in head.items()}
    loss = model.pooled_loss if model.classes_differ else model.loss_and_hits
    outer = config.outer
    optimizer = torch.optim.AdamW(leaves.values(), outer.lr, outer.betas, outer.eps, outer.weight_decay)
    cache = StateCache(store.rows, config.inner.prefix_mb) if is_frozen(model) and config.inner.prefix_mb else None
    size = config.outer.meta_batch_size
    for step in range(config.outer.steps):
        episodes = [
            sample_episode(store, config.task, config.run.seed, "train", i)
            for i in range(step * size, (step + 1) * size)
        ]
        alone = model.reads_sets and not model.takes_task_axis
        for group in group_episodes(episodes, 1 if alone else 16 if device.type == "cpu" else 32):
            support, query = load_group(group, model, config, store.pad_id, device, training=True)
            batches = [*support, *query]
            if model.classes_differ:
                batches = with_ways(batches, group, store.label_ids)
            for batch in fixed_prefix(model, {}, batches, cache) if is_frozen(model) else batches:
                with seeded(config.noise_seed, ("pooled",), device):
                    value = loss(leaves, batch)[0].sum() / (2 * size)
                value.backward()  # type: ignore[no-untyped-call]
        optimizer.param_groups[0]["lr"] = outer_lr(config, step + 1)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
    return {n: leaves[n].detach() for n in model.fast}, {n: leaves[n].detach() for n in model.shared}
