"""Dividing work over the ranks of a group, and bringing the parts together."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from distmeta.config import Config


@dataclass(frozen=True)
class Rank:
    """A learner process: its number of `world`, its device, what it runs, and where; `say` is for lines of rank 0."""

    number: int
    world: int
    device: torch.device
    config: Config
    run_dir: Path
    say: Callable[[str], None]


def share(total: int, rank: int, world: int) -> range:
    """Positions of a meta-batch that belong to a rank: consecutive, sizes differing by at most one."""
    return range(rank * total // world, (rank + 1) * total // world)


def episodes_of_rank(config: Config, total: int, rank: int, world: int) -> range:
    """Which of `total` episodes a rank works on: its share, or with all others on each of them."""
    return range(total) if config.cluster.episode == "group" else share(total, rank, world)


def all_sum(values: list[float]) -> list[float]:
    """Element-wise sums over all ranks."""
    if not (dist.is_initialized() and dist.get_world_size() > 1):
        return values
    device = "cuda" if dist.get_backend() == "nccl" else "cpu"
    total = torch.tensor(values, dtype=torch.float64, device=device)
    dist.all_reduce(total)
    return total.tolist()


def gather(values: list[Any]) -> list[Any]:
    """The ranks' lists one after another, on every rank."""
    if not (dist.is_initialized() and dist.get_world_size() > 1):
        return values
    parts: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(parts, values)
    return [item for part in parts for item in part]
