"""The Ray cluster of a run: one that is there, or one that is started here for the length of the run."""

from __future__ import annotations

import contextlib
import os
import socket
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from distmeta.config import Config
from distmeta.errors import InputError, cut
from distmeta.runs import interrupt
from distmeta.versions import no_fixed_port, read_token_again, workers_without_uv_run

CONNECT_S = 10.0
WATCH_S = 5.0
RECONNECT_S = "RAY_gcs_rpc_server_reconnect_timeout_s"


class TrainingError(RuntimeError):
    """A run that did not end; the message is for a person, the cause in `RUN/log.txt` and Ray's logs."""


@dataclass(frozen=True)
class Cluster:
    cpus: float
    gpus: float
    local: bool


@contextlib.contextmanager
def ray_cluster(config: Config) -> Iterator[Cluster]:
    """Connect to the cluster of `cluster.address` or RAY_ADDRESS, or start one here for the length of the run."""
    for name, value in {
        "RAY_USAGE_STATS_ENABLED": "0",
        "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.2",  # also how long each report() of a worker waits
        "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
        "RAY_DEDUP_LOGS": "1",
        "RAY_TRAIN_ENABLE_PREEMPTION_WATCHER": "0",  # an actor for notices that nothing here acts on
    }.items():
        os.environ.setdefault(name, value)
    workers_without_uv_run()
    import ray

    if ray.is_initialized():
        yield resources(local=False)
        return
    address, mode = config.cluster.address or os.environ.get("RAY_ADDRESS"), os.environ.get("RAY_AUTH_MODE")
    quiet: dict[str, Any] = {"log_to_driver": False, "logging_level": "ERROR"}
    if address is None:
        check_gpus(config)
        workers, samplers = (
            config.cluster.most + config.validates_beside,
            4 if config.sampling.actors == "auto" else config.sampling.actors,
        )
        if mode is None:  # before Ray 2.59 a cluster has tokens where they are asked for alone
            os.environ["RAY_AUTH_MODE"] = "token"
            read_token_again()
        need = workers * config.cluster.cpus_per_worker + samplers * config.cluster.cpus_per_sampler
        try:
            with interrupt.while_ray_starts(), no_fixed_port():
                ray.init(
                    address="local", num_cpus=max(os.cpu_count() or 1, int(need + 1)), include_dashboard=False, **quiet
                )  # fmt: skip
        except Exception as error:  # Ray's processes wait for one another in many ways, each with an error of its own
            if mode is None:
                without_token()
            raise TrainingError(
                f"Ray did not start on this machine ({cut(' '.join(str(error).split()), 200)}): where its cores or its "
                "memory are taken by other work, wait for that, and give the same command again"
            ) from error
    else:
        check_reachable(address)
        try:
            with interrupt.while_ray_starts():
                ray.init(address=address, **quiet)
        except (ConnectionError, ValueError, RuntimeError) as error:
            reason = cut(str(error), 300)  # where versions differ, of several lines
            raise InputError(f"cluster.address = {address}: cannot connect to Ray: {reason}") from None
    try:
        with contextlib.nullcontext() if address is None else watching_head():
            yield resources(local=address is None)
    finally:
        ray.shutdown()
        if address is None and mode is None:
            without_token()


def without_token() -> None:
    """A cluster of a run's own is over, and with it the token that it asked for."""
    os.environ.pop("RAY_AUTH_MODE", None)
    read_token_again()


def check_gpus(config: Config) -> None:
    """Raises InputError where a cluster that is started here would have too few GPUs."""
    c = config.cluster
    if not c.gpus_per_worker:
        return
    import torch

    available = torch.cuda.device_count()
    if c.fewest * c.gpus_per_worker > available:
        raise InputError(
            f"cluster.gpus_per_worker = {c.gpus_per_worker:g} for cluster.workers = {c.shown}: this machine has "
            f"{available} GPUs that torch can use; leave it out, or name a cluster that has them (cluster.address)"
        )


def check_reachable(address: str) -> None:
    """Raises InputError where nothing listens at HOST:PORT: Ray would go on trying for many minutes."""
    host, _, port = address.removeprefix("ray://").rpartition(":")
    if not port.isdecimal():
        return  # auto
    try:
        socket.create_connection((host.strip("[]"), int(port)), timeout=CONNECT_S).close()
    except OSError as error:
        reason = error.strerror or str(error)
        raise InputError(
            f"cluster.address = {address}: no Ray cluster answers there ({reason}); give the head's HOST:PORT as "
            "`ray start` printed it, or none to start one here"
        ) from None


@contextlib.contextmanager
def watching_head() -> Iterator[None]:
    """Within it, what is done once the head is lost is `end_without_head`.

    Ray goes on trying for RAY_gcs_rpc_server_reconnect_timeout_s seconds (60), and then ends this process, from native
    code and without a word on the run. So this comes after three quarters of that time.
    """
    import ray

    host, _, port = ray.get_runtime_context().gcs_address.rpartition(":")
    patience_s = 0.75 * float(os.environ.get(RECONNECT_S, "60"))
    over = threading.Event()

    def watch() -> None:
        answered = time.monotonic()
        while not over.wait(WATCH_S):
            try:
                socket.create_connection((host.strip("[]"), int(port)), timeout=WATCH_S).close()
                answered = time.monotonic()
            except OSError:
                if time.monotonic() - answered >= patience_s:
                    end_without_head(f"{host}:{port}", patience_s)
                    return

    threading.Thread(target=watch, daemon=True).start()
    try:
        yield
    finally:
        over.set()


def end_without_head(address: str, patience_s: float) -> None:
    """Say what is kept, and end the verb at once: Ray's own end would wait for the head. Code that called distmeta goes
    on for as long as Ray lets it."""
    print(
        f"\ndistmeta: the head of the Ray cluster ({address}) has not answered for {patience_s:g} s; start it again; "
        f"{interrupt.kept()}", file=sys.stderr, flush=True,
    )  # fmt: skip
    if interrupt.is_caught():
        os._exit(1)


def resources(local: bool) -> Cluster:
    """What the cluster that this process is connected to has."""
    import ray

    totals = ray.cluster_resources()
    return Cluster(cpus=totals.get("CPU", 0), gpus=totals.get("GPU", 0), local=local)


def check_room(config: Config, cluster: Cluster) -> float:
    """The GPUs of a rank. Raises InputError when the cluster is too small for the group and its samplers."""
    c = config.cluster
    processes = c.fewest + config.validates_beside
    gpus = c.gpus_per_worker if c.gpus_per_worker is not None else float(cluster.gpus >= processes)
    samplers = first_actors(config) * c.cpus_per_sampler
    need = {"CPU": processes * c.cpus_per_worker + samplers, "GPU": processes * gpus}
    for kind, amount, available in (("CPU", need["CPU"], cluster.cpus), ("GPU", need["GPU"], cluster.gpus)):
        if amount > available:
            raise InputError(
                f"cluster.workers = {c.shown} and sampling.actors = {config.sampling.actors} need {amount:g} {kind}, "
                f"the cluster has {available:g}; lower them, or add nodes"
            )
    return gpus


def first_actors(config: Config) -> int:
    """How many samplers a run starts with: as it says, or under `auto` one a node; more come once rates are known."""
    import ray

    actors = config.sampling.actors
    return sum(node["Alive"] for node in ray.nodes()) if actors == "auto" else actors
