"""What the graph of a step takes, measured on the model itself, and what follows: the rows that run at once, and how
many layers are run again instead of being kept.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.autograd.graph import saved_tensors_hooks

from distmeta.config import Config, InnerConfig
from distmeta.models.batch import TextBatch
from distmeta.models.task_model import TaskModel

CPU_BUDGET_MB = 768.0
GPU_SHARE = 0.25  # of a GPU's memory
LEAST_TOKENS = 256  # of a part: fewer no longer keep a processor busy
CPU_TOKENS = 4096  # and more make nothing faster on a CPU


@dataclass(frozen=True)
class Choice:
    """How a group of tasks was run: what inner.memory, part_tokens and task_batch say, or what `auto` made of them.

    steps_kept: of `steps`, those whose graphs were kept; None where no gradient is differentiated.
    """

    part_tokens: int
    tasks: int
    layers_again: int
    layers: int
    steps_kept: int | None
    steps: int

    def __str__(self) -> str:
        kept = "" if self.steps_kept is None else f"the graphs of {self.steps_kept} of {self.steps} inner steps kept, "
        return (
            f"micro-batches of at most {self.part_tokens:,} tokens, {self.tasks} task{'s'[: self.tasks > 1]} at once, "
            f"{kept}{self.layers_again} of {self.layers} layers run again on the way back"
        )


def budget_bytes(inner: InnerConfig, device: torch.device) -> float:
    """inner.budget_mb in bytes, or what is taken in its place."""
    if inner.budget_mb is not None:
        return inner.budget_mb * 2**20
    if device.type == "cuda":
        return GPU_SHARE * torch.cuda.get_device_properties(device).total_memory
    return CPU_BUDGET_MB * 2**20


def part_tokens(model: TaskModel, config: Config, device: torch.device, exact: bool) -> int:
    """Most padded tokens of a micro-batch: inner.part_tokens, or as many as the budget of a step has room for."""
    inner = config.inner
    if inner.part_tokens:
        return inner.part_tokens
    most = CPU_TOKENS * model.work_unit if device.type == "cpu" else 2**31
    if model.fast_shards is not None:
        return most
    price = token_bytes(model, exact, again=config.runs_layers_again)
    return int(max(LEAST_TOKENS * model.work_unit, min(most, budget_bytes(inner, device) / price)))


def fit_layers(
    model: TaskModel, config: Config, device: torch.device, batches: Sequence[TextBatch], exact: bool
) -> int:
    """Have as many layers run again as the largest batch needs to be within the budget, and return their number.

    Under memory=auto alone, and of a model that can.
    """
    if config.runs_layers_again or config.inner.memory != "auto" or model.fast_shards is not None:
        return model.layers.recomputed
    model.layers.recomputed = 0
    count = len(model.layers) - model.entry
    budget = budget_bytes(config.inner, device) / max(batch.tokens for batch in batches)
    kept = token_bytes(model, exact, again=False)
    if count > 0 and kept > budget and model.why_not_again is None:
        saved = kept - token_bytes(model, exact, again=True)
        model.layers.recomputed = min(count, math.ceil(count * (kept - budget) / saved)) if saved > 0 else 0
    return model.layers.recomputed


def token_bytes(model: TaskModel, exact: bool, again: bool) -> float:
    """Bytes a token that the graph of a loss keeps, with all layers in it or with all of them run `again`.

    Measured once, on one row of the longest text, which is differentiated, and for an exact order twice.
    """
    if (exact, again) not in model.token_bytes:
        batch, before, training = model.longest_row(), model.layers.recomputed, model.training
        model.layers.recomputed = len(model.layers) if again else 0
        try:
            size = float(graph_bytes(model.eval(), batch, exact))
        finally:
            model.layers.recomputed = before
            model.train(training)
        if again:  # one layer's own graph is alive at a time, which is no part of what autograd keeps
            size += token_bytes(model, exact, again=False) * batch.tokens / max(1, len(model.layers) - model.entry)
        model.token_bytes[exact, again] = size / batch.tokens
    return model.token_bytes[exact, again]


def graph_bytes(model: TaskModel, batch: TextBatch, exact: bool) -> int:
    """Bytes of what autograd keeps for the gradient of the loss of one task (exact: and of that gradient), each
    storage once, and none that a parameter is in."""
    leaves = {name: v.detach().requires_grad_() for name, v in (model.fast | model.shared).items()}
    fixed = {t.untyped_storage().data_ptr() for t in (*model.parameters(), *leaves.values())}
    kept: dict[int, Tensor] = {}

    def keep(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in fixed:
            kept[storage.data_ptr()] = tensor  # held, so that no other tensor takes its address
        return tensor

    with torch.enable_grad(), saved_tensors_hooks(keep, lambda tensor: tensor):
        started = model.start(leaves, [batch]) if model.starts else {}
        loss = model.loss({**leaves, **started}, batch).sum()
        if exact:
            fast = [leaves[name] for name in model.fast]
            grads = torch.autograd.grad(loss, fast, create_graph=True, allow_unused=True)
            del grads
    return sum(tensor.untyped_storage().nbytes() for tensor in kept.values())
