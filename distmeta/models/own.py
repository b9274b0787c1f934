"""A torch.nn.Module of the user's own (model.module=package.module:build) in the place of a transformers model.

    build(**model.config) -> module        module(rows) -> features: [N, D], or of places [N, P, D] or [N, D, h, w]

rows: of images [N, C, H, W], from -1 to 1, or of vectors [N, I]. Features meet distmeta's head, whose classes or
outputs are the episode's. A module of family regression that has a method loss(outputs, targets) -> [N] is a whole
model: what it gives are its outputs, and there is no head; predict(outputs) -> [N, O], if it has one, makes of them
what is asked.
"""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor, nn
from transformers.modeling_outputs import BaseModelOutput

from distmeta.config import ModelConfig
from distmeta.config.modules import load_builder
from distmeta.errors import InputError
from distmeta.models import calls
from distmeta.models.arrays import without_running_statistics


class OwnBackbone(nn.Module):
    """The module, called as a model of transformers."""

    def __init__(self, module: nn.Module, path: str) -> None:
        super().__init__()
        self.module = module
        self.config = SimpleNamespace(model_type=path, hidden_size=0, to_dict=dict)

    def set_attn_implementation(self, attn_implementation: str) -> None:
        """Whatever it has of attention is its own."""

    def forward(self, pixel_values: Tensor | None = None, inputs: Tensor | None = None) -> Any:
        states = self.module(inputs if pixel_values is None else pixel_values)
        return BaseModelOutput(last_hidden_state=states.unsqueeze(1) if states.dim() == 2 else states)


def build_own(config: ModelConfig, seed: int) -> OwnBackbone:
    """The user's module with its initial values for `seed`, in evaluation mode. Raises InputError."""
    path = config.module
    assert path is not None
    build = load_builder(path)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        try:
            module = build(**config.config)
        except Exception as error:  # whatever the user's code raises
            raise InputError(f"model.module = {path}: build(**model.config) fails: {calls.reason(error)}") from None
    if not isinstance(module, nn.Module) or next(module.parameters(), None) is None:
        kind = type(module).__name__
        raise InputError(f"model.module = {path}: gives {kind}; it must give a torch.nn.Module with parameters")
    without_running_statistics(module)
    backbone = OwnBackbone(module.float().eval(), path)
    if config.dimensions is None and hasattr(module, "loss"):
        raise InputError(f"model.module = {path}: its method loss is for task.family=regression; remove it")
    rows = {"inputs": torch.randn(3, config.dimensions[0])} if config.dimensions else {}
    rows |= {"pixel_values": torch.randn(3, *config.image)} if config.image else {}
    try:
        with torch.no_grad():
            states = backbone(**rows).last_hidden_state
    except Exception as error:
        shape = list(next(iter(rows.values())).shape)
        raise InputError(f"model.module = {path}: fails at rows {shape}: {calls.reason(error)}") from None
    if states.dim() not in (3, 4) or len(states) != 3 or not states.is_floating_point():
        raise InputError(f"model.module = {path}: gives {list(states.shape)} for 3 rows; it must give numbers [3, D], "
                         "[3, places, D] or [3, D, height, width]")  # fmt: skip
    backbone.config.hidden_size = states.shape[1 if states.dim() == 4 else 2]
    return backbone
