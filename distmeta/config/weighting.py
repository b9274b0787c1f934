"""What is said of single rows (data.subgroup, data.trusted), and what weighs them, refused where it would mean nothing.

Each refusal is one line that says what to set instead.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

from distmeta.config.algorithms import ALGORITHMS, load_algorithm

if TYPE_CHECKING:
    from distmeta.config import Config

Conditions = Iterable[tuple[bool, str, object, str]]  # whether it fits, key, value, what to set instead


def check_rows(config: Config) -> None:
    """Raises ValueError."""
    data, task, outer = config.data, config.task, config.outer
    labelled: Conditions = [
        (task.family in ("domain", "classes"), "task.family", task.family, "set domain or classes"),
        (task.labels == "head", "task.labels", task.labels, "set head"),
    ]
    weighs: Conditions = [
        *labelled,
        (config.cluster.episode == "rank", "cluster.episode", config.cluster.episode, "set rank"),
        (outer.privacy is None, "outer.privacy", "on", "it would tell of single rows; leave one of them out"),
        (data.follow is None, "data.follow", data.follow, "rows that come later have no weight yet; set null"),
        (config.algorithm not in ("fine_tune", "multi_task", "reptile"), "algorithm", config.algorithm,
         "its outer loss is not of query rows after adaptation; set maml, anil, meta_sgd, ..."),
    ]  # fmt: skip
    if data.subgroup is not None:
        refuse("data.subgroup", labelled)
    if data.trusted is not None:
        refuse("data.trusted", [
            *labelled,
            (data.path is not None or data.sources is not None, "data.path", "null", "name files that have the column"),
            (data.follow is None, "data.follow", data.follow, "set null"),
            (not task.augment.resplit, "task.augment.resplit", "true", "support rows would be query rows; set false"),
        ])  # fmt: skip
    if outer.worst_subgroup:
        refuse("outer.worst_subgroup", [
            (data.subgroup is not None, "data.subgroup", "null", "name the column of subgroups"),
            *weighs,
            (data.sources is None, "data.sources", "several", "subgroups have shares of one data source; name one"),
            (not task.arrive_every, "task.arrive_every", task.arrive_every, "the shares would change; set 0"),
        ])  # fmt: skip
    if outer.data_weights is not None:
        by = outer.data_weights.by
        exact = config.algorithm not in ALGORITHMS or load_algorithm(config.algorithm).ORDER == "exact"
        refuse(f"outer.data_weights (by {by})", [
            *weighs,
            (exact, "algorithm", config.algorithm,
             "its meta-gradient does not go through the inner steps; set maml, anil, meta_sgd, ..."),
            (outer.optimizer in ("adamw", "adam"), "outer.optimizer", outer.optimizer,
             "the weights follow the signs of their gradients, as adamw and adam can; set one of these"),
            (config.inner.steps > 0, "inner.steps", 0, "weights act through inner steps; set 1 or more"),
            (config.model.head == "linear", "model.head", config.model.head,
             "a head that is computed from the support set takes all of it alike; set linear"),
            (by != "source" or data.sources is not None, "data.sources", "null", "name sources, or set by: task"),
        ])  # fmt: skip


def refuse(what: str, conditions: Conditions) -> None:
    """Raises ValueError for the first that does not fit."""
    for fits, key, value, mend in conditions:
        if not fits:
            raise ValueError(f"{what} does not work with {key} = {value}: {mend}")
