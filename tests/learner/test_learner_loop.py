"""The learner's loop in this process, one rank: resuming, stopping, damaged checkpoints, stages, divergence."""

import json
import shutil

import pytest
import small
import torch

from distmeta.algorithms.schedule import plateaus
from distmeta.evaluation.evaluate import evaluate
from distmeta.inner import Diverged
from distmeta.learner.saver import WriteError
from distmeta.learner.worker import OuterDiverged, learn
from distmeta.models.footprint import Choice
from distmeta.runs import checkpoint
from distmeta.tasks.build import build_store

pytestmark = pytest.mark.usefixtures("one_rank")


class Stopped(Exception):
    pass


def train(folder, path, at=None, samplers=(), **sections):
    """Train in `folder`; at: die after the checkpoint of that step was written, before its record is."""
    config = small.config(path, **small.merge({"outer": {"steps": 6}, "run": {"checkpoint_every": 1}}, sections))
    folder.mkdir(exist_ok=True)
    store = build_store(config.data, config.task, config.model)

    def report(shown):
        if shown["step"] == at:
            raise Stopped

    learn(config, folder, store, list(samplers), 0, 1, torch.device("cpu"), report=report)
    return folder


def final(run):
    last = checkpoint.checkpoints_of(run)[0]
    return (
        (last / "meta.safetensors").read_bytes(),
        (last / "optimizer.safetensors").read_bytes(),
        small.records(run),
        json.loads((run / "evaluation.json").read_text()),
    )


def test_how_memory_is_used_is_said_once(words_csv, tmp_path):
    (tmp_path / "environment.json").write_text("{}")
    train(tmp_path, words_csv, outer={"steps": 2})
    (line,) = [line for line in (tmp_path / "log.txt").read_text().splitlines() if line.startswith("memory: ")]
    known = json.loads((tmp_path / "environment.json").read_text())["memory"]
    assert line == f"memory: {Choice(**known)}"
    assert known["steps_kept"] == known["steps"] == 2 and known["layers_again"] == 0 and known["tasks"] == 4


VARIANTS = {
    "numbers": {"inner": {"learn_lr": "scalar"}, "model": {"head": "prototype"}},
    "dropout": {"model": {"dropout": 0.3}, "inner": {"adapt": "lora", "learn_lr": "per_layer"}},
    "stage 0, functions": {
        "architecture": "mlp", "data": {"path": None}, "task": {"family": "regression"},
        "deepspeed": {"zero_optimization": {"stage": 0}}, "inner": {"learn_lr": "per_parameter"},
        "outer": {"optimizer": "sgd", "momentum": 0.9, "schedule": "cosine", "warmup_steps": 2},
    },
    "stage 3": {
        "deepspeed": {"zero_optimization": {"stage": 3}}, "inner": {"learn_lr": "per_layer_step"},
        "outer": {"optimizer": "adamax"}, "algorithm": "maml_pp",
    },
    "plateau": {
        "outer": {"optimizer": "rmsprop", "schedule": "plateau", "patience": 0, "lr": 1.0},
        "eval": {"every": 1},
    },
    "stage 2, images with words": {
        "deepspeed": {"zero_optimization": {"stage": 2}}, "outer": {"optimizer": "radam"},
        "architecture": "clip", "data": {"path": None}, "task": {"family": "classes", "ways": 3},
        "model": {"image": [1, 8, 8], "head": "words", "distance": "cosine", "max_tokens": 64},
        "inner": {"adapt": "head", "learn_lr": "per_layer"},
    },
}  # fmt: skip


@pytest.fixture(scope="module")
def plain(tmp_path_factory, words_csv, one_rank):
    return train(tmp_path_factory.mktemp("plain") / "run", words_csv)


def test_there_is_never_more_than_one_checkpoint_too_many(tmp_path, words_csv, monkeypatch):
    """Not even once a group has died before it could remove one."""

    def dies(run_dir, keep, step, pending):
        if step == 3:
            raise Stopped
        prune(run_dir, keep, step, pending)

    def counted(draft, path):
        publish(draft, path)
        there.append(len(checkpoint.checkpoints_of(tmp_path)))

    prune, publish, there = checkpoint.prune, checkpoint.publish, []
    keep = {"run": {"keep": 2, "checkpoint_every": 1}}
    with monkeypatch.context() as patch:
        patch.setattr(checkpoint, "prune", dies)
        with pytest.raises(WriteError):
            train(tmp_path, words_csv, **keep)
    monkeypatch.setattr(checkpoint, "publish", counted)
    train(tmp_path, words_csv, **keep)
    assert there == [3, 3, 3]


@pytest.mark.parametrize("variant", VARIANTS)
def test_a_run_cut_off_goes_on_as_if_nothing_had_happened(variant, tmp_path, words_csv):
    """Cut off at the worst moment: the step's checkpoint is written, its record is not."""
    whole = final(train(tmp_path / "whole", words_csv, **VARIANTS[variant]))
    with pytest.raises(Stopped):
        train(tmp_path / "cut", words_csv, at=3, **VARIANTS[variant])
    assert len(small.records(tmp_path / "cut")) == 2
    with (tmp_path / "cut" / "metrics.jsonl").open("a") as stream:
        stream.write('{"step": 3, "outer_lo')  # as a killed process leaves its last line
    assert final(train(tmp_path / "cut", words_csv, **VARIANTS[variant])) == whole
    assert "continuing from step-000003" in (tmp_path / "cut" / "log.txt").read_text()
    assert [r["step"] for r in whole[2]] == [1, 2, 3, 4, 5, 6]


def test_the_outer_rate_falls_where_validation_no_longer_does(tmp_path, words_csv):
    run = train(tmp_path / "run", words_csv, **VARIANTS["plateau"])  # at a rate of 1, which spoils everything
    records = small.records(run)
    losses = [r["validation"]["loss"] for r in records]
    assert records[-1]["outer_lr"] < records[0]["outer_lr"] == 1.0
    for k, record in enumerate(records):
        assert record["outer_lr"] == 0.5 ** plateaus(losses[:k], 0)
    assert plateaus([3.0, 2.0, 2.0, 2.5, 2.6, 1.0, 1.1], 1) == 1
    assert plateaus([3.0, 2.0, 2.0, 2.5, 2.6, 1.0, 1.1], 0) == 4
    assert plateaus([], 0) == 0


def test_records_beyond_the_checkpoint_are_done_again(plain, tmp_path, words_csv):
    run = tmp_path / "run"
    shutil.copytree(plain, run)
    for path in checkpoint.checkpoints_of(run)[:1]:
        shutil.rmtree(path)  # now step 5 is the newest, and the journal knows step 6
    assert final(train(run, words_csv)) == final(plain)


def test_resuming_a_finished_run_changes_nothing(plain, tmp_path, words_csv):
    shutil.copytree(plain, tmp_path / "run")
    assert final(train(tmp_path / "run", words_csv)) == final(plain)
    longer = train(tmp_path / "run", words_csv, outer={"steps": 8})
    assert final(longer) == final(train(tmp_path / "eight", words_csv, outer={"steps": 8}))


def cut_short(path):
    file = path / "optimizer.safetensors"
    file.write_bytes(file.read_bytes()[:-7])


def flip_a_bit(path):
    content = bytearray((path / "meta.safetensors").read_bytes())
    content[-3] ^= 4
    (path / "meta.safetensors").write_bytes(content)


DAMAGES = {
    "optimizer.safetensors has": cut_short,
    "meta.safetensors was changed": flip_a_bit,
    "manifest.json is missing": lambda path: (path / "manifest.json").unlink(),
    "manifest.json is not readable": lambda path: (path / "manifest.json").write_text('{"files": ["a"]}'),
    "state.json is missing": lambda path: (path / "state.json").unlink(),
}


@pytest.mark.parametrize("reason", DAMAGES)
def test_a_damaged_checkpoint_is_named_and_the_one_before_is_used(reason, plain, tmp_path, words_csv):
    run = tmp_path / "run"
    shutil.copytree(plain, run)
    (run / "log.txt").unlink()
    newest, before = checkpoint.checkpoints_of(run)
    DAMAGES[reason](newest)
    assert checkpoint.resolve(run) == before
    assert final(train(run, words_csv)) == final(plain)
    log = (run / "log.txt").read_text()
    assert f"checkpoint {newest} is passed over: {reason}" in log
    assert f"continuing from {before.name}" in log
    assert evaluate(run, episodes=4, baselines=False).methods.keys() == {"meta_trained"}


def test_zero_stages_give_the_same_numbers(plain, tmp_path, words_csv):
    expected = small.records(plain)  # stage 1
    for stage in (0, 2, 3):
        found = small.records(
            train(tmp_path / str(stage), words_csv, deepspeed={"zero_optimization": {"stage": stage}})
        )
        assert found[0]["grad_norm"] == pytest.approx(expected[0]["grad_norm"], rel=1e-6)
        assert [r["outer_loss"] for r in found] == pytest.approx([r["outer_loss"] for r in expected], abs=1e-4)


def test_until_stops_early_and_a_changed_until_goes_on(tmp_path, words_csv):
    easy = {"outer": {"until": "accuracy>=0", "steps": 5}, "eval": {"every": 2}}
    run = train(tmp_path / "run", words_csv, **easy)
    assert [r["step"] for r in small.records(run)] == [1, 2]
    assert set(small.records(run)[-1]["validation"]) == {"accuracy", "precision", "recall", "f1", "loss", "ece"}
    assert checkpoint.load(run).state["stopped"] is True and checkpoint.load(run).step == 2
    first = final(run)
    assert final(train(run, words_csv, **easy)) == first  # it stays stopped
    harder = {"outer": {"until": "loss<=-1", "steps": 5}, "eval": {"every": 2}}
    assert [r["step"] for r in small.records(train(run, words_csv, **harder))] == [1, 2, 3, 4, 5]
    assert final(run)[0] == final(train(tmp_path / "other", words_csv, **harder))[0]


def test_a_record_has_the_design_s_keys(plain):
    lines = [json.loads(line) for line in (plain / "metrics.jsonl").read_text().splitlines()]
    for number, record in enumerate(lines, 1):
        assert record.keys() >= {
            "step", "tasks_seen", "outer_loss", "inner_loss", "query_accuracy", "inner_lr", "grad_norm", "wait_s",
            "inner_s", "aggregate_s", "checkpoint_s",
        }  # fmt: skip
        assert record["step"] == number and record["tasks_seen"] == 4 * number
        assert len(record["inner_loss"]) == 2 + 1
        assert record["checkpoint_s"] > 0


def test_divergence_is_named(tmp_path, words_csv):
    with pytest.raises(OuterDiverged, match="inner.lr"):
        train(tmp_path / "inner", words_csv, inner={"lr": 1e30})
    with pytest.raises((OuterDiverged, Diverged)):
        train(tmp_path / "outer", words_csv, outer={"lr": 1e38, "optimizer": "sgd"},
              deepspeed={"gradient_clipping": 0.0})  # fmt: skip
    assert not list((tmp_path / "inner").glob("checkpoints/step-*"))
