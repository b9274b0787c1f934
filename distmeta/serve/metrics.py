"""What GET /metrics says, in Prometheus' text: of this replica, or of all that share PROMETHEUS_MULTIPROC_DIR."""

from __future__ import annotations

import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest, multiprocess

SHARED = "PROMETHEUS_MULTIPROC_DIR"  # prometheus_client's own: replicas write their numbers there, any answers for all
SIZES = (1, 2, 4, 8, 16, 32, 64, 128)
ON_DISK = (
    "# HELP distmeta_tasks_on_disk Adapted tasks\n# TYPE distmeta_tasks_on_disk gauge\ndistmeta_tasks_on_disk {}\n"
)
SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60)


class Metrics:
    """Counters of one replica."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        if SHARED in os.environ:
            forget_the_dead(Path(os.environ[SHARED]))
        options: dict[str, Any] = {"registry": self.registry}
        self.requests = Counter("distmeta_requests", "Requests answered", ["endpoint", "status"], **options)
        self.errors = Counter(
            "distmeta_errors", "Requests not answered well, status 400 and above", ["status"], **options
        )
        self.latency = Histogram(
            "distmeta_request_seconds", "From a request to its answer", ["endpoint"], buckets=SECONDS, **options
        )  # fmt: skip
        self.batch = Histogram("distmeta_batch_size", "Requests in a batch", ["kind"], buckets=SIZES, **options)
        self.tokens = Counter("distmeta_tokens", "Tokens of /v1, of prompts and of answers", ["kind"], **options)
        gauge = {"multiprocess_mode": "livesum", **options}
        self.in_memory = Gauge("distmeta_tasks_in_memory", "Adapted tasks, over replicas", **gauge)
        self.bytes = Gauge("distmeta_tasks_memory_bytes", "Of these tasks", **gauge)
        self.waiting = Gauge("distmeta_waiting", "Requests that wait for the model", **gauge)

    def answered(self, endpoint: str, status: int, seconds: float) -> None:
        self.requests.labels(endpoint, str(status)).inc()
        self.latency.labels(endpoint).observe(seconds)
        if status >= 400:
            self.errors.labels(str(status)).inc()

    def text(self, on_disk: int) -> bytes:
        """All of it, with the number of tasks on disk, which replicas share."""
        registry = self.registry
        if SHARED in os.environ:
            registry = CollectorRegistry()
            multiprocess.MultiProcessCollector(registry, os.environ[SHARED])
        return bytes(generate_latest(registry)) + ON_DISK.format(on_disk).encode()


def forget_the_dead(folder: Path, alive: Callable[[int], bool] = lambda pid: Path(f"/proc/{pid}").exists()) -> None:
    """Remove the gauges of replicas that are no more; what they counted stays."""
    for file in folder.glob("gauge_live*_*.db"):
        match = re.search(r"_(\d+)\.db$", file.name)
        if match and not alive(int(match.group(1))):
            multiprocess.mark_process_dead(int(match.group(1)), str(folder))
