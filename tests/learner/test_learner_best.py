"""The best meta-validation's checkpoint: which it is, that it is kept and evaluated, when a run ends without one."""

import json

import pytest
import small
import torch

from distmeta.algorithms.schedule import outer_lr, schedule_of, validation_every
from distmeta.errors import InputError
from distmeta.evaluation.evaluate import evaluate
from distmeta.learner import beside, worker
from distmeta.learner.best import better, comparable, is_over, rule
from distmeta.runs import checkpoint
from distmeta.tasks.build import build_store

SCORES = (0.4, 0.9, 0.6, 0.9, 0.5, 0.3)  # at meta-steps 1..6
BEST = 2
TEXT = {"task": {"family": "text_to_text"}, "model": {"answer_tokens": 4}, "eval": {"every": 2}}


class Stopped(Exception):
    pass


@pytest.fixture
def scored(monkeypatch):
    """Meta-validations that go up, and then down."""
    measure, steps = beside.validate, []

    def validate(*arguments):
        found, by_step, by_source = measure(*arguments)
        at = steps.pop(0)
        return {**found, "accuracy": SCORES[at - 1], "loss": float(at)}, by_step, by_source

    monkeypatch.setattr(beside, "validate", validate)
    return steps


def train(folder, path, steps, at=None, first=1, **sections):
    run = {"checkpoint_every": 3, "keep": 1}
    of_run = {"outer": {"steps": 6}, "eval": {"every": 1, "baselines": False}, "run": run}
    config = small.config(path, **small.merge(of_run, sections))
    folder.mkdir(exist_ok=True)
    steps[:] = range(first, 7)

    def report(shown):
        if shown["step"] == at:
            raise Stopped

    store = build_store(config.data, config.task, config.model)
    worker.learn(config, folder, store, [], 0, 1, torch.device("cpu"), report=report)
    return folder


def test_the_best_is_kept_evaluated_and_served_however_the_run_ends(tmp_path, words_csv, scored, one_rank):
    run = train(tmp_path / "run", words_csv, scored)
    there = sorted(path.name for path in checkpoint.checkpoints_of(run))
    assert there == ["step-000002", "step-000006"]  # run.keep=1 is of the newest
    assert json.loads((run / "checkpoints" / "best.json").read_text())["value"] == 0.9
    assert checkpoint.resolve(run).name == "step-000002" == checkpoint.resolve(run, "2").name
    assert checkpoint.resolve(run, "last").name == "step-000006"
    settings = json.loads((run / "evaluation_details.json").read_text())["settings"]
    assert (settings["meta_step"], settings["checkpoint"], settings["last_step"]) == (BEST, "best", 6)
    methods = json.loads((run / "evaluation.json").read_text())
    assert evaluate(run).methods == methods
    assert evaluate(run, checkpoint="last").methods["meta_trained"] != methods["meta_trained"]
    assert evaluate(run, checkpoint=6).details["settings"]["meta_step"] == 6

    with pytest.raises(Stopped):  # cut off after the best, before the last
        train(tmp_path / "cut", words_csv, scored, at=3)
    (tmp_path / "cut" / "checkpoints" / "best.json").unlink()  # killed before it was written
    train(tmp_path / "cut", words_csv, scored, first=4)
    assert checkpoint.resolve(tmp_path / "cut").name == "step-000002"
    assert json.loads((tmp_path / "cut" / "evaluation.json").read_text()) == methods
    last = "checkpoints/step-000006/meta.safetensors"
    assert (run / last).read_bytes() == (tmp_path / "cut" / last).read_bytes()
    assert small.records(run) == small.records(tmp_path / "cut")


def test_a_run_ends_after_so_many_meta_validations_without_a_new_best(tmp_path, words_csv, scored, one_rank):
    run = train(tmp_path / "run", words_csv, scored, outer={"stop_after": 3})
    assert [record["step"] for record in small.records(run)] == [1, 2, 3, 4, 5]
    assert checkpoint.load(run, which="last").state["stopped"] and checkpoint.load(run).step == BEST


def test_which_meta_validation_is_the_best():
    config = small.config()
    found = [better(config, {"accuracy": 0.5, "loss": loss}, 2, best) for loss, best in (
        (1.0, None), (1.0, {"value": 0.5, "loss": 1.0}), (0.9, {"value": 0.5, "loss": 1.0}),
        (0.1, {"value": 0.6, "loss": 1.0}),
    )]  # fmt: skip
    assert [new is not None for new in found] == [True, False, True, False]  # of equal ones the lower loss
    by_loss = small.config(eval={"best": "loss:min"})
    assert better(by_loss, {"accuracy": 0.0, "loss": 0.9}, 2, {"value": 1.0, "loss": 1.0})
    assert rule(config) == "accuracy:max" and rule(small.config(**TEXT)) == "loss:min"
    assert comparable(found[0], config, config) == found[0]
    assert comparable(found[0], config, by_loss) is None  # values of another metric do not compare
    until = small.config(outer={"stop_after": 2}, eval={"every": 1})
    assert not is_over(until, [{"step": 1}, {"step": 2}, {"step": 3}], {"step": 2})
    assert is_over(until, [{"step": 1}, {"step": 2}, {"step": 3}], {"step": 1})


def test_metrics_that_the_family_does_not_have_are_refused():
    for sections, words in (
        (small.merge(TEXT, {"outer": {"until": 0.9}}), r"outer\.until = accuracy>=0\.9: .* by accuracy; set one of ex"),
        (small.merge(TEXT, {"eval": {"best": "f1:max"}}), r"eval\.best = f1:max: .* is not measured by f1"),
        ({"eval": {"every": 2, "best": "exact_match:max"}}, "set one of accuracy"),
        ({"eval": {"best": "accuracy"}}, "METRIC:max or METRIC:min"),
        ({"outer": {"stop_after": 2}}, "outer.stop_after needs meta-validations"),
    ):
        with pytest.raises(InputError, match=words):
            small.config(**sections)


def test_long_runs_with_meta_validation_tasks_are_meta_validated_unasked():
    def every(tasks=2, steps=300, **sections):
        outer = {"outer": {"steps": steps}, "eval": {"every": "auto"}}
        return validation_every(small.config(**small.merge(outer, sections)), tasks)

    assert every() == 30 and every(steps=105) == 11
    assert every(tasks=0) == every(steps=99) == every(task={"arrive_every": 8}) == every(eval={"every": 0}) == 0
    assert every(steps=20, outer={"until": 0.9}) == 2  # asked for after all
    assert every(eval={"every": 7}) == 7


def test_the_outer_rate_rises_and_falls_unless_the_end_is_not_known():
    long = small.config(outer={"schedule": "auto", "steps": 400, "lr": 1.0})
    rates = [outer_lr(long, step) for step in range(1, 401)]
    assert schedule_of(long) == ("cosine", 20)
    assert rates[0] == 0.05 and max(rates) == rates[19] == 1.0 and rates[-1] < 1e-3
    assert schedule_of(small.config(outer={"schedule": "auto", "steps": 299})) == ("constant", 0)
    pretrained = small.config(model={"pretrained": "/a/model"}, outer={"schedule": "auto", "steps": 40})
    assert schedule_of(pretrained) == ("cosine", 2)
    online = small.config(algorithm="online", outer={"schedule": "auto"})
    assert schedule_of(online) == ("constant", 0)
    assert schedule_of(small.config(outer={"schedule": "linear"})) == ("linear", 0)


def test_a_checkpoint_that_a_run_does_not_have_is_refused_by_those_it_has(tmp_path, words_csv):
    run = tmp_path / "run"
    path = small.checkpoint_of(run / "checkpoints" / "step-000001", words_csv)
    assert checkpoint.resolve(run) == path  # a run without meta-validations: its newest
    for which in ("7", "newest"):
        with pytest.raises(InputError, match=rf"--checkpoint {which}: best, last, or a meta-step .*\(1\)"):
            checkpoint.resolve(run, which)
    with pytest.raises(InputError, match="is one checkpoint"):
        checkpoint.resolve(path, "last")
