"""What is said of single rows (data.subgroup, data.trusted), and what weighs them, refused where it would mean nothing.

Each refusal is one line that says what to set instead.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from distmeta.config.algorithms import ALGORITHMS, load_algorithm
from distmeta.config.base import Rule, refuse

if TYPE_CHECKING:
    from distmeta.config import Config


def check_rows(config: Config) -> None:
    """Raises ValueError."""
    data, task, outer = config.data, config.task, config.outer
    labelled: list[Rule] = [
        ("task.family", task.family in ("domain", "classes"), "set domain or classes"),
        ("task.labels", task.labels == "head", "set head"),
    ]
    weighs: list[Rule] = [
        *labelled,
        ("cluster.episode", config.cluster.episode == "rank", "set rank"),
        ("outer.privacy", outer.privacy is None, "it would tell of single rows; leave one of them out"),
        ("data.follow", data.follow is None, "rows that come later have no weight yet; set null"),
        ("algorithm", config.algorithm not in ("fine_tune", "multi_task", "reptile"),
         "its outer loss is not of query rows after adaptation; set maml, anil, meta_sgd, ..."),
    ]  # fmt: skip
    if data.subgroup is not None:
        refuse(config, "data.subgroup", labelled)
    if data.trusted is not None:
        refuse(config, "data.trusted", [
            *labelled,
            ("data.path", data.path is not None or data.sources is not None, "name files that have the column"),
            ("data.follow", data.follow is None, "set null"),
            ("task.augment.resplit", not task.augment.resplit, "support rows would be query rows; set false"),
        ])  # fmt: skip
    if outer.worst_subgroup:
        refuse(config, "outer.worst_subgroup", [
            ("data.subgroup", data.subgroup is not None, "name the column of subgroups"),
            *weighs,
            ("data.sources", data.sources is None, "subgroups have shares of one data source; name one"),
            ("task.arrive_every", not task.arrive_every, "the shares would change; set 0"),
        ])  # fmt: skip
    if outer.data_weights is not None:
        by = outer.data_weights.by
        exact = config.algorithm not in ALGORITHMS or load_algorithm(config.algorithm).ORDER == "exact"
        refuse(config, f"outer.data_weights (by {by})", [
            *weighs,
            ("algorithm", exact,
             "its meta-gradient does not go through the inner steps; set maml, anil, meta_sgd, ..."),
            ("outer.optimizer", outer.optimizer in ("adamw", "adam"),
             "the weights follow the signs of their gradients, as adamw and adam can; set one of these"),
            ("inner.steps", config.inner.steps > 0, "weights act through inner steps; set 1 or more"),
            ("model.head", config.model.head == "linear",
             "a head that is computed from the support set takes all of it alike; set linear"),
            ("data.sources", by != "source" or data.sources is not None, "name sources, or set by: task"),
        ])  # fmt: skip
