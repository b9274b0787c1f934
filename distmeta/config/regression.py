"""The family regression: the sizes and the model that follow from it, and what does not go with it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from distmeta.config.base import refuse
from distmeta.config.trees import section, with_defaults

if TYPE_CHECKING:
    from distmeta.config import Config


def with_dimensions(content: dict[str, Any]) -> dict[str, Any]:
    """`content` with the dimensions, the model and a search that go with functions. What it has of its own stays."""
    task, model = section(content, "task"), section(content, "model")
    if task is None or model is None or task.get("family") != "regression":
        return content
    dimensions = model.get("dimensions") or [1, 1]
    if not (isinstance(dimensions, list | tuple) and all(isinstance(n, int) for n in dimensions)):
        return content  # refused where the section is read
    defaults: dict[str, dict[str, Any]] = {
        "model": {"dimensions": dimensions, "max_tokens": max(4, sum(dimensions))},
        "tune": {"metric": "loss"},
    }
    if model.get("module") is None and model.get("architecture", "mlp") == "mlp":
        defaults["model"] |= {"architecture": "mlp", "config": {"hidden_size": 40, "num_hidden_layers": 2}}
    return with_defaults(content, defaults)


def check_regression(config: Config) -> None:
    """Raises ValueError for what functions do not go with, or what belongs to them alone."""
    model, task = config.model, config.task
    if task.family != "regression":
        if model.dimensions is not None:
            raise ValueError(
                f"model.dimensions = {list(model.dimensions)} belongs to task.family=regression; set that, or leave it "
                "out"
            )
        return
    assert model.dimensions is not None
    refuse(config, "task.family = regression", [
        ("model.pretrained", model.pretrained is None, "leave it out"),
        ("model.image", model.image is None, "set classes or domain, or leave it out"),
        ("model.architecture", model.architecture == "mlp" or model.module is not None, "set mlp"),
        ("model.head", model.head == "linear", "there are no classes; set linear"),
        ("model.pooling", model.pooling != "last", "leave it out"),
        ("model.max_tokens", model.max_tokens >= sum(model.dimensions), "leave it out"),
        ("model.quantise", model.quantise is None, "leave it out"),
        ("algorithm", config.algorithm not in ("proto_maml", "prototypes", "in_context", "online"),
         "it needs classes; set maml, fomaml, reptile, anil, meta_sgd, ..."),
        ("task.labels", task.labels == "head", "there are no labels; leave it out"),
        ("task.permute_labels", not task.permute_labels, "there are no labels; set false"),
        ("task.augment", not any(value for name, value in task.augment if name != "resplit"),
         "it changes texts, images or labels; set task.augment.resplit alone"),
        ("cluster.episode", config.cluster.episode == "rank", "set rank"),
    ])  # fmt: skip
