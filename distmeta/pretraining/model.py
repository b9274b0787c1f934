"""The model that is pretrained: transformers' own, with its language-model head."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import nn

from distmeta.config import ModelConfig
from distmeta.errors import InputError
from distmeta.models import backbone as backbones
from distmeta.models import calls, trial


def objective_of(config: ModelConfig, objective: str) -> str:
    """masked or causal: what is asked for, or what the architecture is made for. Raises InputError."""
    from transformers.models.auto import modeling_auto as auto

    where = f"model.pretrained = {config.pretrained}" if config.pretrained else "model.architecture"
    hf_config = backbones.model_config(config, vocab_size=config.vocab_size, pad_id=0)
    kind = hf_config.model_type
    if getattr(hf_config, "is_encoder_decoder", False):
        raise InputError(
            f"{where}: {kind} is an encoder-decoder, which is trained to restore spans; pretraining is masked "
            "(bert, ...) or causal (gpt2, llama, qwen2, ...): choose one of these, or bring pretrained weights"
        )
    decodes = bool(getattr(hf_config, "is_decoder", False))
    known = {
        "masked": kind in auto.MODEL_FOR_MASKED_LM_MAPPING_NAMES and not decodes,
        "causal": kind in auto.MODEL_FOR_CAUSAL_LM_MAPPING_NAMES
        and (decodes or kind not in auto.MODEL_FOR_MASKED_LM_MAPPING_NAMES),
    }
    able = [name for name, is_there in known.items() if is_there]
    if not able:
        raise InputError(
            f"{where}: {kind} has no language-model head in transformers; choose bert, gpt2, llama, qwen2, ..."
        )
    if objective != "auto" and objective not in able:
        raise InputError(
            f"pretrain.objective = {objective}: {kind} {'sees' if objective == 'causal' else 'does not see'} the "
            f"tokens that come after one; set pretrain.objective={able[0]}, or another model.architecture"
        )
    return able[0]


def build_language_model(config: ModelConfig, objective: str, vocab_size: int, pad_id: int, seed: int) -> Any:
    """AutoModelForMaskedLM or AutoModelForCausalLM, float32, from pretrained weights or from a configuration.

    Raises InputError, also where pretrained weights lack the head: it would begin at random.
    """
    from transformers import AutoModelForCausalLM, AutoModelForMaskedLM

    kind = AutoModelForMaskedLM if objective == "masked" else AutoModelForCausalLM
    model = backbones.build(kind, config, vocab_size, pad_id, seed)
    limit = backbones.positions(model)
    if limit is not None and config.max_tokens > limit:
        raise InputError(f"model.max_tokens = {config.max_tokens}: the model has {limit} positions")
    backbones.set_attention(model, "first_order")
    if config.activation_checkpointing:
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    return model


def check_model(config: ModelConfig, objective: str, cache: Path) -> None:
    """Raises InputError, with the family's name and why, for a model that cannot be pretrained; tried on a small copy
    of it (distmeta.models.trial). cache: a directory."""
    trial.once(cache, config, {"objective": objective}, lambda: try_model(config, objective))


def try_model(config: ModelConfig, objective: str) -> None:
    from transformers import AutoModelForCausalLM, AutoModelForMaskedLM

    hf_config = backbones.model_config(config, trial.WORDS, trial.PAD)
    trial.refuse_by_name(config, hf_config)
    kind = AutoModelForMaskedLM if objective == "masked" else AutoModelForCausalLM

    def build(copy: Any) -> None:
        model = backbones.build(kind, config, trial.WORDS, trial.PAD, 0, copy)
        limit = backbones.positions(model)
        length = min(config.max_tokens, calls.SHORT if limit is None else limit, calls.SHORT)
        ids, keep = calls.trial(model.config, length)
        try:
            with torch.no_grad():
                model(input_ids=ids, attention_mask=keep)
        except Exception as error:  # whatever a family's own code makes of being called
            raise calls.NoCall(f"model: {hf_config.model_type} fails at text alone: {calls.reason(error)}") from None

    trial.try_copy(hf_config, config, build)


def parameters(model: nn.Module) -> dict[str, torch.Tensor]:
    """What is trained, by name; tied weights once."""
    return {name: p for name, p in model.named_parameters() if p.requires_grad}
