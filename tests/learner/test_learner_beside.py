"""Meta-validation beside training: the ranks' own scores, some meta-steps later; cut off and resumed; the best kept."""

import json
from types import SimpleNamespace

import pytest
import small
import test_learner_loop as loop
from ray import cloudpickle

from distmeta.algorithms.schedule import plateaus
from distmeta.config import make_config
from distmeta.config.consistency import check_beside
from distmeta.learner import beside
from distmeta.runs import checkpoint

pytestmark = pytest.mark.usefixtures("one_rank")
OFTEN = {"eval": {"every": 3, "beside": 2}, "outer": {"steps": 8}, "run": {"keep": 1}}
PLATEAU = small.merge(OFTEN, {"outer": {"schedule": "plateau", "patience": 0, "lr": 1.0}})


def validations(run):
    return {r.get("validated", r["step"]): r["validation"] for r in small.records(run) if "validation" in r}


def test_scores_are_those_of_the_ranks_themselves(tmp_path, words_csv):
    later = loop.train(tmp_path / "later", words_csv, **OFTEN)
    at_once = loop.train(tmp_path / "at_once", words_csv, **small.merge(OFTEN, {"eval": {"beside": 0}}))
    assert validations(later) == validations(at_once) and list(validations(later)) == [3, 6, 8]
    assert [r["step"] for r in small.records(later) if "validation" in r] == [5, 7, 8]
    journal = (at_once / "metrics.jsonl").read_text().splitlines()
    assert sum(json.loads(line)["validation_s"] for line in journal) > 0
    assert loop.final(later)[:2] == loop.final(at_once)[:2]


def test_several_ranks_shares_are_scored_one_after_another(tmp_path, words_csv, monkeypatch):
    """Which tasks are scored at once, and so the rounding, is as on the ranks."""
    config, seen = small.config(words_csv, eval={"validation_episodes": 5}), []

    def scorer(config, store):
        return lambda scoring, episodes: seen.append(len(episodes)) or [None] * len(episodes)

    monkeypatch.setattr("distmeta.learner.evaluation.scorer", scorer)
    monkeypatch.setattr("distmeta.learner.evaluation.curves", lambda scored: {})
    validator = beside.Validator(config, tmp_path, loop.build_store(config.data, config.task, config.model), 2)
    validator.scores({**validator._model.fast, **validator._model.shared})
    assert seen == [2, 3]


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory, words_csv, one_rank):
    return loop.train(tmp_path_factory.mktemp("undisturbed") / "run", words_csv, **PLATEAU)


def test_an_actor_has_the_resources_of_a_rank_and_gets_what_the_process_gets(tmp_path, words_csv, monkeypatch):
    class Actor:
        def options(self, **options):
            self.asked = options
            return self

        def remote(self, *arguments):
            made = self.kind(*arguments)
            self.scores = SimpleNamespace(remote=made.scores)
            return self

    def remote(kind):
        actor.kind = cloudpickle.loads(cloudpickle.dumps(kind))
        return actor

    actor, config = Actor(), small.config(words_csv, cluster={"cpus_per_worker": 1})
    store = loop.build_store(config.data, config.task, config.model)
    monkeypatch.setattr("ray.remote", remote)
    monkeypatch.setattr("ray.get", lambda found, timeout: found)
    model = beside.Validator(config, tmp_path, store, 1)._model
    meta = {**model.fast, **model.shared}
    ways = [way(config, tmp_path, store, 1)(meta)() for way in (beside.in_process, beside.as_actor)]
    assert ways[0] == ways[1] and actor.asked["num_cpus"] == 1 and actor.asked["max_restarts"] == -1


def test_the_outer_rate_follows_scores_as_they_take_effect(undisturbed):
    losses = []
    for record in small.records(undisturbed):
        assert record["outer_lr"] == 0.5 ** plateaus(losses, 0)
        losses += [record["validation"]["loss"]] if "validation" in record else []


@pytest.mark.parametrize("at", [3, 4, 5])  # as it begins, under way, as it takes effect
def test_a_run_cut_off_goes_on_as_if_nothing_had_happened(at, undisturbed, tmp_path, words_csv):
    with pytest.raises(loop.Stopped):
        loop.train(tmp_path / "cut", words_csv, at=at, **PLATEAU)
    assert loop.final(loop.train(tmp_path / "cut", words_csv, **PLATEAU)) == loop.final(undisturbed)


@pytest.mark.parametrize(("until", "steps"), [(None, 8), ("accuracy>=0.8", 5)])
def test_the_best_is_kept_until_it_is_known_and_evaluated(until, steps, tmp_path, words_csv, monkeypatch):
    measure, scores = beside.validate, [0.9, 0.4, 0.3]

    def validate(*arguments):
        found, *rest = measure(*arguments)
        return {**found, "accuracy": scores.pop(0)}, *rest

    monkeypatch.setattr(beside, "validate", validate)
    run = loop.train(tmp_path / "run", words_csv, **small.merge(OFTEN, {"outer": {"until": until}}))
    assert json.loads((run / "checkpoints" / "best.json").read_text())["step"] == 3
    assert [checkpoint.step_of(path) for path in checkpoint.checkpoints_of(run)] == [steps, 3]
    assert json.loads((run / "evaluation_details.json").read_text())["settings"]["meta_step"] == 3


@pytest.mark.parametrize(("sections", "every", "named"), [
    ({}, 0, "eval.every = auto"),
    ({}, 2, "eval.every = auto: a meta-validation has to end before the next begins, 2"),
    ({"cluster": {"workers": "1-2"}}, 5, r"cluster.workers = \[1, 2\]"),
    ({"inner": {"adapt": "lora"}, "outer": {"base": "freeze"}, "deepspeed": {"zero_optimization": {"stage": 3}}}, 5,
     "deepspeed.zero_optimization.stage = 3"),
])  # fmt: skip
def test_what_cannot_be_made_beside_is_refused(sections, every, named):
    config = make_config(small.merge({"eval": {"beside": 2}}, sections))
    with pytest.raises(ValueError, match=rf"eval\.beside = 2 does not work with {named}.*; set"):
        check_beside(config, every)
    check_beside(make_config(small.merge(sections, {"eval": {"beside": 0}})), every)
