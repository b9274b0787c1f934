"""Images in the place of texts (model.image): what follows from their size, and what does not go with them."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from distmeta.config import Config


def with_image(content: dict[str, Any]) -> dict[str, Any]:
    """`content` with the model, the column and the length of rows that go with images. What it has of its own stays."""
    model: Any = content.get("model")
    model = model if isinstance(model, dict) else model.model_dump() if hasattr(model, "model_dump") else {}
    size = model.get("image")
    if not (isinstance(size, list | tuple) and len(size) == 3 and all(isinstance(n, int) for n in size)):
        return content  # of texts, or refused where the section is read
    out = dict(content)
    defaults: dict[str, dict[str, Any]] = {
        "model": {"max_tokens": max(4, math.prod(size))}, "data": {"text": "image"}, "task": {"family": "classes"},
    }  # fmt: skip
    if model.get("pretrained") is None:
        conv4: dict[str, Any] = {"architecture": "conv4"}
        if model.get("architecture", "conv4") == "conv4":
            conv4["config"] = {"hidden_size": 64, "num_hidden_layers": 4}
        defaults["model"] |= conv4
    for section, values in defaults.items():
        current = out.get(section) or {}
        if isinstance(current, dict):
            out[section] = values | {key: value for key, value in current.items() if value is not None}
    return out


def check_images(config: Config) -> None:
    """Raises ValueError for what images do not go with, or what belongs to them alone."""
    model, task, size = config.model, config.task, config.model.image
    if size is None:
        for key in ("rotations", "flips"):
            if value := getattr(task.augment, key):
                raise ValueError(f"task.augment.{key} = {value} is of images: set model.image, or leave it out")
        if model.architecture == "conv4" and model.pretrained is None:
            raise ValueError("model.architecture = conv4 reads images: set model.image, such as [1, 28, 28]")
        return
    turns = len(task.augment.turns) > 1
    turned, of_it = ("task.augment.rotations", "true") if task.augment.rotations else ("task.augment.flips", "classes")
    for fits, key, value, mend in (
        (task.family in ("classes", "domain"), "task.family", task.family, "set classes or domain"),
        (task.labels == "head", "task.labels", task.labels, "an image is not read in words; leave it out"),
        (model.head != "context", "model.head", model.head, "set linear or prototype"),
        (model.pooling != "last", "model.pooling", model.pooling, "set mean or first"),
        (model.max_tokens == math.prod(size), "model.max_tokens", model.max_tokens, "leave it out"),
        (model.quantise is None, "model.quantise", model.quantise, "leave it out"),
        (not task.augment.changes_tokens, "task.augment", "token_dropout, word_swap or mix",
         "they change words; leave them out"),
        (not (task.augment.rotations and size[1] != size[2]), "task.augment.rotations", "true",
         "images that are turned have to be square"),
        (not (turns and task.family != "classes"), turned, of_it,
         "a turned class is another class in task.family=classes alone"),
        (not (turns and config.algorithm == "multi_task"), turned, of_it,
         "algorithm=multi_task has an output for each class of the data, not for turned ones"),
        (not (turns and task.augment.resplit), "task.augment.resplit", "true", f"leave one of it and {turned} out"),
        (not (model.config.get("norm") == "batch" and config.inner.part_tokens), "inner.part_tokens",
         config.inner.part_tokens, "batch norm reads a set whole; leave it out, or set model.config.norm=layer"),
        (config.cluster.episode == "rank", "cluster.episode", config.cluster.episode, "set rank"),
        (task.arrive_every == 0, "task.arrive_every", task.arrive_every, "set 0"),
        (config.data.sources is None, "data.sources", "given", "give data.path"),
    ):  # fmt: skip
        if not fits:
            raise ValueError(f"model.image = {list(size)} does not work with {key} = {value}: {mend}")
