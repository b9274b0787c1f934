"""Images in the place of texts (model.image): what follows from their size, and what does not go with them."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import TYPE_CHECKING, Any

from distmeta.config.base import refuse
from distmeta.config.trees import merge, section, with_defaults

if TYPE_CHECKING:
    from distmeta.config import Config


# A small model of images and text (transformers' CLIP).
TOWER = {"hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 128}
TWO_TOWERS: dict[str, Any] = {
    "projection_dim": 64, "text_config": {**TOWER, "vocab_size": 4096, "max_position_embeddings": 64},
    "vision_config": {**TOWER, "patch_size": 4},
}  # fmt: skip


def with_image(content: dict[str, Any]) -> dict[str, Any]:
    """`content` with the model, the column and the length of rows that go with images. What it has of its own stays."""
    model = section(content, "model") or {}
    size = model.get("image")
    if not (isinstance(size, list | tuple) and len(size) == 3 and all(isinstance(n, int) for n in size)):
        return content  # of texts, or refused where the section is read
    defaults: dict[str, dict[str, Any]] = {
        "model": {"max_tokens": max(4, math.prod(size))}, "data": {"text": "image"}, "task": {"family": "classes"},
    }  # fmt: skip
    if model.get("head") == "words":
        defaults["model"]["distance"] = "cosine"
        if model.get("pretrained") is None:
            model = {"architecture": "clip", **model, "config": merge(TWO_TOWERS, model.get("config") or {})}
            content = {**content, "model": model}
    elif model.get("pretrained") is None and model.get("module") is None:
        conv4: dict[str, Any] = {"architecture": "conv4"}
        if model.get("architecture", "conv4") == "conv4":
            conv4["config"] = {"hidden_size": 64, "num_hidden_layers": 4}
        defaults["model"] |= conv4
    return with_defaults(content, defaults)


def read_descriptions(value: dict[str, str] | str | None) -> dict[str, str] | str | None:
    """`value`, or the table in the JSON file that it names. Raises ValueError."""
    if not isinstance(value, str) or "{label}" in value:
        return value
    try:
        table = json.loads(Path(value).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ValueError(f"neither a template with {{label}} nor a JSON file that can be read ({error})") from None
    if not (isinstance(table, dict) and all(isinstance(text, str) for text in table.values())):
        raise ValueError(f"{value}: not a table of descriptions by label")
    return table


def check_images(config: Config) -> None:
    """Raises ValueError for what images do not go with, or what belongs to them alone."""
    model, task, size = config.model, config.task, config.model.image
    if model.head == "words":
        check_descriptions(config)
    elif config.data.descriptions is not None:
        raise ValueError("data.descriptions is what model.head=words reads: set that, or leave data.descriptions out")
    if size is None:
        for key in ("rotations", "flips"):
            if value := getattr(task.augment, key):
                raise ValueError(f"task.augment.{key} = {value} is of images: set model.image, or leave it out")
        if model.architecture == "conv4" and model.pretrained is None and model.module is None:
            raise ValueError("model.architecture = conv4 reads images: set model.image, such as [1, 28, 28]")
        return
    turns = len(task.augment.turns) > 1
    turned = "task.augment.rotations" if task.augment.rotations else "task.augment.flips"
    refuse(config, f"model.image = {list(size)}", [
        ("task.family", task.family in ("classes", "domain"), "set classes or domain"),
        ("task.labels", task.labels == "head", "an image is not read in words; leave it out"),
        ("model.head", model.head != "context", "set linear or prototype"),
        ("model.pooling", model.pooling != "last", "set mean or first"),
        ("model.max_tokens", model.max_tokens == math.prod(size), "leave it out"),
        ("model.quantise", model.quantise is None, "leave it out"),
        ("task.augment", not task.augment.changes_tokens,
         "token_dropout, word_swap and mix: they change words; leave them out"),
        ("task.augment.rotations", not task.augment.rotations or size[1] == size[2],
         "images that are turned have to be square"),
        (turned, not turns or task.family == "classes", "a turned class is another class in task.family=classes alone"),
        (turned, not turns or config.algorithm != "multi_task",
         "algorithm=multi_task has an output for each class of the data, not for turned ones"),
        ("task.augment.resplit", not (turns and task.augment.resplit), f"leave one of it and {turned} out"),
        ("inner.part_tokens", model.config.get("norm") != "batch" or not config.inner.part_tokens,
         "batch norm reads a set whole; leave it out, or set model.config.norm=layer"),
        ("cluster.episode", config.cluster.episode == "rank", "set rank"),
        ("task.arrive_every", task.arrive_every == 0, "set 0"),
        ("data.sources", config.data.sources is None, "give data.path"),
    ])  # fmt: skip


def check_descriptions(config: Config) -> None:
    """Raises ValueError for what a head that begins at the classes' descriptions does not go with."""
    model, task = config.model, config.task
    refuse(config, "model.head = words", [
        ("model.image", model.image is not None,
         "it is of images; set their channels, height and width, or for texts task.labels=words"),
        ("model.architecture", model.architecture == "clip" or model.pretrained is not None, "set clip"),
        ("model.module", model.module is None, "set model.architecture=clip"),
        ("model.distance", model.distance == "cosine", "set cosine"),
        ("model.dropout", model.dropout == 0, "set 0"),
        ("model.pooling", model.pooling == "auto", "the image's tower pools by itself; leave it out"),
        ("task.augment.rotations", not task.augment.rotations, "a description is of an upright image; leave it out"),
        ("task.augment.flips", task.augment.flips != "classes", "a mirrored class has no description; set images"),
        ("algorithm", config.algorithm not in ("reptile", "multi_task", "online"),
         "the text tower is learnt where the inner loop begins; set maml, fomaml, maml_pp, meta_sgd, ..."),
    ])  # fmt: skip
