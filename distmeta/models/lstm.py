"""A recurrent classifier's body: embedding and LSTM layers (Hochreiter and Schmidhuber 1997), built from a config.

    i, f, g, o = x W + h U + b        h' = sigmoid(o) * tanh(c'),    c' = sigmoid(f) * c + sigmoid(i) * tanh(g)

It is written out over linear layers, which torch's own LSTM is not, for what these can do here: be differentiated
twice, carry a task axis, take LoRA pairs. A token sees those before it only, so that padding, which comes after the
text, changes nothing, and pooling `auto` reads the last token. transformers has no LSTM; the class takes its place in
its registry, as `model.architecture=lstm`.

Letters: N rows, L tokens, E embedding size, D hidden size.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from transformers import AutoConfig, AutoModel, PretrainedConfig, PreTrainedModel
from transformers.modeling_outputs import BaseModelOutput

from distmeta.versions import model_config


@model_config
class LSTMConfig(PretrainedConfig):  # type: ignore[misc]
    model_type = "lstm"

    vocab_size: int = 8000
    embedding_size: int | None = None  # None: hidden_size
    hidden_size: int = 64
    num_hidden_layers: int = 1
    dropout: float | int = 0.0  # of what goes into a layer
    pad_token_id: int | None = 0
    bos_token_id: int | None = None
    eos_token_id: int | None = None


class LSTMLayer(nn.Module):
    def __init__(self, inputs: int, width: int, dropout: float) -> None:
        super().__init__()
        self.dropout = nn.Dropout(dropout)
        self.input = nn.Linear(inputs, 4 * width)
        self.hidden = nn.Linear(width, 4 * width, bias=False)
        self.input.bias.data.chunk(4)[1].fill_(1.0)  # a forget gate begins open (Gers et al. 2000)

    def forward(self, hidden_states: Tensor) -> Tensor:
        """[N, L, E or D] -> [N, L, D]."""
        pre = self.input(self.dropout(hidden_states))
        h = c = pre.new_zeros(pre.shape[0], pre.shape[2] // 4)
        out = []
        for x in pre.unbind(1):
            i, f, g, o = (x + self.hidden(h)).chunk(4, -1)
            c = f.sigmoid() * c + i.sigmoid() * g.tanh()
            h = o.sigmoid() * c.tanh()
            out.append(h)
        return torch.stack(out, 1)


class LSTMModel(PreTrainedModel):  # type: ignore[misc]
    config_class = LSTMConfig
    base_model_prefix = "lstm"
    is_causal = True

    def __init__(self, config: LSTMConfig) -> None:
        super().__init__(config)
        width = config.hidden_size
        inputs = [config.embedding_size or width] + [width] * (config.num_hidden_layers - 1)
        self.embed_tokens = nn.Embedding(config.vocab_size, inputs[0])
        self.layers = nn.ModuleList(LSTMLayer(size, width, config.dropout) for size in inputs)
        self.post_init()

    def _init_weights(self, module: nn.Module) -> None:
        """The layers begin as they are built: embeddings at unit scale, linear maps as torch has them."""

    def set_attn_implementation(self, attn_implementation: Any, *_: Any, **__: Any) -> None:
        if attn_implementation != "eager":
            raise ValueError("an LSTM has no attention")

    def get_input_embeddings(self) -> nn.Module:
        return self.embed_tokens

    def forward(self, input_ids: Tensor) -> Any:
        """input_ids [N, L] -> last_hidden_state [N, L, D]."""
        states = self.embed_tokens(input_ids)
        for layer in self.layers:
            states = layer(states)
        return BaseModelOutput(last_hidden_state=states)


def register() -> None:
    """Make model type lstm known to transformers in this process."""
    AutoConfig.register("lstm", LSTMConfig, exist_ok=True)
    AutoModel.register(LSTMConfig, LSTMModel, exist_ok=True)
