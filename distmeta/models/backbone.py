"""Loading a pretrained transformer, or building a small one from its configuration."""

from __future__ import annotations

import inspect
import json
import os
from collections.abc import Iterator, Set
from pathlib import Path
from typing import Any

import torch
from torch import nn

from distmeta.config import ModelConfig
from distmeta.config.paths import check_hub, is_path
from distmeta.errors import InputError, nearest

# What architectures call the width of their feed-forward layers.
WIDTHS = ("intermediate_size", "n_inner", "d_ff", "ffn_dim", "ffn_hidden_size")


def build_backbone(
    config: ModelConfig, vocab_size: int, pad_id: int, seed: int, copy: Any = None, dtype: torch.dtype = torch.float32
) -> nn.Module:
    """The transformer without a task head, in evaluation mode.

    From `config.pretrained` (a directory or hub id, safetensors only, no remote code), else initialised from
    `config.architecture` and `config.config` with `seed`; or from the transformers configuration `copy`. In float32,
    or what is pretrained in `dtype`: as its files are, it stays in their memory. Raises InputError.
    """
    from transformers import AutoModel

    model = build(AutoModel, config, vocab_size, pad_id, seed, copy, dtype)
    if model.config.is_encoder_decoder:
        model = model.get_encoder()
    if getattr(model, "pooler", None) is not None:
        model.pooler = nn.Identity()  # unused by the heads: dead weight as a meta-parameter; some families call it
    backbone: nn.Module = model
    return backbone


def build_language_model(
    config: ModelConfig, vocab_size: int, pad_id: int, seed: int, copy: Any = None, dtype: torch.dtype = torch.float32
) -> Any:
    """As `build_backbone`, a decoder or an encoder-decoder with its output layer over the vocabulary."""
    from transformers import (
        MODEL_FOR_CAUSAL_LM_MAPPING,
        MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING,
        AutoModelForCausalLM,
        AutoModelForSeq2SeqLM,
    )

    hf_config = model_config(config, vocab_size, pad_id) if copy is None else copy
    both = hf_config.is_encoder_decoder
    auto = AutoModelForSeq2SeqLM if both else AutoModelForCausalLM
    known = type(hf_config) in (MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING if both else MODEL_FOR_CAUSAL_LM_MAPPING)
    model = build(auto, config, vocab_size, pad_id, seed, copy, dtype) if known else None
    if model is None or not (both or decodes(model.base_model, config.pretrained is None)):
        key = f"pretrained = {config.pretrained}" if config.pretrained else f"architecture = {config.architecture}"
        raise InputError(
            f"model.{key}: task.family=text_to_text needs a decoder or an encoder-decoder, such as gpt2, llama, qwen2 "
            "or t5; task.family=document needs a decoder"
        )
    return model


def build(
    kind: Any, config: ModelConfig, vocab_size: int, pad_id: int, seed: int, copy: Any = None,
    dtype: torch.dtype = torch.float32,
) -> Any:  # fmt: skip
    """A model of one of transformers' automatic classes, such as AutoModel, in evaluation mode."""
    from safetensors import SafetensorError

    hf_config = model_config(config, vocab_size, pad_id) if copy is None else copy
    _set_dropout(hf_config, config.dropout)
    if config.pretrained is not None and copy is None:
        try:
            model, loading = kind.from_pretrained(
                config.pretrained, config=hf_config, use_safetensors=True, dtype=dtype,
                attn_implementation="eager", output_loading_info=True, trust_remote_code=False,
            )  # fmt: skip
        except (OSError, ValueError, RuntimeError, SafetensorError) as error:
            raise InputError(f"model.pretrained = {config.pretrained}: {_first_line(error)}") from None
        absent = sorted(name for name in loading["missing_keys"] if "pooler" not in name)
        if absent:  # transformers would go on with random values
            raise InputError(
                f"model.pretrained = {config.pretrained}: its weights lack {len(absent)} tensors, such as {absent[0]}"
            )
        needed = model.get_input_embeddings().weight.shape[0] if config.image is None else vocab_size
        if vocab_size > needed:
            raise InputError(
                f"model.pretrained = {config.pretrained}: its tokenizer has {vocab_size} tokens, its embedding {needed}"
            )
        if dtype != torch.float32 and any(b.dtype == dtype for b in computed_buffers(model)):
            return build(kind, config, vocab_size, pad_id, seed)  # which float32 would have had more exactly
        model.config.dtype = torch.float32  # of its states
    else:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            try:
                model = kind.from_config(hf_config, attn_implementation="eager", trust_remote_code=False)
            except (ValueError, TypeError, RuntimeError) as error:
                raise InputError(f"model.config: {_first_line(error)}") from None
    return model.eval()


def computed_buffers(model: nn.Module) -> Iterator[torch.Tensor]:
    """Those that a model makes itself; the others come from its files, and become float32."""
    for module in model.modules():
        for name, buffer in module._buffers.items():
            if buffer is not None and name in module._non_persistent_buffers_set:
                yield buffer
            elif buffer is not None and buffer.is_floating_point():
                module._buffers[name] = buffer.float()


def model_config(config: ModelConfig, vocab_size: int, pad_id: int) -> Any:
    """The transformers configuration of `config.pretrained`, else of `config.architecture`. Raises InputError."""
    from transformers.utils import logging

    logging.set_verbosity_error()
    logging.disable_progress_bar()
    _register_own(config)
    if config.pretrained is not None:
        return _pretrained_config(config.pretrained)
    return _fresh_config(config, vocab_size, pad_id)


def _register_own(config: ModelConfig) -> None:
    """distmeta's own model types become known to transformers, unless it knows the model's type without them.

    They import transformers' modelling code, two seconds that a driver of one of its own models does not need.
    """
    from transformers import CONFIG_MAPPING

    kind: Any = config.architecture
    if config.pretrained is not None:
        try:
            kind = json.loads(Path(config.pretrained, "config.json").read_text(encoding="utf-8"))["model_type"]
        except (OSError, ValueError, KeyError, TypeError):
            kind = None  # of the hub, or a directory that is refused below
    if kind is None or kind not in CONFIG_MAPPING:
        from distmeta.models import conv4, lstm, mlp

        for own in (conv4, lstm, mlp):
            own.register()


def _pretrained_config(name: str) -> Any:
    from transformers import AutoConfig

    if is_path(name) and not os.path.isdir(name):
        raise InputError(f"model.pretrained = {name}: no such directory, and its weights are not in the checkpoint")
    if os.path.isdir(name) and not os.path.isfile(os.path.join(name, "config.json")):
        raise InputError(
            f"model.pretrained = {name}: the directory has no config.json; give a Hugging Face model directory"
        )
    check_hub(name)
    try:
        return AutoConfig.from_pretrained(name, trust_remote_code=False)
    except (OSError, ValueError) as error:
        raise InputError(f"model.pretrained = {name}: {_first_line(error)}") from None


def _name_in(known: Set[str], key: str) -> str:
    """The architecture's own name of the feed-forward layers' width, the one size that transformers does not map."""
    return next((name for name in WIDTHS if name in known), key) if key in WIDTHS and key not in known else key


def _fresh_config(config: ModelConfig, vocab_size: int, pad_id: int) -> Any:
    from transformers import CONFIG_MAPPING, AutoConfig

    if config.architecture not in CONFIG_MAPPING:
        raise InputError(
            f"model.architecture = {config.architecture}: not a transformers model type."
            + nearest(config.architecture, CONFIG_MAPPING.keys())
        )
    default = AutoConfig.for_model(config.architecture)
    known = set(default.to_dict()) | set(default.attribute_map)
    sizes = {_name_in(known, key): value for key, value in config.config.items()}
    for key in sizes:
        if key not in known:
            raise InputError(
                f"model.config.{key}: not a setting of architecture {config.architecture}.{nearest(key, known)}"
            )
    settings: dict[str, Any] = {
        "vocab_size": vocab_size,
        "pad_token_id": pad_id,
        "bos_token_id": None,
        "eos_token_id": None,
    }
    if config.image is not None:
        channels, height, width = config.image
        settings = {"num_channels": channels, "image_size": height if height == width else (height, width)}
        if "vision_config" in known:  # of images and text
            words = (sizes.get("text_config") or {}).get("vocab_size", default.text_config.vocab_size)
            ends = {"pad_token_id": words - 1, "bos_token_id": words - 1, "eos_token_id": words - 1}
            sizes |= {
                "vision_config": {**settings, **(sizes.get("vision_config") or {})},
                "text_config": {**ends, **(sizes.get("text_config") or {})},
            }
        settings = {key: value for key, value in settings.items() if key in known}
    if config.dimensions is not None:
        settings = {"input_size": config.dimensions[0]}
    if default.is_encoder_decoder:
        settings["decoder_start_token_id"] = pad_id
    try:
        fixed = settings if config.is_array else {"vocab_size": vocab_size}
        made = AutoConfig.for_model(config.architecture, **{**settings, **sizes, **fixed})
        made.architectures = made.architectures or []  # transformers looks through it where a family has two models
        return made
    except Exception as error:  # each architecture validates in its own way
        raise InputError(f"model.config: {_first_line(error)}") from None


def _set_dropout(hf_config: Any, rate: float) -> None:
    for key, value in hf_config.to_dict().items():
        if ("dropout" in key or "pdrop" in key) and isinstance(value, int | float) and not isinstance(value, bool):
            setattr(hf_config, key, rate)


def _first_line(error: Exception) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[0] if lines else type(error).__name__


def decodes(model: nn.Module, fresh: bool) -> bool:
    """Whether a token sees only those before it: what comes of changing the last one."""
    from distmeta.models import calls

    ids, keep = calls.trial(model.config, 8)
    with calls.shaken(model, fresh):
        return calls.sees_only_before(calls.ordinary_states(model, ids, keep, accepted_inputs(model)))


def set_attention(model: nn.Module, order: str) -> str:
    """Choose the attention kernel for a derivative order, and return its name.

    Fused kernels have no double backward (pytorch #117974), so an exact or implicit order takes distmeta's own
    (distmeta.models.attention) where it gives the model's states, else the eager form; everything else takes PyTorch's
    fused scaled-dot-product attention.
    """
    kernel = str(getattr(model, "exact_attention", "eager")) if order in ("exact", "implicit") else "sdpa"
    try:
        model.set_attn_implementation(kernel)  # type: ignore[operator]
    except (ValueError, ImportError):
        kernel = "eager"  # an architecture without the fused form
        model.set_attn_implementation(kernel)  # type: ignore[operator]
    return kernel


def positions(model: nn.Module) -> int | None:
    """The longest text, in tokens, that the model has positions for; None where its configuration sets no limit."""
    limit = position_limit(model.config)
    return None if limit is None else limit - _first_position(model, limit)


def position_limit(hf_config: Any) -> int | None:
    """Positions that a transformers configuration names; None where it sets no limit."""
    limits = (getattr(hf_config, key, None) for key in ("max_position_embeddings", "n_positions"))
    return next((limit for limit in limits if isinstance(limit, int) and limit > 0), None)


def _first_position(model: nn.Module, limit: int) -> int:
    """Places of the table of positions before that of the first token: up to its padding's (RoBERTa and its kin)."""
    for path, module in model.named_modules():
        if isinstance(module, nn.Embedding) and "position" in path and module.num_embeddings == limit:
            return 0 if module.padding_idx is None else module.padding_idx + 1
    return 0


def accepted_inputs(model: nn.Module) -> frozenset[str]:
    """Names of the forward arguments that this architecture takes."""
    return frozenset(inspect.signature(model.forward).parameters)
