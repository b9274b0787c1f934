"""What lies below the lowest adapted layer stays the same over the inner steps: it is run once an episode, or a run.

Three cases, by what the outer loop does with those layers:
    frozen for the whole run   their states are kept by example, across meta-steps, within a budget (`StateCache`)
    meta-learnt (true ANIL)    run once with their graph; the states are handed to the inner loop as shared tensors, so
                               that its derivative with respect to them, second order included, is carried on through
                               the graph once (`learnt_prefix`)
    no gradient wanted         run once (`fixed_prefix`): evaluation, adaptation

Letters: N rows, L tokens, D width.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from distmeta.inner.derivatives import once
from distmeta.models.backbone import set_attention
from distmeta.models.batch import TextBatch

if TYPE_CHECKING:
    from distmeta.models.task_model import TaskModel

Params = dict[str, Tensor]
NAME = "states."  # of states among the shared tensors


class StateCache:
    """States of examples, by their row in the task store: ragged [tokens, D] one after another, or pooled [D].

    Rows are taken in as they come until `budget_mb` megabytes are used; then those that are in it stay.
    """

    def __init__(self, rows: int, budget_mb: float) -> None:
        self.limit = int(budget_mb * 2**20)
        self.start: NDArray[np.int64] = np.full(rows, -1, np.int64)
        self.used = 0  # vectors of D numbers
        self.flat: Tensor | None = None
        self.hits = self.misses = 0  # rows so far

    def reach(self, rows: int) -> None:
        """Have a place for as many rows: the store has grown."""
        self.start = np.append(self.start, np.full(rows - len(self.start), -1, np.int64))

    def known(self, rows: NDArray[np.int64]) -> NDArray[np.bool_]:
        return self.start[rows] >= 0

    def put(self, batch: TextBatch, states: Tensor) -> bool:
        """Take in the rows of `batch`, none of which is known; False if there is no room for them."""
        pooled = states.dim() == 2
        rows, place = np.unique(batch.store_rows, return_index=True)
        lengths = np.ones(len(rows), np.int64) if pooled else batch.last.cpu().numpy()[place] + 1
        if self.flat is None:
            room = self.limit // (states.shape[-1] * states.element_size())
            # Memory that is not written to yet costs nothing on a CPU; a GPU gives the whole budget at once.
            self.flat = torch.empty(room, states.shape[-1], dtype=states.dtype, device=states.device)
        if self.used + int(lengths.sum()) > len(self.flat):
            return False
        ends = self.used + np.cumsum(lengths)
        self.start[rows] = ends - lengths
        picked = states[torch.from_numpy(place).to(states.device)]
        if not pooled:
            keep = torch.arange(states.shape[1], device=states.device) <= batch.last[place].unsqueeze(1)
            picked = picked[keep]
        self.flat[self.used : int(ends[-1])] = picked
        self.used = int(ends[-1])
        return True

    def get(self, batch: TextBatch, pooled: bool) -> Tensor:
        """States of the rows of `batch`, all of them known; positions of padding hold another token's, finite."""
        assert self.flat is not None
        start = torch.from_numpy(self.start[batch.store_rows]).to(self.flat.device)
        if pooled:
            return self.flat[start]
        place = torch.arange(batch.input_ids.shape[1], device=start.device)
        return self.flat[start.unsqueeze(1) + torch.minimum(place, batch.last.unsqueeze(1))]


def has_prefix(model: TaskModel) -> bool:
    return model.entry > 0


def is_frozen(model: TaskModel) -> bool:
    """Whether nothing in the prefix is learnt at all, so that its states are an example's for the whole run."""
    return has_prefix(model) and not model.prefix_shared


def fixed_prefix(
    model: TaskModel, values: Mapping[str, Tensor], batches: Sequence[TextBatch], cache: StateCache | None = None
) -> list[TextBatch]:
    """The batches with the states of their rows, without gradient. `values`: parameters that differ from the model's.

    cache: only for a prefix that is frozen and draws no dropout.
    """
    if not has_prefix(model):
        return list(batches)
    kernel = model.backbone.config._attn_implementation  # type: ignore[union-attr]
    set_attention(model.backbone, "first_order")  # nothing is differentiated here
    try:
        with torch.no_grad():
            return [replace(batch, states=_cached(model, values, batch, cache)) for batch in batches]
    finally:
        model.backbone.set_attn_implementation(kernel)  # type: ignore[operator]


def _cached(model: TaskModel, values: Mapping[str, Tensor], batch: TextBatch, cache: StateCache | None) -> Tensor:
    if cache is None:
        return model.prefix_states(values, batch)
    missing = ~cache.known(batch.store_rows)
    cache.misses += int(missing.sum())
    cache.hits += int((~missing).sum())
    if missing.any():
        index = torch.from_numpy(np.flatnonzero(missing)).to(batch.input_ids.device)
        part = batch if missing.all() else batch.of_rows(index)
        states = model.prefix_states(values, part)
        if not cache.put(part, states):
            return states if part is batch else model.prefix_states(values, batch)
    return cache.get(batch, model.entry_is_pooled)


def learnt_prefix(
    model: TaskModel, shared: Mapping[str, Tensor], batches: Sequence[TextBatch]
) -> tuple[list[TextBatch], Params, Params]:
    """(batches that name their states, the states by name with their graph, the leaves of that graph).

    Give the states to the inner loop among its shared tensors, detached, and its derivatives to `pullback`.
    """
    leaves = {name: shared[name].detach().requires_grad_() for name in model.prefix_shared}
    with torch.enable_grad(), once():
        states = {f"{NAME}{i}": model.prefix_states({**shared, **leaves}, b) for i, b in enumerate(batches)}
    return [replace(b, states=f"{NAME}{i}") for i, b in enumerate(batches)], states, leaves


def pullback(states: Params, leaves: Params, cotangents: Mapping[str, Tensor]) -> Params:
    """Derivatives of the leaves, from those of the states."""
    outputs = [states[name] for name in states]
    grads = torch.autograd.grad(
        outputs, list(leaves.values()), [cotangents[name] for name in states], materialize_grads=True
    )
    return dict(zip(leaves, grads, strict=True))
