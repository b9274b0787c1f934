"""The head of a cluster is lost in the middle of a run whose driver and ranks are on other nodes."""

import os
import shutil
import socket
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
import ray
import small
from nodes import Nodes, can_make_namespaces, short_folder

from distmeta.drive import cluster
from distmeta.runs import interrupt


@pytest.fixture
def head(monkeypatch):
    """Stands for one: a port that answers, until it is closed."""
    server = socket.create_server(("127.0.0.1", 0))
    address = f"127.0.0.1:{server.getsockname()[1]}"
    monkeypatch.setattr(ray, "get_runtime_context", lambda: SimpleNamespace(gcs_address=address))
    monkeypatch.setattr(cluster, "WATCH_S", 0.02)
    monkeypatch.setenv("RAY_gcs_rpc_server_reconnect_timeout_s", "0.4")
    yield server
    server.close()


def test_a_lost_head_is_told_of_before_ray_ends_the_process(head, monkeypatch, tmp_path, capfd):
    ended = []
    monkeypatch.setattr(os, "_exit", ended.append)
    monkeypatch.setattr(interrupt, "_installed", [True])
    monkeypatch.setattr(interrupt, "_run_dir", [tmp_path])
    monkeypatch.setattr(interrupt, "_kept", [])
    with cluster.watching_head():
        time.sleep(0.5)
        assert not ended  # it answers
        head.close()
        began = time.monotonic()
        while not ended:
            assert time.monotonic() - began < 5
            time.sleep(0.01)
    assert ended == [1] and time.monotonic() - began >= 0.25
    line = capfd.readouterr().err.strip()
    assert (
        line.startswith("distmeta: the head of the Ray cluster (127.0.0.1:") and "start it again; no checkpoint" in line
    )
    assert line.endswith("the same command with --resume continues the run")


def test_code_that_called_distmeta_goes_on_without_the_head(head, monkeypatch, capfd):
    monkeypatch.setattr(os, "_exit", lambda code: pytest.fail("ended a process that is not ours"))
    monkeypatch.setattr(interrupt, "_installed", [])
    with cluster.watching_head():
        head.close()
        time.sleep(0.6)
    assert "has not answered for 0.3 s" in capfd.readouterr().err


# A driver takes the head for its own node where it sees the head's processes, as it does here.
DRIVER = """
import functools, sys
import ray
ray.init = functools.partial(ray.init, _node_ip_address=sys.argv.pop(1))
from distmeta.cli import main
main()
"""


def start_driver(nodes, place, *words):
    """`distmeta train` on node a, and not on the head's: its process."""
    words = ["train", "tiny.yaml", f"cluster.address={nodes.gcs}", *words]
    command = nodes.inside("a", [sys.executable, "-c", DRIVER, nodes.ip["a"], *words])
    env = nodes.environment | {"PYTHONPATH": os.environ.get("PYTHONPATH", "")}
    with (place / "stderr").open("w") as err:
        return subprocess.Popen(command, cwd=place, env=env, stdout=err, stderr=err, start_new_session=True)


def await_step(driver, place, step, timeout_s=400):
    """Until a meta-step is in the journal, and a checkpoint on the disk."""
    began, run = time.monotonic(), place / "runs" / "tiny"
    while (
        not (run / "metrics.jsonl").exists() or len(small.records(run)) < step or not list(run.glob("checkpoints/s*"))
    ):
        assert driver.poll() is None, (place / "stderr").read_text()[-3000:]
        assert time.monotonic() - began < timeout_s, (place / "stderr").read_text()[-3000:]
        time.sleep(0.05)


@pytest.mark.long
@pytest.mark.timeout(900)
def test_a_head_that_comes_back_changes_nothing_but_the_clock(undisturbed, tmp_path):
    if shutil.which("redis-server") is None or not can_make_namespaces():
        pytest.skip("redis-server is not installed, or there are no network namespaces here")
    shutil.copy(undisturbed.cwd / "tiny.yaml", tmp_path)
    more = ["run.checkpoint_every=3", "cluster.cpus_per_sampler=0", "sampling.actors=4"]  # one of them on the head
    with short_folder() as folder, Nodes(Path(folder), {"head": 0, "a": 1, "b": 1}, redis=True) as nodes:
        driver = start_driver(nodes, tmp_path, *more)
        try:
            await_step(driver, tmp_path, 3)
            nodes.kill("head")
            time.sleep(5)
            assert driver.poll() is None
            nodes.start("head")
            assert driver.wait(300) == 0, (tmp_path / "stderr").read_text()[-3000:]
            nodes.wait(3)  # which is the same cluster
        finally:
            driver.kill()
    run = tmp_path / "runs" / "tiny"
    assert small.records(run) == undisturbed.records and small.weights(run) == undisturbed.weights
    assert (run / "evaluation.json").read_bytes() == (undisturbed.run / "evaluation.json").read_bytes()


@pytest.mark.long
@pytest.mark.timeout(900)
def test_a_head_that_stays_away_is_one_line_that_says_how_to_go_on(undisturbed, tmp_path):
    if not can_make_namespaces():
        pytest.skip("no network namespaces here: the driver is on the head's node")
    shutil.copy(undisturbed.cwd / "tiny.yaml", tmp_path)
    with short_folder() as folder, Nodes(Path(folder), {"head": 0, "a": 2}) as nodes:
        driver = start_driver(nodes, tmp_path, "outer.steps=100000", "cluster.cpus_per_sampler=0", "--quiet")
        try:
            await_step(driver, tmp_path, 3)
            nodes.kill("head")
            assert driver.wait(70) == 1
        finally:
            driver.kill()
    (line,) = (tmp_path / "stderr").read_text().split("\n")[1:-1]
    assert line.startswith(f"distmeta: the head of the Ray cluster ({nodes.gcs}) has not answered for 45 s; start it")
    assert "step-000" in line and line.endswith("the same command with --resume continues the run")
