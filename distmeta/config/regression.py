"""The family regression: the sizes and the model that follow from it, and what does not go with it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from distmeta.config import Config


def with_dimensions(content: dict[str, Any]) -> dict[str, Any]:
    """`content` with the dimensions, the model and a search that go with functions. What it has of its own stays."""
    sections = {name: _as_dict(content.get(name)) for name in ("task", "model", "tune")}
    task, model = sections["task"], sections["model"]
    if task is None or model is None or task.get("family") != "regression":
        return content
    dimensions = model.get("dimensions") or [1, 1]
    if not (isinstance(dimensions, list | tuple) and all(isinstance(n, int) for n in dimensions)):
        return content  # refused where the section is read
    defaults: dict[str, dict[str, Any]] = {
        "model": {"dimensions": dimensions, "architecture": "mlp", "max_tokens": max(4, sum(dimensions))},
        "tune": {"metric": "loss"},
    }
    if model.get("architecture", "mlp") == "mlp":
        defaults["model"]["config"] = {"hidden_size": 40, "num_hidden_layers": 2}
    out = dict(content)
    for name, values in defaults.items():
        if (current := sections[name]) is not None:
            out[name] = values | {key: value for key, value in current.items() if value is not None}
    return out


def _as_dict(section: Any) -> dict[str, Any] | None:
    if section is None:
        return {}
    return section if isinstance(section, dict) else section.model_dump() if hasattr(section, "model_dump") else None


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
    for fits, key, value, mend in (
        (model.pretrained is None, "model.pretrained", model.pretrained, "leave it out"),
        (model.image is None, "model.image", list(model.image or ()), "set classes or domain, or leave it out"),
        (model.architecture == "mlp", "model.architecture", model.architecture, "set mlp"),
        (model.head == "linear", "model.head", model.head, "there are no classes; set linear"),
        (model.pooling != "last", "model.pooling", model.pooling, "leave it out"),
        (model.max_tokens >= sum(model.dimensions), "model.max_tokens", model.max_tokens, "leave it out"),
        (model.quantise is None, "model.quantise", model.quantise, "leave it out"),
        (config.algorithm not in ("proto_maml", "prototypes", "in_context", "online"), "algorithm", config.algorithm,
         "it needs classes; set maml, fomaml, reptile, anil, meta_sgd, ..."),
        (task.labels == "head", "task.labels", task.labels, "there are no labels; leave it out"),
        (not task.permute_labels, "task.permute_labels", "true", "there are no labels; set false"),
        (not any(value for name, value in task.augment if name != "resplit"), "task.augment", "on",
         "it changes texts, images or labels; set task.augment.resplit alone"),
        (config.cluster.episode == "rank", "cluster.episode", config.cluster.episode, "set rank"),
    ):  # fmt: skip
        if not fits:
            raise ValueError(f"task.family = regression does not work with {key} = {value}: {mend}")
