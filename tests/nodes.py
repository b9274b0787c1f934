"""A Ray cluster of several nodes on this machine: `ray start` processes, each in a network namespace of its own.

Where namespaces cannot be made (no rights), all nodes are on 127.0.0.1. Token authentication is on, with a token of
the cluster's own. `shared` is one node for all tests that need nothing but Ray.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

RAY = str(Path(sys.executable).with_name("ray"))


class Nodes:
    """head, then workers by name; `address` is the Jobs API's, `gcs` the cluster's own.

    redis: whether a Redis outside of the nodes keeps what the head knows, for a head that is lost and comes back.
    """

    def __init__(
        self, folder: Path, cpus: dict[str, int], spread: bool = True, token: str | None = None, redis: bool = False
    ) -> None:
        self.folder, self.cpus, self.redis = folder, cpus, free_port() if redis else None
        self.token = folder / "token"
        self.token.write_text(token or secrets.token_hex(32))
        self.token.chmod(0o600)
        self.tag = f"dm{os.getpid() % 10000}"
        self.apart = spread and can_make_namespaces()
        self.ip = {
            name: f"10.{200 + os.getpid() % 50}.0.{i + 2}" if self.apart else "127.0.0.1" for i, name in enumerate(cpus)
        }
        self.running: dict[str, subprocess.Popen[bytes]] = {}
        self.head = next(iter(cpus))
        port, dash, self.metrics = free_port(), free_port(), free_port()
        self.gcs, self.address = f"{self.ip[self.head]}:{port}", f"http://{self.ip[self.head]}:{dash}"
        self.ports = (port, dash)

    @property
    def environment(self) -> dict[str, str]:
        """Of every process that talks to the cluster."""
        kept = {key: value for key, value in os.environ.items() if not key.startswith("RAY_")}
        return {
            **kept, "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}", "RAY_AUTH_MODE": "token",
            "RAY_AUTH_TOKEN_PATH": str(self.token), "RAY_USAGE_STATS_ENABLED": "0", "OMP_NUM_THREADS": "1",
            "RAY_metrics_report_interval_ms": "500",
            "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.2", "DISTMETA_CACHE": str(self.folder / "cache"),
            # The host's name is 127.0.0.1 in every namespace.
            **({"GLOO_SOCKET_IFNAME": "eth0"} if self.apart else {}),
        }  # fmt: skip

    def start(self, name: str) -> None:
        command = [RAY, "start", "--block", f"--num-cpus={self.cpus[name]}",
                   *([f"--node-ip-address={self.ip[name]}"] if self.apart or len(self.cpus) > 1 else []),
                   "--object-store-memory=200000000", "--disable-usage-stats"]  # fmt: skip
        if name == self.head:
            command += ["--head", f"--port={self.ports[0]}", "--include-dashboard=true",
                        f"--dashboard-port={self.ports[1]}", f"--dashboard-host={self.ip[name]}",
                        f"--metrics-export-port={self.metrics}", f"--temp-dir={self.folder / 'ray'}"]  # fmt: skip
            # One that was killed has left its address, and Ray finds the other nodes' processes on this machine.
            for left in ("ray", f"disk-{name}"):
                (self.folder / left / "ray_current_cluster").unlink(missing_ok=True)
        else:
            command += [f"--address={self.gcs}"]
        kept = {}
        if name == self.head and self.redis:
            kept = {"RAY_REDIS_ADDRESS": f"{self.outside}:{self.redis}"}
            command += [f"--redis-password={self.token.read_text()}"]
        self._run(name, self.inside(name, command), kept)

    def _run(self, name: str, command: list[str], more: dict[str, str]) -> None:
        with (self.folder / f"{name}.log").open("ab") as log:
            self.running[name] = subprocess.Popen(
                command, env=self.environment | more, stdout=log, stderr=log, start_new_session=True
            )

    @property
    def outside(self) -> str:
        """This machine's address, as its nodes see it."""
        return f"{self.ip[self.head].rsplit('.', 1)[0]}.1" if self.apart else "127.0.0.1"

    def inside(self, name: str, command: list[str]) -> list[str]:
        """The command, run where the node is."""
        if not self.apart:
            return command
        # A disk of its own where Ray keeps its files: a node deletes the working directories that it does not use.
        own = self.folder / f"disk-{name}"
        own.mkdir(exist_ok=True)
        (self.folder / "ray").mkdir(exist_ok=True)
        mount = f'mount --bind {own} {self.folder / "ray"} && exec "$@"'
        return ["ip", "netns", "exec", f"{self.tag}{name}", "sh", "-c", mount, "sh", *command]

    def wait(self, count: int, timeout_s: float = 240) -> None:
        """Until so many nodes are alive."""
        deadline, alive = time.monotonic() + timeout_s, 0
        while alive != count:
            if time.monotonic() > deadline:
                tails = {n: (self.folder / f"{n}.log").read_text()[-800:] for n in self.running}
                raise TimeoutError(f"{alive} nodes of {count}: {tails}")
            time.sleep(0.3)
            with contextlib.suppress(OSError, ValueError):  # the head does not answer yet
                alive = self._alive()

    def _alive(self) -> int:
        """How many nodes the head's dashboard lists as living."""
        asked = urllib.request.Request(
            f"{self.address}/nodes?view=summary", headers={"Authorization": f"Bearer {self.token.read_text()}"}
        )
        with urllib.request.urlopen(asked, timeout=20) as page:
            nodes = json.load(page)["data"]["summary"]
        return sum(node["raylet"].get("state") == "ALIVE" for node in nodes)

    def kill(self, name: str) -> None:
        """SIGKILL to everything that the node runs."""
        process = self.running.pop(name)
        if self.apart:
            pids = subprocess.run(["ip", "netns", "pids", f"{self.tag}{name}"], capture_output=True, text=True)
            for pid in pids.stdout.split():
                with contextlib.suppress(ProcessLookupError):
                    os.kill(int(pid), signal.SIGKILL)
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait(30)

    def cable(self, name: str, plugged: bool) -> None:
        """Pull a node's network cable, or plug it in again; nodes have to be apart."""
        sh(f"ip link set {self.tag}v{list(self.cpus).index(name)} {'up' if plugged else 'down'}")

    def __enter__(self) -> Nodes:
        try:
            if self.apart:
                self._connect()
            if self.redis:
                words = ["--port", str(self.redis), "--bind", self.outside, "--save", "", "--dir", str(self.folder)]
                self._run("redis", ["redis-server", *words, "--requirepass", self.token.read_text()], {})
            for count, name in enumerate(self.cpus, 1):
                self.start(name)
                if name == self.head or not self.apart:  # on one disk, two at once would choose the same socket
                    self.wait(count)
            self.wait(len(self.cpus))
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        for name in list(self.running):
            self.kill(name)
        if self.apart:
            for name in self.cpus:
                sh(f"ip netns del {self.tag}{name}", check=False)
            sh(f"ip link del {self.tag}br", check=False)

    def _connect(self) -> None:
        bridge = f"{self.tag}br"
        sh(f"ip link add {bridge} type bridge", f"ip addr add {self.outside}/24 dev {bridge}",
           f"ip link set {bridge} up")  # fmt: skip
        for i, name in enumerate(self.cpus):
            space, outer = f"{self.tag}{name}", f"{self.tag}v{i}"
            sh(f"ip netns add {space}", f"ip link add {outer} type veth peer name eth0 netns {space}",
               f"ip link set {outer} master {bridge}", f"ip link set {outer} up",
               f"ip -n {space} addr add {self.ip[name]}/24 dev eth0", f"ip -n {space} link set eth0 up",
               f"ip -n {space} link set lo up")  # fmt: skip


@contextlib.contextmanager
def shared(folder: Path) -> Iterator[SimpleNamespace]:
    """The one node of all processes that name this folder, with eight cores to reserve: its gcs, address, metrics (a
    port) and environment. The first to come starts it, the last to go ends it."""
    about, user = folder / "head.json", folder / f"user-{os.getpid()}"
    with locked(folder):
        if not about.exists():
            place, token = Path(tempfile.mkdtemp(prefix="n")), os.environ["RAY_AUTH_TOKEN"]  # conftest.py has set it
            nodes = Nodes(place, {"head": 8}, spread=False, token=token).__enter__()
            head = {name: getattr(nodes, name) for name in ("gcs", "address", "metrics", "environment")}
            about.write_text(json.dumps({**head, "pid": nodes.running["head"].pid, "folder": str(nodes.folder)}))
        user.touch()
    head = SimpleNamespace(**json.loads(about.read_text()))
    try:
        yield head
    finally:
        with locked(folder):
            user.unlink()
            if not list(folder.glob("user-*")):
                os.killpg(head.pid, signal.SIGKILL)
                about.unlink()
                shutil.rmtree(head.folder, ignore_errors=True)


@contextlib.contextmanager
def locked(folder: Path) -> Iterator[None]:
    """One process at a time."""
    with (folder / "lock").open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def short_folder() -> tempfile.TemporaryDirectory[str]:
    """Ray makes sockets in it, whose paths may have 107 characters."""
    return tempfile.TemporaryDirectory(prefix="n", ignore_cleanup_errors=True)


def sh(*lines: str, check: bool = True) -> None:
    for line in lines:
        subprocess.run(line.split(), check=check, capture_output=True)


def can_make_namespaces() -> bool:
    if os.geteuid() != 0 or shutil.which("ip") is None:
        return False
    name = f"dmprobe{os.getpid()}"
    try:
        sh(f"ip netns add {name}", f"ip link add {name[:10]}p type bridge", f"ip link del {name[:10]}p")
        return True
    except subprocess.CalledProcessError:
        return False
    finally:
        sh(f"ip netns del {name}", check=False)


def free_port() -> int:
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return int(s.getsockname()[1])
