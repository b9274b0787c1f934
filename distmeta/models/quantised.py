"""model.quantise: a frozen base under LoRA held as int8, one byte a number and a float32 scale a row.

A layer makes its matrix for each product and drops it after, in the forward pass and in every derivative
(distmeta.inner.frozen), so that what is learnt is exact for the rounded base, at every order. Embeddings, an output
layer, norms and biases stay as they are. Rounding: distmeta.models.compression.quantise.
"""

from __future__ import annotations

import functools
from typing import Any

import torch
from torch import Tensor, nn

from distmeta.config import Config
from distmeta.models.compression import SCALE, quantise
from distmeta.models.layers import FetchedLinear, TaskConv1D, TaskLinear
from distmeta.models.task_model import TaskModel


def quantise_base(model: TaskModel, config: Config) -> None:
    """Round the frozen matrices of the backbone's linear layers, where model.quantise says so."""
    if config.model.quantise is None:
        return
    kept = {*model.fast, *model.shared, getattr(model, "output_name", "")}
    for path, module in list(model.backbone.named_modules(prefix="backbone")):
        layer: Any = module
        if isinstance(module, TaskLinear | TaskConv1D) and f"{path}.weight" not in kept:
            matrix = layer.weight.detach() if isinstance(module, TaskLinear) else layer.weight.detach().mT
            rounded = quantise({"": matrix}, [""])
            layer.weight, layer.turned = None, isinstance(module, TaskConv1D)
            layer.register_buffer("int8_weight", rounded[""].contiguous(), persistent=False)
            layer.register_buffer("int8_scale", rounded[SCALE], persistent=False)
            layer.dtype = torch.bfloat16 if config.model.dtype == "bfloat16" else None
            layer.fetch = functools.partial(matrix_of, module, layer.dtype)
            layer.__class__ = FetchedLinear


def weights_of(model: nn.Module) -> dict[str, Tensor]:
    """The weights that the rounded layers stand for, by the names that they had before."""
    layers: list[tuple[str, Any]] = [(path, m) for path, m in model.named_modules() if hasattr(m, "int8_weight")]
    return {f"{path}.weight": matrix_of(layer).mT if layer.turned else matrix_of(layer) for path, layer in layers}


def matrix_of(layer: nn.Module, dtype: torch.dtype | None = None) -> Tensor:
    """The matrix [O, I] that a rounded layer stands for, in the width of its scales, or `dtype`."""
    rounded: Any = layer
    scale: Tensor = rounded.int8_scale.unsqueeze(1)
    whole: Tensor = rounded.int8_weight.to(scale.dtype) * scale
    return whole if dtype is None else whole.to(dtype)
