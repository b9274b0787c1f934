"""A head that is started by the path of its `ray`, in no activated environment, while a run goes on beside it."""

import os
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
import small
from nodes import Nodes, can_make_namespaces, short_folder

from distmeta.drive import submit

WAIT_S = 400
SYSTEM = "/usr/sbin:/usr/bin:/sbin:/bin"  # where no Python has distmeta


class Bare(Nodes):
    """Whose nodes find no environment in their PATH."""

    @property
    def environment(self):
        return super().environment | {"PATH": SYSTEM}


@pytest.fixture(scope="module")
def beside(tmp_path_factory, words_csv):
    """The local run's process, the head, and the first job: sent as soon as the head's dashboard answered."""
    if not can_make_namespaces():
        pytest.skip("no network namespaces here: whatever else runs may have the head's ports")
    place, sent = tmp_path_factory.mktemp("local"), tmp_path_factory.mktemp("sent")
    with (
        pytest.MonkeyPatch.context() as patch,
        short_folder() as folder,
        Bare(Path(folder), {"head": 1}, token=os.environ["RAY_AUTH_TOKEN"]) as nodes,
    ):
        patch.setattr(submit, "START_S", WAIT_S)
        nodes.kill("head")
        command = small.start_command(place, words_csv, "outer.steps=100000", "--quiet")
        with (place / "stderr").open("w") as err:
            local = subprocess.Popen(nodes.inside("head", command), cwd=place, stdout=err, stderr=err)
        steps = place / "runs" / "tiny" / "metrics.jsonl"
        wait_until(lambda: steps.exists() and steps.read_text(), lambda: (place / "stderr").read_text())
        nodes.start("head")
        wait_until(lambda: answers(nodes.address), lambda: (nodes.folder / "head.log").read_text())
        said = []
        job = submit.submit(submit.Request("recipes", (), nodes.address, sent), None, said.append)
        yield SimpleNamespace(nodes=nodes, local=local, sent=sent, job=job, said=said)
        nodes.kill("head")  # and the local run, which is in its namespace
        local.wait(60)


def answers(address):
    try:
        return submit.connect(address)
    except submit.NoAnswer:
        return None


def wait_until(is_so, told):
    deadline = time.monotonic() + WAIT_S
    while not is_so():
        assert time.monotonic() < deadline, told()[-3000:]
        time.sleep(0.05)


@pytest.mark.long
@pytest.mark.timeout(1500)
def test_a_head_beside_a_local_run_does_its_jobs_with_its_own_interpreter(beside):
    out = []
    assert submit.follow(beside.nodes.address, beside.job, out.append) == "SUCCEEDED", "".join(out)
    assert "default" in "".join(out)  # of the recipes
    assert beside.local.poll() is None  # it still goes on


@pytest.mark.long
@pytest.mark.timeout(1500)
def test_submit_waited_for_the_head_to_start(beside):
    assert beside.said[0] == "waiting for the cluster's head, which is starting"


TOKENS = """
import os, sys
from pathlib import Path
from distmeta.config import make_config
from distmeta.drive import cluster, submit
address, token, folder = sys.argv[1:]
with cluster.ray_cluster(make_config({})):
    pass
os.environ |= {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN_PATH": token}
job = submit.submit(submit.Request("recipes", (), address, Path(folder)), None, print)
print(submit.follow(address, job, print))
"""


@pytest.mark.long
@pytest.mark.timeout(1500)
def test_a_job_is_sent_with_its_cluster_s_token_after_a_local_run_of_the_same_process(beside, tmp_path):
    env = {"PATH": SYSTEM, "HOME": str(tmp_path), "PYTHONPATH": ":".join(sys.path)}
    command = [sys.executable, "-c", TOKENS, beside.nodes.address, beside.nodes.token, beside.sent]
    done = subprocess.run(command, env=env, capture_output=True, text=True, timeout=WAIT_S)
    assert done.returncode == 0, done.stderr[-3000:]
    assert (tmp_path / ".ray" / "auth_token").read_text() != beside.nodes.token.read_text()  # the local run's own
    assert done.stdout.splitlines()[-1] == "SUCCEEDED"
