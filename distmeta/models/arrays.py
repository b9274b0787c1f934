"""Models of rows that are no texts: images, vectors. Each row has as many tokens as any other and is read whole.

Letters: N rows, L tokens, P places, D width.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from distmeta.config import Config
from distmeta.errors import InputError
from distmeta.models import calls
from distmeta.models.batch import TextBatch
from distmeta.models.layers import SetNorm
from distmeta.models.partial import check
from distmeta.models.task_model import TaskModel


class ArrayModel(TaskModel):
    """As `TaskModel`, of such rows: a subclass says what they are to the backbone.

    what: a row, in the words of an error.
    """

    what: str

    def __init__(self, backbone: Any, classes: int, config: Config, labels: int = 0) -> None:
        super().__init__(backbone, classes, config, labels)
        # It could not tell the sets of several tasks apart.
        if has_set_norm(self.backbone) and "tasks" not in self._inputs:
            self.takes_task_axis = False
        if config.eval.refine and self.reads_sets:
            raise InputError(
                f"eval.refine = {config.eval.refine}: batch norm makes a row's features depend on the rows beside it; "
                "leave it out, or take a model without batch norm (conv4: model.config.norm=layer)"
            )

    @property
    def reads_sets(self) -> bool:  # type: ignore[override]
        return has_set_norm(self.backbone)

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

    def _try_task_axis(self) -> bool:
        """As of `TaskModel`, of two whole sets."""
        sets = [self._trial_part(), self._trial_part(rows=6)]
        sets[1] = {n: v[:, 3:] if isinstance(v, np.ndarray) else v for n, v in sets[1].items()}
        both = {n: np.concatenate([v, sets[1][n]]) if isinstance(v, np.ndarray) else v for n, v in sets[0].items()}
        fast = {name: value.expand(2, *value.shape) for name, value in self.fast.items() if "backbone." in name}
        device = next(self.backbone.parameters()).device
        try:
            with torch.no_grad():
                expected = torch.cat([self._last_states(batch) for batch in self.batches(sets, device)])
                states = self.under(fast, lambda: self._last_states(self.batches([both], device)[0]))
        except Exception:  # a family's own code, on weights of another shape
            return False
        return calls.difference(states, expected) <= calls.SAME

    def _trial_part(self, length: int | None = None, rows: int = 3) -> dict[str, Any]:
        ids = self._trial_ids(rows)[None].astype(np.int64)
        labels, ones = np.zeros((1, rows), np.int64), np.ones_like(ids)
        return {"input_ids": ids, "attention_mask": ones, "labels": labels, "store_rows": labels, "total": rows}

    def _last_states(self, batch: TextBatch) -> Tensor:
        dtype = next(self.backbone.parameters()).dtype
        dtype = torch.float64 if dtype == torch.float64 else torch.float32
        inputs: dict[str, Any] = self._inputs_of(batch, dtype)
        if "tasks" in self._inputs:
            inputs["tasks"] = len(batch.labels)
        states = self.cast(lambda: self._states(inputs))
        return states.flatten(2).mT if states.dim() == 4 else states  # convolutions give [N, D, h, w]

    def cast(self, function: Callable[[], Tensor]) -> Tensor:
        """function() with matrix products in model.dtype, in float32 at least."""
        device = next(self.backbone.parameters()).device.type
        with torch.autocast(device, self.autocast or torch.bfloat16, self.autocast is not None, cache_enabled=False):
            out = function()
        return out.to(torch.promote_types(out.dtype, torch.float32))

    def _states(self, inputs: Mapping[str, Any]) -> Tensor:
        states: Tensor = self.backbone(**inputs).last_hidden_state
        return states

    def _pooled(self, batch: TextBatch, states: Tensor | None = None) -> Tensor:
        out = self.layers.from_states(lambda: self._last_states(batch), self.entry, states, None)
        return out[:, 0] if self.pooling == "first" else out.mean(1)


def has_set_norm(backbone: nn.Module) -> bool:
    """Whether a norm takes the statistics of the batch at hand."""
    return any(isinstance(m, SetNorm) or (is_batch_norm(m) and m.running_mean is None) for m in backbone.modules())


def is_batch_norm(module: nn.Module) -> bool:
    return isinstance(module, nn.modules.batchnorm._BatchNorm)


def without_running_statistics(backbone: nn.Module) -> None:
    """Let batch norms take the statistics of the batch at hand alone: those of earlier episodes are of other tasks."""
    module: Any
    for module in filter(is_batch_norm, backbone.modules()):
        module.track_running_stats = False
        module.running_mean = module.running_var = module.num_batches_tracked = None
