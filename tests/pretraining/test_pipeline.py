"""`distmeta pipeline`: stages run once, again only where something of theirs has changed, and go on where cut off."""

import contextlib
import importlib
import json
import shutil

import pytest
import small
import torch

import distmeta
from distmeta.config import load_config
from distmeta.drive.submit import Request, check_files
from distmeta.errors import InputError
from distmeta.learner.worker import learn
from distmeta.pretraining.worker import learn as learn_language

PRETRAIN = importlib.import_module("distmeta.pretraining.pretrain")
TRAIN = importlib.import_module("distmeta.drive.train")
ALL = ("corpus", "pretrain", "tasks", "initialise", "train", "evaluate", "export")
TINY = [
    "pretrain.steps=4", "pretrain.validation_rows=16", "pretrain.every=0", "outer.steps=4", "outer.until=accuracy>=0",
    "outer.meta_batch_size=2", "eval.every=2", "eval.validation_episodes=2", "eval.episodes=4", "eval.baselines=false",
    "model.max_tokens=16",
    "model.config={hidden_size: 16, num_hidden_layers: 1, num_attention_heads: 2, intermediate_size: 32}",
]  # fmt: skip


@pytest.fixture(scope="module")
def in_process(one_rank):
    """The ranks of both trainings are this process, without Ray; how often each was started is counted."""
    started = {"pretrain": 0, "train": 0}

    def pretrain_here(config, run_dir, corpus, cluster, ends_at=None):
        started["pretrain"] += 1
        learn_language(config, run_dir, corpus, 0, 1, torch.device("cpu"))

    def train_here(config, run_dir, store, cluster, ends_at=None, exports=False):
        started["train"] += 1
        learn(config, run_dir, store, [], 0, 1, torch.device("cpu"))

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(PRETRAIN, "run_ranks", pretrain_here)
        patch.setattr(TRAIN, "run_learners", train_here)
        patch.setattr(TRAIN, "ray_cluster", lambda config: contextlib.nullcontext())
        yield started


@pytest.fixture(scope="module")
def whole(in_process, tmp_path_factory):
    """The folder of a pipeline that has run once, the pipeline, its evaluation and its weights."""
    folder = tmp_path_factory.mktemp("pipeline") / "p"
    names, first = ran(folder)
    assert names == list(ALL) and in_process == {"pretrain": 1, "train": 1}
    return folder, first, first.run.evaluation, (first.run.checkpoint / "meta.safetensors").read_bytes()


def ran(folder, *words):
    """The names of the stages that ran, and the pipeline."""
    done = distmeta.pipeline(load_config("pipeline", [*TINY, *words, f"run.dir={folder}"]))
    assert tuple(done.stages) == ALL
    return [name for name, stage in done.stages.items() if stage["state"] == "run"], done


def test_a_stage_that_was_lost_or_damaged_is_made_again(whole):
    folder, first, _, weights = whole
    (folder / "train" / "evaluation.json").unlink()
    assert ran(folder)[0] == ["evaluate"]
    (first.run.checkpoint / "meta.safetensors").write_bytes(b"damaged")
    shutil.rmtree(folder / "train" / "export")
    names, again = ran(folder)
    assert names[:1] == ["train"] and "pretrain" not in names and "export" in names
    assert (again.run.checkpoint / "meta.safetensors").read_bytes() == weights


def test_stages_run_again_only_after_a_change(whole, in_process):
    folder, first, _, weights = whole
    assert ran(folder)[0] == []
    in_process |= {"pretrain": 0, "train": 0}
    assert first.pretrained.summary["steps"] == 4 and first.run.metrics[-1]["step"] == 2  # good enough there
    assert first.run.evaluation["meta_trained"]["accuracy"]["episodes"] == 4
    assert (folder / "train" / "export" / "model.safetensors").is_file()
    assert all(stage["seconds"] >= 0 and stage["inputs"] and stage["digest"] for stage in first.stages.values())

    assert ran(folder, "cluster.workers=1", "pretrain.every=2", "run.keep=5")[0] == []  # of no weight
    assert ran(folder, "eval.episodes=6")[0] == ["evaluate", "export"]
    names, changed = ran(folder, "eval.episodes=6", "inner.lr=0.1")
    assert names == ["initialise", "train", "evaluate", "export"]
    assert (changed.run.checkpoint / "meta.safetensors").read_bytes() != weights
    kept = [run for run in folder.glob("train-*") if (run / "checkpoints" / "step-000002").exists()]
    assert weights in [(run / "checkpoints" / "step-000002" / "meta.safetensors").read_bytes() for run in kept]
    assert in_process == {"pretrain": 0, "train": 1}

    names, other = ran(folder, "eval.episodes=6", "inner.lr=0.1", "pretrain.lr=0.01")
    assert names == ["pretrain", "initialise", "train", "evaluate", "export"]  # the tasks' tokens stay as they were
    assert in_process == {"pretrain": 1, "train": 2}
    assert json.loads((folder / "pipeline.json").read_text()) == other.stages


def test_a_stage_that_was_cut_off_goes_on(whole, tmp_path, monkeypatch):
    folder = tmp_path / "p"
    _, _, evaluation, weights = whole
    here = TRAIN.run_learners

    def cut(config, run_dir, store, cluster, ends_at=None, exports=False):
        here(config, run_dir, store, cluster)
        (run_dir / "evaluation.json").unlink()
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(TRAIN, "run_learners", cut)
        with pytest.raises(KeyboardInterrupt):
            ran(folder)
    assert json.loads((folder / "pipeline.json").read_text())["train"]["state"] == "begun"
    names, done = ran(folder)
    assert names == ["train", "evaluate", "export"]
    assert "continuing from step-000002" in (done.run.path / "log.txt").read_text()
    assert done.run.evaluation == evaluation
    assert (done.run.checkpoint / "meta.safetensors").read_bytes() == weights


def test_a_directory_of_something_else_is_left_alone(tmp_path):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("text")
    with pytest.raises(InputError, match=r"holds thesis.txt and is no pipeline's"):
        ran(tmp_path / "mine")
    assert [path.name for path in (tmp_path / "mine").iterdir()] == ["thesis.txt"]


def test_both_verbs_can_be_submitted(tmp_path):
    """What a job would look for is checked before it is sent."""
    words = ("pretrain.path=absent.txt", "--run-dir", "/shared/run")
    for verb in ("pretrain", "pipeline"):
        config = small.parsed(verb, words)
        assert config.run.name == {"pretrain": "default", "pipeline": "pipeline"}[verb]
        with pytest.raises(InputError, match=r"pretrain.path = absent.txt: not in the working directory"):
            check_files(Request(verb, words, "http://head:8265", tmp_path), config)


def test_the_command_line_refuses_in_one_line(tmp_path):
    done = small.command("pipeline", "model.architecture=t5", "model.config={}", cwd=tmp_path)
    assert done.returncode == 2 and "t5 is an encoder-decoder" in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1 and list(tmp_path.iterdir()) == []
