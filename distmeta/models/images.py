"""Models of images: rows of tokens (distmeta.tasks.images) as pixels, which transformers' models of images take.

Letters: N rows, C channels, H x W pixels.
"""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from transformers import AutoModel

from distmeta.config import Config, ModelConfig
from distmeta.errors import InputError
from distmeta.models import backbone as backbones
from distmeta.models.arrays import ArrayModel, without_running_statistics
from distmeta.models.batch import TextBatch
from distmeta.models.own import build_own

PLACES = 64  # an image costs about what a text of so many tokens does


class ImageModel(ArrayModel):
    """As `TaskModel`, of images: the backbone is called with pixel_values [N, C, H, W]."""

    def __init__(self, backbone: Any, classes: int, config: Config, labels: int = 0) -> None:
        assert config.model.image is not None
        self.size = config.model.image
        self.what = f"an image of {list(self.size)} (model.image)"
        self.scale = normalisation(config.model.pretrained)
        super().__init__(backbone, classes, config, labels)
        self.work_unit = max(1, math.prod(self.size) // PLACES)

    def _trial_ids(self, rows: int) -> NDArray[Any]:
        return np.random.default_rng(0).integers(0, 256, (rows, math.prod(self.size)))

    def _inputs_of(self, batch: TextBatch, dtype: torch.dtype) -> dict[str, Tensor]:
        mean, deviation = (torch.tensor(v, device=batch.keep.device).view(-1, 1, 1) for v in self.scale)
        return {"pixel_values": ((batch.input_ids.view(-1, *self.size) / 255 - mean) / deviation).to(dtype)}


def normalisation(pretrained: str | None) -> tuple[list[float], list[float]]:
    """Mean and deviation of each channel that a model's pixels, from 0 to 1, are scaled by.

    Those that a pretrained directory names; else to -1 to 1.
    """
    if pretrained is not None:
        file = Path(pretrained) / "preprocessor_config.json"
        if file.is_file():
            named = json.loads(file.read_text(encoding="utf-8"))
            if named.get("do_normalize", True) and "image_mean" in named:
                return named["image_mean"], named["image_std"]
    return [0.5], [0.5]


def build_image_backbone(config: ModelConfig, seed: int, copy: Any = None) -> Any:
    """A model of images of size config.image, from `config.pretrained`, or with random weights. Raises InputError."""
    if config.module is not None:
        return build_own(config, seed)
    model = backbones.build(AutoModel, config, 0, 0, seed, copy)
    kind = model.config.model_type
    if config.head == "words":
        if kind != "clip":
            raise InputError(
                f"model: {kind} is no model of images and text that distmeta knows; set model.architecture=clip, or "
                "model.pretrained to the directory of a CLIP"
            )
        return model
    if kind == "clip":
        raise InputError("model: clip reads images and the words of their classes; set model.head=words")
    if getattr(model, "main_input_name", "") != "pixel_values" or model.config.is_encoder_decoder:
        raise InputError(
            f"model: {kind} takes no images; give one such as conv4, vit or convnext, or unset model.image"
        )
    if config.pretrained is None:
        without_running_statistics(model)
    if getattr(model, "pooler", None) is not None:
        model.pooler = nn.Identity()
    if not hasattr(model.config, "hidden_size"):
        model.config.hidden_size = model.config.hidden_sizes[-1]
    return model
