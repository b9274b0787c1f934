"""The flow of episodes as a learner sees it: more samplers where they are needed, gauges for Prometheus."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from distmeta.config import Config
from distmeta.tasks.episodes.flow import samplers_needed
from distmeta.tasks.episodes.sampler import start_samplers

MEASURED = (2, 4)  # meta-steps of a process whose time decides: not the first, which warms up

GAUGES = {
    "distmeta_tasks_per_second": "episodes that all ranks learn from, a second",
    "distmeta_wait_share": "share of a meta-step's time in which the rank waited for episodes",
    "distmeta_window_in_flight": "episodes asked for and not yet used",
    "distmeta_step_seconds": "seconds of a meta-step",
    "distmeta_outer_loss": "query loss after adaptation",
}


def more_samplers(
    config: Config, store: Path, have: int, make_s: float, busy_s: float, rank: int, say: Callable[[str], None]
) -> list[Any]:
    """Handles of the samplers that are wanting, as rank 0 starts them; none on other ranks.

    make_s, busy_s: as in `samplers_needed`. No more than the cluster has CPUs for. They end with rank 0's process.
    """
    if rank != 0:
        return []
    import ray

    episodes, cpus = config.outer.meta_batch_size, config.cluster.cpus_per_sampler
    needed = samplers_needed(make_s, busy_s, episodes)
    new = max(0, needed - have)
    if new and cpus:
        new = min(new, int(ray.available_resources().get("CPU", 0) / cpus))
    say(
        f"sampling.actors=auto: an episode is made in {make_s * 1e3:.2g} ms, a meta-step of {episodes} takes "
        f"{busy_s * 1e3:.3g} ms: {needed} needed, {have + new} there"
    )
    return start_samplers(store, config.task, config.run.seed, new, cpus)


class Gauges:
    """distmeta_* gauges of one rank, which Ray exports to Prometheus; nothing where Ray is not."""

    def __init__(self, config: Config, rank: int) -> None:
        self._tasks = config.outer.meta_batch_size
        self._gauges: dict[str, Any] = {}
        try:
            import ray
        except ImportError:
            return
        if ray.is_initialized():
            from ray.util.metrics import Gauge

            tags = {"run": config.run.name, "rank": str(rank)}
            for name, what in GAUGES.items():
                self._gauges[name] = Gauge(name, description=what, tag_keys=tuple(tags))
                self._gauges[name].set_default_tags(tags)

    def set(self, seconds: dict[str, float], in_flight: int, outer_loss: float) -> None:
        """After a meta-step. seconds: of its phases, as in metrics.jsonl."""
        phases = ("wait_s", "inner_s", "peers_s", "aggregate_s", "checkpoint_s")
        step_s = max(sum(seconds[phase] for phase in phases), 1e-9)
        values = (self._tasks / step_s, seconds["wait_s"] / step_s, in_flight, step_s, outer_loss)
        for gauge, value in zip(self._gauges.values(), values, strict=False):
            gauge.set(float(value))
