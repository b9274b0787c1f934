"""bench inner --plan: what a few layers say of the whole model is what the whole model takes."""

import functools
import json

import pytest
import small
from typer.testing import CliRunner

import distmeta.bench.plan as plans
from distmeta.bench.inner import gradients, load_subject
from distmeta.bench.measure import live_peak
from distmeta.bench.plan import COPIES, advice, line, plan, sentences
from distmeta.cli import app
from distmeta.config.algorithms import load_algorithm
from distmeta.errors import InputError

DEEP = {"gpt2": {"n_embd": 32, "n_layer": 8, "n_head": 2, "n_positions": 64}}


def configured(path, **sections):
    base = {
        "model": {"config": DEEP["gpt2"], "max_tokens": 24},
        "inner": {"adapt": "lora", "steps": 2}, "outer": {"base": "freeze", "meta_batch_size": 2},
        "cluster": {"workers": 1},
    }  # fmt: skip
    for name, values in sections.items():
        base[name] = {**base.get(name, {}), **values} if isinstance(values, dict) else values
    return small.config(path, "gpt2", **base)


@pytest.fixture(autouse=True)
def _rate(monkeypatch):
    """The machine's rate is another test's."""
    monkeypatch.setattr(plans.measure, "matrix_rate", lambda **_: 1e12)


@pytest.mark.parametrize("algorithm", ["maml", "fomaml"])
def test_bytes_are_those_of_the_whole_model(algorithm, words_csv):
    config = configured(words_csv, algorithm=algorithm)
    planned = plan(config)
    whole = load_subject(config)
    learnt = sum(v.numel() for v in (*whole.model.fast.values(), *whole.model.shared.values()))
    frozen = sum(v.numel() * 4 for v in whole.model.parameters()) - 4 * learnt
    assert planned["bytes"]["base"] == frozen and planned["bytes"]["meta_parameters"] == 4 * learnt * COPIES
    assert planned["bytes"]["optimizer"] == 8 * learnt
    run = functools.partial(gradients, whole, load_algorithm(algorithm))
    run()  # the first one measures what a token takes
    assert planned["bytes"]["meta_gradient"] == pytest.approx(live_peak(run), rel=0.02)
    assert planned["seconds"] > planned["floor_s"] > 0 and planned["layers"] == 8


def test_what_does_not_fit_is_told_with_what_to_change(words_csv, monkeypatch):
    monkeypatch.setattr(plans, "memory_available", lambda device: 1000)
    config = configured(words_csv, model={"config": {**DEEP["gpt2"], "n_layer": 1}})
    planned = plan(config)
    lines = sentences(planned)
    assert not planned["fits"] and lines[-1].startswith("it does not fit") and planned["advice"] in lines[-1]
    assert advice(config, {"base": 1.0, "meta_gradient": 2.0}, False).startswith("lower inner.part_tokens")
    assert "stage=3" in advice(config, {"base": 3.0, "meta_gradient": 2.0}, False)
    assert "model.lora_rank" in advice(config, {"base": 1.0, "optimizer": 2.0}, False)
    assert line([2, 6], [10.0, 18.0], 30) == 66.0


def test_the_command_prints_it_and_refuses_a_group(words_csv):
    given = [
        "bench",
        "inner",
        "--plan",
        f"data.path={words_csv}",
        "task.shots=2",
        "task.queries=3",
        "model.max_tokens=16",
    ]
    shown = CliRunner().invoke(app, [*given, "--json", "-q"])
    assert {"bytes", "seconds", "fits", "advice"} <= set(json.loads(shown.stdout)), shown.output
    with pytest.raises(InputError, match="--plan is of ranks that have whole episodes"):
        group = {"cluster": {"episode": "group"}, "deepspeed": {"zero_optimization": {"stage": 3}}}
        plan(small.config(words_csv, algorithm="fomaml", inner={"adapt": "all"}, **group))
