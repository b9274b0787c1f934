"""A range of ranks on a cluster of several nodes (raylets of this machine): a node is lost, another joins."""

import os
import re
import signal
import threading
import time

import pytest
import small
import yaml

import distmeta
from distmeta.config import ClusterConfig, load_config, make_config
from distmeta.errors import InputError
from distmeta.learner import elastic


@pytest.mark.parametrize(
    ("given", "kept", "ends"), [(3, 3, (3, 3)), ("1-3", (1, 3), (1, 3)), ([2, 4], (2, 4), (2, 4)), ("2-2", 2, (2, 2))]
)
def test_a_number_or_a_range(given, kept, ends, tmp_path):
    made = make_config({"cluster": {"workers": given}})
    assert made.cluster.workers == kept and (made.cluster.fewest, made.cluster.most) == ends
    (tmp_path / "again.yaml").write_text(yaml.safe_dump(made.model_dump(mode="json")))
    assert load_config(tmp_path / "again.yaml").cluster == made.cluster
    assert load_config("default", ["cluster.workers=1-3"]).cluster.shown == "1-3"


@pytest.mark.parametrize("given", [0, "3-1", "0-2", [1, 2, 3], "many", 1.5, True, None])
def test_what_is_no_range_is_one_line(given):
    with pytest.raises(InputError, match=r"cluster.workers = .*a number of ranks from 1, or a range"):
        make_config({"cluster": {"workers": given}})


def test_a_range_asks_for_episodes_for_its_most_and_nodes_for_its_fewest():
    with pytest.raises(InputError, match=r"meta_batch_size = 2 is less than cluster.workers = 1-3"):
        make_config({"cluster": {"workers": "1-3"}, "outer": {"meta_batch_size": 2}})


class Rooms:
    """Stands for a cluster: how many ranks there is room for, each time it is asked."""

    def __init__(self, monkeypatch, *sizes):
        self.sizes, self.asked = list(sizes), []
        monkeypatch.setattr(elastic, "room_for", self.room)
        for name in ("SETTLE_S", "WATCH_S"):
            monkeypatch.setattr(elastic, name, 0.05)
        monkeypatch.setattr(time, "sleep", lambda s: None)

    def room(self, most, bundle):
        return min(most, self.sizes.pop(0) if len(self.sizes) > 1 else self.sizes[0])


def run_groups(tmp_path, outcomes, **cluster):
    """The sizes of the groups whose outcomes are given: an error, "paused" or None; and how it ended."""
    sizes = []

    def attempt(size):
        sizes.append(size)
        outcome = outcomes.pop(0)
        if outcome == "paused":
            (tmp_path / elastic.PAUSED).touch()
            return None
        return outcome

    settings = ClusterConfig(workers=(1, 3), **cluster)
    return sizes, elastic.run_groups(attempt, settings, {"CPU": 1.0}, tmp_path, 0.3, lambda line: None)


def test_groups_follow_the_room(tmp_path, monkeypatch):
    lost = RuntimeError("a node is gone")
    Rooms(monkeypatch, 3, 1)
    assert run_groups(tmp_path, [lost, None]) == ([3, 1], None)
    Rooms(monkeypatch, 2)
    assert run_groups(tmp_path, [lost] * 3, max_failures=2) == ([2, 2, 2], lost)
    Rooms(monkeypatch, 1)
    assert run_groups(tmp_path, ["paused", "paused", None]) == ([1, 1, 1], None)  # the room was gone again
    Rooms(monkeypatch, 0)
    with pytest.raises(TimeoutError, match=r"cluster.workers = 1-3: room for 0 ranks only"):
        run_groups(tmp_path, [])


def until(condition, what, seconds=120):
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, what
        time.sleep(0.05)


def samplers():
    """Processes of sampler actors that belong to this one."""
    found = []
    for entry in filter(str.isdecimal, os.listdir("/proc")):
        try:
            with open(f"/proc/{entry}/cmdline") as title, open(f"/proc/{entry}/environ") as environment:
                if "ray::Sampler" in title.read() and f"DISTMETA_TEST={os.getpid()}\0" in environment.read():
                    found.append(int(entry))
        except OSError:
            continue
    return found


def hold(pids, number):
    for pid in pids:
        try:
            os.kill(pid, number)
        except ProcessLookupError:
            continue


@pytest.mark.slow
def test_a_lost_node_shrinks_the_group_and_a_new_one_grows_it(undisturbed, tmp_path, monkeypatch):
    """Two ranks on two nodes; one node is lost, one rank goes on; a node joins, two ranks end the run."""
    import ray
    from ray.cluster_utils import Cluster

    monkeypatch.setenv("DISTMETA_TEST", str(os.getpid()))
    monkeypatch.setattr(elastic, "SETTLE_S", 1.0)
    monkeypatch.setattr(elastic, "WATCH_S", 0.5)
    content = yaml.safe_load((undisturbed.cwd / "tiny.yaml").read_text())
    run = tmp_path / "run"
    content = small.merge(content, {
        "cluster": {"workers": "1-2", "cpus_per_worker": 1.5}, "sampling": {"actors": 1, "window": 4},
        "run": {"dir": str(run)},
    })  # fmt: skip
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, "include_dashboard": False})
    outcome = []

    def train():
        try:
            outcome.append(distmeta.train(content))
        except BaseException as error:
            outcome.append(error)

    def reached(count):
        return lambda: outcome or ((run / "metrics.jsonl").exists() and len(small.records(run)) >= count)

    try:
        nodes = [cluster.add_node(num_cpus=2) for _ in range(2)]
        ray.init(address=cluster.address, log_to_driver=False, logging_level="ERROR")
        thread = threading.Thread(target=train)
        thread.start()
        until(reached(6), "two ranks do not learn")
        hold(samplers(), signal.SIGSTOP)
        cluster.remove_node(nodes[1], allow_graceful=False)
        hold(samplers(), signal.SIGCONT)
        until(lambda: outcome or "with 1 rank" in (run / "log.txt").read_text(), "the group does not shrink")
        until(reached(7), "one rank does not learn")
        hold(samplers(), signal.SIGSTOP)
        cluster.add_node(num_cpus=2)
        until(lambda: outcome or (run / elastic.GROW).exists(), "the new node is not noticed")
        hold(samplers(), signal.SIGCONT)
        thread.join(200)
    finally:
        hold(samplers(), signal.SIGCONT)
        ray.shutdown()
        cluster.shutdown()
    assert len(outcome) == 1 and isinstance(outcome[0], distmeta.Run), outcome
    log = (run / "log.txt").read_text()
    assert re.findall(r"learning with (\d)", log) == ["2", "1", "2"]
    records = small.records(run)
    assert [r["step"] for r in records] == list(range(1, 21))
    expected = [r["outer_loss"] for r in undisturbed.records]
    assert [r["outer_loss"] for r in records] == pytest.approx(expected, abs=1e-4)
