"""What tests of evaluation have in common: a tiny model with its tasks, and the nearness of scores."""

import pytest
import small
import torch

from distmeta.algorithms.rates import initial_log_rates
from distmeta.evaluation.evaluate import evaluate_methods
from distmeta.models.build import build_model
from distmeta.tasks.build import build_store
from distmeta.tasks.episodes.episode import sample_episode
from distmeta.tasks.store import open_store

CPU = torch.device("cpu")


def assert_near(found, expected, within):
    assert found.keys() == expected.keys()
    for key, value in expected.items():
        assert found[key] == pytest.approx(value, abs=within), key


class Setting:
    def __init__(self, path, **sections):
        self.config = small.config(path, **sections)
        self.store = open_store(build_store(self.config.data, self.config.task, self.config.model))
        self.model = build_model(self.config, self.store.vocab_size, self.store.pad_id, 2)
        self.meta = {
            **self.model.fast, **self.model.shared, **initial_log_rates(self.config.inner, self.model.adapted)
        }  # fmt: skip

    def methods(self, say=lambda line: None, **keywords):
        config = self.config.model_copy(update={"eval": self.config.eval.model_copy(update=keywords.pop("eval", {}))})
        return evaluate_methods(self.model, self.meta, self.store, config, CPU, say=say, **keywords)

    def episodes(self, count):
        return [sample_episode(self.store, self.config.task, 0, "test", i) for i in range(count)]
