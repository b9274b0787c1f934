"""Models of functions (family regression): rows of tokens (distmeta.tasks.regression) as vectors, squared errors.

Letters: T tasks, n rows of a task, N = T n, I inputs, O outputs.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from transformers import AutoModel

from distmeta.config import Config
from distmeta.errors import InputError
from distmeta.models import backbone as backbones
from distmeta.models import calls
from distmeta.models.arrays import ArrayModel
from distmeta.models.batch import TextBatch
from distmeta.models.own import build_own
from distmeta.models.task_model import Params
from distmeta.tasks.regression import tokens


class RegressionModel(ArrayModel):
    """As `TaskModel`, with outputs in the place of class scores, [T, n, O], and the mean squared error."""

    def __init__(self, backbone: Any, config: Config) -> None:
        assert config.model.dimensions is not None
        self.inputs, self.outputs = config.model.dimensions
        self.what = f"an input of {self.inputs} numbers (model.dimensions)"
        module = getattr(backbone, "module", None)
        self.own_loss: Any = getattr(module, "loss", None)
        self.own_predict: Any = getattr(module, "predict", None)
        super().__init__(backbone, self.outputs, config)
        self._check_own(config)

    def _check_own(self, config: Config) -> None:
        """Raises InputError where a module with a loss of its own does not fit."""
        if self.own_loss is None:
            return
        if not self.fast:
            raise InputError(
                f"inner.adapt = {config.inner.adapt}: a module with a loss of its own has no head; set all, lora or an "
                "expression of its parameters' names"
            )
        params = {**self.fast, **self.shared}
        try:
            with torch.no_grad():
                rows, wide = self.row_scores(params, self._trial_batch())[0], self.answers(params, self._trial_batch())
        except (RuntimeError, TypeError, ValueError) as error:
            raise InputError(f"model.module = {config.model.module}: its loss fails: {calls.reason(error)}") from None
        if rows.shape != (1, 3) or wide.shape[-1] != self.outputs:
            raise InputError(
                f"model.module = {config.model.module}: loss(outputs, targets) must give a number for each row, and "
                f"predict(outputs), or else the outputs, {self.outputs} numbers (model.dimensions)"
            )

    def _add_head(self, generator: torch.Generator) -> None:
        if self.own_loss is None:
            super()._add_head(generator)

    def _trial_ids(self, rows: int) -> NDArray[Any]:
        numbers = np.random.default_rng(0).normal(size=(rows, self.inputs + self.outputs))
        return tokens(numbers.tolist()).reshape(rows, -1)

    def _inputs_of(self, batch: TextBatch, dtype: torch.dtype) -> dict[str, Tensor]:
        return {"inputs": numbers_of(batch)[:, : self.inputs].to(dtype)}

    def row_scores(self, params: Mapping[str, Tensor], batch: TextBatch) -> tuple[Tensor, Tensor]:
        """Each row's squared error, the mean over its outputs, or its own loss, [T, n]; and zeros: no row is right."""
        outputs = self.logits(dict(params), batch)
        targets = numbers_of(batch)[:, self.inputs :].view(*batch.labels.shape, self.outputs).to(outputs.dtype)
        if self.own_loss is None:
            errors = (outputs - targets).square().mean(-1)
        else:
            flat = outputs.flatten(0, 1), targets.flatten(0, 1)
            errors = self.under(params, lambda: self.own_loss(*flat)).view(batch.labels.shape)
        return errors, torch.zeros_like(errors)

    def logits(self, params: Params, batch: TextBatch) -> Tensor:
        """Outputs, [T, n, O]; of a module with a loss of its own what it gives."""
        return super().logits(params, batch) if self.own_loss is None else self.features(params, batch)

    def answers(self, params: Params, batch: TextBatch) -> Tensor:
        """What is predicted, [T, n, O]."""
        outputs = self.logits(params, batch)
        if self.own_predict is None:
            return outputs
        found: Tensor = self.under(params, lambda: self.own_predict(outputs.flatten(0, 1)))
        return found.view(*batch.labels.shape, -1)


def numbers_of(batch: TextBatch) -> Tensor:
    """The numbers that tokens stand for, float32 [N, I + O]; of numbers in their place these."""
    if batch.input_ids.is_floating_point():
        return batch.input_ids
    return batch.input_ids.to(torch.int32).view(torch.float32)


def build_regression_model(config: Config, kind: type[RegressionModel], copy: Any = None) -> RegressionModel:
    """The model of this kind that a configuration describes. Raises InputError."""
    if config.model.module is not None:
        return kind(build_own(config.model, config.run.seed), config)
    return kind(backbones.build(AutoModel, config.model, 0, 0, config.run.seed, copy), config)
