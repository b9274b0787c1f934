"""A torch.nn.Module of the user's own: in training as any model, and never run because a checkpoint names it."""

import json
import os
import sys

import numpy as np
import pytest
import small
import torch
import torch.nn.functional as F

import distmeta
from distmeta.config import load_config, make_config
from distmeta.config.modules import TRUSTED
from distmeta.errors import InputError
from distmeta.evaluation.adapt import adapt, load_adapted
from distmeta.evaluation.evaluate import evaluate
from distmeta.inner import InnerLoop, meta_gradient
from distmeta.models.build import build_model
from distmeta.models.trial import check_model
from distmeta.tasks import regression

CODE = """
import torch
from torch import nn

def mlp(width=6):
    return nn.Sequential(nn.Linear(2, width), nn.ReLU(), nn.Linear(width, width), nn.ReLU())

class Gaussian(nn.Module):
    def __init__(self):
        super().__init__()
        self.body = nn.Sequential(nn.Linear(2, 6), nn.Tanh(), nn.Linear(6, 2))
    def forward(self, x):
        return self.body(x)
    def loss(self, outputs, targets):
        return outputs[:, 1] + (outputs[:, 0] - targets[:, 0]) ** 2 * (-2 * outputs[:, 1]).exp() / 2
    def predict(self, outputs):
        return outputs[:, :1]

class Wide(nn.Linear):
    def loss(self, outputs, targets):
        return (outputs - targets).square().mean(1)

def convolutions():
    return nn.Sequential(nn.Conv2d(1, 4, 3, 2), nn.BatchNorm2d(4), nn.ReLU())

wide = lambda: Wide(2, 3)
text = lambda: "no module"
fails = lambda: 1 / 0
narrow = lambda: nn.Linear(3, 4)
"""


@pytest.fixture(autouse=True)
def theirs(tmp_path, monkeypatch):
    """A module of the user's on the path, and no trust of any."""
    (tmp_path / "their_models.py").write_text(CODE)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setenv(TRUSTED, "")
    yield
    sys.modules.pop("their_models", None)


def config(name, **sections):
    base = {"model": {"module": f"their_models:{name}", "dimensions": [2, 1]}, "task": {"family": "regression"},
            "inner": {"lr": 0.05, "steps": 2}}  # fmt: skip
    return make_config({**base, **sections})


def part(seed, tasks=1, n=5):
    ids = regression.tokens(np.random.default_rng(seed).normal(size=(tasks * n, 3)).tolist()).reshape(tasks, n, 3)
    rows = np.tile(np.arange(n), (tasks, 1))
    return {"input_ids": ids.astype(np.int64), "attention_mask": np.ones_like(ids), "labels": 0 * rows, "rows": rows,
            "store_rows": rows, "total": n}  # fmt: skip


def test_a_module_stands_in_the_place_of_the_built_in_network():
    own = build_model(config("mlp"), 2, 0, 1)
    built_in = make_config({"model": {"dimensions": [2, 1], "config": {"hidden_size": 6, "num_hidden_layers": 2}},
                            "task": {"family": "regression"}})  # fmt: skip
    other = build_model(built_in, 2, 0, 1)
    assert own.takes_task_axis and own.fast.keys() - {"head_weight", "head_bias"} == {
        f"backbone.module.{i}.{name}" for i in (0, 2) for name in ("weight", "bias")
    }
    fast = dict(zip(own.fast, other.fast.values(), strict=True))
    (mine,), (theirs,) = (model.batches([part(0, tasks=2)], "cpu") for model in (own, other))
    torch.testing.assert_close(own.loss(fast, mine), other.loss(other.fast, theirs))
    assert build_model(config("mlp", model={**config("mlp").model.model_dump(), "config": {"width": 9}}), 2, 0, 1
                       ).width == 9  # fmt: skip


def test_a_loss_of_its_own_is_learnt_by_and_its_exact_meta_gradient_is_that_of_differences():
    model = build_model(config("Gaussian"), 2, 0, 1).double()
    support, query = (model.batches([part(seed)], "cpu") for seed in (1, 2))
    outputs = model.logits(model.fast, query[0])[0]
    numbers = torch.tensor(np.random.default_rng(2).normal(size=(5, 3)), dtype=torch.float32).double()
    expected = F.gaussian_nll_loss(outputs[:, 0], numbers[:, 2], (2 * outputs[:, 1]).exp())
    torch.testing.assert_close(model.loss(model.fast, query[0])[0], expected)
    assert not [name for name in model.fast if "head" in name]
    assert torch.equal(model.answers(model.fast, query[0])[0], outputs[:, :1])
    loop, fast = InnerLoop(steps=2, lr=0.05), {n: v.detach() for n, v in model.fast.items()}

    def after(params):
        return meta_gradient(lambda p, b: model.loss(p, b).sum(), params, support, query, loop, "exact")

    direction = {n: torch.ones_like(v) for n, v in fast.items()}
    ends = [after({n: v + e * direction[n] for n, v in fast.items()}).loss for e in (1e-6, -1e-6)]
    along = sum((g * direction[n]).sum() for n, g in after(fast).grads.items())
    torch.testing.assert_close(along, (ends[0] - ends[1]) / 2e-6, rtol=1e-5, atol=1e-8)


def test_a_module_of_images_with_batch_norm_reads_a_set_whole():
    c = make_config({"model": {"module": "their_models:convolutions", "image": [1, 8, 8]}, "task": {"ways": 3}})
    model = build_model(c, 257, 256, 3)
    assert model.width == 4 and model.reads_sets and not model.takes_task_axis
    assert c.model.config == {}


@pytest.mark.parametrize(("name", "why"), [
    ("nothing", "their_models:nothing: cannot be imported: .*no attribute"),
    ("text", "gives str; it must give a torch.nn.Module"),
    ("fails", "fails: ZeroDivisionError"),
    ("narrow", r"fails at rows \[3, 2\]"),
    ("wide", r"1 numbers \(model.dimensions\)|its loss fails"),
])  # fmt: skip
def test_a_module_that_does_not_fit_is_refused_before_anything_starts(name, why, tmp_path):
    with pytest.raises(InputError, match=why):
        check_model(config(name), tmp_path)


@pytest.mark.parametrize(("sections", "why"), [
    ({"task": {"family": "domain"}, "model": {"module": "a:b"}}, "it reads images or vectors"),
    ({"model": {"module": "no path", "dimensions": [2, 1]}}, "an import path is package.module:function"),
    ({"model": {"module": "a:b", "dimensions": [2, 1], "dropout": 0.1}}, "give the function a rate"),
])  # fmt: skip
def test_what_does_not_go_with_a_module_is_refused(sections, why):
    with pytest.raises(InputError, match=why):
        config("mlp", **sections)
    assert "their_models" not in sys.modules  # a configuration alone runs nothing


def test_a_checkpoint_does_not_run_the_code_it_names_until_the_user_names_it_too(tmp_path, monkeypatch):
    rows = [{"input": [k, i], "target": k * i, "task": f"f{k}"} for k in range(6) for i in range(9)]
    (tmp_path / "rows.jsonl").write_text("\n".join(map(json.dumps, rows)))
    sections = {"model": {"module": "their_models:mlp", "dimensions": [2, 1], "config": None},
                "task": {"family": "regression", "shots": 3, "queries": 3},
                "data": {"fractions": [0.34, 0.33, 0.33], "cache": str(tmp_path)}}  # fmt: skip
    monkeypatch.setitem(small.BACKBONES, "none", None)
    run = small.checkpoint_of(tmp_path / "step-000001", tmp_path / "rows.jsonl", architecture="none", **sections)
    support = [{"input": [1, i], "target": i} for i in range(3)]
    distmeta.trust_module("their_models:mlp")
    adapt(run, support).save(tmp_path / "task")
    os.environ[TRUSTED] = "other:thing"
    del sys.modules["their_models"]
    verbs = [lambda: evaluate(run, episodes=2), lambda: adapt(run, support), lambda: load_adapted(tmp_path / "task")]
    for opens in verbs:
        with pytest.raises(InputError, match="made by code of their_models:mlp .* distmeta --module their_models:mlp"):
            opens()
    assert "their_models" not in sys.modules
    done = small.command("--module", "their_models:mlp", "evaluate", str(run), "--episodes", "2", cwd=tmp_path)
    assert done.returncode == 0 and "their_models" in sys.modules, done.stderr
    with pytest.raises(InputError, match="an import path is"):
        distmeta.trust_module("no path")


def test_a_recipe_takes_a_module_in_the_place_of_its_own_network():
    c = load_config("sinusoid", ["model.module=their_models:mlp", "model.config={width: 8}"])
    assert c.model.config == {"width": 8} and c.model.dimensions == (1, 1)
