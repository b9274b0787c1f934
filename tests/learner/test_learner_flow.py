"""sampling.actors=auto: the number is chosen while the run goes on, and changes no number."""

import pytest
import small
import torch

from distmeta.learner.worker import learn
from distmeta.tasks.build import build_store
from distmeta.tasks.episodes import flow
from distmeta.tasks.episodes.sampler import start_samplers


@pytest.mark.long
def test_two_ranks_with_an_automatic_number_end_as_with_two(undisturbed, words_csv, tmp_path):
    auto = small.train_command(tmp_path, words_csv, "sampling.actors=auto")
    assert auto.weights == undisturbed.weights and auto.records == undisturbed.records
    assert "sampling.actors=auto: an episode is made in" in (auto.run / "log.txt").read_text()


def test_more_are_started_where_they_are_wanting_and_there_is_room(one_rank, words_csv, tmp_path, monkeypatch):
    import ray

    monkeypatch.setattr(flow, "SHARE", 1e-6)  # as if samplers were that slow
    cpus = {"cluster": {"workers": 1, "cpus_per_sampler": 0.5}}
    ray.init(address="local", num_cpus=2, include_dashboard=False, log_to_driver=False)
    try:
        found = []
        for actors in (2, "auto"):
            config = small.config(words_csv, sampling={"actors": actors}, outer={"steps": 8}, **cpus)
            store = build_store(config.data, config.task, config.model)
            samplers = start_samplers(store, config.task, config.run.seed, 2, 0.5)
            run = tmp_path / str(actors)
            run.mkdir()
            learn(config, run, store, samplers, 0, 1, torch.device("cpu"))
            found.append((small.records(run), (run / "checkpoints/step-000008/meta.safetensors").read_bytes()))
            for sampler in samplers:
                ray.kill(sampler)
        assert found[0] == found[1]
        log = (tmp_path / "auto" / "log.txt").read_text()
        assert "needed, 4 there" in log  # 2 CPUs, of which each takes a half
    finally:
        ray.shutdown()
