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


def test_more_are_started_where_they_are_wanting_and_there_is_room(ray, one_rank, words_csv, tmp_path, monkeypatch):
    monkeypatch.setattr(flow, "SHARE", 1e-6)  # as if samplers were that slow
    monkeypatch.setattr(ray, "available_resources", lambda: {"CPU": 1.2})
    runs = []
    for actors in (0, "auto"):
        config = small.config(
            words_csv, sampling={"actors": actors}, outer={"steps": 8}, cluster={"workers": 1, "cpus_per_sampler": 0.5}
        )
        store = build_store(config.data, config.task, config.model)
        samplers = start_samplers(store, config.task, config.run.seed, 2, 0.5) if actors else []
        run = tmp_path / str(actors)
        run.mkdir()
        learn(config, run, store, samplers, 0, 1, torch.device("cpu"))
        runs.append((small.records(run), (run / "checkpoints/step-000008/meta.safetensors").read_bytes()))
    assert runs[0] == runs[1]
    assert "needed, 4 there" in (tmp_path / "auto" / "log.txt").read_text()  # each of two more takes a half
