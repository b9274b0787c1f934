"""A model of images and text (transformers' CLIP): the class of an image is the description that is nearest to it.

An episode's head begins at its classes' descriptions, read by the text tower (model.head=words), so that before the
first inner step scores are the model's own, exp(logit_scale) cos(image, description) (Radford et al. 2021, arXiv
2103.00020, section 2.3): zero-shot. The inner loop goes on from there with the examples: it adapts the head, and of the
image's tower what inner.adapt says. The text tower is meta-learnt through where the head begins.

Letters: T tasks, n rows of a task, N = T n, C classes, W tokens of the longest description, D width.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from distmeta.config import Config
from distmeta.errors import InputError
from distmeta.models.batch import TextBatch
from distmeta.models.images import ImageModel
from distmeta.models.labels import name_tokens
from distmeta.models.task_model import LINEAR_LENGTH, Params
from distmeta.tasks.descriptions import description_tokens

PROJECTION = "backbone.visual_projection."
ABOVE = (PROJECTION, "backbone.text_", "backbone.logit_scale")  # what the image tower's states do not depend on


class TwoTowerModel(ImageModel):
    """As `ImageModel`, whose head is computed from the classes' descriptions. inner.adapt=head: that head, and the
    projection of images that it reads."""

    tower = "vision_model"

    def __init__(self, backbone: Any, classes: int, config: Config) -> None:
        text = backbone.config.text_config
        if config.model.answer_tokens > text.max_position_embeddings:
            raise InputError(
                f"model.answer_tokens = {config.model.answer_tokens}: the text tower has {text.max_position_embeddings}"
                " positions"
            )
        self.tokens = description_tokens(config, text.vocab_size)
        backbone.config.hidden_size = backbone.config.vision_config.hidden_size
        super().__init__(backbone, classes, config)
        self.width = int(backbone.config.projection_dim)  # of features
        self.adapted |= {name: torch.zeros(()) for name in ("head_weight", "head_bias")}
        if "backbone.text_model.embeddings.position_embedding.weight" in self.fast:  # CLIP counts the rows of the table
            self.takes_task_axis = False
        self.prefix_shared = tuple(name for name in self.prefix_shared if not name.startswith(ABOVE))

    def _add_head(self, generator: torch.Generator) -> None:
        scale: Any = self.backbone.logit_scale
        self.head_log_scale = nn.Parameter(scale.detach().clone())
        self.length = LINEAR_LENGTH

    def _roles(self, config: Config) -> tuple[Params, Params]:
        if config.inner.adapt == "head":
            inner = config.inner.model_copy(update={"adapt": PROJECTION})
            config = config.model_copy(update={"inner": inner})
        fast, shared = super()._roles(config)
        for part in (fast, shared):
            part.pop("backbone.logit_scale", None)  # head_log_scale is in its place
        return fast, shared

    def _lowest(self, names: Any) -> int:
        return super()._lowest(name for name in names if not name.startswith(ABOVE))

    @property
    def starts(self) -> bool:
        return True

    def sets(
        self, support: Sequence[Mapping[str, Any]], query: Sequence[Mapping[str, Any]], device: torch.device | str,
        training: bool, names: Sequence[Sequence[str]] = (),
    ) -> tuple[list[TextBatch], list[TextBatch]]:  # fmt: skip
        words = torch.as_tensor(name_tokens(names, self.tokens), device=device)
        return [replace(batch, words=words) for batch in self.batches(support, device)], self.batches(query, device)

    def _states(self, inputs: Mapping[str, Any]) -> Tensor:
        """What the image tower makes of an image, before the projection, [N, 1, D]."""
        tower: Any = self.backbone.vision_model
        states: Tensor = tower(**inputs).pooler_output
        return states.unsqueeze(1)

    def features(self, params: Mapping[str, Tensor], batch: TextBatch) -> Tensor:
        projection: Any = self.backbone.visual_projection
        states = params[batch.states] if isinstance(batch.states, str) else batch.states
        if states is None or not self.entry_is_pooled:
            states = self.under(params, lambda: self._pooled(batch, states))
        projected = self.cast(lambda: self.under(params, lambda: projection(states.unsqueeze(1))))
        return self.length * F.normalize(projected.view(*batch.labels.shape, -1), dim=-1)

    def start(self, params: Params, support: list[TextBatch]) -> Params:
        """The head of an episode: head_weight [T, C, D], the descriptions' embeddings at the length that makes scores
        exp(scale) cos; head_bias [T, C], 0. Differentiable with respect to `params`."""
        words = support[0].words
        if words is None:  # a trial's
            words = torch.as_tensor(name_tokens([["a"] * 1], self.tokens), device=support[0].labels.device)
        embedded = self.cast(lambda: self.under(params, lambda: self._read(words))).view(*words.shape[:2], -1)
        scale = params["head_log_scale"].exp() / self.length
        weight = scale * F.normalize(embedded, dim=-1)
        return {"head_weight": weight, "head_bias": torch.zeros_like(weight[..., 0])}

    def _read(self, words: Tensor) -> Tensor:
        """What the text tower makes of descriptions [T, C, W], [T C, D]."""
        both: Any = self.backbone
        ids, keep = words.flatten(0, 1), words.flatten(0, 1) >= 0
        ids = ids.where(keep, both.config.text_config.pad_token_id)
        states = both.text_model(input_ids=ids, attention_mask=keep.long()).pooler_output
        embedded: Tensor = both.text_projection(states.unsqueeze(1))[:, 0]  # a layer takes rows of places
        return embedded
