"""Tasks that arrive one after another: each is scored before it is learnt from."""

import json

import numpy as np
import pytest
import small
import torch

from distmeta.config import TaskConfig
from distmeta.learner.arrivals import regret
from distmeta.learner.worker import learn
from distmeta.tasks.arrivals import arriving
from distmeta.tasks.build import build_store
from distmeta.tasks.episodes.episode import sample_episode
from distmeta.tasks.store import open_store


@pytest.fixture(scope="module")
def setting(words_csv):
    config = small.config(
        words_csv, algorithm="online", task={"arrive_every": 6}, outer={"steps": 8}, run={"checkpoint_every": 2}
    )
    return config, build_store(config.data, config.task, config.model)


def test_every_task_arrives_once_with_the_first_episode_that_may_be_of_it():
    task = TaskConfig(arrive_every=6)
    for size in (1, 4, 6, 20):
        per_step = [list(arriving(task, 5, step * size, (step + 1) * size)) for step in range(60 // size)]
        assert [k for found in per_step for k in found] == list(range(5))
        for step, found in enumerate(per_step):
            assert all(step * size <= 6 * k < (step + 1) * size for k in found)
    assert not arriving(TaskConfig(), 5, 0, 100)


def test_no_episode_is_of_a_task_that_has_not_arrived(setting):
    config, path = setting
    store = open_store(path)
    names = [store.tasks[i] for i in store.groups["train"].ids]
    seen = [sample_episode(store, config.task, 0, "train", i).task for i in range(200)]
    assert all(names.index(task) <= i // 6 for i, task in enumerate(seen))
    assert set(seen[36:]) == set(names)  # all of those that are there, not the newest alone
    assert {sample_episode(store, config.task, 0, "test", i).task for i in range(20)}.isdisjoint(names)
    assert {sample_episode(store, config.task, 0, "train", i, only=2).task for i in range(9)} == {names[2]}


@pytest.mark.usefixtures("one_rank")
def test_a_task_is_scored_before_it_is_learnt_from(setting, tmp_path):
    config, path = setting

    class Stopped(Exception):
        pass

    def report(shown):
        if shown["step"] == 4:
            raise Stopped

    whole, cut = tmp_path / "whole", tmp_path / "cut"
    for run in (whole, cut):
        run.mkdir()
    learn(config, whole, path, [], 0, 1, torch.device("cpu"))
    with pytest.raises(Stopped):
        learn(config, cut, path, [], 0, 1, torch.device("cpu"), report=report)
    learn(config, cut, path, [], 0, 1, torch.device("cpu"))
    records = small.records(whole)
    assert small.records(cut) == records
    there = len(open_store(path).groups["train"].ids)
    expected = [len(arriving(config.task, there, 4 * t, 4 * t + 4)) for t in range(8)]
    assert [len(r.get("arrivals", [])) for r in records] == expected and sum(expected) >= 5
    found = regret(whole)
    assert found["tasks"] == [task["task"] for r in records for task in r.get("arrivals", [])]
    gap = np.cumsum([t["online"]["loss"] - t["from_scratch"]["loss"] for r in records for t in r.get("arrivals", [])])
    assert found["cumulative_regret"] == pytest.approx(gap.tolist())
    told = json.loads((whole / "evaluation_details.json").read_text())["arrivals"]
    assert told == found and "each scored on its arrival" in (whole / "log.txt").read_text()
    # The first is scored at the initial weights: with the same loop it is what training from scratch gives.
    first = records[0]["arrivals"][0]
    assert first["online"]["accuracy"] <= 1 and set(first["online"]) == set(first["from_scratch"])
