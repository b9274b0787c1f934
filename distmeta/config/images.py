"""Images in the place of texts (model.image): what follows from their size, and what does not go with them."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

from distmeta.config.base import refuse
from distmeta.config.trees import section, with_defaults

if TYPE_CHECKING:
    from distmeta.config import Config


def with_image(content: dict[str, Any]) -> dict[str, Any]:
    """`content` with the model, the column and the length of rows that go with images. What it has of its own stays."""
    model = section(content, "model") or {}
    size = model.get("image")
    if not (isinstance(size, list | tuple) and len(size) == 3 and all(isinstance(n, int) for n in size)):
        return content  # of texts, or refused where the section is read
    defaults: dict[str, dict[str, Any]] = {
        "model": {"max_tokens": max(4, math.prod(size))}, "data": {"text": "image"}, "task": {"family": "classes"},
    }  # fmt: skip
    if model.get("pretrained") is None and model.get("module") is None:
        conv4: dict[str, Any] = {"architecture": "conv4"}
        if model.get("architecture", "conv4") == "conv4":
            conv4["config"] = {"hidden_size": 64, "num_hidden_layers": 4}
        defaults["model"] |= conv4
    return with_defaults(content, defaults)


def check_images(config: Config) -> None:
    """Raises ValueError for what images do not go with, or what belongs to them alone."""
    model, task, size = config.model, config.task, config.model.image
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
