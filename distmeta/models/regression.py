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
from distmeta.models import backbone as backbones
from distmeta.models.arrays import ArrayModel
from distmeta.models.batch import TextBatch
from distmeta.tasks.regression import tokens


class RegressionModel(ArrayModel):
    """As `TaskModel`, with outputs in the place of class scores, [T, n, O], and the mean squared error."""

    def __init__(self, backbone: Any, config: Config) -> None:
        assert config.model.dimensions is not None
        self.inputs, self.outputs = config.model.dimensions
        self.what = f"an input of {self.inputs} numbers (model.dimensions)"
        super().__init__(backbone, self.outputs, config)

    def _trial_ids(self, rows: int) -> NDArray[Any]:
        numbers = np.random.default_rng(0).normal(size=(rows, self.inputs + self.outputs))
        return tokens(numbers.tolist()).reshape(rows, -1)

    def _inputs_of(self, batch: TextBatch, dtype: torch.dtype) -> dict[str, Tensor]:
        return {"inputs": numbers_of(batch)[:, : self.inputs].to(dtype)}

    def row_scores(self, params: Mapping[str, Tensor], batch: TextBatch) -> tuple[Tensor, Tensor]:
        """Each row's squared error, the mean over its outputs, [T, n]; and zeros, since nothing is right or wrong."""
        outputs = self.logits(dict(params), batch)
        targets = numbers_of(batch)[:, self.inputs :].view(*batch.labels.shape, self.outputs).to(outputs.dtype)
        errors = (outputs - targets).square().mean(-1)
        return errors, torch.zeros_like(errors)


def numbers_of(batch: TextBatch) -> Tensor:
    """The numbers that tokens stand for, float32 [N, I + O]."""
    return batch.input_ids.to(torch.int32).view(torch.float32)


def build_regression_model(config: Config, copy: Any = None) -> RegressionModel:
    """The model that a configuration describes. Raises InputError."""
    return RegressionModel(backbones.build(AutoModel, config.model, 0, 0, config.run.seed, copy), config)
