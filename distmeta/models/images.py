"""Models of images: rows of tokens (distmeta.tasks.images) as pixels, which transformers' models of images take.

Letters: N rows, C channels, H x W pixels, P places, D width.
"""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from transformers import AutoModel

from distmeta.config import Config, ModelConfig
from distmeta.errors import InputError
from distmeta.models import backbone as backbones
from distmeta.models import calls
from distmeta.models.batch import TextBatch
from distmeta.models.partial import check
from distmeta.models.task_model import TaskModel

PLACES = 64  # an image costs about what a text of so many tokens does


class ImageModel(TaskModel):
    """As `TaskModel`, of images: the backbone is called with pixel_values [N, C, H, W]."""

    def __init__(self, backbone: Any, classes: int, config: Config, labels: int = 0) -> None:
        assert config.model.image is not None
        self.size = config.model.image
        self.scale = normalisation(config.model.pretrained)
        super().__init__(backbone, classes, config, labels)
        self.work_unit = max(1, math.prod(self.size) // PLACES)

    def _ordinary(self, backbone: nn.Module) -> Tensor:
        self.causal = False
        try:
            with torch.no_grad():
                return self._last_states(self._trial_batch())
        except Exception as error:  # whatever a family's own code makes of an image of this size
            kind = backbone.config.model_type  # type: ignore[union-attr]
            raise InputError(
                f"model: {kind} fails at an image of {list(self.size)} (model.image): {calls.reason(error)}"
            ) from None

    def _choose_way(self, expected: Tensor) -> tuple[calls.Way, float]:
        return calls.WAYS[-1], 0.0

    def _choose_attention(self) -> None:
        """The eager form, which is differentiated twice: rows of an image are not long."""

    def _check_layers(self) -> None:
        batch = self._trial_batch()
        inside = [self.entry] if 0 < self.entry < max(1, len(self.layers)) else []
        check(self.layers, lambda: self._last_states(batch), None, inside)
        if inside and not self.layers.can_enter:
            self.entry = 0

    def _rows_read(self, batch: TextBatch) -> Tensor | None:
        return None

    def _trial_part(self, length: int | None = None, rows: int = 3) -> dict[str, Any]:
        ids = np.random.default_rng(0).integers(0, 256, (1, rows, math.prod(self.size)))
        labels, ones = np.zeros((1, rows), np.int64), np.ones_like(ids)
        return {"input_ids": ids, "attention_mask": ones, "labels": labels, "store_rows": labels, "total": rows}

    def _last_states(self, batch: TextBatch) -> Tensor:
        mean, deviation = (torch.tensor(v, device=batch.keep.device).view(-1, 1, 1) for v in self.scale)
        dtype = next(self.backbone.parameters()).dtype
        dtype = torch.float64 if dtype == torch.float64 else torch.float32
        images = ((batch.input_ids.view(-1, *self.size) / 255 - mean) / deviation).to(dtype)
        with torch.autocast(images.device.type, self.autocast or torch.bfloat16, self.autocast is not None,
                            cache_enabled=False):  # fmt: skip
            states: Tensor = self.backbone(pixel_values=images).last_hidden_state
        return (states.flatten(2).mT if states.dim() == 4 else states).to(
            dtype
        )  # a network of convolutions: [N, D, h, w]

    def _pooled(self, batch: TextBatch, states: Tensor | None = None) -> Tensor:
        out = self.layers.from_states(lambda: self._last_states(batch), self.entry, states, None)
        return out[:, 0] if self.pooling == "first" else out.mean(1)


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
    model = backbones.build(AutoModel, config, 0, 0, seed, copy)
    kind = model.config.model_type
    if getattr(model, "main_input_name", "") != "pixel_values" or model.config.is_encoder_decoder:
        raise InputError(
            f"model: {kind} takes no images; give one such as conv4, vit or convnext, or unset model.image"
        )
    if config.pretrained is None and any(isinstance(m, nn.modules.batchnorm._BatchNorm) for m in model.modules()):
        raise InputError(
            f"model.architecture = {kind} has batch norm, whose statistics of one episode are no other's; set conv4, "
            "vit or convnext"
        )
    if getattr(model, "pooler", None) is not None:
        model.pooler = nn.Identity()
    if not hasattr(model.config, "hidden_size"):
        model.config.hidden_size = model.config.hidden_sizes[-1]
    return model
