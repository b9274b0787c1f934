"""The families regression and policy: the sizes and the model that follow from them, and what does not go with them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from distmeta.config.base import Rule, refuse
from distmeta.config.modules import ENVIRONMENT
from distmeta.config.trees import section, with_defaults

if TYPE_CHECKING:
    from distmeta.config import Config


def with_dimensions(content: dict[str, Any]) -> dict[str, Any]:
    """`content` with the dimensions, the model and a search that go with numbers. What it has of its own stays."""
    task, model = section(content, "task"), section(content, "model")
    if task is None or model is None or task.get("family") not in ("regression", "policy"):
        return content
    acts = task["family"] == "policy"
    if acts and task.get("environment") is not None and model.get("dimensions") is None:
        return content  # what it observes is for the user to say
    dimensions = model.get("dimensions") or ([2, 2] if acts else [1, 1])
    if not (isinstance(dimensions, list | tuple) and all(isinstance(n, int) for n in dimensions)):
        return content  # refused where the section is read
    defaults: dict[str, dict[str, Any]] = {
        "model": {"dimensions": dimensions, "max_tokens": max(4, sum(dimensions))},
        "tune": {"metric": "loss"},
    }
    # A squared error has no bound, and diverges at the rates of a search over classes; so do policies.
    low, high = (0.01, 0.2) if acts else (0.001, 0.1)
    defaults["tune"]["space"] = {"inner.lr": {"log_uniform": [low, high]}, "inner.steps": {"integer": [1, 5]}}
    if model.get("module") is None and model.get("architecture", "mlp") == "mlp":
        width = 64 if acts else 40
        defaults["model"] |= {"architecture": "mlp", "config": {"hidden_size": width, "num_hidden_layers": 2}}
    return with_defaults(content, defaults)


def check_regression(config: Config) -> None:
    """Raises ValueError for what numbers do not go with, or what belongs to them alone."""
    model, task = config.model, config.task
    if task.environment is not None and task.family != "policy":
        raise ValueError(
            f"task.environment = {task.environment} belongs to task.family=policy; set that, or leave it out"
        )
    if not task.has_numbers:
        if model.dimensions is not None:
            raise ValueError(
                f"model.dimensions = {list(model.dimensions)} belongs to task.family=regression or policy; set one of "
                "these, or leave it out"
            )
        return
    if model.dimensions is None:
        raise ValueError(
            f"task.environment = {task.environment} needs model.dimensions: set [NUMBERS OF AN OBSERVATION, NUMBERS OF "
            "AN ACTION], or in the place of the latter how many actions there are to choose from"
        )
    refuse(config, f"task.family = {task.family}", [
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
        *(of_policies(config) if task.family == "policy" else ()),
    ])  # fmt: skip


def of_policies(config: Config) -> list[Rule]:
    """What does not go with rollouts, each of which the policy of one inner step draws anew."""
    environment, held = config.task.environment, "it holds rollouts fixed that the policy draws anew"
    return [
        ("task.environment", environment is None or bool(ENVIRONMENT.fullmatch(environment)),
         "set an import path package.module:Class, or gymnasium:ID"),
        ("data.path", config.data.path is None, "the environment draws its tasks; leave it out"),
        ("data.sources", config.data.sources is None, "the environment draws its tasks; leave it out"),
        ("algorithm", config.algorithm not in ("imaml", "finite_difference"),
         f"{held}; set maml, fomaml, reptile, anil, meta_sgd, maml_pp or multi_task"),
        ("task.augment.resplit", not config.task.augment.resplit, f"{held}; set false"),
        ("outer.data_weights", config.outer.data_weights is None, "rollouts are no rows of data; leave it out"),
        ("model.dropout", config.model.dropout == 0, "the policy that acts is the one that is scored; set 0"),
    ]  # fmt: skip
