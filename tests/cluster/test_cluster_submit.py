"""Jobs on a cluster of three nodes: sent, followed, stopped, continued, and robbed of a node; and what is refused."""

import contextlib
import json
import re
import shutil
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

import pytest
from nodes import Nodes, can_make_namespaces, free_port, short_folder

SMALL = ["tiny.yaml", "run.checkpoint_every=3", "cluster.cpus_per_sampler=0"]  # neither changes a number


@pytest.fixture(scope="module")
def cluster():
    # On one disk, a node would delete the working directory of a job that runs on another.
    cpus = {"head": 1, "a": 1, "b": 1} if can_make_namespaces() else {"head": 3}
    with short_folder() as folder, Nodes(Path(folder), cpus) as nodes:
        yield nodes


def distmeta(*words, env, timeout=240, cwd=None):
    command = [sys.executable, "-m", "distmeta", *map(str, words)]
    return subprocess.run(command, env=env, cwd=cwd, capture_output=True, text=True, timeout=timeout)


def submit(cluster, *words, cwd, **env):
    return distmeta("submit", *words, "--address", cluster.address, env=cluster.environment | env, cwd=cwd)


ALL = """
import contextlib, io, json, sys
from distmeta.cli import main
found = []
for words in json.load(sys.stdin):
    sys.argv, code = ["distmeta", *words], 0
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try:
            main()
        except SystemExit as end:
            code = end.code
    found.append([code, out.getvalue(), err.getvalue()])
print(json.dumps(found))
"""


def all_of(cluster, commands, cwd):
    """(exit code, standard output, errors) of each `distmeta submit`; one process, which imports everything once."""
    done = subprocess.run(
        [sys.executable, "-c", ALL], env=cluster.environment, cwd=cwd, capture_output=True, text=True, timeout=240,
        input=json.dumps([["submit", *map(str, words), "--address", cluster.address] for words in commands]),
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-2000:]
    return json.loads(done.stdout)


def records(run):
    kept = ("step", "outer_loss", "query_accuracy", "inner_loss", "grad_norm")
    return [{k: json.loads(line)[k] for k in kept} for line in (run / "metrics.jsonl").read_text().splitlines()]


@pytest.fixture
def reference(undisturbed, tmp_path):
    """The same run on this machine alone; its configuration is put where the jobs are sent from."""
    shutil.copy(undisturbed.cwd / "tiny.yaml", tmp_path)
    return undisturbed.run


@pytest.mark.long
def test_a_job_gives_the_local_runs_numbers(cluster, reference, tmp_path):
    (tmp_path / "mine.yaml").write_text("run: {name: mine}\n")
    run = tmp_path / "out" / "run"
    done = submit(
        cluster, "train", *SMALL, "--run-dir", run, "--metadata", "team=research", "--submission-id", "first",
        cwd=tmp_path,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-1000:]
    assert "step 20/20" in done.stdout and "job first: succeeded" in done.stderr
    assert records(run) == records(reference)
    assert (run / "evaluation.json").read_text() == (reference / "evaluation.json").read_text()
    again = ["train", *SMALL, "--run-dir", run, "--submission-id", "first"]
    status, logs, refused = all_of(cluster, [["status", "first"], ["logs", "first"], again], tmp_path)
    told = json.loads(status[1])
    assert told["status"] == "SUCCEEDED" and told["metadata"]["team"] == "research"
    assert "meta-trained" in logs[1]
    assert refused[0] == 2 and "first" in refused[2].splitlines()[-1]


@pytest.mark.long
def test_a_job_is_stopped_and_continued(cluster, reference, tmp_path):
    run = tmp_path / "run"
    sent = submit(cluster, "train", *SMALL, "--run-dir", run, "--no-wait", cwd=tmp_path)
    assert sent.returncode == 0, sent.stderr
    job = sent.stdout.strip()
    await_step(run, 3)
    assert submit(cluster, "stop", job, cwd=tmp_path).stdout == f"{job}: stopped\n"
    assert len(records(run)) < 20
    done = submit(cluster, "train", *SMALL, "--run-dir", run, "--resume", cwd=tmp_path)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-1000:]
    assert records(run) == records(reference)


@pytest.mark.long
def test_a_job_can_be_watched_by_prometheus(cluster, reference, tmp_path):
    long = ["outer.steps=3000", "eval.baselines=false"]
    sent = submit(cluster, "train", *SMALL, *long, "--run-dir", tmp_path / "run", "--no-wait", cwd=tmp_path)
    assert sent.returncode == 0, sent.stderr
    await_step(tmp_path / "run", 3)
    assert "ray_distmeta_outer_loss" in scraped(cluster, "ray_distmeta_outer_loss")
    assert submit(cluster, "stop", sent.stdout.strip(), cwd=tmp_path).returncode == 0


@pytest.mark.long
@pytest.mark.parametrize("seconds", [3, None])
def test_a_node_without_its_network_changes_nothing_but_the_clock(cluster, reference, tmp_path, seconds):
    """Cut off for seconds, or (None) until the run has ended without it."""
    if len(cluster.cpus) == 1:
        pytest.skip("no network namespaces here: the cluster has one node")
    run = tmp_path / "run"
    job = submit(cluster, "train", *SMALL, "--run-dir", run, "--no-wait", cwd=tmp_path).stdout.strip()
    await_step(run, 3)
    cluster.cable("a", plugged=False)
    try:
        if seconds is not None:
            time.sleep(seconds)
            cluster.cable("a", plugged=True)
        done = wait_for(cluster, job, tmp_path)
    finally:
        cluster.cable("a", plugged=True)
    assert done["status"] == "SUCCEEDED", submit(cluster, "logs", job, cwd=tmp_path).stdout[-3000:]
    assert records(run) == records(reference)
    if seconds is None:  # Ray has given it up
        cluster.kill("a")
        cluster.start("a")
        cluster.wait(len(cluster.cpus))


@pytest.mark.long
def test_a_lost_node_changes_nothing_but_the_clock(cluster, reference, tmp_path):
    if len(cluster.cpus) == 1:
        pytest.skip("no network namespaces here: the cluster has one node")
    run = tmp_path / "run"
    job = submit(cluster, "train", *SMALL, "--run-dir", run, "--no-wait", cwd=tmp_path).stdout.strip()
    await_step(run, 3)
    cluster.kill("a")
    done = wait_for(cluster, job, tmp_path)
    assert done["status"] == "SUCCEEDED", submit(cluster, "logs", job, cwd=tmp_path).stdout[-3000:]
    assert records(run) == records(reference)


REFUSED = [
    (["trian"], r"submit trian: no such verb; .*train"),
    (["train", "outer.stesp=3"], r"unknown key 'outer.stesp'.*Did you mean 'steps'\?"),
    (["train"], r"run.dir: a job's own directory goes when the job ends; give cluster.storage"),
    (["train", "missing.yaml", "--run-dir=/x"], r"missing.yaml: no such file"),
    (["train", "data.path=mine.csv", "--run-dir=/x"], r"data.path = mine.csv: not in the working directory"),
    (["train", "cluster.workers=50", "outer.meta_batch_size=64", "--run-dir=/x"],
     r"cluster.workers = 50 .*need 50.5 CPU, the cluster's \d nodes? have \d"),
    (["train", "--run-dir=/x", "--entrypoint-num-gpus=1"], r"entrypoint asks for 1 GPU, no node has more than 0"),
    (["evaluate", "runs/mine"], r"checkpoint = runs/mine: not in the working directory"),
    (["status", "nobody"], r"nobody.*does not exist"),
]  # fmt: skip


def test_what_cannot_run_is_not_sent(head, tmp_path):
    found = all_of(head, [words for words, _ in REFUSED], tmp_path)
    for (code, out, err), (words, message) in zip(found, REFUSED, strict=True):
        assert code == 2 and out == "" and re.search(message, err), (words, err)
        refused = err.removeprefix("waiting for the cluster's head, which is starting\n")  # which it says under load
        assert len(refused.splitlines()) == 1, err


def test_a_wrong_address_and_a_token_that_is_absent_or_wrong_are_one_line_each(head, tmp_path):
    words = ("submit", "train", "--run-dir=/x", "--address")
    nowhere = distmeta(*words, f"http://127.0.0.1:{free_port()}", env=head.environment, cwd=tmp_path)
    assert nowhere.returncode == 2 and "nothing answers as Ray's Jobs API" in nowhere.stderr
    env = {key: value for key, value in head.environment.items() if not key.startswith("RAY_AUTH")}
    absent = distmeta(*words, head.address, env=env | {"HOME": str(tmp_path)}, cwd=tmp_path)
    assert absent.returncode == 2 and "the cluster asks for a token; set RAY_AUTH_MODE=token" in absent.stderr
    (tmp_path / "token").write_text("0" * 64)
    env |= {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN_PATH": str(tmp_path / "token")}
    wrong = distmeta(*words, head.address, env=env, cwd=tmp_path)
    assert wrong.returncode == 2 and "the cluster refuses the token" in wrong.stderr
    for done in (nowhere, absent, wrong):
        assert len(done.stderr.splitlines()) == 1, done.stderr


def scraped(cluster, name, timeout_s=20):
    """What Prometheus would read from the nodes, once `name` is in it."""
    deadline, text = time.monotonic() + timeout_s, ""
    command = [sys.executable, "-c", PORTS, cluster.address]
    ports = subprocess.run(command, env=cluster.environment, capture_output=True, text=True)
    while name not in text and time.monotonic() < deadline:
        for place in ports.stdout.split():
            with contextlib.suppress(OSError), urllib.request.urlopen(f"http://{place}/metrics", timeout=5) as page:
                text += page.read().decode()
        time.sleep(0.3)
    return text


PORTS = """
import sys; from distmeta.drive.submit import connect, living
for node in living(connect(sys.argv[1])):
    print(f"{node['nodeManagerAddress']}:{node['metricsExportPort']}")
"""


def await_step(run, step, timeout_s=300):
    """Until a meta-step is in the journal, and a checkpoint on the disk."""
    deadline = time.monotonic() + timeout_s
    while time.monotonic() < deadline:
        journal = run / "metrics.jsonl"
        if journal.exists() and len(journal.read_text().splitlines()) >= step and list(run.glob("checkpoints/step-*")):
            return
        time.sleep(0.1)
    raise TimeoutError(f"no step {step} in {run} after {timeout_s} s")


def wait_for(cluster, job, cwd, timeout_s=240):
    deadline = time.monotonic() + timeout_s
    while time.monotonic() < deadline:
        told = json.loads(submit(cluster, "status", job, cwd=cwd).stdout)
        if told["status"] in ("SUCCEEDED", "FAILED", "STOPPED"):
            return told
        time.sleep(1)
    raise TimeoutError(f"job {job} is {told['status']} after {timeout_s} s")
