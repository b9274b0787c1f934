"""What a search tries: refused before anything starts, or drawn as it was asked for."""

import itertools
import json

import numpy as np
import pytest
import small
import yaml

from distmeta import tune as public_tune
from distmeta.config import make_config
from distmeta.errors import InputError
from distmeta.search import base_config, rivals, searcher
from distmeta.search.runs import best_count
from distmeta.search.searcher import ask
from distmeta.search.space import draw_point, points, read_space, with_params

RATES = {"inner.lr": {"log_uniform": [0.01, 1.0]}}


def config(space=RATES, **tune):
    return small.config(tune={"space": space, **tune})


@pytest.mark.parametrize(
    ("space", "tune", "expected"),
    [
        ({"inner.lrr": {"uniform": [0.1, 1]}}, {}, r"tune.space.inner.lrr.uniform: unknown key 'inner.lrr'.*'lr'"),
        ({"inner.lr": {"uniform": [-0.1, 1]}}, {}, r"tune.space.inner.lr.uniform: inner.lr = -0.1.*greater than 0"),
        ({"inner.lr": {"log_uniform": [-0.1, 1]}}, {}, "tune.space.inner.lr.log_uniform .* both ends above 0"),
        ({"inner.lr": {"log_uniform": [1, 0.1]}}, {}, "the lower first"),
        ({"inner.steps": {"integer": [0, 3]}}, {}, r"tune.space.inner.steps.integer: inner.steps = 0"),
        ({"inner.steps": {"integer": [1.5, 3]}}, {}, "two whole numbers"),
        ({"algorithm": {"choice": ["maml", "mamll"]}}, {}, r"tune.space.algorithm.choice: .*Did you mean 'maml'"),
        ({"inner.adapt": {"choice": []}}, {}, "a list of values"),
        ({"inner.lr": {"lognormal": [1, 2]}}, {}, r"inner.lr = lognormal: one of log_uniform"),
        ({"eval.episodes": {"choice": [2, 4]}}, {}, "the same for all trials"),
        ({"inner.momentum": {"uniform": [0, 0.9], "when": {"inner.lr": 1}}}, {}, "not another searched"),
        (
            {"inner.optimizer": {"choice": ["sgd", "adam"]},
             "inner.momentum": {"uniform": [0, 0.9], "when": {"inner.optimizer": "momentum"}}},
            {}, "inner.optimizer is never 'momentum'",
        ),
        ({}, {}, "tune.space is empty"),
        (RATES, {"searcher": "grid"}, "tune.searcher=grid needs values"),
        ({"inner.lr": {"grid": [0.1]}}, {}, "set tune.searcher=grid"),
        ({"inner.steps": {"integer": [1, 2]}}, {"scheduler": "pbt"}, "pbt perturbs inner.lr"),
        (RATES, {"scheduler": "pbt", "searcher": "optuna"}, "pbt starts at random; set"),
        (RATES, {"scheduler": "pbt", "rivals": ["per_layer"]}, "learnt rates cannot be perturbed"),
        (RATES, {"trackers": ["wandb"]}, r"tune.trackers = wandb: .* pip install 'distmeta\[wandb\]'"),
        (RATES, {"searchr": "grid"}, "unknown key 'tune.searchr'"),
    ],
)  # fmt: skip
def test_a_space_without_sense_is_refused_before_anything_starts(space, tune, expected, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InputError, match=expected) as raised:
        public_tune(small.config().model_dump(mode="json") | {"tune": {"space": space, **tune}})
    assert "\n" not in str(raised.value)
    assert list(tmp_path.iterdir()) == []


def test_draws_lie_in_their_ranges_and_depend_on_seed_and_number_alone():
    space = {
        "inner.lr": {"log_uniform": [0.01, 1.0]},
        "outer.lr": {"uniform": [0.001, 0.003]},
        "inner.momentum": {"uniform": [0.5, 0.9], "when": {"inner.optimizer": "momentum"}},
        "inner.optimizer": {"choice": ["sgd", "momentum"]},
        "inner.steps": {"integer": [1, 3]},
    }
    given = config(space, trials=200)
    axes = read_space(given)
    found = points(axes, given)
    rates = np.array([p["inner.lr"] for p in found])
    assert 0.01 <= rates.min() < 0.02 and 0.5 < rates.max() <= 1.0
    assert 0.3 < (rates < 0.1).mean() < 0.7  # half of the draws below the geometric mean: uniform in the logarithm
    assert {p["inner.steps"] for p in found} == {1, 2, 3}
    for point in found:
        assert ("inner.momentum" in point) == (point["inner.optimizer"] == "momentum")
        assert with_params(given, point).inner.lr == point["inner.lr"]
    assert points(axes, given)[7] == found[7] == draw_point(axes, 0, 7)
    assert draw_point(axes, 1, 7) != found[7]


def test_the_grid_has_every_combination_once():
    space = {
        "inner.lr": {"grid": [0.1, 0.2]},
        "inner.optimizer": {"choice": ["sgd", "momentum"]},
        "inner.steps": {"integer": [1, 3]},
        "inner.momentum": {"grid": [0.5, 0.9], "when": {"inner.optimizer": "momentum"}},
    }
    given = config(space, searcher="grid", trials=1)
    found = points(read_space(given), given)
    assert len(found) == 2 * 3 * (1 + 2)
    expected = {(lr, "sgd", s, None) for lr, s in itertools.product([0.1, 0.2], [1, 2, 3])}
    assert {tuple(p.get(k) for k in space) for p in found if p["inner.optimizer"] == "sgd"} == expected


def test_what_trials_share():
    """Learnt rates compete with constant ones; all adaptation step counts up to the largest are scored."""
    given = small.config(inner={"learn_lr": "scalar"}, tune={"space": {**RATES, "inner.steps": {"integer": [1, 7]}}})
    base = base_config(given)
    assert (base.inner.learn_lr, base.eval.steps, base.eval.every) == ("none", 7, 2)
    assert rivals(given) == ["per_layer"]
    alone = small.config(inner={"learn_lr": "scalar"}, tune={"space": RATES, "rivals": [], "adapt_steps": 9})
    assert (base_config(alone).inner.learn_lr, base_config(alone).eval.steps) == ("scalar", 9)
    population = small.config(tune={"space": RATES, "scheduler": "pbt"})
    assert rivals(population) == [] and base_config(population).run.checkpoint_every == 2


def test_optuna_is_told_the_scores_in_order_and_goes_where_they_are_good():
    given = config({**RATES, "inner.adapt": {"choice": ["all", "head"]}}, searcher="optuna", trials=12)
    axes = read_space(given)

    def score(params):
        return -abs(np.log10(params["inner.lr"]) + 0.5) - (params["inner.adapt"] == "head")

    told = []
    for number in range(30):
        params = ask(axes, given, number, told)
        assert params == ask(axes, given, number, told)
        told.append((params, score(params) if number != 3 else None))  # one failed
    late = [p for p, _ in told[15:]]
    assert np.mean([score(p) for p in late]) > np.mean([score(draw_point(axes, 9, n)) for n in range(200)]) + 0.3


def test_the_best_number_of_adaptation_steps():
    curves = {"accuracy": {"mean": [0.3, 0.7, 0.6], "low": [0.2, 0.6, 0.5], "high": [0.4, 0.8, 0.7]},
              "loss": {"mean": [1.0, 0.7, 0.6], "low": [0.9, 0.6, 0.5], "high": [1.1, 0.8, 0.7]}}  # fmt: skip
    found = best_count({"validation_curves": curves}, "accuracy", 2)
    assert (found["value"], found["low"], found["high"], found["adapt_steps"]) == (0.7, 0.6, 0.8, 1)
    assert best_count({"validation_curves": curves}, "loss", 2)["adapt_steps"] == 2
    alone = {"loss": {"mean": [0.6], "low": [0.5], "high": [0.7]}}
    assert best_count({"validation_curves": alone}, "loss", 7)["adapt_steps"] == 7


def test_the_section_is_kept_in_yaml(tmp_path):
    given = config(trials=3)
    assert make_config(yaml.safe_load(json.dumps(given.model_dump(mode="json")))) == given


def test_optuna_s_suggestions_come_while_others_run(monkeypatch):
    """Trial n waits for those before n - at_once + 1 alone, so that no place is empty."""
    told = {}
    monkeypatch.setattr(
        searcher, "ask", lambda axes, config, number, scores: told.setdefault(number, len(scores)) or {}
    )
    trials = [{"kind": "search", "params": {}} for _ in range(5)]
    search = searcher.InOrder(config(searcher="optuna"), [], trials, 3)
    assert [search.suggest(str(n))["number"] for n in range(3)] == [0, 1, 2] and search.suggest("3") is None
    search.on_trial_complete("1", {"accuracy": 0.5})
    assert search.suggest("3") is None  # it would not be the same whichever ends first
    search.on_trial_complete("0", {"accuracy": 0.5})
    assert search.suggest("3")["number"] == 3 and search.suggest("4")["number"] == 4  # while 2 runs
    assert told == {0: 0, 1: 0, 2: 0, 3: 1, 4: 2}
