"""Layers whose weights may carry a task axis, and LoRA.

Letters: T tasks, n rows of a task, N = T n rows, S tokens, I in, O out, r LoRA rank, V vocabulary.

In a meta-batch every task has fast weights of its own. A layer below takes them with a leading axis T, its
input being the rows of all tasks one after another, [N, S, I]: the network runs once over all tasks, each task's
rows meeting that task's weights. Weights without the axis are shared by all rows, at no cost.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from distmeta.errors import InputError
from distmeta.inner.frozen import frozen_linear

# Query and value projections, or the joint one: the first of these that names a layer. The second takes the names of
# less common families (query_proj, q_head, Wq, q_b_proj, in_proj).
AUTO_TARGETS = (
    r"(query|value|q_proj|v_proj|c_attn|q_lin|v_lin|\.q|\.v|qkv)$",
    r"(?i)\.(w?[qv]|qkv|query|value|in|att)(_(a|b))?(_?(proj|head|lin|linear|layer))?$",
)


class _Affine(nn.Module):
    """y = x W (+ b) (+ scale x A B): W [I, O] or [T, I, O] after `_matrix`, LoRA (Hu et al., arXiv 2106.09685)."""

    weight: Tensor
    bias: Any  # Tensor | None, as nn.Linear declares its own
    lora_A: Tensor  # [r, I] or [T, r, I], as peft stores it
    lora_B: Tensor  # [O, r] or [T, O, r]
    lora_scale: float

    def _matrix(self) -> Tensor:
        raise NotImplementedError

    def forward(self, x: Tensor) -> Tensor:
        y = _product(x, self._matrix())
        if self.bias is not None:
            y = y + per_task(self.bias, y, 1)
        if hasattr(self, "lora_A"):
            y = y + self.lora_scale * _product(_product(x, self.lora_A.mT), self.lora_B.mT)
        return y


class TaskLinear(_Affine, nn.Linear):
    """nn.Linear, whose weight [O, I] may be [T, O, I] and bias [O] may be [T, O]."""

    def forward(self, x: Tensor) -> Tensor:
        if self.weight.dim() == 2 and (self.bias is None or self.bias.dim() == 1):
            y = F.linear(x, self.weight, self.bias)
            if hasattr(self, "lora_A"):
                y = y + self.lora_scale * _product(_product(x, self.lora_A.mT), self.lora_B.mT)
            return y
        return _Affine.forward(self, x)

    def _matrix(self) -> Tensor:
        return self.weight.mT


class FetchedLinear(TaskLinear):
    """A frozen linear layer that fetches its weight [O, I] for each product, and holds none or a narrower one.

    dtype: of the product; None: of its input. turned: whether it was a Conv1D. sizes: (I, O), where it is not rounded.
    """

    fetch: Callable[[], Tensor]
    dtype: torch.dtype | None
    turned: bool
    sizes: tuple[int, int]

    def forward(self, x: Tensor) -> Tensor:
        x = x if self.dtype is None else x.to(self.dtype)  # derivatives are taken outside of autocast
        shared_bias = self.bias is None or self.bias.dim() == 1
        y = frozen_linear(x, self.fetch, self.bias if shared_bias else None)
        if not shared_bias:
            y = y + per_task(self.bias, y, 1)
        if hasattr(self, "lora_A"):
            y = y + self.lora_scale * _product(_product(x, self.lora_A.mT), self.lora_B.mT)
        return y


class TaskConv1D(_Affine):
    """transformers' Conv1D (GPT-2): a linear layer with its weight [I, O] transposed."""

    def _matrix(self) -> Tensor:
        return self.weight


class TaskLayerNorm(nn.LayerNorm):
    def forward(self, x: Tensor) -> Tensor:
        if self.weight is None or (self.weight.dim() == 1 and (self.bias is None or self.bias.dim() == 1)):
            return F.layer_norm(x, self.normalized_shape, self.weight, self.bias, self.eps)
        y = F.layer_norm(x, self.normalized_shape, None, None, self.eps) * per_task(self.weight, x, 1)
        return y if self.bias is None else y + per_task(self.bias, x, 1)


class SetNorm(TaskLayerNorm):
    """Batch norm (Ioffe and Szegedy 2015) by the statistics of the batch at hand, and no others, in training and after
    it: of each channel over all rows and places of a task's set. So a row's states depend on the rows beside it.
    """

    def forward(self, x: Tensor, tasks: int = 1) -> Tensor:
        """[N, P, D], the rows of `tasks` sets one after another; weight and bias [D] or [T, D] are of channels."""
        sets = x.reshape(tasks, -1, x.shape[-1]).mT  # [T, D, n P]
        whole = F.layer_norm(sets, sets.shape[-1:], None, None, self.eps).mT.reshape(x.shape)
        return whole * per_task(self.weight, x, 1) + per_task(self.bias, x, 1)


class TaskRMSNorm(nn.Module):
    """The root-mean-square norm of Llama, Qwen and T5, computed in at least float32."""

    weight: Tensor
    variance_epsilon: float

    def forward(self, x: Tensor) -> Tensor:
        wide = x.to(torch.promote_types(x.dtype, torch.float32))
        y = wide * torch.rsqrt(wide.pow(2).mean(-1, keepdim=True) + self.variance_epsilon)
        return per_task(self.weight, x, 1) * y.to(x.dtype)


class TaskEmbedding(nn.Embedding):
    """nn.Embedding, whose weight [V, I] may be [T, V, I]; ids [N, S] (or [1, S], the same for every row)."""

    def forward(self, ids: Tensor) -> Tensor:
        if self.weight.dim() == 2:
            return F.embedding(ids, self.weight)  # padding_idx would stop the gradient of a pad token in the text
        tasks, vocabulary, width = self.weight.shape
        first = torch.arange(tasks, device=ids.device).mul_(vocabulary).view(tasks, 1, 1)
        flat = (ids.view(tasks, -1, ids.shape[-1]) + first).view(ids.shape)
        return F.embedding(flat, self.weight.reshape(tasks * vocabulary, width))


class FetchedEmbedding(TaskEmbedding):
    """A frozen embedding that fetches its rows: ids [N, S] -> [N, S, I], in `dtype`, or at least float32."""

    fetch: Callable[[Tensor], Tensor]
    dtype: torch.dtype | None

    def forward(self, ids: Tensor) -> Tensor:
        rows = self.fetch(ids)
        return rows.to(self.dtype or torch.promote_types(rows.dtype, torch.float32))


def _product(x: Tensor, matrix: Tensor) -> Tensor:
    """x [N, ..., I] times [I, O] -> [N, ..., O]; with [T, I, O], the rows of task t meet matrix t."""
    if matrix.dim() == 2:
        return x @ matrix
    y = torch.bmm(x.reshape(matrix.shape[0], -1, x.shape[-1]), matrix)
    return y.view(*x.shape[:-1], matrix.shape[-1])


def per_task(weight: Tensor, x: Tensor, own_dims: int) -> Tensor:
    """`weight` [...] or [T, ...] in a shape that broadcasts against x [N, ..., O]."""
    if weight.dim() == own_dims:
        return weight
    rows = x.shape[0] // weight.shape[0]
    inner = (1,) * (x.dim() - 1 - own_dims)
    return weight.repeat_interleave(rows, 0).view(x.shape[0], *inner, *weight.shape[1:])


def task_class(module: nn.Module) -> type[nn.Module] | None:
    """What a layer of a Hugging Face model is made, so that its weights may carry a task axis; None: it stays."""
    kind = type(module).__name__
    if isinstance(module, TaskLinear | TaskConv1D | TaskLayerNorm | TaskEmbedding | TaskRMSNorm):
        return type(module)
    if type(module) is nn.Linear or (isinstance(module, nn.Linear) and "__init__" not in type(module).__dict__):
        return TaskLinear
    if kind == "Conv1D":
        return TaskConv1D
    if type(module) is nn.LayerNorm:
        return TaskLayerNorm
    if type(module) is nn.Embedding:
        return TaskEmbedding
    if (kind.endswith("RMSNorm") or kind == "T5LayerNorm") and hasattr(module, "variance_epsilon"):
        return TaskRMSNorm
    return None


def give_task_axis(backbone: nn.Module) -> None:
    """Let the layers of a Hugging Face model take fast weights with a task axis. Names and values stay."""
    for module in backbone.modules():
        module.__class__ = task_class(module) or type(module)


def without_task_axis(backbone: nn.Module) -> list[str]:
    """Names of the parameters that cannot carry a task axis; tasks that adapt them are run one by one."""
    able = TaskLinear | TaskConv1D | TaskLayerNorm | TaskEmbedding | TaskRMSNorm
    names = []
    for path, module in backbone.named_modules():
        fixed = not isinstance(module, able) or "relative_attention_bias" in path  # its ids have no row axis
        names += [f"{path}.{name}".strip(".") for name, _ in module.named_parameters(recurse=False) if fixed]
    return names


def add_lora(backbone: nn.Module, rank: int, alpha: float, targets: str, seed: int) -> list[str]:
    """Add trainable low-rank pairs beside the linear layers that `targets` names; the names of those layers.

    A starts uniform as in peft, B at zero, so that the network's output is unchanged. `targets` is a regular
    expression searched in the layer's path; "auto" takes the query and value projections, or the joint one,
    "all-linear" every one. Raises InputError when nothing matches.
    """
    linear = [(path, m) for path, m in backbone.named_modules() if isinstance(m, TaskLinear | TaskConv1D)]
    chosen: list[tuple[str, Any]] = []
    for pattern in {"auto": AUTO_TARGETS, "all-linear": ("",)}.get(targets, (targets,)):
        chosen = chosen or [(path, module) for path, module in linear if re.search(pattern, path)]
    if not chosen:
        some = sorted({re.sub(r"\.\d+\.", ".*.", path) for path, _ in linear})
        named = f"its layers are named as {some[:12]}" if some else "it has none that LoRA could be added to"
        raise InputError(f"model.lora_targets = {targets}: matches no linear layer of this model; {named}")
    generator = torch.Generator().manual_seed(seed)
    for _, module in chosen:
        inputs, outputs = module.sizes if isinstance(module, FetchedLinear) else module._matrix().shape
        bound = (1 / inputs) ** 0.5  # kaiming_uniform_(a=sqrt(5)), as peft initialises A
        a = torch.empty(rank, inputs).uniform_(-bound, bound, generator=generator)
        module.lora_A = nn.Parameter(a)
        module.lora_B = nn.Parameter(torch.zeros(outputs, rank))
        module.lora_scale = alpha / rank
    return [path for path, _ in chosen]


def is_turned(layer: nn.Module) -> bool:
    """Whether the model has a linear layer's weight as [I, O]."""
    return isinstance(layer, TaskConv1D) or (isinstance(layer, FetchedLinear) and layer.turned)


def merge_lora(values: Mapping[str, Tensor], model: nn.Module) -> dict[str, Tensor]:
    """Weights by the model's names with their LoRA products added, W + s B A, float32, and no pairs.

    Where a layer has no pair its weight is given back as it is (Hu et al. 2021, arXiv 2106.09685).
    """
    out = {}
    for name, value in values.items():
        pair = [f"{name.removesuffix('weight')}lora_{letter}" for letter in "BA"]
        if name.endswith(".weight") and pair[0] in values:
            layer: Any = model.get_submodule(name.removesuffix(".weight"))
            product = layer.lora_scale * values[pair[0]] @ values[pair[1]]
            value = value.float() + (product.mT if is_turned(layer) else product)
        if not name.endswith(("lora_A", "lora_B")):
            out[name] = value
    return out


LAST_QUARTER = "last_quarter_mlp"  # of inner.adapt: what TTT-E2E (arXiv 2512.23675) adapts
FEED_FORWARD = re.compile(
    r"\.(mlp|feed_forward|ffn|ff|fc1|fc2|intermediate|DenseReluDense)\.|(?<!attention)\.output\.dense\."
)


def chosen(adapt: str, names: Iterable[str]) -> set[str]:
    """The names that `inner.adapt`, last_quarter_mlp or a regular expression, stands for. Raises InputError."""
    if adapt == LAST_QUARTER:
        layer_of = {name: int(number[1]) for name in names if (number := re.search(r"\.(\d+)\.", name))}
        layers = 1 + max(layer_of.values(), default=-1)
        first = layers - max(1, round(layers / 4))
        return {name for name, layer in layer_of.items() if layer >= first and FEED_FORWARD.search(name)}
    try:
        return {name for name in names if re.search(adapt, name)}
    except re.error as error:
        raise InputError(
            f"inner.adapt = {adapt}: not all, lora, head, {LAST_QUARTER} or a regular expression: {error}"
        ) from None
