"""Task families: which rows and which labels make an episode.

A family is a function of (store, groups of the split, task, draws) that chooses rows; adding one is such a
function and a line in FAMILIES.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from distmeta.config import TaskConfig
from distmeta.errors import InputError
from distmeta.tasks.draws import Draws
from distmeta.tasks.mixture import check_mixture
from distmeta.tasks.passages import check_passages
from distmeta.tasks.splits import SPLITS
from distmeta.tasks.store import Groups, TaskStore


@dataclass(frozen=True)
class Choice:
    """rows [ways, shots + queries]: row numbers in the store, all different but in family policy; rows[w] have
    label_names[w]."""

    task: str
    label_names: tuple[str, ...]
    rows: NDArray[np.int64]
    turns: NDArray[np.int64] | None = None  # [ways]: how the images of each are turned, as of AugmentConfig.turns


def choose_domain(store: TaskStore, groups: Groups, task: TaskConfig, draws: Draws) -> Choice:
    """A task of the split, and rows of every label of it."""
    index = int(draws.below(np.array([len(groups.ids)]))[0])
    ways = len(store.labels)
    order = draws.permutation(ways) if task.permute_labels or task.labels == "letters" else np.arange(ways)
    rows = _rows(groups, (index, order), task, draws)
    return Choice(store.tasks[groups.ids[index]], tuple(store.labels[i] for i in order), rows)


def choose_classes(store: TaskStore, groups: Groups, task: TaskConfig, draws: Draws) -> Choice:
    """N of the split's classes in a random order, and rows of each."""
    ways = ways_of(store, task)
    turns = np.array(task.augment.turns)
    if len(turns) == 1:
        chosen = draws.distinct(np.array([len(groups.ids)]), ways)[0]
        rows = _rows(groups, (chosen, 0), task, draws)
        return Choice(f"{ways}-way", tuple(store.labels[i] for i in groups.ids[chosen]), rows)
    number, chosen = np.divmod(draws.distinct(np.array([len(turns) * len(groups.ids)]), ways)[0], len(groups.ids))
    rows = _rows(groups, (chosen, 0), task, draws)
    names = (
        f"{store.labels[i]} turned {turn % 4}{' in a mirror' if turn >= 4 else ''}"
        for i, turn in zip(groups.ids[chosen], turns[number], strict=True)
    )
    return Choice(f"{ways}-way", tuple(names), rows, turns[number])


def choose_task(store: TaskStore, groups: Groups, task: TaskConfig, draws: Draws) -> Choice:
    """A task of the split, and rows of it: prompts with their answers, or points of a function."""
    index = draws.below(np.array([len(groups.ids)]))
    rows = _rows(groups, (index, 0), task, draws)
    return Choice(store.tasks[groups.ids[int(index[0])]], tuple(store.labels), rows)


def choose_rollouts(store: TaskStore, groups: Groups, task: TaskConfig, draws: Draws) -> Choice:
    """A task of the split, whose one row stands for as many rollouts as are asked for."""
    index = int(draws.below(np.array([len(groups.ids)]))[0])
    rows = np.full((1, task.shots + task.queries), groups.start[index, 0])
    return Choice(store.tasks[groups.ids[index]], tuple(store.labels), rows)


FAMILIES: dict[str, Callable[[TaskStore, Groups, TaskConfig, Draws], Choice]] = {
    "domain": choose_domain,
    "classes": choose_classes,
    "text_to_text": choose_task,
    "regression": choose_task,
    "policy": choose_rollouts,
}


def _rows(groups: Groups, cells: Any, task: TaskConfig, draws: Draws) -> NDArray[np.int64]:
    """Row numbers [cells, shots + queries], all different; of a split with trusted rows the queries are of these."""
    start, count = groups.start[cells], groups.count[cells]
    chosen = draws.distinct(count, task.shots + task.queries)
    if groups.trusted is not None:
        query = draws.distinct(groups.trusted[cells], task.queries)
        taken = (chosen[:, :, None] == query[:, None]).any(2)
        free_first = np.take_along_axis(chosen, taken.argsort(1, kind="stable"), 1)
        chosen = np.concatenate([free_first[:, : task.shots], query], 1)
    rows: NDArray[np.int64] = start[:, None] + chosen
    return rows


def ways_of(store: TaskStore, task: TaskConfig) -> int:
    """Classes in an episode; 1 where answers are words."""
    return task.ways or 5 if task.family == "classes" else len(store.labels)


def check_feasible(store: TaskStore, task: TaskConfig, splits: Sequence[str] = SPLITS) -> None:
    """Raises InputError if some episode of some split that is not empty could not be drawn."""
    if store.family != task.family:
        raise InputError(f"{store.path}: was built for task.family={store.family}, not {task.family}")
    need = 1 if task.family == "policy" else task.shots + task.queries
    check_mixture(store, task, splits)
    if task.family == "document":
        check_passages(store, task, splits)
        return
    each = {split: store.sources[split] or {"": store.groups[split]} for split in splits}
    for split, source, groups in ((split, *item) for split, by_source in each.items() for item in by_source.items()):
        if len(groups.ids) == 0:
            continue
        if task.family == "classes" and ways_of(store, task) > len(groups.ids):
            where = f"split '{split}'" + (f" in the source '{source}'" if source else "")
            raise InputError(
                f"task.ways={ways_of(store, task)} is more than the {len(groups.ids)} classes of the {where}; "
                f"lower {'task.ways' if split == 'train' else 'task.ways, or eval.ways for this split alone'}, or give "
                "this split more classes (data.splits, data.fractions)"
            )
        short = np.argwhere(groups.count < need)
        untrusted = np.argwhere(groups.trusted < task.queries) if groups.trusted is not None else short[:0]
        if len(short) or len(untrusted):
            group, column = [*short, *untrusted][0]
            name = store.labels[groups.ids[group] if task.family == "classes" else column]
            of = f" of the task '{store.tasks[groups.ids[group]]}'" if task.family == "domain" else ""
            where = f"class '{name}'{of}"
            if not task.has_classes:
                where = f"task '{store.tasks[groups.ids[group]]}'"
            if not len(short) and groups.trusted is not None:
                raise InputError(
                    f"{where} ({split}) has {groups.trusted[group, column]} trusted examples (data.trusted), and "
                    f"task.queries={task.queries} are drawn of them: lower task.queries, or trust more examples"
                )
            raise InputError(_too_few(f"{where} ({split})", int(groups.count[group, column]), task))
    if task.family == "domain" and len(store.labels) < 2:
        raise InputError(f"the data has one label only ('{store.labels[0]}'); a task needs at least two")


def _too_few(where: str, count: int, task: TaskConfig) -> str:
    need = task.shots + task.queries
    if count > task.shots:
        mend = f"lower task.queries to {count - task.shots} (or task.shots)"
    elif count > 1:
        mend = f"lower task.shots + task.queries to {count}"
    else:
        mend = "in family domain every task needs examples of every label" if task.family == "domain" else "add some"
    return (
        f"{where} has {count} example{'s' * (count != 1)}; task.shots={task.shots} + "
        f"task.queries={task.queries} need {need}: {mend}, or leave it out (data.splits)"
    )
