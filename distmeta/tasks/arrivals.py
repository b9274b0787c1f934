"""Training tasks that arrive one after another, for online meta-learning: pure functions of the episode's index.

Task k of the meta-train split, in the task store's order, arrives with episode k * task.arrive_every; an episode is of
any of the tasks that are there (follow the meta-leader: Finn et al. 2019, arXiv 1902.08438, algorithm 1).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from distmeta.config import TaskConfig

if TYPE_CHECKING:
    from distmeta.tasks.store import Groups


def arrived(task: TaskConfig, index: int) -> int:
    """How many tasks have arrived by episode `index`, if there are as many."""
    return 1 + index // task.arrive_every


def arrived_tasks(task: TaskConfig, groups: Groups, index: int) -> Groups:
    """The tasks that have arrived by episode `index`; all of them where none arrive."""
    if not task.arrive_every:
        return groups
    return groups.part(0, arrived(task, index))


def arriving(task: TaskConfig, tasks: int, first: int, end: int) -> range:
    """Which of `tasks` tasks arrive with the episodes first..end-1."""
    if not task.arrive_every:
        return range(0)
    return range(min(tasks, -(-first // task.arrive_every)), min(tasks, -(-end // task.arrive_every)))
