"""`distmeta serve`: replicas of the service under Ray Serve on this machine, until SIGTERM or SIGINT."""

from __future__ import annotations

import contextlib
import io
import ipaddress
import json
import logging
import os
import socket
import tempfile
import time
import urllib.request
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from distmeta.config import ServeConfig, make_config
from distmeta.config.loading import parse_override
from distmeta.config.trees import merge
from distmeta.errors import InputError
from distmeta.runs import checkpoint as checkpoints
from distmeta.runs import interrupt
from distmeta.runs.checkpoint import read_config
from distmeta.serve.metrics import SHARED
from distmeta.versions import workers_without_uv_run

TOKEN = "DISTMETA_TOKEN"
SHORTEST_TOKEN = 16
PORT_S = 5.0  # to wait for a port that a server killed just now still holds
START_S = 300.0
CHECK_S = 15.0  # between looks at the service's health
GRACE_S = 10.0  # that requests have to end in, after SIGTERM


@dataclass(frozen=True)
class Options:
    """Everything that a replica is told."""

    checkpoint: str
    directory: str
    limits: ServeConfig
    token: str | None


def serve(
    source: str | Path,
    overrides: Sequence[str] = (),
    *,
    host: str = "127.0.0.1",
    port: int = 8000,
    tasks: str | Path | None = None,
    replicas: int = 1,
    token_file: str | Path | None = None,
    checkpoint: str | int = "best",
    say: Callable[[str], None] = print,
) -> None:
    """Serve a checkpoint, or one of a run's, until SIGTERM or SIGINT.

    overrides: serve.KEY=VALUE. host: other than loopback only with a token, from `token_file` or DISTMETA_TOKEN. tasks:
    directory of adapted tasks, which other servers may share; None: `tasks` in the run. checkpoint: of a run, best (by
    eval.best; the newest where there is none), last, or a meta-step. Raises InputError, or
    KeyboardInterrupt once all has ended.
    """
    served = checkpoints.resolve(source, checkpoint)
    limits = limits_of(served, overrides)
    token = read_token(token_file, host)
    directory = Path(tasks) if tasks is not None else default_directory(served)
    check_port(host, port)
    check_writable(directory)
    options = Options(str(served.resolve()), str(directory.resolve()), limits, token)
    with tempfile.TemporaryDirectory(prefix="distmeta-serve-") as shared:
        _run(options, host, port, replicas, shared, say)


def _run(options: Options, host: str, port: int, replicas: int, shared: str, say: Callable[[str], None]) -> None:
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    workers_without_uv_run()
    import ray
    from ray import serve as ray_serve

    logging.getLogger("ray.serve").setLevel(logging.WARNING)
    cores = os.cpu_count() or 1
    interrupt.catch()
    # Always a Ray of its own, which asks all that comes to it but HTTP for Ray's own token, and ends with this process.
    with interrupt.while_ray_starts():
        ray.init(
            address="local", num_cpus=max(cores, replicas) + 1, include_dashboard=False, log_to_driver=False,
            logging_level="ERROR", object_store_memory=200 * 2**20,
        )  # fmt: skip
    interrupt.keeping(f"tasks are kept in {options.directory}; the same command serves them again")
    quiet = {"log_level": "WARNING", "enable_access_log": False}
    try:
        interrupt.check()
        ray_serve.start(
            proxy_location="HeadOnly", logging_config=quiet,
            http_options={"host": host, "port": port, "request_timeout_s": options.limits.seconds + GRACE_S},
        )  # fmt: skip
        target = ray_serve.RunTarget(deployment(options, replicas, cores, shared).bind(options), logging_config=quiet)
        ray_serve.run_many([target], wait_for_applications_running=False)
        wait_until_healthy(host, port)
        say(
            f"{options.checkpoint} at http://{shown(host)}:{port}, tasks in {options.directory}; "
            "SIGTERM or Ctrl-C ends it"
        )
        while True:
            time.sleep(CHECK_S)
            wait_until_healthy(host, port)
    finally:
        with contextlib.redirect_stderr(io.StringIO()):  # Ray calls the end of its own controller a failure
            ray_serve.shutdown()
            ray.shutdown()


def deployment(options: Options, replicas: int, cores: int, shared: str) -> Any:
    """The deployment of Ray Serve: each replica loads the base once."""
    import torch
    from ray import serve as ray_serve

    @ray_serve.ingress()
    class Replica:
        def __init__(self, options: Options) -> None:
            from distmeta.serve.app import Service
            from distmeta.serve.batches import Base

            base = Base(options.checkpoint, options.limits.batch_tasks)
            self.service, self.token = Service(base, Path(options.directory), options.limits), options.token

        def __serve_build_asgi_app__(self) -> Any:
            from distmeta.serve.app import build_app

            return build_app(self.service, self.token)

        def check_health(self) -> None:
            if not self.service.worker.alive:
                raise RuntimeError("the model's thread has ended")

    actor: dict[str, Any] = {"num_cpus": max(1, cores // replicas)}
    if gpus := torch.cuda.device_count():
        actor["num_gpus"] = min(1.0, gpus / replicas)
    if replicas > 1:
        actor["runtime_env"] = {"env_vars": {SHARED: shared}}
    return ray_serve.deployment(
        Replica, num_replicas=replicas, ray_actor_options=actor, graceful_shutdown_timeout_s=GRACE_S,
        max_constructor_retry_count=1, max_ongoing_requests=2 * options.limits.waiting,
        max_queued_requests=2 * options.limits.waiting,
    )  # fmt: skip


def limits_of(checkpoint: Path, overrides: Sequence[str]) -> ServeConfig:
    """The section serve of a checkpoint's configuration with overrides. Raises InputError."""
    for override in overrides:
        if not override.startswith("serve."):
            keys = ", ".join(f"serve.{key}" for key in ServeConfig.model_fields)
            raise InputError(f"{override}: a checkpoint's configuration stays; what can be given is {keys}")
    # By read_config: load_config would import the algorithm that the file names.
    content = read_config(checkpoint / "config.yaml").model_dump(mode="json")
    for override in overrides:
        content = merge(content, parse_override(override))
    return make_config(content, where="the command line" if overrides else str(checkpoint)).serve


def default_directory(checkpoint: Path) -> Path:
    """RUN/tasks, or CHECKPOINT-tasks where it is not in a run."""
    if checkpoint.parent.name == "checkpoints":
        return checkpoint.parent.parent / "tasks"
    return checkpoint.with_name(f"{checkpoint.name}-tasks")


def read_token(file: str | Path | None, host: str) -> str | None:
    """The token, None where none is needed. Raises InputError."""
    if file is not None:
        try:
            token = Path(file).read_text(encoding="utf-8").strip()
        except (OSError, UnicodeDecodeError) as error:
            raise InputError(f"--token-file {file}: not readable: {error}") from None
        where = f"--token-file {file}"
    else:
        token, where = os.environ.get(TOKEN, "").strip(), TOKEN
        if not token:
            if is_loopback(host):
                return None
            raise InputError(
                f"--host {host}: others could reach it; give a token by --token-file or {TOKEN}, or keep 127.0.0.1"
            )
    if len(token) < SHORTEST_TOKEN or not (token.isascii() and token.isprintable()) or " " in token:
        raise InputError(f"{where}: a token has at least {SHORTEST_TOKEN} printable ASCII characters and no blank")
    return token


def is_loopback(host: str) -> bool:
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def check_writable(directory: Path) -> None:
    """Raises InputError where no task could be kept."""
    try:
        directory.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=directory):
            pass
    except OSError as error:
        raise InputError(f"--tasks {directory}: cannot be written to: {error.strerror}; give another --tasks") from None


def check_port(host: str, port: int) -> None:
    """Raises InputError where the address cannot be had within PORT_S."""
    until = time.monotonic() + PORT_S
    while True:
        try:
            family, kind, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
            with socket.socket(family, kind) as probe:
                probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                probe.bind(address)
            return
        except OSError as error:
            if isinstance(error, socket.gaierror) or time.monotonic() > until:
                raise InputError(f"--host {host} --port {port}: {error.strerror}; give another") from None
            time.sleep(0.5)


def wait_until_healthy(host: str, port: int) -> None:
    """Returns when the service answers. Raises TimeoutError, InputError."""
    from ray import serve as ray_serve

    address = f"http://{shown({'0.0.0.0': '127.0.0.1', '::': '::1'}.get(host, host))}:{port}/health"
    until = time.monotonic() + START_S
    while True:
        interrupt.check()
        try:
            with urllib.request.urlopen(address, timeout=5) as answer:
                if json.load(answer)["status"] == "ok":
                    return
        except (OSError, ValueError):
            pass
        for name, application in ray_serve.status().applications.items():
            if application.status == "DEPLOY_FAILED":
                reasons = [application.message, *(d.message for d in application.deployments.values())]
                raise InputError(f"the service does not start ({name}): {last_error(reasons)}")
        if time.monotonic() > until:
            raise TimeoutError(f"{address} did not answer for {START_S:.0f} seconds")
        time.sleep(0.3)


def shown(host: str) -> str:
    """A host within an address."""
    return f"[{host}]" if ":" in host else host


def last_error(messages: Sequence[str]) -> str:
    """The last line that names an error in what Ray says, which is the replica's own."""
    lines = [line.strip() for message in messages for line in message.splitlines() if line.strip()]
    return next((line for line in reversed(lines) if "Error" in line), lines[-1] if lines else "no reason is known")
