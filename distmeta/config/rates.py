"""What a configuration leaves open and the model decides: learning rates that fit what is trained, and the length of
features that fits them.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from distmeta.config.trees import section, with_defaults

# (outer, inner) by what the outer loop trains, from pretrained weights. Weights that know a language lose it at the
# rates that random ones need; LoRA and a head begin at random, or at nothing. encoder: a whole one, under a linear head
# on features of one length, which hold an inner loop steady at rates that learn in some forty meta-steps.
PRETRAINED = {"whole": (3e-5, 0.02), "encoder": (5e-4, 0.05), "lora": (1e-3, 0.05), "head": (1e-3, 0.1)}
RANDOM = (1e-3, 0.1)
INNER_ADAM = {"whole": 1e-4, "encoder": 1e-4, "lora": 1e-3, "head": 1e-2}  # whose steps are as long as its rate


def with_rates(content: dict[str, Any]) -> dict[str, Any]:
    """`content` with numbers for outer.lr and inner.lr where it has none, or null."""
    model, inner, outer = (section(content, name) or {} for name in ("model", "inner", "outer"))
    pretrained = model.get("pretrained") is not None
    kind = trained(str(inner.get("adapt", "all")), outer.get("base") == "train")
    if kind == "whole" and model.get("distance") == "cosine" and is_encoder_under_linear_head(model):
        kind = "encoder"
    outer_lr, inner_lr = PRETRAINED[kind] if pretrained else RANDOM
    if pretrained and inner.get("optimizer") == "adam":
        inner_lr = INNER_ADAM[kind]
    return with_defaults(content, {"inner": {"lr": inner_lr}, "outer": {"lr": outer_lr}})


def without_rates(content: dict[str, Any]) -> dict[str, Any]:
    """A recipe's content without its rates, which are for the weights that the recipe begins from."""
    return {name: {k: v for k, v in values.items() if k not in ("lr", "rate_lr")}
            if name in ("inner", "outer") and isinstance(values, dict) else values
            for name, values in content.items()}  # fmt: skip


def with_distance(content: dict[str, Any]) -> dict[str, Any]:
    """`content` with model.distance where it has none: cosine for a pretrained decoder that classifies, and for a
    pretrained encoder that is trained whole under a linear head.

    The last states of a decoder are so long that any rate is too high for a linear head on them; an encoder's are so
    short that a linear head moves little at the rates that its layers bear.
    """
    model, task, inner, outer = (section(content, name) or {} for name in ("model", "task", "inner", "outer"))
    if model.get("distance") is not None:
        return content
    reads_words = task.get("family") == "text_to_text" or task.get("labels", "head") != "head"
    reads_words = reads_words or model.get("head") == "context"
    pretrained = model.get("pretrained")
    whole = trained(str(inner.get("adapt", "all")), outer.get("base") == "train")
    encoder = whole == "whole" and is_encoder_under_linear_head(model)
    cosine = not reads_words and pretrained is not None and (is_decoder(str(pretrained)) or encoder)
    return with_defaults(content, {"model": {"distance": "cosine" if cosine else "euclidean"}})


def is_decoder(folder: str) -> bool:
    """Whether a Hugging Face directory holds a language model that predicts the next token, by its config.json."""
    return any(name.endswith(("ForCausalLM", "LMHeadModel")) for name in architectures(folder) or [])


def is_encoder_under_linear_head(model: Mapping[str, Any]) -> bool:
    """Whether the section model names the directory of a pretrained encoder, under a linear head."""
    pretrained = model.get("pretrained")
    known = None if pretrained is None else architectures(str(pretrained))
    return known is not None and not is_decoder(str(pretrained)) and model.get("head", "linear") == "linear"


def architectures(folder: str) -> list[str] | None:
    """The classes that a Hugging Face directory's config.json names; None where there is none, as for a hub id."""
    try:
        names = json.loads((Path(folder) / "config.json").read_text(encoding="utf-8")).get("architectures")
    except (OSError, ValueError, AttributeError):
        return None  # refused where it is read, or a hub id
    return [str(name) for name in names or []]


def trained(adapt: str, base: bool) -> str:
    """What of the model the outer loop changes: whole, lora or head. base: also what is not adapted."""
    return "whole" if base or adapt not in ("lora", "head") else adapt
