"""Policies through the learner's loop, cut off and resumed, and every verb that takes a checkpoint."""

import json
import re
import sys
from types import ModuleType

import pytest
import small
import torch
from serving import Server

from distmeta.bench import check as checks
from distmeta.config import load_config
from distmeta.config.modules import trust_module
from distmeta.errors import InputError
from distmeta.evaluation.adapt import adapt, load_adapted
from distmeta.evaluation.evaluate import evaluate
from distmeta.evaluation.many import adapt_each
from distmeta.export.export import export
from distmeta.learner.worker import learn
from distmeta.runs import checkpoint, progress
from distmeta.serve.batches import Base
from distmeta.tasks import environments
from distmeta.tasks.build import build_store
from distmeta.tasks.store import open_store

pytestmark = pytest.mark.usefixtures("one_rank")
SHORT = [
    "task.shots=3", "task.queries=2", "task.horizon=4", "inner.steps=2", "outer.steps=3", "outer.meta_batch_size=2",
    "run.checkpoint_every=1", "eval.episodes=4", "eval.validation_episodes=2", "eval.every=2", "eval.steps=3",
    "model.config={hidden_size: 6, num_hidden_layers: 2}", "cluster.workers=1",
]  # fmt: skip


class Stopped(Exception):
    pass


@pytest.fixture(scope="module", autouse=True)
def few_tasks():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(environments, "TASKS", {"train": 6, "validation": 3, "test": 5})
        patch.setenv("DISTMETA_MODULES", "")
        yield


def train(folder, words=(), at=None):
    """As tests/learner/test_learner_loop.py does; at: die after the checkpoint of that step."""
    config = load_config("navigation", [*SHORT, *words])
    folder.mkdir(exist_ok=True)

    def report(shown):
        if shown["step"] == at:
            raise Stopped

    learn(config, folder, build_store(config.data, config.task, config.model), [], 0, 1, torch.device("cpu"),
          report=report)  # fmt: skip
    return folder


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return train(tmp_path_factory.mktemp("policies") / "run")


def test_a_run_cut_off_goes_on_as_if_nothing_had_happened(run, tmp_path):
    cut = tmp_path / "cut"
    with pytest.raises(Stopped):
        train(cut, at=2)
    train(cut)
    for name in ("meta.safetensors", "optimizer.safetensors"):
        one, other = ((checkpoint.checkpoints_of(folder)[0] / name).read_bytes() for folder in (run, cut))
        assert one == other
    assert small.records(cut) == small.records(run)
    assert (cut / "evaluation.json").read_bytes() == (run / "evaluation.json").read_bytes()


def test_a_run_and_its_evaluation_say_the_return_after_each_step(run):
    records = small.records(run)
    assert all("query_accuracy" not in r and len(r["inner_loss"]) == 3 for r in records)
    validation = records[1]["validation"]
    assert validation["return"] == -validation["loss"]
    found = json.loads((run / "evaluation.json").read_text())
    assert list(found) == ["meta_trained", "no_adaptation", "fine_tuned", "multi_task"]
    ours = found["meta_trained"]["return"]
    assert len(ours["curve"]) == 4 and ours["low"] <= ours["mean"] <= ours["high"] < 0
    details = json.loads((run / "evaluation_details.json").read_text())
    assert details["fine_tuned"]["most_steps"] == 3  # of new rollouts each, as the meta-trained policy has
    assert details["differences"]["multi_task"]["return"]["tasks"] <= 4
    assert evaluate(run, baselines=False).methods["meta_trained"] == found["meta_trained"]
    assert f"return {validation['return']:.3f}" in progress.describe_validation(records[1])
    assert progress.headline(found) == "return" and "return over" in progress.paired(details)
    better = {"meta_trained": {**ours, "low": -1, "mean": -1, "high": -1}, "other": {"return": ours}}
    assert "better" in progress.verdict({n: {"return": of.get("return", of)} for n, of in better.items()}, {})


@pytest.mark.parametrize("words", [[], ["inner.learn_lr=per_layer"], ["algorithm=fomaml"], ["algorithm=multi_task"]])
def test_check_finds_what_the_algorithm_claims(words):
    """Differences of the return as rollouts held fixed estimate it: they notice a derivative that is not the loss's."""
    config = checks.small_version(load_config("navigation", [*SHORT, *words]), 2)
    store = open_store(build_store(config.data, config.task, config.model))
    assert all(f.agrees for f in checks.check_meta_gradient(config, store))
    assert all(f.agrees for f in checks.check_equivalents(config, store))


def test_a_new_goal_is_adapted_to_predicted_saved_served_and_exported(run, tmp_path):
    goal = {"task": [0.3, -0.2]}
    adapted = adapt(run, [goal])
    assert len(adapted.inner_losses) == 4 and adapted.inner_losses[0] > 0
    assert adapt(run, [goal]).inner_losses == adapted.inner_losses != adapt(run, [{"task": [0, 0]}]).inner_losses
    found = adapted.predict([[0.0, 0.0], [0.1, 0.2]])
    assert [list(one) for one in found] == [["action"]] * 2 and len(found[0]["action"]) == 2
    folder = adapted.save(tmp_path / "goal")
    assert load_adapted(folder).predict(["[0.0, 0.0]"]) == found[:1]
    (tmp_path / "goal.jsonl").write_text(json.dumps(goal) + "\n")
    assert adapt(run, tmp_path / "goal.jsonl").inner_losses == adapted.inner_losses
    with Server(Base(run), tmp_path / "tasks") as server:
        task = server.ask("POST", "/tasks", {"support": [goal]})
        assert task.status == 201, task.error
        answer = server.ask("POST", f"/tasks/{task.json['task']}/predict", {"inputs": [[0.0, 0.0]]})
        assert answer.json["predictions"][0]["action"] == pytest.approx(found[0]["action"], rel=1e-4)
        assert server.ask("POST", "/tasks", {"support": [{"task": [1]}]}).status in (400, 422)
    out = export(folder, tmp_path / "out")
    code = re.search("```python\n(.*?)```", (out / "README.md").read_text(), re.S)[1]
    namespace = {"folder": str(out), "print": lambda scores: namespace.update(scores=scores)}
    exec(code, namespace)
    assert namespace["scores"][0].tolist() == pytest.approx(found[0]["action"], rel=1e-4, abs=1e-6)


def test_what_policies_cannot_do_says_so(run, tmp_path):
    for support, why in (
        ([], "support: 0 rows; a policy adapts to one"),
        ([{"task": [1, 2, 3]}], "support: 'task' has 3 numbers, and a task of the environment has 2"),
        (tmp_path / "none.jsonl", "none.jsonl"),
    ):
        with pytest.raises(InputError, match=why):
            adapt(run, support)
    with pytest.raises(InputError, match="--each is for tasks with examples"):
        list(adapt_each(run, "goals.jsonl", "task"))


def test_a_checkpoint_that_names_an_environment_is_opened_where_the_user_names_it(tmp_path, monkeypatch):
    module = ModuleType("their_world")
    module.World = type("World", (environments.PointNavigation,), {})
    monkeypatch.setitem(sys.modules, "their_world", module)
    words = ["task.environment=their_world:World", "model.dimensions=[2,2]", "eval.baselines=false"]
    folder = train(tmp_path / "run", words)
    monkeypatch.delitem(sys.modules, "their_world")  # whatever is imported would fail
    for opened in (lambda: evaluate(folder), lambda: adapt(folder, [{"task": [0, 0]}])):
        with pytest.raises(InputError, match=r"its environment is code of their_world:World \(task.environment\)"):
            opened()
    monkeypatch.setitem(sys.modules, "their_world", module)
    trust_module("their_world:World")
    assert evaluate(folder).methods["meta_trained"]["return"]["episodes"] == 4
