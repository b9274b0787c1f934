"""How many steps' graphs are kept instead of recomputed: all, none, or as many as fit a measured budget."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext

import torch
from torch import Tensor

from .loop import InnerLoop


class Budget:
    """Says, as the loop runs forward, whether the graph of the current step is kept.

    memory="auto" counts the storages that autograd saves during the first two steps, each storage once (during the
    first alone, if that settles the matter). What the second step adds to the first is the price of a step: weights
    that every step saves are paid only once. Graphs are kept from the first step on for as long as their sum stays
    within the budget.
    """

    def __init__(self, inner: InnerLoop) -> None:
        self.open = inner.memory != "walk"
        self.measuring = inner.memory == "auto"
        self.limit = inner.budget_mb * 2**20
        self.steps = inner.steps
        self.bytes = 0
        self._first = 0
        self._seen: set[int] = set()

    def watch(self, k: int) -> AbstractContextManager[object]:
        """Context in which a micro-batch of step k runs."""
        if self.measuring and self.open and k < 2:
            return torch.autograd.graph.saved_tensors_hooks(self._note, _same)
        return nullcontext()

    def fits(self, k: int) -> bool:
        """After each micro-batch of step k: whether this step's graphs may stay."""
        if self.measuring and self.bytes > self.limit:
            self.open = False
        return self.open

    def end_step(self, k: int) -> None:
        """After step k: whether the next one would still fit."""
        if not (self.measuring and self.open):
            return
        if k == 0:
            self._first = self.bytes
            # Where all would fit even at the price of the first, the second need not be measured.
            self.measuring = self.bytes * self.steps > self.limit
            return
        if k == 1:
            self._seen.clear()
            self._price = self.bytes - self._first
        if self.bytes + self._price * k > self.limit:
            self.open = False

    def _note(self, tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        address = storage.data_ptr()
        if address not in self._seen:
            self._seen.add(address)
            self.bytes += storage.nbytes()
        return tensor


def _same(tensor: Tensor) -> Tensor:
    return tensor
