"""Models of rows that are no texts: images, vectors. Each row has as many tokens as any other and is read whole.

Letters: N rows, L tokens, P places, D width.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from distmeta.errors import InputError
from distmeta.models import calls
from distmeta.models.batch import TextBatch
from distmeta.models.partial import check
from distmeta.models.task_model import TaskModel


class ArrayModel(TaskModel):
    """As `TaskModel`, of such rows: a subclass says what they are to the backbone.

    what: a row, in the words of an error.
    """

    what: str

    def _inputs_of(self, batch: TextBatch, dtype: torch.dtype) -> dict[str, Tensor]:
        """What the backbone is called with."""
        raise NotImplementedError

    def _trial_ids(self, rows: int) -> NDArray[Any]:
        """Tokens of some rows, [rows, L]."""
        raise NotImplementedError

    def _ordinary(self, backbone: nn.Module) -> Tensor:
        self.causal = False
        try:
            with torch.no_grad():
                return self._last_states(self._trial_batch())
        except Exception as error:  # whatever a family's own code makes of a row of this size
            kind = backbone.config.model_type  # type: ignore[union-attr]
            raise InputError(f"model: {kind} fails at {self.what}: {calls.reason(error)}") from None

    def _choose_way(self, expected: Tensor) -> tuple[calls.Way, float]:
        return calls.WAYS[-1], 0.0

    def _choose_attention(self) -> None:
        """The eager form, which is differentiated twice: rows are not long."""

    def _check_layers(self) -> None:
        batch = self._trial_batch()
        inside = [self.entry] if 0 < self.entry < max(1, len(self.layers)) else []
        check(self.layers, lambda: self._last_states(batch), None, inside)
        if inside and not self.layers.can_enter:
            self.entry = 0

    def _rows_read(self, batch: TextBatch) -> Tensor | None:
        return None

    def _trial_part(self, length: int | None = None, rows: int = 3) -> dict[str, Any]:
        ids = self._trial_ids(rows)[None].astype(np.int64)
        labels, ones = np.zeros((1, rows), np.int64), np.ones_like(ids)
        return {"input_ids": ids, "attention_mask": ones, "labels": labels, "store_rows": labels, "total": rows}

    def _last_states(self, batch: TextBatch) -> Tensor:
        dtype = next(self.backbone.parameters()).dtype
        dtype = torch.float64 if dtype == torch.float64 else torch.float32
        inputs = self._inputs_of(batch, dtype)
        device = batch.keep.device.type
        with torch.autocast(device, self.autocast or torch.bfloat16, self.autocast is not None, cache_enabled=False):
            states: Tensor = self.backbone(**inputs).last_hidden_state
        return (states.flatten(2).mT if states.dim() == 4 else states).to(dtype)  # convolutions give [N, D, h, w]

    def _pooled(self, batch: TextBatch, states: Tensor | None = None) -> Tensor:
        out = self.layers.from_states(lambda: self._last_states(batch), self.entry, states, None)
        return out[:, 0] if self.pooling == "first" else out.mean(1)
