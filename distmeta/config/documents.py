"""The family document: the sizes that follow from those of an episode, and what does not go with it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from distmeta.config.base import refuse
from distmeta.config.trees import section, with_defaults

if TYPE_CHECKING:
    from distmeta.config import Config

ALGORITHMS = ("maml", "fomaml", "reptile", "meta_sgd", "finite_difference", "multi_task", "fine_tune")


def with_sizes(content: dict[str, Any]) -> dict[str, Any]:
    """`content` with the inner steps and the longest row of a document's episode, and a search that goes with them.

    What it has of its own stays.
    """
    task = section(content, "task") or {}
    if task.get("family") != "document":
        return content
    sizes = {"chunks": 8, "chunk_tokens": 64, "context_tokens": 64}
    numbers = {key: task.get(key, default) for key, default in sizes.items()}
    if not all(isinstance(value, int) for value in numbers.values()):
        return content  # refused where the section is read
    return with_defaults(content, {
        "inner": {"steps": numbers["chunks"] - 1},
        "model": {"max_tokens": max(4, numbers["chunk_tokens"] + numbers["context_tokens"])},
        "tune": {"metric": "loss", "space": {"inner.lr": {"log_uniform": [0.01, 1.0]}}},
    })  # fmt: skip


def check_document(config: Config) -> None:
    """Raises ValueError for what a model that reads documents cannot do."""
    task, chunks = config.task, config.task.chunks
    need = task.chunk_tokens + task.context_tokens
    refuse(config, "task.family = document", [
        ("algorithm", config.algorithm in ALGORITHMS or "." in config.algorithm,
         f"set {', '.join(ALGORITHMS[:-1])} or {ALGORITHMS[-1]}"),
        ("inner.steps", config.inner.steps == chunks - 1,
         f"{chunks} chunks are read in {chunks - 1} steps; leave it out, or change task.chunks"),
        ("eval.steps", config.eval.steps in (None, chunks - 1), "leave it out"),
        ("inner.schedule", config.inner.schedule == "constant", "set constant"),
        ("inner.proximal", config.inner.proximal == 0, "set 0"),
        ("eval.shots", config.eval.shots is None, "a document has chunks; leave it out"),
        ("eval.queries", config.eval.queries is None, "a document has chunks; leave it out"),
        ("model.max_tokens", config.model.max_tokens >= need,
         f"a chunk of {task.chunk_tokens} tokens and {task.context_tokens} before it need {need}; leave it out"),
        ("model.head", config.model.head == "linear", "set linear"),
        ("task.permute_labels", not task.permute_labels, "there are no labels; set false"),
        ("task.labels", task.labels == "head", "there are no labels; leave it out"),
        ("task.prompt", task.prompt == "plain", "leave it out"),
        ("task.augment", not any(value for _, value in task.augment), "a text is read as it is; leave it out"),
        ("cluster.episode", config.cluster.episode == "rank", "set rank"),
        ("model.context", config.model.context == "direct", "set direct"),
    ])  # fmt: skip
