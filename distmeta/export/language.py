"""The export of a language model: transformers' own with its output layer, or a PEFT adapter on the published base."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from distmeta.errors import InputError
from distmeta.export.card import model_card
from distmeta.models import backbone as backbones
from distmeta.models.layers import merge_lora
from distmeta.models.quantised import weights_of
from distmeta.runs import checkpoint as checkpoints
from distmeta.tasks.tokenizer import load_tokenizer, special_ids

if TYPE_CHECKING:
    from distmeta.export.export import Trained

Adapter = tuple[dict[str, Any], dict[str, torch.Tensor]]  # PEFT's configuration, and its weights by name


def write_language(
    trained: Trained, tokenizer: Any, described: dict[str, Any], out: Path, adapter: Adapter | None = None
) -> Path:
    """Fill `out`, whole or not at all, with what AutoModelForCausalLM or AutoModelForSeq2SeqLM loads, or with PEFT's
    `adapter` on the base as it was published."""

    def fill(draft: Path) -> None:
        if adapter is None:
            with_words(trained, tokenizer).save_pretrained(draft)
        else:
            save_adapter(adapter, draft)
        tokenizer.save_pretrained(draft)
        if trained.context is not None:
            words = {"tokens": trained.context, "text": tokenizer.decode(trained.context), "labels": trained.labels}
            (draft / "context.json").write_text(json.dumps(words, indent=1, ensure_ascii=False), encoding="utf-8")
        (draft / "distmeta.json").write_text(json.dumps(described, indent=1, ensure_ascii=False), encoding="utf-8")
        (draft / "README.md").write_text(model_card(trained, described), encoding="utf-8")

    checkpoints.write_directory(out, fill)
    return out


def save_adapter(adapter: Adapter, draft: Path) -> None:
    """PEFT's two files."""
    from safetensors.torch import save_file

    config, weights = adapter
    (draft / "adapter_config.json").write_text(json.dumps(config, indent=1), encoding="utf-8")
    save_file(weights, draft / "adapter_model.safetensors", metadata={"format": "pt"})


def with_words(trained: Trained, tokenizer: Any) -> Any:
    """`whole_model` with the special tokens that its answers were learnt with."""
    from transformers import GenerationConfig

    model: Any = trained.model
    whole = whole_model(trained)
    special = special_ids(load_tokenizer(trained.tokenizer_file))
    ends: Any = list(special.ends) if len(special.ends) > 1 else special.end
    words = {"eos_token_id": ends, "pad_token_id": special.pad}
    if tokenizer.bos_token_id is not None:
        words["bos_token_id"] = tokenizer.bos_token_id
    if model.seq2seq:
        words["decoder_start_token_id"] = model.start_id
    for name, value in words.items():
        setattr(whole.config, name, value)
    # Nothing of the base's own: what it forces, forbids or draws is not what the answers were learnt with.
    whole.generation_config = GenerationConfig(**words)
    return whole


def whole_model(trained: Trained) -> Any:
    """transformers' own model with the trained weights. Raises InputError where they do not fit it."""
    config, model = trained.config, trained.model
    vocab, pad = int(model.backbone.config.vocab_size), int(model.backbone.config.pad_token_id or 0)  # type: ignore[union-attr, arg-type]
    whole = backbones.build_language_model(config.model, vocab, pad, config.run.seed)
    both = bool(whole.config.is_encoder_decoder)
    initial = model.state_dict(keep_vars=True) | weights_of(model)
    # A parameter that has several names, as shared embeddings have, is trained by one of them.
    moved = {id(initial[name]): value for name, value in trained.values.items() if name in initial}
    values = merge_lora({name: moved.get(id(value), value.detach()) for name, value in initial.items()}, model)
    target = whole if both else whole.base_model
    loaded = target.load_state_dict(
        {name.removeprefix("backbone."): v for name, v in values.items() if name.startswith("backbone.")}, strict=False
    )
    tied = set(getattr(whole, "_tied_weights_keys", None) or ())
    absent = [
        name for name in loaded.missing_keys if name not in tied and not re.search("lm_head|final_logits_bias", name)
    ]
    if absent or loaded.unexpected_keys:
        raise InputError(
            f"export: {whole.config.model_type}: its weights do not fit transformers' model, such as "
            f"{(absent + loaded.unexpected_keys)[0]}"
        )
    output = whole.get_output_embeddings()
    with torch.no_grad():
        if "output_weight" in values:
            output.weight.copy_(values["output_weight"])
        if "output_bias" in values:
            output.bias.copy_(values["output_bias"])
    whole.tie_weights()
    return whole.eval()
