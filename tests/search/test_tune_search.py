"""`distmeta tune` from its command to its table: two searches at once on one cluster, and one with processes killed."""

import json
import os
import re
import signal
import sys
from pathlib import Path

import pytest
import small
import yaml
from safetensors.numpy import load_file

from distmeta.config import load_config
from distmeta.drive.cluster import ray_cluster
from distmeta.search.runs import read_record

sys.path.insert(0, str(Path(__file__).parent))
sys.path.insert(0, str(Path(__file__).parents[1] / "faults"))
import searches
from test_faults_train import descendants, title

pytestmark = [pytest.mark.long, pytest.mark.timeout(1200)]

POPULATION = {
    "space": {"inner.lr": {"log_uniform": [0.02, 1.0]}, "inner.steps": {"integer": [1, 3]}},
    "searcher": "random", "scheduler": "pbt", "trials": 2, "max_concurrent": 2, "rivals": None,
}  # fmt: skip


@pytest.fixture(scope="module")
def both(words_csv, tmp_path_factory):
    """A grid with ASHA and a population, at once, on one cluster that neither of them started."""
    place = tmp_path_factory.mktemp("searches")
    with ray_cluster(small.config(cluster={"workers": 4}, sampling={"actors": 0})):
        import ray

        address = ray.get_runtime_context().gcs_address
        grid = searches.start(place / "grid", words_csv, address=address)
        long = ("outer.steps=100", "eval.every=20")  # so that both are there at once, whichever begins first
        population = searches.start(place / "population", words_csv, *long, address=address, **POPULATION)
        try:
            yield grid.finished(580), population.finished(580)
        finally:
            grid.kill()
            population.kill()


def test_the_table_is_complete_and_says_what_became_of_each(both):
    rows = both[0].trials
    assert [(row["kind"], row["params"]) for row in rows] == [
        ("per_layer", {}),
        ("search", {"inner.adapt": "all", "inner.lr": 0.5}),
        ("search", {"inner.adapt": "all", "inner.lr": 0.02}),
        ("search", {"inner.adapt": "nothing_of_that_name"}),
    ]
    assert rows[3]["status"] == "failed" and "nothing_of_that_name" in rows[3]["reason"] and rows[3]["value"] is None
    for row in rows[:3]:
        assert row["status"] in ("completed", "stopped") and row["seconds"] > 0 and row["meta_steps"] >= 4
        assert row["low"] <= row["value"] <= row["high"]
        assert row["curve"][row["adapt_steps"]] == max(row["curve"]) == row["value"] and len(row["curve"]) == 3
        assert {"config.yaml", "metrics.jsonl", "checkpoints"} <= set(os.listdir(row["run"]))
        steps = [r["step"] for r in small.records(Path(row["run"]))]
        assert steps == list(range(1, len(steps) + 1)) and len(steps) >= row["meta_steps"]
    assert max(rows[:3], key=lambda row: row["value"])["status"] == "completed"
    assert both[0].best["value"] == max(row["value"] for row in rows if row["status"] == "completed")


def test_what_a_search_leaves(both):
    search = both[0]
    assert {p.name for p in (search.path / "figures").iterdir()} == {"trials.png", "adaptation.png", "parameters.png"}
    assert all(p.read_bytes()[:4] == b"\x89PNG" for p in (search.path / "figures").iterdir())
    assert len({p.parent for p in search.path.glob("tune-*/trial-*/events.out.tfevents*")}) == 4
    stores = {json.loads((Path(r["run"]) / "environment.json").read_text())["store"] for r in search.trials}
    assert len(stores) == 1
    best = load_config(search.path / "best.yaml")
    content = yaml.safe_load((search.path / "best.yaml").read_text())
    assert "tune" not in content and best.eval.steps == search.best["adapt_steps"] and best.run.name == "tiny"
    assert best.inner.learn_lr == ("per_layer" if search.best["kind"] == "per_layer" else "none")
    assert best.eval.baselines and best.cluster.cpus_per_sampler == 0.25  # what only trials need is not in it


def test_population_based_training_copies_weights_and_changes_the_rate(both):
    """The worse of two, at one step or several, goes on from the better one's checkpoint, at another rate."""
    rows = both[1].trials
    copied = [(row, change) for row in rows for change in json.loads(row["history"])]
    assert copied
    row, change = max(copied, key=lambda pair: pair[1]["at"])  # the last: no later one has replaced its checkpoints
    run, step, rate = Path(row["run"]), change["step"], change["params"]["inner.lr"]
    donor = run.parent / change["from"]
    assert donor != run
    name = f"checkpoints/step-{step:06d}/meta.safetensors"
    mine, theirs = load_file(run / name), load_file(donor / name)
    assert mine.keys() == theirs.keys() and all((mine[key] == theirs[key]).all() for key in mine)
    log = (run / "log.txt").read_text()
    assert f"exploit: weights of {donor.name} at step {step}; " in log and f"continuing from step-{step:06d}" in log
    pattern = r"exploit: weights of trial-\d+ at step \d+; inner.lr ([0-9.e-]+) -> ([0-9.e-]+)"
    changed = [pair for row in rows for pair in re.findall(pattern, (Path(row["run"]) / "log.txt").read_text())]
    assert changed and all(float(before) != float(after) for before, after in changed)
    records = small.records(run)
    assert [r["step"] for r in records] == list(range(1, 101))
    assert records[step]["inner_lr"] == pytest.approx(rate) == row["params"]["inner.lr"]
    assert records[step - 1] == small.records(donor)[step - 1] and records[step - 1]["inner_lr"] != pytest.approx(rate)
    assert all(row["status"] == "completed" for row in rows)


def test_a_worker_and_the_driver_are_killed_and_the_resumed_search_ends_the_same(both, words_csv, tmp_path):
    running = searches.start(tmp_path / "killed", words_csv)
    family = []
    try:
        running.wait_for(lambda: len(checkpoints(running.trial(0))) > 0)
        workers = [pid for pid in descendants(running.process.pid) if "ray::RayTrainWorker" in title(pid)]
        for pid in workers:
            os.kill(pid, signal.SIGKILL)
        running.wait_for(lambda: len(checkpoints(running.trial(1))) > 0)
        assert read_record(running.trial(0))["status"] == "running"  # it waits, scored at the first rung
        family = [pid for pid in descendants(running.process.pid) if "ray" in title(pid)]
    finally:
        running.kill(family)
    resumed = searches.start(tmp_path / "killed", words_csv, "--resume")
    try:
        search = resumed.finished()
    finally:
        resumed.kill()
    assert searches.numbers(search) == searches.numbers(both[0])
    assert (search.path / "best.yaml").read_text() == (both[0].path / "best.yaml").read_text()
    assert len((resumed.trial(0) / "log.txt").read_text().split("evaluating on")) == 2  # it was not run again


def checkpoints(run):
    return list((run / "checkpoints").glob("step-*")) if (run / "checkpoints").is_dir() else []


def test_more_trials_and_one_that_crashes_is_tried_again_and_marked(words_csv, tmp_path):
    """Its checkpoints cannot be written, which no second attempt mends; the search goes on to its end."""
    random = {"searcher": "random", "scheduler": "none", "trials": 1, "rivals": [], "retries": 1}
    space = {"inner.lr": {"log_uniform": [0.02, 1.0]}}
    place = tmp_path / "more"
    once = ("cluster.max_failures=0",)
    searches.start(place, words_csv, *once, space=space, **random).finished()
    running = searches.start(place, words_csv, *once, "--trials", "2", "--resume", space=space, **random)
    running.trial(1).mkdir()
    (running.trial(1) / "checkpoints").touch()
    rows = running.finished().trials
    assert [row["status"] for row in rows] == ["completed", "failed"]
    assert f"{running.trial(1)}/checkpoints" in rows[1]["reason"]
    assert len(list(running.path.glob("tune-*/trial-0001/error.txt"))) == 1
    assert "Failure # 2" in next(running.path.glob("tune-*/trial-0001/error.txt")).read_text()
    told = (place / "stderr").read_text()
    assert told.count("trial 1 failed") == 1 and "trial 0" not in told.replace("trial 0 of", "")
