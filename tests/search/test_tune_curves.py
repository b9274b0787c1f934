"""The scores of every smaller number of adaptation steps come with the largest one, and are the same numbers."""

import json

import pytest
import small
import torch

from distmeta.algorithms.rates import inner_loop
from distmeta.evaluation.evaluate import load_model
from distmeta.evaluation.scoring import Scoring, curves, score_episodes, split_meta
from distmeta.learner.worker import learn
from distmeta.runs import checkpoint as checkpoints
from distmeta.tasks.build import build_store
from distmeta.tasks.episodes.episode import sample_episode
from distmeta.tasks.store import open_store


@pytest.mark.parametrize("learn_lr", ["none", "per_layer"])
def test_every_count_agrees_with_an_evaluation_at_that_count(learn_lr, words_csv, one_rank, tmp_path):
    config = small.config(
        words_csv, inner={"learn_lr": learn_lr}, outer={"steps": 4},
        eval={"every": 2, "steps": 5, "validation_episodes": 6, "baselines": False}, run={"checkpoint_every": 2},
    )  # fmt: skip
    path = build_store(config.data, config.task, config.model)
    learn(config, tmp_path, path, [], 0, 1, torch.device("cpu"))
    record = json.loads((tmp_path / "metrics.jsonl").read_text().splitlines()[-1])
    store, saved = open_store(path), checkpoints.load(tmp_path, which="last")
    model = load_model(saved)
    fast, shared, rates = split_meta(model, saved.meta)
    episodes = [sample_episode(store, config.task, config.run.seed, "validation", i) for i in range(6)]
    for count in range(6):
        loop = inner_loop(config.inner, rates, count)
        scoring = Scoring(model, fast, shared, loop, config, store.pad_id, torch.device("cpu"))
        scored = score_episodes(scoring, episodes, curve=False)
        for metric, found in curves(scored).items():
            for name in ("mean", "low", "high"):
                free = record["validation_curves"][metric][name]
                assert len(free) == 6
                assert free[count] == pytest.approx(found[name][0], abs=1e-6), (metric, name, count)
    assert record["validation"]["loss"] == record["validation_curves"]["loss"]["mean"][-1]
    losses = record["validation_curves"]["loss"]["mean"]
    assert max(losses) - min(losses) > 1e-3  # there was something to differ in
