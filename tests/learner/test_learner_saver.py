"""Checkpoints in the background and in parts; runs that go on with another number of ranks."""

import json
import threading
import time
from pathlib import Path

import pytest
import ranks
import small
import torch
import worlds_cases

from distmeta.learner import saver as savers
from distmeta.learner.saver import Saver, WriteError
from distmeta.learner.worker import learn
from distmeta.runs import checkpoint
from distmeta.tasks.build import build_store


@pytest.fixture(scope="module")
def runs(tmp_path_factory, words_csv):
    """left alone: 2 ranks to step 4; moved: 2 -> 1 -> 3 -> 2 ranks; stopped: 2 ranks, stopped at 1, to step 4."""
    place = tmp_path_factory.mktemp("worlds")
    steps = [
        (2, ("alone:4", "moved:1", "stopped:1")),
        (1, ("moved:2",)),
        (3, ("moved:3",)),
        (2, ("moved:4", "stopped:4")),
    ]
    groups = [(world, (place / f"g{i}", place, words_csv, *words)) for i, (world, words) in enumerate(steps)]
    written = ranks.run(worlds_cases.__file__, groups, place)
    return place, json.loads(written[0, 0]), json.loads(written[2, 0])


@pytest.mark.long
@pytest.mark.parametrize("variant", worlds_cases.VARIANTS)
def test_two_one_three_two_ranks_continue_the_curve(runs, variant):
    alone, moved = (small.records(runs[0] / variant / name) for name in ("alone", "moved"))
    assert [r["step"] for r in moved] == list(range(1, 5))
    curve = [r["outer_loss"] for r in alone]
    assert [r["outer_loss"] for r in moved] == pytest.approx(curve, abs=1e-4)
    assert max(curve) - min(curve) > 2e-3  # there was something to differ in
    one, other = (checkpoint.load(runs[0] / variant / name) for name in ("alone", "moved"))
    for name, value in one.meta.items():
        assert float((value - other.meta[name]).abs().max()) < 1e-3, name  # Adam turns rounding of a zero into steps
    log = (runs[0] / variant / "moved" / "log.txt").read_text()
    assert [line for line in log.splitlines() if line.startswith("continuing")] == [
        f"continuing from step-00000{n}" for n in (1, 2, 3)
    ]


@pytest.mark.long
@pytest.mark.parametrize("variant", worlds_cases.VARIANTS)
def test_the_same_world_size_continues_bit_for_bit(runs, variant):
    alone, stopped = (runs[0] / variant / name for name in ("alone", "stopped"))
    assert small.records(stopped) == small.records(alone)
    tensors = list((alone / "checkpoints" / "step-000004").glob("*.safetensors"))
    assert len(tensors) >= 2
    for path in tensors:
        assert path.read_bytes() == (stopped / "checkpoints" / "step-000004" / path.name).read_bytes()


@pytest.mark.long
def test_every_rank_wrote_its_part(runs):
    _, first, last = runs
    assert [n for n in first if n.startswith("meta")] == [f"meta-0000{i}-of-00002.safetensors" for i in (1, 2)]
    assert [n for n in last if n.startswith("optimizer")] == [
        f"optimizer-0000{i}-of-00003.safetensors" for i in (1, 2, 3)
    ]
    path = runs[0] / "all" / "moved" / "checkpoints" / "step-000004"
    sizes = [p.stat().st_size for p in path.glob("meta-*")]
    assert max(sizes) < 0.8 * sum(sizes)
    (path / "meta-00002-of-00002.safetensors").unlink()
    assert checkpoint.damage(path) == "meta-00002-of-00002.safetensors is missing"


def begin(run, step, write=lambda draft: None, **options):
    saver = Saver(run, 2, 0, 1, **options)
    saver.save(step, write, lambda draft: (draft / "state.json").write_text("{}"))
    return saver


def test_the_learner_goes_on_and_the_next_checkpoint_waits(tmp_path):
    gate, order = threading.Event(), []

    def slow(draft):
        assert gate.wait(10)
        order.append("first")

    saver = begin(tmp_path, 1, slow)
    assert not (tmp_path / "checkpoints" / "step-000001").exists()
    threading.Timer(0.3, gate.set).start()
    saver.save(2, lambda draft: order.append("second"), lambda draft: None)
    assert (tmp_path / "checkpoints" / "step-000001" / "manifest.json").exists()
    saver.wait()
    assert order == ["first", "second"] and (tmp_path / "checkpoints" / "step-000002").exists()


@pytest.mark.usefixtures("one_rank")
def test_a_slow_disk_is_waited_for_and_said(tmp_path, words_csv, monkeypatch):
    """However long: not by run.timeout_s, which is for another rank's meta-step."""
    config = small.config(words_csv, outer={"steps": 3}, run={"checkpoint_every": 1, "timeout_s": 0.2})
    store, right = build_store(config.data, config.task, config.model), checkpoint.sync
    for name in ("quick", "slow"):
        (tmp_path / name).mkdir()
    learn(config, tmp_path / "quick", store, [], 0, 1, torch.device("cpu"))

    def slow(path):
        time.sleep(0.3)
        right(path)

    monkeypatch.setattr(checkpoint, "sync", slow)
    monkeypatch.setattr(savers, "SAY_S", 0.05)
    learn(config, tmp_path / "slow", store, [], 0, 1, torch.device("cpu"))
    assert small.records(tmp_path / "slow") == small.records(tmp_path / "quick")
    assert "waiting for the disk: step-000001 is still being written" in (tmp_path / "slow" / "log.txt").read_text()
    assert "waiting for the disk" not in (tmp_path / "quick" / "log.txt").read_text()


def test_ranks_wait_for_another_s_disk_by_a_time_of_its_own(monkeypatch):
    asked = []
    monkeypatch.setattr(savers.dist, "new_group", lambda **given: asked.append(given["timeout"].total_seconds()))
    Saver(Path("."), 1, 0, 2)
    assert asked == [savers.WRITE_S] and savers.WRITE_S >= 3600


@pytest.mark.parametrize("noticed", ["check", "wait", "save"])
def test_a_write_that_fails_is_an_error(noticed, tmp_path):
    def full(draft):
        raise OSError(28, "No space left on device")

    saver = begin(tmp_path, 1, full)
    saver._thread.join()
    call = {"check": saver.check, "wait": saver.wait, "save": lambda: saver.save(2, full, full)}[noticed]
    with pytest.raises(WriteError, match="step-000001 could not be written by rank 0: OSError.*No space left"):
        call()
    assert checkpoint.checkpoints_of(tmp_path) == []


def test_parts_are_consecutive_and_of_about_the_same_size(monkeypatch):
    saver = Saver(Path("."), 1, 0, 1)
    saver.world = 3
    sizes = {f"p{i}": 10 + i for i in range(12)}
    assert saver.shares(sizes) == [list(sizes)]  # small
    monkeypatch.setattr(savers, "PART_BYTES", 100)
    parts = saver.shares(sizes)
    assert [name for part in parts for name in part] == list(sizes)
    bytes_of = [sum(sizes[name] for name in part) for part in parts]
    assert max(bytes_of) - min(bytes_of) <= max(sizes.values())
    assert saver.shares({"one": 1000}) == [[], ["one"], []]


@pytest.mark.usefixtures("one_rank")
def test_a_full_disk_ends_the_run_and_keeps_what_was_whole(tmp_path, words_csv, monkeypatch):
    config = small.config(words_csv, outer={"steps": 6}, run={"checkpoint_every": 1})
    right, written = checkpoint.write_tensors, []

    def until_full(*words):
        if len(written) == 3:
            raise OSError(28, "No space left on device")
        written.append(right(*words))

    monkeypatch.setattr(checkpoint, "write_tensors", until_full)
    store = build_store(config.data, config.task, config.model)
    with pytest.raises(WriteError, match="step-000004 could not be written"):
        learn(config, tmp_path, store, [], 0, 1, torch.device("cpu"))
    assert checkpoint.newest_whole(tmp_path).name == "step-000003"
