"""What `submit` makes of a cluster that it meets: one that is still starting, other interpreters, another token."""

import json
import re
import subprocess
import sys
from types import SimpleNamespace

import pytest
import requests

from distmeta.config import make_config
from distmeta.drive import cluster, submit
from distmeta.errors import InputError

PYTHON_VERSION = ".".join(map(str, sys.version_info[:3]))
PYTHON = "/opt/my env/bin/python3.11"
NODE = {
    "state": "ALIVE", "resourcesTotal": {"CPU": 4.0},
    "cmdline": ["raylet", f"--python_worker_command='{PYTHON}' setup_worker.py --node-ip-address=NODE", "--head"],
}  # fmt: skip
STARTING = "Request failed with status code 500: No available agent to submit job, please try again later.."


class Head:
    """A head whose node, and then its agent, come a while after it answers."""

    def __init__(self, nodes, agents):
        self.nodes, self.agents, self.jobs = nodes, agents, []

    def submit_job(self, **job):
        self.agents -= 1
        if self.agents >= 0:
            raise RuntimeError(STARTING)
        self.jobs.append(job)
        return "job-1"

    def living(self, client):
        self.nodes -= 1
        return [] if self.nodes >= 0 else [NODE]


@pytest.fixture
def meet(monkeypatch, tmp_path):
    def meet(head, **more):
        monkeypatch.setattr(submit, "connect", lambda address: head)
        monkeypatch.setattr(submit, "living", head.living)
        monkeypatch.setattr(submit, "POLL_S", 0.001)
        said = []
        request = submit.Request("evaluate", ("/runs/a b",), "http://head:8265", tmp_path, **more)
        return submit.submit(request, None, said.append), said

    return meet


def test_a_head_that_is_still_starting_is_waited_for(meet):
    head = Head(nodes=3, agents=4)
    job, said = meet(head)
    assert job == "job-1" and len(head.jobs) == 1
    assert [line for line in said if not line.startswith("note")] == 2 * [
        "waiting for the cluster's head, which is starting"
    ]


@pytest.mark.parametrize(("nodes", "agents"), [(10**9, 0), (0, 10**9)])
def test_a_head_that_never_comes_is_one_line(nodes, agents, meet, monkeypatch):
    monkeypatch.setattr(submit, "START_S", 0.05)
    with pytest.raises(InputError, match="^--address http://head:8265: the head has no agent that runs jobs, .*agent-"):
        meet(Head(nodes, agents))


def test_another_failure_is_not_waited_for(meet, monkeypatch):
    head = Head(0, 0)
    monkeypatch.setattr(head, "submit_job", lambda **job: json.loads("no answer"))
    with pytest.raises(InputError, match="^--address http://head:8265: Expecting value"):
        meet(head)


def test_a_job_runs_with_the_interpreter_of_its_cluster(meet):
    head = Head(0, 0)
    meet(head)
    assert head.jobs[0]["entrypoint"] == f"'{PYTHON}' -m distmeta evaluate '/runs/a b'"
    meet(head, runtime_env={"py_executable": "uv run"})
    assert head.jobs[1]["entrypoint"] == "python -m distmeta evaluate '/runs/a b'"


def test_a_head_that_ends_while_it_is_waited_for_is_one_line(meet):
    class Ending(Head):
        def living(self, client):
            if self.nodes == 1:
                raise requests.exceptions.ConnectionError("connection refused")
            return super().living(client)

    with pytest.raises(InputError, match="--address http://head:8265: nothing answers as Ray's Jobs API"):
        meet(Ending(nodes=3, agents=0))


def test_nodes_are_those_that_live_once_one_has_told_its_command():
    """As the dashboard answers while a head comes up, a worker joins and another is lost."""
    lost, head = {"raylet": {"state": "DEAD"}}, {"raylet": {"state": "ALIVE", "resourcesTotal": {"CPU": 4.0}}}
    worker, told = {"raylet": {"state": "ALIVE"}}, head | {"cmdline": NODE["cmdline"]}

    def living(*nodes):
        answer = SimpleNamespace(json=lambda: {"data": {"summary": list(nodes)}})
        return submit.living(SimpleNamespace(_do_request=lambda *words, **more: answer))

    assert living() == living(lost) == living(head) == living(head, lost | {"cmdline": ["raylet"]}) == []
    assert [len(living(*nodes)) for nodes in ([told], [told, worker, lost])] == [1, 2]
    assert submit.interpreter(living(told, worker)) == PYTHON


def test_where_interpreters_differ_or_are_unknown_the_path_decides():
    other = {"cmdline": ["--python_worker_command=/usr/bin/python x"]}
    assert submit.interpreter([NODE, other]) == submit.interpreter([{}, {"cmdline": []}]) == "python"


@pytest.mark.parametrize("address", ["auto", "ray://HEAD:10001"])
def test_a_cluster_of_another_version_is_one_line_that_names_both(address, monkeypatch):
    import ray
    from ray._private.utils import check_version_info

    def init(**given):
        check_version_info({"ray_version": "2.59.1", "python_version": "3.10.4"}, "10.0.0.1")

    monkeypatch.setattr(ray, "init", init)
    monkeypatch.setattr(ray, "is_initialized", lambda: False)
    config = make_config({"cluster": {"address": address}})
    monkeypatch.setattr(cluster, "check_reachable", lambda address: None)
    with pytest.raises(InputError) as refused, cluster.ray_cluster(config):
        pass
    line = str(refused.value)
    assert line.startswith(f"cluster.address = {address}: cannot connect to Ray: Version mismatch") and "\n" not in line
    assert all(f": {version} " in line + " " for version in ("2.59.1", "3.10.4", ray.__version__, PYTHON_VERSION))


TOKENS = """
import os, ray, sys
from distmeta.config import make_config
from distmeta.drive import cluster, submit

def init(**more):
    from ray._private.authentication import authentication_token_setup as setup
    getattr(setup, "enable_token_auth_by_default", lambda: None)()  # not before Ray 2.59
    setup.ensure_token_if_auth_enabled()
    assert os.environ["RAY_AUTH_MODE"] == "token"

def header():
    return ray._raylet.AuthenticationTokenLoader.instance().get_token_for_http_header()

ray.init, ray.shutdown, cluster.resources = init, lambda: None, lambda local: None
with cluster.ray_cluster(make_config({})):
    assert header()
assert "RAY_AUTH_MODE" not in os.environ and not header()
os.environ |= {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": "of-the-cluster"}
try:
    submit.connect("http://127.0.0.1:1")
except ValueError as error:
    print(error)
print(header())
"""


def test_the_token_of_a_local_run_is_not_that_of_a_later_submit(tmp_path):
    """In a process of its own, whose home has no token."""
    env = {"PATH": "/usr/bin:/bin", "HOME": str(tmp_path), "PYTHONPATH": ":".join(sys.path)}
    done = subprocess.run([sys.executable, "-c", TOKENS], env=env, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr[-2000:]
    refused, header = done.stdout.splitlines()[-2:]
    assert "nothing answers as Ray's Jobs API" in refused and re.search("Bearer of-the-cluster", header)


class Followed:
    """A head whose job has written lines; it answers as often as it is told to, and is then gone for some time."""

    def __init__(self, monkeypatch, *answers):
        self.answers = list(answers)
        monkeypatch.setattr(submit, "connect", lambda address: self)
        monkeypatch.setattr(submit, "status", self.status)
        monkeypatch.setattr(submit, "POLL_S", 0.001)

    async def tail_job_logs(self, job):
        yield "a line\n"

    def status(self, address, job):
        answer = self.answers.pop(0) if len(self.answers) > 1 else self.answers[0]
        if answer is None:
            raise submit.NoAnswer("nothing answers")
        return {"status": answer}


def test_a_job_is_followed_through_a_restart_of_the_head(monkeypatch):
    out = []
    Followed(monkeypatch, "RUNNING", None, None, "RUNNING", "SUCCEEDED")
    assert submit.follow("http://head:8265", "job-1", out.append) == "SUCCEEDED"
    assert out == ["a line\n"]


def test_a_head_that_does_not_come_back_is_one_line_that_says_how_to_go_on(monkeypatch):
    monkeypatch.setattr(submit, "START_S", 0.05)
    Followed(monkeypatch, "RUNNING", None)
    with pytest.raises(InputError, match=r"^--address http://head:8265: the head has not answered .* with --resume$"):
        submit.follow("http://head:8265", "job-1", lambda text: None)
