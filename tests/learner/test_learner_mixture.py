"""A run on two data sources: trained, cut off and continued, evaluated, and continued only as the same run."""

import json

import pytest
import small
import torch

from distmeta.errors import InputError
from distmeta.evaluate import evaluate
from distmeta.learner.worker import learn
from distmeta.tasks.store import build_store
from distmeta.train import check_resumable

pytestmark = pytest.mark.usefixtures("one_rank")


class Stopped(Exception):
    pass


def configured(folder, **sections):
    paths = [small.write_domains(folder / f"{name}.csv", tasks) for name, tasks in (("a", 5), ("b", 10))]
    both = {
        "data": {"sources": {path.stem: {"path": str(path)} for path in paths}},
        "task": {"mixture": {"a": 0.3, "b": 0.7}},
        "outer": {"steps": 6},
        "run": {"checkpoint_every": 1},
    }
    return small.config(None, **small.merge(both, sections))


def train(run, config, at=None):
    def report(shown):
        if shown["step"] == at:
            raise Stopped

    run.mkdir(exist_ok=True)
    learn(config, run, build_store(config.data, config.task, config.model), [], 0, 1, torch.device("cpu"), report)
    return run


def test_a_run_on_two_sources(tmp_path, words_csv):
    config = configured(tmp_path)
    whole = train(tmp_path / "whole", config)
    with pytest.raises(Stopped):
        train(tmp_path / "cut", config, at=3)
    train(tmp_path / "cut", config)
    last = "checkpoints/step-000006/meta.safetensors"
    assert (whole / last).read_bytes() == (tmp_path / "cut" / last).read_bytes()
    assert small.records(whole) == small.records(tmp_path / "cut")

    found = evaluate(whole, episodes=20, baselines=False)
    assert {name.split("/")[0] for name in found.details["meta_trained"]["per_task"]} == {"a", "b"}
    other = evaluate(whole, str(words_csv), episodes=4, baselines=False)
    assert all("/" not in name for name in other.details["meta_trained"]["per_task"])

    from distmeta.config import dump_config

    store = build_store(config.data, config.task, config.model)
    (whole / "config.yaml").write_text(dump_config(config))
    (whole / "environment.json").write_text(json.dumps({"store": str(store)}))
    (tmp_path / "moved").mkdir()
    moved = configured(tmp_path / "moved")
    check_resumable(whole, moved, build_store(moved.data, moved.task, moved.model))
    with pytest.raises(InputError, match=r"--resume: task\.mixture\.a is 0\.5 but"):
        check_resumable(whole, configured(tmp_path, task={"mixture": {"a": 0.5, "b": 0.5}}), store)
    label = configured(tmp_path, data={"sources": {"a": {"label": "text"}}})
    with pytest.raises(InputError, match=r"--resume: data\.sources\.a\.label is 'text' but"):
        check_resumable(whole, label, store)
