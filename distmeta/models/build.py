"""The model that a configuration describes."""

from __future__ import annotations

from contextlib import nullcontext
from typing import TYPE_CHECKING, Any

import torch

from distmeta.config import Config
from distmeta.errors import InputError
from distmeta.models import backbone as backbones
from distmeta.models import calls
from distmeta.models.fast_shards import FastShards
from distmeta.models.held import hold, loading_dtype, narrow_held
from distmeta.models.images import ImageModel, build_image_backbone
from distmeta.models.labels import LabelModel, check_room
from distmeta.models.language import LanguageModel, build_language_model
from distmeta.models.policy import PolicyModel
from distmeta.models.quantised import quantise_base
from distmeta.models.regression import RegressionModel, build_regression_model
from distmeta.models.sharding import Shards
from distmeta.models.task_model import TaskModel
from distmeta.models.two_towers import TwoTowerModel
from distmeta.tasks.prompts import LETTERS, LabelTokens, label_tokens_of

if TYPE_CHECKING:
    from distmeta.tasks.store import TaskStore


def build_for(
    config: Config, store: TaskStore, shards: FastShards | Shards | None = None, copy: Any = None
) -> TaskModel:
    """The model that a configuration describes, for the tasks of a store; arguments as of `build_model`."""
    labels = len(store.labels)
    return build_model(config, store.vocab_size, store.pad_id, config.ways or labels, shards, labels, copy)


def build_model(
    config: Config,
    vocab_size: int,
    pad_id: int,
    classes: int,
    shards: FastShards | Shards | None = None,
    labels: int = 0,
    copy: Any = None,
) -> TaskModel:
    """The model that a configuration describes, for a tokenizer's vocabulary and C classes. Raises InputError.

    labels: classes of the whole data, over which algorithm=multi_task classifies.
    shards: where its parameters go, or those of its frozen base, each rank keeping its part of every one; all ranks
    build it together. copy: a transformers configuration in the place of config.model's, for a model to be tried
    (distmeta.models.trial).
    """
    base = shards if isinstance(shards, Shards) else None
    with base.together() if base is not None else nullcontext():  # the model is tried while it is built
        if config.task.labels != "head":
            return build_label_model(config, vocab_size, pad_id, classes, base, copy)
        if config.task.is_language:
            language = build_language_model(config, vocab_size, pad_id, copy, shards=base)
            settle(language, config, base)
            check_positions(config, backbones.positions(language.backbone))
            if language.seq2seq and config.task.family == "document":
                raise InputError(
                    "task.family = document: an encoder-decoder reads no text; give a decoder, such as gpt2"
                )
            return language
        if config.model.image is not None:
            backbone = build_image_backbone(config.model, config.run.seed, copy)
            if config.model.head == "words":
                images: ImageModel = TwoTowerModel(backbone, classes, config)
            else:
                images = ImageModel(backbone, classes, config, labels)
            settle(images, config, base)
            return images
        if config.task.has_numbers:
            kind = PolicyModel if config.task.family == "policy" else RegressionModel
            functions = build_regression_model(config, kind, copy)
            settle(functions, config, base)
            return functions
        return build_classifier(config, vocab_size, pad_id, classes, shards, labels, copy)


def build_classifier(
    config: Config, vocab_size: int, pad_id: int, classes: int, shards: FastShards | Shards | None, labels: int,
    copy: Any = None,
) -> TaskModel:  # fmt: skip
    """The model with a head of its own."""
    dtype = loading_dtype(config) if copy is None else torch.float32
    backbone = backbones.build_backbone(config.model, vocab_size, pad_id, config.run.seed, copy, dtype)
    if isinstance(shards, FastShards):
        shards.take_large(backbone, "backbone")
    if config.model.pretrained is not None and copy is None:
        hold(backbone, backbone, config, shards if isinstance(shards, Shards) else None)
    if shards is not None:
        backbone.to(shards.device)
    limit = backbones.positions(backbone)
    check_positions(config, limit)
    model = TaskModel(backbone, classes, config, labels)
    settle(model, config, shards if isinstance(shards, Shards) else None)
    if model.in_context:
        check_context(model, config, limit)
    if isinstance(shards, FastShards):
        shards.take_small(model.to(shards.device))
        shards.autocast, model.fast_shards = model.autocast, shards
        model.fast = {name: dict(model.named_parameters())[name] for name in model.fast}
        model.adapted = dict(model.fast)
    return model


def settle(model: TaskModel, config: Config, shards: Shards | None) -> None:
    """What becomes of the frozen weights once the model has been tried: rounded, in shards, in bfloat16."""
    quantise_base(model, config)
    for value in (model.fast | model.shared).values():
        value.data = value.data.float()  # whatever they were loaded in
    if shards is not None:
        if config.model.pretrained is None:  # tried with weights that differ from its own
            output = getattr(model, "output_name", None)
            hold(model, model.backbone, config, shards, output and model.get_parameter(output))
        if shards.weights:
            model.frozen_shards = shards  # type: ignore[assignment]
    if config.model.dtype == "bfloat16":
        model.autocast = torch.bfloat16
        narrow_held(model)
        for name, p in model.named_parameters():
            if p.dim() > 1 and name not in model.fast and name not in model.shared:
                p.data = p.data.to(torch.bfloat16)


def build_label_model(
    config: Config, vocab_size: int, pad_id: int, classes: int, shards: Shards | None, copy: Any = None
) -> LanguageModel:
    """A pretrained decoder that says the names of classes; of `copy`, a model to be tried, any tokens are names."""
    labels = config.task.labels
    if copy is None:
        tokens = label_tokens_of(config)
    else:
        tokens = LabelTokens((), tuple(range(len(LETTERS))), (0,), (0,))
    model = build_language_model(
        config, vocab_size, pad_id, copy, lambda whole, config: LabelModel(whole, config, classes, tokens, pad_id),
        shards,
    )  # fmt: skip
    if model.seq2seq:
        raise InputError(
            f"task.labels = {labels}: an encoder-decoder does not read a class in a text; give a decoder, such as gpt2 "
            "or llama, or set task.labels=head"
        )
    if labels == "words" and not model.keeps_keys:
        kind = model.backbone.config.model_type  # type: ignore[union-attr]
        raise InputError(
            f"task.labels = words: {kind} does not give its ordinary states where several labels follow one text (a "
            "sliding window is shorter than model.max_tokens, or its keys and values cannot be kept); choose another "
            "model, such as gpt2 or llama, or set task.labels=letters"
        )
    settle(model, config, shards)
    limit = backbones.positions(model.backbone)
    check_room(config, tokens, classes, limit)
    check_positions(config, limit)
    return model


def check_format(path: object, number: int, model: TaskModel) -> None:
    """Raises InputError where a checkpoint of format 1 was trained with another call of its model than is made now.

    Then positions went from 0 to every model, but to RoBERTa's three kinds from their own, and masks had no window.
    """
    kind = str(model.backbone.config.model_type)  # type: ignore[union-attr]
    if number == 1 and model.way != calls.WAYS[0] and kind not in ("roberta", "xlm-roberta", "camembert"):
        raise InputError(
            f"{path}: an earlier distmeta trained it, which gave {kind} other positions or masks than the model's own, "
            "so that its scores cannot be given again; meta-train it again, or open it with the version that wrote it"
        )


def check_positions(config: Config, limit: int | None) -> None:
    """Raises InputError where the longest row does not fit, in context with its support set."""
    if limit is not None and config.model.max_tokens > limit:
        raise InputError(f"model.max_tokens = {config.model.max_tokens}: the model has {limit} positions")
    if config.task.family == "text_to_text" and config.model.head == "context":
        need = (config.most_shots + 1) * config.model.max_tokens
        if limit is not None and need > limit:
            raise InputError(
                f"model.head = context: {config.most_shots} examples of {config.model.max_tokens} tokens and one more "
                f"may take {need} positions, the model has {limit}; lower task.shots or model.max_tokens"
            )


def check_context(model: TaskModel, config: Config, limit: int | None) -> None:
    """Raises InputError where the model cannot read a support set, or not one so long."""
    if not model.causal or not model.keeps_context(8):
        raise InputError(
            "model.head = context needs a decoder that keeps keys and values, such as gpt2, llama or qwen2; set "
            "model.pretrained or model.architecture to one, or choose another algorithm"
        )
    need = model.classes * config.most_shots * (config.model.max_tokens + 1) + config.model.max_tokens + 1
    if limit is not None and need > limit:
        raise InputError(
            f"model.head = context: {model.classes} classes of {config.most_shots} texts of {config.model.max_tokens} "
            f"tokens may take {need} positions, the model has {limit}; lower task.shots or model.max_tokens"
        )
    if not model.keeps_context(need):
        raise InputError(
            f"model.head = context: the model's sliding window is shorter than the {need} tokens of a support set and "
            "one text; lower task.shots or model.max_tokens, or choose a model without one, such as gpt2 or llama"
        )
