"""What is learnt from: examples on disk, as tasks or classes in three disjoint splits, tokenised once."""

from distmeta.tasks.build import build_store
from distmeta.tasks.families import check_feasible, ways_of
from distmeta.tasks.store import Groups, TaskStore, open_store

__all__ = ["Groups", "TaskStore", "build_store", "check_feasible", "open_store", "ways_of"]
