"""What a Prometheus server sees of a run: gauges `ray_distmeta_*`, exported by Ray on the node of rank 0."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

NAMES = {
    "tasks_per_second": "episodes learnt from, per second, over all ranks",
    "step_seconds": "of a meta-step",
    "wait_share": "of a meta-step, waiting for episodes",
    "in_flight": "episodes asked for and not yet used, of this rank",
    "outer_loss": "query loss after adaptation",
    "query_accuracy": "after adaptation",
}
PHASES = ("wait_s", "inner_s", "peers_s", "aggregate_s", "checkpoint_s")


def start_gauges(run: str) -> Callable[[Mapping[str, Any]], None]:
    """A function that sets them from a meta-step's record and its "tasks"; it does nothing where Ray does not run."""
    import ray

    if not ray.is_initialized():
        return lambda record: None
    from ray.util.metrics import Gauge

    made: dict[str, Any] = {
        name: Gauge(f"distmeta_{name}", description=about, tag_keys=("run",)) for name, about in NAMES.items()
    }

    def show(record: Mapping[str, Any]) -> None:
        seconds = sum(record[name] for name in PHASES)
        of_step = {
            "step_seconds": seconds,
            "tasks_per_second": record["tasks"] / seconds,
            "wait_share": record["wait_s"] / seconds,
        }
        for name, gauge in made.items():
            gauge.set(float({**record, **of_step}[name]), tags={"run": run})

    return show
