"""A node is lost in the middle of a search: what it ran goes on elsewhere, and the table is complete."""

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
import small

sys.path.insert(0, str(Path(__file__).parent))
import searches
import yaml
from nodes import Nodes, can_make_namespaces, short_folder

from distmeta.search import Search


@pytest.mark.long
@pytest.mark.timeout(900)
def test_a_lost_node_ends_in_a_complete_table(words_csv, tmp_path):
    if not can_make_namespaces():
        pytest.skip("no network namespaces here: the cluster has one node")
    tiny = small.config(
        words_csv, cluster={"workers": 1}, sampling={"actors": 0}, run={"name": "tiny", "checkpoint_every": 20},
        outer={"steps": 1000}, eval={"every": 100},
        tune={"space": searches.SPACE, "searcher": "grid", "scheduler": "none", "retries": 2},
    )  # fmt: skip
    (tmp_path / "tiny.yaml").write_text(yaml.safe_dump(tiny.model_dump(mode="json")))
    search = Search(tmp_path / "search", "accuracy")
    with short_folder() as folder, Nodes(Path(folder), {"head": 1, "a": 1}) as nodes:
        command = nodes.inside("head", [*small.CLI, "tune", "tiny.yaml", "--run-dir", str(search.path)])
        env = nodes.environment | {"RAY_ADDRESS": nodes.gcs, "PYTHONPATH": os.environ.get("PYTHONPATH", "")}
        with (tmp_path / "stderr").open("w") as err:
            driver = subprocess.Popen(command, cwd=tmp_path, env=env, stdout=err, stderr=err)
        try:
            began = time.monotonic()
            while len(at_work(search.path)) < 2:  # one on each node
                assert driver.poll() is None, (tmp_path / "stderr").read_text()[-3000:]
                assert time.monotonic() - began < 300, "no progress"
                time.sleep(0.1)
            nodes.kill("a")
            assert driver.wait(500) == 0, (tmp_path / "stderr").read_text()[-3000:]
        finally:
            driver.kill()
    assert [row["status"] for row in search.trials] == ["completed"] * 3 + ["failed"]
    assert "nothing_of_that_name" in search.trials[3]["reason"]
    assert [row["meta_steps"] for row in search.trials[:3]] == [1000] * 3
    logs = [Path(row["run"]) / "log.txt" for row in search.trials[:3]]
    assert any("continuing from step-" in log.read_text() for log in logs)


def at_work(path):
    """Trials that have a checkpoint and are not at their end."""
    runs = [run for run in (path / "trials").glob("*") if any((run / "checkpoints").glob("step-*"))]
    return [run for run in runs if not (run / "evaluation.json").exists()]
