"""A network of linear layers and ReLU, for vectors, built from a config (`model.architecture=mlp`).

Under a linear head it is the regressor of Finn et al. 2017 (arXiv 1703.03400, section 5.1), by default 1-40-40-1.
transformers has no such network; the class takes its place in its registry.

Letters: N rows, I inputs, D width.
"""

from __future__ import annotations

from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn
from transformers import AutoConfig, AutoModel, PretrainedConfig, PreTrainedModel
from transformers.modeling_outputs import BaseModelOutput

from distmeta.versions import model_config


@model_config
class MLPConfig(PretrainedConfig):  # type: ignore[misc]
    model_type = "mlp"

    input_size: int = 1
    hidden_size: int = 40
    num_hidden_layers: int = 2


class Layer(nn.Module):
    def __init__(self, inputs: int, width: int) -> None:
        super().__init__()
        self.linear = nn.Linear(inputs, width)

    def forward(self, hidden_states: Tensor) -> Tensor:
        """[N, 1, I or D] -> [N, 1, D]."""
        return F.relu(self.linear(hidden_states))


class MLPModel(PreTrainedModel):  # type: ignore[misc]
    config_class = MLPConfig
    base_model_prefix = "mlp"
    main_input_name = "inputs"

    def __init__(self, config: MLPConfig) -> None:
        super().__init__(config)
        width = config.hidden_size
        self.layers = nn.ModuleList(
            Layer(config.input_size if i == 0 else width, width) for i in range(config.num_hidden_layers)
        )
        self.post_init()

    def _init_weights(self, module: nn.Module) -> None:
        """The layers begin as torch builds them."""

    def set_attn_implementation(self, attn_implementation: Any, *_: Any, **__: Any) -> None:
        if attn_implementation != "eager":
            raise ValueError("linear layers have no attention")

    def forward(self, inputs: Tensor) -> Any:
        """inputs [N, I] -> last_hidden_state [N, 1, D]."""
        states = inputs.unsqueeze(1)
        for layer in self.layers:
            states = layer(states)
        return BaseModelOutput(last_hidden_state=states)


def register() -> None:
    """Make model type mlp known to transformers in this process."""
    AutoConfig.register("mlp", MLPConfig, exist_ok=True)
    AutoModel.register(MLPConfig, MLPModel, exist_ok=True)
