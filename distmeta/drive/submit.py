"""`distmeta submit`: the same verb, as a job of a Ray cluster, through its Jobs API.

What can be known here is checked here, before anything is sent: the verb's arguments, the configuration, the files
that the job will look for, the cluster's version and what its nodes have. A job then runs `python -m distmeta VERB ...`
in a copy of the working directory, and finds the cluster by itself.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import shlex
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from distmeta.config import Config
from distmeta.errors import InputError, cut
from distmeta.versions import read_token_again

EXCLUDED = (".git", ".venv", "venv", "runs", "checkpoints", "__pycache__")  # never of use to a job, often large
START_S, POLL_S = 60.0, 1.0
NO_AGENT = "No available agent"  # in Ray's answer while the head's is not there yet
COMMAND = "--python_worker_command="  # of a node's own process, before the interpreter
R = TypeVar("R")
WRITERS = ("train", "tune", "pretrain", "pipeline")  # verbs with a run directory


class NoAnswer(InputError):
    """Nothing answers at the cluster's address."""


@dataclass(frozen=True)
class Request:
    """A job as it is asked for. Resources are those of the process of the verb itself; learners ask for their own."""

    verb: str
    arguments: tuple[str, ...]
    address: str
    working_dir: Path = Path()
    exclude: tuple[str, ...] = ()
    runtime_env: Mapping[str, Any] = field(default_factory=dict)
    cpus: float | None = None
    gpus: float | None = None
    memory_mb: float | None = None
    resources: Mapping[str, float] = field(default_factory=dict)
    metadata: Mapping[str, str] = field(default_factory=dict)
    submission_id: str | None = None

    def entrypoint(self, python: str) -> str:
        """The job's command. python: the interpreter, where the runtime environment does not bring one."""
        brought = set(self.runtime_env) & {"pip", "uv", "conda", "py_executable", "image_uri", "container"}
        return shlex.join(["python" if brought else python, "-m", "distmeta", self.verb, *self.arguments])

    def environment(self) -> dict[str, Any]:
        """Ray's runtime_env; what --runtime-env says wins."""
        environment = dict(self.runtime_env)
        excludes = [*EXCLUDED, *environment.pop("excludes", ()), *self.exclude]
        return {"working_dir": str(self.working_dir.resolve()), "excludes": excludes, **environment}


def submit(request: Request, config: Config | None, say: Callable[[str], None]) -> str:
    """Check, send, and return the job's id. config: of a verb that has one. Raises InputError."""
    for note in check_files(request, config):
        say(f"note: {note}")
    client = connect(request.address)

    def ask() -> list[dict[str, Any]]:
        with one_line(request.address):  # a head may end while it is waited for
            return living(client)

    nodes = started(request.address, ask, say)
    check_room(nodes, request, config)

    job = {
        "entrypoint": request.entrypoint(interpreter(nodes)), "submission_id": request.submission_id,
        "runtime_env": request.environment(), "metadata": {"distmeta": request.verb, **request.metadata},
        "entrypoint_num_cpus": request.cpus, "entrypoint_num_gpus": request.gpus,
        "entrypoint_memory": None if request.memory_mb is None else int(request.memory_mb * 2**20),
        "entrypoint_resources": dict(request.resources) or None,
    }  # fmt: skip
    return started(request.address, lambda: send(client, request.address, job), say)


def send(client: Any, address: str, job: Mapping[str, Any]) -> str | None:
    """The job's id; None where the head has no agent yet. Raises InputError."""
    with one_line(address):
        try:
            return str(client.submit_job(**job))
        except RuntimeError as error:
            if NO_AGENT not in str(error):
                raise
    return None


def started(address: str, ask: Callable[[], R | None], say: Callable[[str], None]) -> R:
    """The first answer to `ask` of a head that may still be starting. Raises InputError after START_S."""
    deadline, is_said = time.monotonic() + START_S, False
    while not (answer := ask()):
        if time.monotonic() > deadline:
            raise InputError(
                f"--address {address}: the head has no agent that runs jobs, {START_S:g} s after it was asked; where "
                "another Ray runs on its machine, which may have the agent's port, start it again with "
                "`ray start --head --dashboard-agent-listen-port=0`"
            )
        if not is_said:
            say("waiting for the cluster's head, which is starting")
        is_said = True
        time.sleep(POLL_S)
    return answer


def interpreter(nodes: Sequence[Mapping[str, Any]]) -> str:
    """The Python that all nodes were started with, which may be in no PATH; `python` where they differ or say none."""
    words = {word for node in nodes for word in node.get("cmdline", ()) if word.startswith(COMMAND)}
    found = {shlex.split(word.removeprefix(COMMAND))[0] for word in words}
    return found.pop() if len(found) == 1 else "python"


def connect(address: str) -> Any:
    """A client of the cluster at `address` (http://HOST:8265), of this version of Ray. Raises InputError."""
    if "://" in address and not address.startswith(("http://", "https://")):
        raise InputError(f"--address {address}: the Jobs API is at an http address, such as http://HOST:8265")
    import ray
    from ray.job_submission import JobSubmissionClient

    if not ray.is_initialized():
        read_token_again()  # that of an earlier cluster may have been another
    logging.getLogger("ray").setLevel(logging.ERROR)  # every file that it does not send, several times over
    with one_line(address):
        client = JobSubmissionClient(address)
        version = client._do_request("GET", "/api/version", timeout=20).json()["ray_version"]
    if version != ray.__version__:
        raise InputError(
            f"--address {address}: the cluster runs Ray {version}, here is {ray.__version__}; install the same here"
        )
    return client


@contextlib.contextmanager
def one_line(address: str) -> Iterator[None]:
    """What the Jobs API answers, as InputError."""
    import requests
    from ray.exceptions import AuthenticationError

    try:
        yield
    except AuthenticationError as error:
        # Ray's text goes on about ways to set a token; which of the two it is stands in its first lines.
        kind = "refuses the token" if "nvalid" in str(error).split("\n", 1)[0] else "asks for a token"
        raise InputError(
            f"--address {address}: the cluster {kind}; set RAY_AUTH_MODE=token and RAY_AUTH_TOKEN_PATH=FILE with "
            "the cluster's own (on its head: `ray get-auth-token`)"
        ) from None
    except (ConnectionError, requests.exceptions.RequestException) as error:
        late = isinstance(error, requests.exceptions.Timeout)
        reason = "no answer in 20 s" if late else "nothing answers as Ray's Jobs API"
        raise NoAnswer(
            f"--address {address}: {reason}; it is the dashboard's address, by default http://HEAD:8265 "
            "(ray start --head --include-dashboard=true, or an ssh tunnel to it)"
        ) from None
    except (RuntimeError, ValueError) as error:
        raise InputError(f"--address {address}: {_gist(str(error))}") from None


def _gist(text: str) -> str:
    """The line of a server's traceback that says what is wrong."""
    lines = [line.strip() for line in text.replace("\\n", "\n").splitlines() if line.strip()]
    reasons = [line for line in lines if "Error:" in line or "already exists" in line or "does not exist" in line]
    return cut((reasons or lines or ["no reason given"])[-1], 300)


def check_files(request: Request, config: Config | None) -> list[str]:
    """What a person should know of the paths that the job is given. Raises InputError for one that cannot work."""
    root, notes = request.working_dir, []
    if not root.is_dir():
        raise InputError(f"--working-dir {root}: no such directory")
    if request.verb in WRITERS and config is not None:
        base = config.cluster.storage or config.run.dir
        if base is None or not ("://" in base or Path(base).is_absolute()):
            raise InputError(
                "run.dir: a job's own directory goes when the job ends; give cluster.storage=/DIR, on storage that all "
                "nodes share, or an absolute --run-dir"
            )
    for flag in ("--out", "--run-dir"):
        if (directory := _option(request.arguments, flag)) and not Path(directory).is_absolute():
            raise InputError(f"{flag} {directory}: a job's own directory goes when the job ends; give an absolute path")
    for name, path in _named_paths(request, config):
        if "://" in path:
            continue
        if Path(path).is_absolute():
            notes.append(f"{name} = {path}: is not sent; it has to be there on the cluster's nodes")
        elif not (list(root.glob(path)) if any(c in path for c in "*?[") else (root / path).exists()):
            raise InputError(f"{name} = {path}: not in the working directory {root.resolve()}, which the job is sent")
        elif Path(path).parts[0] in EXCLUDED or path in request.exclude:
            raise InputError(
                f"{name} = {path}: lies in one of {', '.join((*EXCLUDED, *request.exclude))}, which are not sent"
            )
    return notes


def _named_paths(request: Request, config: Config | None) -> Iterator[tuple[str, str]]:
    """(what names it, path) of all that the job will read."""
    if config is not None:
        for key, paths in (("data.path", config.data.path), ("pretrain.path", config.pretrain.path)):
            for path in [paths] if isinstance(paths, str) else paths or ():
                yield key, path
        if isinstance(config.data.splits, str):
            yield "data.splits", config.data.splits.split("#")[0]
        if config.model.pretrained and config.model.pretrained.startswith((".", "/")):
            yield "model.pretrained", config.model.pretrained
        for word in request.arguments:
            if word.endswith((".yaml", ".yml")) and "=" not in word:
                yield "configuration", word
    elif request.verb in ("evaluate", "adapt", "export", "predict") and request.arguments:
        yield "checkpoint", next((word for word in request.arguments if not word.startswith("-")), "")
    for flag in ("--data", "--support", "--input"):
        if (file := _option(request.arguments, flag)) and file != "-":
            yield flag, file


def _option(arguments: Sequence[str], flag: str) -> str | None:
    for word, following in zip(arguments, [*arguments[1:], ""]):
        if word == flag:
            return following
        if word.startswith(flag + "="):
            return word.split("=", 1)[1]
    return None


def check_room(living: Sequence[Mapping[str, Any]], request: Request, config: Config | None) -> None:
    """Raises InputError where no node could ever hold the entrypoint, or all of them not the whole run.

    A cluster whose autoscaler may yet add nodes is asked for the entrypoint's and the run's needs all the same: it
    has to have them when the job is sent.
    """
    nodes = [node["resourcesTotal"] for node in living]
    entry: dict[str, float] = {"CPU": request.cpus or 0, "GPU": request.gpus or 0, **request.resources}
    if request.memory_mb:
        entry["memory"] = request.memory_mb * 2**20
    for kind, amount in entry.items():
        most = max((float(node.get(kind, 0)) for node in nodes), default=0.0)
        if amount > most:
            unit = 2**20 if kind == "memory" else 1
            raise InputError(
                f"--address {request.address}: the entrypoint asks for {amount / unit:g} {kind}"
                f"{' MB' if kind == 'memory' else ''}, no node has more than {most / unit:g}; ask for less"
            )
    if config is None or request.verb not in WRITERS:
        return
    c, have = config.cluster, {kind: sum(float(node.get(kind, 0)) for node in nodes) for kind in ("CPU", "GPU")}
    processes = c.fewest + config.validates_beside
    need = {
        "CPU": processes * c.cpus_per_worker + _samplers(config) * c.cpus_per_sampler + entry["CPU"],
        "GPU": processes * (c.gpus_per_worker or 0) + entry["GPU"],
    }
    for kind, amount in need.items():
        if amount > have[kind]:
            raise InputError(
                f"--address {request.address}: cluster.workers = {c.shown} and sampling.actors = "
                f"{config.sampling.actors} need {amount:g} {kind}, the cluster's {len(nodes)} nodes have "
                f"{have[kind]:g}; lower them, or add nodes"
            )


def _samplers(config: Config) -> int:
    return config.sampling.actors if isinstance(config.sampling.actors, int) else 1


def living(client: Any) -> list[dict[str, Any]]:
    """The living nodes, as the dashboard lists them, with the command of each; none before one has told its command,
    which it does as soon as there is an agent."""
    nodes = client._do_request("GET", "/nodes?view=summary", timeout=20).json()["data"]["summary"]
    alive = [n["raylet"] | {"cmdline": n.get("cmdline") or ()} for n in nodes if n["raylet"].get("state") == "ALIVE"]
    return alive if any(node["cmdline"] for node in alive) else []


# --- a job that was sent ---


def follow(address: str, job: str, out: Callable[[str], None]) -> str:
    """Pass a job's output on as it comes; returns its last status. A connection that is lost is taken up again."""
    client, shown = connect(address), 0

    async def tail() -> None:
        nonlocal shown
        seen = 0
        async for text in client.tail_job_logs(job):
            fresh = text[max(0, shown - seen) :]  # from the beginning each time; what was shown is not shown again
            seen += len(text)
            if fresh:
                out(fresh)
                shown = max(shown, seen)

    gone: float | None = None  # since when nothing answers
    while True:
        with contextlib.suppress(RuntimeError, OSError):
            asyncio.run(tail())
        try:
            state, gone = status(address, job)["status"], None
        except NoAnswer:
            state, gone = "UNKNOWN", gone or time.monotonic()
            if time.monotonic() - gone > START_S:
                raise InputError(
                    f"--address {address}: the head has not answered for {START_S:g} s, and job {job} may have ended "
                    "with it; start the head again, and send the same command with --resume"
                ) from None
        if state in ("SUCCEEDED", "FAILED", "STOPPED"):
            return str(state)
        time.sleep(POLL_S)


def status(address: str, job: str) -> dict[str, Any]:
    """What the cluster knows of a job: status, message, entrypoint, seconds. Raises InputError."""
    client = connect(address)
    with one_line(address):
        info = client.get_job_info(job)
    end = info.end_time or int(time.time() * 1000)
    return {
        "job": job, "status": str(info.status.value), "message": info.message, "entrypoint": info.entrypoint,
        "seconds": (end - info.start_time) / 1000 if info.start_time else None, "metadata": info.metadata,
    }  # fmt: skip


def logs(address: str, job: str) -> str:
    client = connect(address)
    with one_line(address):
        text: str = client.get_job_logs(job)
    return text


def stop(address: str, job: str, timeout_s: float = 60.0) -> str:
    """Stop a job, and wait for its end; returns its status. A training run continues with --resume."""
    client = connect(address)
    with one_line(address):
        client.stop_job(job)
    deadline = time.monotonic() + timeout_s
    while (state := status(address, job)["status"]) in ("PENDING", "RUNNING"):
        if time.monotonic() > deadline:
            raise TimeoutError(f"job {job} is still {state} after {timeout_s:g} s; ask again, or look at its logs")
        time.sleep(0.5)
    return str(state)


def read_runtime_env(path: Path | None) -> dict[str, Any]:
    """A runtime environment of Ray's, from YAML. Raises InputError."""
    if path is None:
        return {}
    import yaml

    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, yaml.YAMLError, UnicodeDecodeError) as error:
        raise InputError(f"--runtime-env {path}: {' '.join(str(error).split())}") from None
    if not isinstance(content, dict):
        raise InputError(f"--runtime-env {path}: holds a {type(content).__name__}; a mapping is needed")
    return content


def amount(text: str) -> float:
    """A resource's amount. Raises InputError."""
    try:
        return float(text)
    except ValueError:
        raise InputError(f"--entrypoint-resources: {text!r} is no number") from None


def write_out(text: str) -> None:
    sys.stdout.write(text)
    sys.stdout.flush()
