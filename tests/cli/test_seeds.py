"""`distmeta train --seeds`, without its runs."""

import json
from types import SimpleNamespace

import pytest
from typer.testing import CliRunner

from distmeta.cli import app
from distmeta.cli.seeds import parse
from distmeta.errors import InputError


def test_each_seed_has_a_run_of_its_own_and_one_table_has_all(monkeypatch, tmp_path):
    begun = []

    def train(config, resume, show):
        begun.append((config.run.seed, config.run.name, config.run.dir, resume))
        scores = {"accuracy": {"mean": 0.8 + config.run.seed / 10}, "perplexity": {"mean": 1.1 + config.run.seed}}
        return SimpleNamespace(path=tmp_path, is_evaluated=True, evaluation={"meta_trained": scores})

    monkeypatch.setattr("distmeta.drive.train.train", train)
    shown = CliRunner().invoke(app, ["train", "default", "--seeds", "0,1", "--json"])
    scores = json.loads(shown.stdout)["evaluation"]["meta_trained"]
    assert scores["perplexity"]["low"] == 1  # no perplexity is less
    found = scores["accuracy"]
    assert found["mean"] == pytest.approx(0.85) and found["seeds"] == 2
    assert 0 <= found["low"] < 0.3 and found["high"] == 1.0  # one degree of freedom
    assert [one[:2] for one in begun] == [(0, "default-seed0"), (1, "default-seed1")]
    shown = CliRunner().invoke(app, ["train", "default", "--seeds", "3,4", "--run-dir", "x", "--resume"])
    assert "meta_trained" in shown.stdout
    assert [one[2:] for one in begun[2:]] == [("x/seed-3", True), ("x/seed-4", True)]


@pytest.mark.parametrize("text", ["", "1", "1,1", "a,b", "-1,2"])
def test_seeds_that_are_not_several_are_refused(text):
    with pytest.raises(InputError, match="--seeds"):
        parse(text, [])
    with pytest.raises(InputError, match="run.seed"):
        parse("0,1", ["run.seed=3"])
