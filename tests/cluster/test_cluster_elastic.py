"""A range of ranks on a cluster of several nodes (raylets of this machine): a node is lost, another joins."""

import os
import re
import subprocess
import sys
import time
from pathlib import Path

import elastic_case
import pytest
import small
import yaml

import distmeta
from distmeta.config import ClusterConfig, load_config, make_config
from distmeta.drive import elastic
from distmeta.errors import InputError


@pytest.mark.parametrize(
    ("given", "kept", "ends"), [(3, 3, (3, 3)), ("1-3", (1, 3), (1, 3)), ([2, 4], (2, 4), (2, 4)), ("2-2", 2, (2, 2))]
)
def test_a_number_or_a_range(given, kept, ends, tmp_path):
    made = make_config({"cluster": {"workers": given}})
    assert made.cluster.workers == kept and (made.cluster.fewest, made.cluster.most) == ends
    (tmp_path / "again.yaml").write_text(yaml.safe_dump(made.model_dump(mode="json")))
    assert load_config(tmp_path / "again.yaml").cluster == made.cluster
    assert load_config("default", ["cluster.workers=1-3"]).cluster.shown == "1-3"


def test_why_the_range_is_not_rays_own():
    """Ray reserves whole nodes for a range of ranks, whatever samplers and other jobs hold of them, and would start a
    group that has no room. When this fails, `ScalingConfig(num_workers=(least, most))` may take the place of
    distmeta.drive.elastic."""
    coordinator = pytest.importorskip("ray.data._internal.cluster_autoscaler.default_autoscaling_coordinator")
    node = {"NodeID": "a", "Alive": True, "Resources": {"CPU": 3.0}, "Labels": {}}  # of which samplers hold 2
    ray_s_own = coordinator._AutoscalingCoordinatorActor(
        send_resources_request=lambda *args: None, get_cluster_nodes=lambda: [node]
    )
    ray_s_own.request_resources("ranks", [{"CPU": 1.0}] * 3, expire_after_s=60)
    assert ray_s_own.get_reserved_resources("ranks") == {"a": {"CPU": 3.0}}


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


@pytest.mark.long
def test_a_lost_node_shrinks_the_group_and_a_new_one_grows_it(undisturbed, tmp_path):
    """Two ranks on two nodes; one node is lost, one rank goes on; a node joins, two ranks end the run.

    In a process of its own: a client of the cluster's store stays behind, and ends its process a minute after it.
    """
    paths = os.pathsep.join(str(Path(part.__file__).parents[up]) for part, up in ((small, 0), (distmeta, 1)))
    run = tmp_path / "run"
    done = subprocess.run(
        [sys.executable, elastic_case.__file__, str(undisturbed.cwd / "tiny.yaml"), str(run)],
        capture_output=True, text=True, timeout=280, env={**os.environ, "PYTHONPATH": paths},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    assert re.findall(r"learning with (\d)", (run / "log.txt").read_text()) == ["2", "1", "2"]
    records = small.records(run)
    assert [r["step"] for r in records] == list(range(1, 21))
    expected = [r["outer_loss"] for r in undisturbed.records]
    assert [r["outer_loss"] for r in records] == pytest.approx(expected, abs=1e-4)
    assert not [p.name for p in run.iterdir() if p.name in (elastic.GROW, elastic.PAUSED)]
