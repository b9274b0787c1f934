"""The four-block convolutional network of the few-shot literature (Vinyals et al. 2016; Finn et al. 2017,
arXiv 1703.03400, section 5.2): 3 x 3 convolutions of stride 2.

Its norm is `layer`, over channels and places, so that an image's scores are its own, or `batch`, as in the literature:
by the statistics of the batch at hand, so that the query images of an episode are classified together (transductively).
An image comes in with mean 0 and deviation 1, so that the padding around it is no edge. A convolution is written as a
linear layer over the 3 x 3 places around each, so that it carries a task axis, takes LoRA and is differentiated twice
as every other linear layer. transformers has no such network; the class takes its place in its registry, as
`model.architecture=conv4`.

Letters: N rows, C channels, H x W pixels, P places, D width.
"""

from __future__ import annotations

from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn
from transformers import AutoConfig, AutoModel, PretrainedConfig, PreTrainedModel
from transformers.modeling_outputs import BaseModelOutput

from distmeta.models.layers import SetNorm, TaskLayerNorm, per_task
from distmeta.versions import model_config


@model_config
class Conv4Config(PretrainedConfig):  # type: ignore[misc]
    model_type = "conv4"

    num_channels: int = 1
    hidden_size: int = 64
    num_hidden_layers: int = 4
    norm: str = "layer"  # or batch


class ImageNorm(TaskLayerNorm):
    """Layer norm of [N, P, D] over places and channels together; weight and bias [D] or [T, D] are of channels."""

    def forward(self, x: Tensor, tasks: int = 1) -> Tensor:
        whole = F.layer_norm(x, x.shape[1:], None, None, self.eps)
        return whole * per_task(self.weight, x, 1) + per_task(self.bias, x, 1)


class Block(nn.Module):
    """Convolution of stride 2, norm, ReLU."""

    def __init__(self, inputs: int, width: int, norm: str) -> None:
        super().__init__()
        self.conv = nn.Linear(9 * inputs, width, bias=False)
        self.norm = SetNorm(width) if norm == "batch" else ImageNorm(width)

    def forward(self, hidden_states: Tensor, tasks: int = 1) -> Tensor:
        """[N, C, H, W] -> [N, D, H / 2, W / 2], rounded up. tasks: whose sets the rows are, one after another."""
        height, width = (-(-size // 2) for size in hidden_states.shape[2:])
        around = F.unfold(hidden_states, 3, padding=1, stride=2).mT  # [N, P, 9 C]
        states: Tensor = self.norm(self.conv(around), tasks)
        return F.relu(states).mT.reshape(len(states), -1, height, width)


class Conv4Model(PreTrainedModel):  # type: ignore[misc]
    config_class = Conv4Config
    base_model_prefix = "conv4"
    main_input_name = "pixel_values"

    def __init__(self, config: Conv4Config) -> None:
        super().__init__(config)
        width = config.hidden_size
        if config.norm not in ("layer", "batch"):
            raise ValueError(f"norm = {config.norm}: layer or batch")
        self.layers = nn.ModuleList(
            Block(config.num_channels if i == 0 else width, width, config.norm) for i in range(config.num_hidden_layers)
        )
        self.post_init()

    def _init_weights(self, module: nn.Module) -> None:
        """The layers begin as torch builds them. A norm hides how large a convolution's weights are from its outputs,
        but not from an inner step, whose share of them grows as they shrink; He's weights would be 2.4 times larger."""

    def set_attn_implementation(self, attn_implementation: Any, *_: Any, **__: Any) -> None:
        if attn_implementation != "eager":
            raise ValueError("a convolutional network has no attention")

    def forward(self, pixel_values: Tensor, tasks: int = 1) -> Any:
        """pixel_values [N, C, H, W] -> last_hidden_state [N, P, D]. tasks: as of `Block`."""
        states = F.layer_norm(pixel_values, pixel_values.shape[1:])
        for layer in self.layers:
            states = layer(states, tasks)
        return BaseModelOutput(last_hidden_state=states.flatten(2).mT)


def register() -> None:
    """Make model type conv4 known to transformers in this process."""
    AutoConfig.register("conv4", Conv4Config, exist_ok=True)
    AutoModel.register(Conv4Config, Conv4Model, exist_ok=True)
