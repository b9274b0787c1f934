"""The section of the learner group, and of the cluster that it runs on."""

from __future__ import annotations

import re
from typing import Literal

from pydantic import Field, field_validator

from distmeta.config.base import Section


class ClusterConfig(Section):
    workers: int | tuple[int, int] = Field(
        2, description="number of learner ranks; a range such as 1-3 follows the number of available nodes"
    )
    episode: Literal["rank", "group"] = Field(
        "rank",
        description="rank: each rank adapts to its own episodes; group: all ranks share one episode, with "
        "sharded fast weights",
    )
    address: str | None = Field(
        None, description="address of the Ray cluster; null: RAY_ADDRESS, else the run starts a cluster on this machine"
    )
    storage: str | None = Field(None, description="directory, shared by all nodes, in which run.dir is resolved")
    cpus_per_worker: float = Field(1, gt=0, description="processor cores that Ray reserves for a learner rank")
    gpus_per_worker: float | None = Field(
        None, ge=0, description="GPUs that Ray reserves for a learner rank; null: 1 if the cluster has enough"
    )
    cpus_per_sampler: float = Field(0.25, ge=0, description="processor cores that Ray reserves for a sampler")
    max_failures: int = Field(
        3, ge=0, description="how often the learner group restarts from its last checkpoint before the run fails"
    )

    @field_validator("workers", mode="before")
    @classmethod
    def _number_or_range(cls, value: object) -> object:
        """3, "1-3" or [1, 3]."""
        match = re.fullmatch(r"\s*(\d+)\s*-\s*(\d+)\s*", value) if isinstance(value, str) else None
        ends = (int(match[1]), int(match[2])) if match else value
        if isinstance(ends, int) and not isinstance(ends, bool) and ends >= 1:
            return ends
        if isinstance(ends, list | tuple) and len(ends) == 2 and all(type(end) is int for end in ends):
            if 1 <= ends[0] < ends[1]:
                return tuple(ends)
            if 1 <= ends[0] == ends[1]:
                return ends[0]
        raise ValueError("a number of ranks from 1, or a range of them such as 1-3")

    @property
    def fewest(self) -> int:
        return self.workers if isinstance(self.workers, int) else self.workers[0]

    @property
    def most(self) -> int:
        return self.workers if isinstance(self.workers, int) else self.workers[1]

    @property
    def is_elastic(self) -> bool:
        return self.fewest < self.most

    @property
    def shown(self) -> str:
        """As a person writes it."""
        return f"{self.fewest}-{self.most}" if self.is_elastic else str(self.workers)
