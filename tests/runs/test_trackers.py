"""Experiment trackers follow a run's records: every meta-step once, through a continuation too."""

import json
import struct
import sys
from types import SimpleNamespace

import pytest
import small

import distmeta
from distmeta.config.loading import with_changes
from distmeta.errors import InputError
from distmeta.runs import trackers


def write(run, steps, mode="a"):
    """Records as the learner writes them."""
    with (run / "metrics.jsonl").open(mode) as stream:
        for step in steps:
            record = {"step": step, "outer_loss": 1 / step, "inner_loss": [2.0, 1.0], "validation": {"loss": 0.5}}
            stream.write(json.dumps(record) + "\n")


def followed(run, name, steps, said=None, mode="a"):
    """A session of a run that makes these steps."""
    config = with_changes(small.config(), "run", trackers=[name], name="tracked")
    with trackers.following(config, run, (said if said is not None else []).append):
        write(run, steps, mode)


def events(run):
    """(name, step, value) of every scalar in RUN/tensorboard."""
    from tensorboardX.proto.event_pb2 import Event

    for file in sorted((run / "tensorboard").iterdir()):
        content = file.read_bytes()
        while content:
            (length,) = struct.unpack("<Q", content[:8])
            event = Event.FromString(content[12 : 12 + length])
            yield from ((value.tag, event.step, value.simple_value) for value in event.summary.value)
            content = content[16 + length :]


def test_tensorboard_has_every_number_of_every_step_and_the_scores(tmp_path):
    (tmp_path / "evaluation.json").write_text(json.dumps({"meta_trained": {"accuracy": {"mean": 0.75, "low": 0.5}}}))
    followed(tmp_path, "tensorboard", [1, 2])
    assert set(events(tmp_path)) == {
        ("outer_loss", 1, 1.0), ("outer_loss", 2, 0.5), ("validation/loss", 1, 0.5), ("validation/loss", 2, 0.5),
        ("evaluation/meta_trained/accuracy", 2, 0.75),
    }  # fmt: skip


def test_a_continued_run_sends_no_step_twice_and_leaves_none_out(tmp_path):
    followed(tmp_path, "tensorboard", [1, 2, 3])
    followed(tmp_path, "tensorboard", [1, 2, 3, 4, 5], mode="w")  # cut back to a checkpoint, and beyond
    assert [step for name, step, _ in events(tmp_path) if name == "outer_loss"] == [1, 2, 3, 4, 5]


class FakeWandb(SimpleNamespace):
    """wandb as far as it is used: a run that is continued by its id."""

    def __init__(self):
        super().__init__(runs=[], logged=[])

    def init(self, **options):
        self.runs.append(options)
        return SimpleNamespace(id="the-id", log=lambda values, step: self.logged.append(step), finish=lambda: None)


def test_wandb_continues_its_run(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "wandb", wandb := FakeWandb())
    followed(tmp_path, "wandb", [1])
    followed(tmp_path, "wandb", [2])
    assert [run["id"] for run in wandb.runs] == [None, "the-id"]
    assert wandb.runs[0]["project"] == "tracked" and wandb.runs[0]["config"]["run"]["name"] == "tracked"
    assert wandb.logged == [1, 2]


def test_a_tracker_that_fails_ends_alone_and_says_so(tmp_path, monkeypatch):
    monkeypatch.setattr(trackers.TensorBoard, "log", lambda self, step, values: 1 / 0)
    followed(tmp_path, "tensorboard", [1], said := [])
    assert said == ["run.trackers: tensorboard has failed (division by zero); the run goes on without it"]


def test_a_tracker_that_does_not_start_is_refused(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "wandb", SimpleNamespace())
    with pytest.raises(InputError, match=r"run.trackers = wandb: does not start .*WANDB_MODE"):
        followed(tmp_path, "wandb", [])


@pytest.mark.parametrize("verb", ["train", "pretrain"])
def test_a_missing_package_is_refused_before_anything_starts(verb, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setitem(trackers.PACKAGES, "mlflow", "no_such_package")
    with pytest.raises(InputError, match=r"run.trackers = mlflow: the package .* pip install 'distmeta\[mlflow\]'"):
        getattr(distmeta, verb)({"run": {"trackers": ["mlflow"]}})
    assert list(tmp_path.iterdir()) == []


def test_a_search_takes_its_own_trackers():
    with pytest.raises(InputError, match="set tune.trackers"):
        distmeta.tune({"run": {"trackers": ["tensorboard"]}})


def test_mlflow_without_a_network(tmp_path, monkeypatch):
    mlflow = pytest.importorskip("mlflow")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path}/mlflow.db")
    mlflow.set_tracking_uri(f"sqlite:///{tmp_path}/mlflow.db")
    followed(tmp_path, "mlflow", [1, 2])
    followed(tmp_path, "mlflow", [3])
    (run,) = mlflow.MlflowClient().search_runs([mlflow.get_experiment_by_name("tracked").experiment_id])
    history = mlflow.MlflowClient().get_metric_history(run.info.run_id, "outer_loss")
    assert [metric.step for metric in history] == [1, 2, 3]
    assert run.data.params["inner/steps"] == "2" and run.info.status == "FINISHED"


def test_wandb_without_a_network(tmp_path, monkeypatch):
    pytest.importorskip("wandb")
    monkeypatch.setenv("WANDB_MODE", "offline")
    followed(tmp_path, "wandb", [1, 2], said := [])
    assert not said and list((tmp_path / "wandb").glob("offline-run-*/*.wandb"))
