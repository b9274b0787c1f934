"""Why the learner's loop ends, and what the driver asks of it by files in the run directory."""

from __future__ import annotations

import enum

from distmeta.learner.ranks import Rank, all_sum
from distmeta.runs.interrupt import GROW, LEAVE, STOP


class Ending(enum.Enum):
    """What comes after the last meta-step of a process; the same on every rank."""

    DONE = enum.auto()  # the evaluation: all meta-steps are made, a goal is reached, or the source has ended
    LEFT = enum.auto()  # nothing, as asked: the meta-step is saved, and can be resumed
    HALTED = enum.auto()  # nothing, as asked: the run is given up
    PAUSED = enum.auto()  # a group of more ranks, which goes on from the checkpoint


def requests(rank: Rank) -> list[float]:
    """Whether the driver asks the group to be (HALTED, LEFT), as rank 0 sees it: numbers to sum up over ranks."""
    return [float(rank.number == 0 and (rank.run_dir / name).exists()) for name in (STOP, LEAVE)]


def is_asked_to_pause(rank: Rank) -> bool:
    """Whether the driver has room for more ranks; as rank 0 sees it, the same on all."""
    return all_sum([float(rank.number == 0 and (rank.run_dir / GROW).exists())])[0] > 0
