"""A pretrained base as its files have it: mapped into memory, shared by the processes of a node, and not copied.

    frozen weights in shards    a rank reads its own part of each, on a CPU where it is (distmeta.models.sharding)
    frozen weights beside them  stay in the files' memory, and are widened for each product where they are narrower
    all other weights           become float32 of the process's own

So a rank's own memory is at most its shard, what is learnt, and the layer at work. The numbers are those of a base
that is loaded whole in float32: bfloat16 and float16 are widened without rounding.
"""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from distmeta.config import Config, ModelConfig
from distmeta.models.layers import (
    FetchedEmbedding,
    FetchedLinear,
    TaskConv1D,
    TaskEmbedding,
    TaskLinear,
    chosen,
    task_class,
)
from distmeta.models.sharding import Shards, persistence_threshold

DTYPES = {"F32": torch.float32, "BF16": torch.bfloat16, "F16": torch.float16}
NARROW = (torch.bfloat16, torch.float16)


def loading_dtype(config: Config) -> torch.dtype:
    """What a base is loaded in: the dtype of its files where it is to stay in their memory, else float32."""
    model, stage = config.model, config.deepspeed["zero_optimization"]["stage"]
    stored = stored_dtype(model) or torch.float32
    is_whole = stored == torch.bfloat16 and model.dtype == "bfloat16" and model.quantise is None
    in_place = config.freezes_base and (stage == 3 or is_whole)
    return stored if in_place or config.cluster.episode == "group" else torch.float32


def stored_dtype(model: ModelConfig) -> torch.dtype | None:
    """The dtype of all the numbers in a local directory's safetensors files; None where there are several, or none."""
    from safetensors import SafetensorError, safe_open

    kinds: set[str] = set()
    for file in Path(model.pretrained).expanduser().glob("*.safetensors") if model.pretrained else ():
        try:
            with safe_open(file, framework="pt") as tensors:
                kinds |= {tensors.get_slice(name).get_dtype() for name in tensors.keys()}  # noqa: SIM118 (no mapping)
        except (OSError, SafetensorError):  # which loading it will say
            return None
    return DTYPES.get(kinds.pop()) if len(kinds) == 1 else None


def frozen_of(names: set[str], config: Config) -> set[str]:
    """Those of the base's parameters that are frozen, by the names that a TaskModel gives them."""
    if not config.freezes_base:
        return set()
    return names if config.inner.adapt in ("lora", "head") else names - chosen(config.inner.adapt, names)


def hold(whole: nn.Module, backbone: nn.Module, config: Config, shards: Shards | None, output: Any = None) -> None:
    """Leave of the large frozen weights of `backbone`, a part of `whole`, this rank's shards, or the files' memory.

    A weight is large as DeepSpeed has it: above zero_optimization.stage3_param_persistence_threshold numbers (default
    100,000). What is small, and what is neither the weight of a linear layer nor an embedding, is this process's own
    and float32. `output`, the weight of a language model's output layer, is no shard.
    """
    for module in (whole, backbone):
        module.numbers = sum(p.numel() for p in module.parameters())  # type: ignore[assignment]
    named = {f"backbone.{name}": p for name, p in backbone.named_parameters()}
    if output is not None and all(p is not output for p in named.values()):
        named["output_weight"] = output
    names, most = frozen_of(set(named), config), persistence_threshold(config)
    taken = {id(p) for name, p in named.items() if name in names and p.numel() > most}
    wide = set(getattr(whole, "_keep_in_fp32_modules", None) or ())  # their dtype is read by the family's code (T5)
    for path, module in whole.named_modules():
        can_fetch = issubclass(task_class(module) or nn.Module, TaskLinear | TaskConv1D | TaskEmbedding)
        can_fetch &= shards is not None or path.rpartition(".")[2] not in wide
        taken -= {id(p) for name, p in module._parameters.items() if name != "weight" or not can_fetch}
    for p in whole.parameters():
        if p.dtype in NARROW and id(p) not in taken:
            p.data = p.data.float()
    in_files = memory_of_files()
    ways: dict[int, Any] = {}  # to the shards of a weight, which several modules may have
    for module in whole.modules():
        weight = module._parameters.get("weight")
        if weight is None or id(weight) not in taken:
            continue
        is_embedding = issubclass(task_class(module) or nn.Module, TaskEmbedding)
        if shards is not None and weight is not output:
            dtype = torch.bfloat16 if config.model.dtype == "bfloat16" else weight.dtype
            if id(weight) not in ways:
                ways[id(weight)] = (
                    shards.add_embedding(weight, dtype)
                    if is_embedding
                    else shards.add_linear(weight, dtype, in_place=in_files(weight))
                )
            fetch_from(module, ways[id(weight)])
            module._parameters["weight"] = None
        elif weight.dtype in NARROW:
            fetch_from(module, functools.partial(rows_of if is_embedding else weight_of, module))


def memory_of_files() -> Callable[[Tensor], bool]:
    """Whether a tensor lies in the mapped memory of a safetensors file; never where the system does not tell."""
    ranges = []
    with contextlib.suppress(OSError):
        for line in Path("/proc/self/maps").read_text(encoding="utf-8", errors="replace").splitlines():
            if line.endswith(".safetensors"):
                ranges.append([int(number, 16) for number in line.split()[0].split("-")])
    return lambda tensor: any(first <= tensor.untyped_storage().data_ptr() < last for first, last in ranges)


def rows_of(module: nn.Module, ids: Tensor) -> Tensor:
    return F.embedding(ids, module.weight)  # type: ignore[arg-type]


def weight_of(module: nn.Module) -> Any:
    return module.weight


def fetch_from(module: nn.Module, way: Callable[..., Tensor]) -> None:
    """Have a layer take its weight, or an embedding its rows, by `way`."""
    layer: Any = module
    layer.kind, layer.fetch, layer.dtype = task_class(module), way, None
    if issubclass(layer.kind, TaskEmbedding):
        layer.__class__ = FetchedEmbedding
        return
    layer.turned, layer.sizes = issubclass(layer.kind, TaskConv1D), tuple(layer.weight.shape)
    if layer.turned:
        layer.fetch = functools.partial(turned, way)
    else:
        layer.sizes = layer.sizes[::-1]
    layer.__class__ = FetchedLinear


def turned(way: Callable[[], Tensor]) -> Tensor:
    return way().mT


def narrow_held(model: nn.Module) -> None:
    """From here on products in bfloat16, which weights of the files' own memory need no way for."""
    for module in model.modules():
        if isinstance(module, FetchedLinear | FetchedEmbedding):
            layer: Any = module
            if layer.weight is None:
                layer.dtype = torch.bfloat16
            else:
                layer.__class__ = layer.kind
