"""Collated episodes as tensors, with masks and positions prepared outside the model."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor


@dataclass(frozen=True)
class TextBatch:
    """Rows of T tasks, n each, N = T n, cut or padded to L tokens."""

    input_ids: Tensor  # int64 [N, L]
    keep: Tensor  # float32 [N, L]: 1 for a token, 0 for padding
    mask: Tensor | None  # additive, float32 [N or 1, 1, 1 or L, L]; None: every token sees every token
    positions: Tensor  # int64 [N, L]
    last: Tensor  # int64 [N]: the position of the last token
    labels: Tensor  # int64 [T, n]
    total: int  # rows of a task over all the parts of its set: losses of parts add up to a mean
    store_rows: NDArray[np.int64]  # [N]: which example of the task store
    order: Tensor | None = None  # int64 [T, n]: each row's place in its set's own order; None: as they are
    ways: Tensor | None = None  # int64 [T, C]: the number, among all classes of the data, of each of a task's classes
    # Family text_to_text: the answers' tokens, int64 [N, M], -100 beyond their ends, and the place before each of them
    answer: Tensor | None = None
    answer_at: Tensor | None = None
    # task.labels=words, of support sets: the tokens of each class's words, int64 [T, C, W], -100 beyond their ends
    words: Tensor | None = None
    # outer.data_weights, of support sets in training: the number of each row's source, task or row, int64 [T, n]
    units: Tensor | None = None
    # outer.worst_subgroup, of query sets in training: each row's subgroup, int64 [T, n], and what its rows count, [G]
    groups: Tensor | None = None
    factors: Tensor | None = None
    # Of a support set whose rows each have the others before them: the same set as it is read before a query
    read: Sequence[TextBatch] = ()
    # What the layers below the lowest adapted one make of these rows, [N, L, D] or pooled [N, D]; or the name under
    # which the parameters hold it. None: they are run.
    states: Tensor | str | None = None

    @property
    def tokens(self) -> int:
        return self.input_ids.numel()

    def of_rows(self, index: Tensor) -> TextBatch:
        """The rows `index` [m] alone, without their labels' task axis: for what is computed row by row."""
        mask = self.mask
        if mask is not None and mask.shape[0] > 1:
            mask = mask[index]
        names = ("input_ids", "keep", "positions", "last", "answer", "answer_at")
        chosen = {name: value[index] for name in names if (value := getattr(self, name)) is not None}
        labels = self.labels.flatten()[index].unsqueeze(0)
        return replace(
            self, **chosen, mask=mask, labels=labels, order=None, store_rows=self.store_rows[index.cpu().numpy()]
        )


def to_batch(part: Mapping[str, Any], device: torch.device | str, causal: bool) -> TextBatch:
    """One part of `distmeta.tasks.episodes.collate` on `device`.

    Masks are additive and four-dimensional, which every transformers model takes as it is, so that no model
    looks at the data to build one.
    """
    ids = part["input_ids"]
    rows, length = ids.shape[0] * ids.shape[1], ids.shape[2]
    keep = torch.as_tensor(np.ascontiguousarray(part["attention_mask"], dtype=np.float32)).view(rows, length)
    padded = bool((part["attention_mask"] == 0).any())
    mask = None
    if padded:
        mask = (1.0 - keep).mul_(torch.finfo(torch.float32).min).view(rows, 1, 1, length)
    if causal:
        future = causal_mask(length)
        mask = future if mask is None else torch.minimum(mask, future)
    return TextBatch(
        input_ids=torch.as_tensor(ids, dtype=torch.int64).reshape(rows, length).to(device),
        keep=keep.to(device),
        mask=None if mask is None else mask.to(device),
        positions=torch.arange(length, device=device).expand(rows, length),
        last=(keep.sum(1).long() - 1).to(device),
        labels=torch.as_tensor(part["labels"], dtype=torch.int64).to(device),
        total=int(part["total"]),
        store_rows=np.asarray(part["store_rows"], dtype=np.int64).reshape(rows),
        order=torch.as_tensor(part["rows"], dtype=torch.int64).to(device) if "rows" in part else None,
    )


@lru_cache(maxsize=16)
def causal_mask(length: int) -> Tensor:
    """The mask of rows without padding, float32 [1, 1, length, length]: one tensor for all of them."""
    return torch.full((length, length), torch.finfo(torch.float32).min).triu_(1).view(1, 1, length, length)


def to_batches(parts: list[dict[str, Any]], device: torch.device | str, causal: bool) -> list[TextBatch]:
    return [to_batch(part, device, causal) for part in parts]
