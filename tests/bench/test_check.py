"""`distmeta check` says what is exact, and notices what is not."""

import dataclasses
import json
import sys

import pytest
import small
import torch

from distmeta import cli
from distmeta.algorithms import maml
from distmeta.bench import check as checks
from distmeta.errors import InputError
from distmeta.models import recompute
from distmeta.models.task_model import TaskModel
from distmeta.tasks.build import build_store
from distmeta.tasks.store import open_store

VARIANTS = {
    "bert": ("bert", {}, ["exact second order"]),
    "learnt rates, lora": (
        "llama",
        {"inner": {"learn_lr": "per_layer", "adapt": "lora"}, "outer": {"base": "train"}},
        ["exact second order"] * 3,
    ),
    "prototype head, adam": (
        "gpt2",
        {"model": {"head": "prototype"}, "inner": {"optimizer": "adam", "lr": 0.01, "learn_lr": "per_step"}},
        ["exact second order"] * 3,
    ),
    "dropout": ("t5", {"model": {"dropout": 0.2}}, ["exact second order"]),
    "first order": ("bert", {"algorithm": "fomaml", "inner": {"learn_lr": "scalar"}}, ["first order"] * 2),
    "reptile": ("qwen2", {"algorithm": "reptile"}, ["theta - theta_K"]),
}


def setting(path, architecture="bert", **sections):
    config = checks.small_version(small.config(path, architecture, **sections), 2)
    return config, open_store(build_store(config.data, config.task, config.model))


@pytest.mark.parametrize("variant", VARIANTS)
def test_what_an_algorithm_claims_is_found(variant, words_csv):
    architecture, sections, verdicts = VARIANTS[variant]
    config, store = setting(words_csv, architecture, **sections)
    found = checks.check_meta_gradient(config, store)
    assert [f.verdict for f in found] == verdicts
    assert all(f.agrees for f in found), found
    assert all(f.agrees for f in checks.check_equivalents(config, store))


def test_layers_and_attention_are_compared_on_the_user_s_model(words_csv, monkeypatch):
    few = {"task": {"shots": 1, "queries": 1}, "inner": {"steps": 1, "memory": "layers"}}
    config, store = setting(words_csv, "llama", **few)
    compared = {f.subject: f for f in checks.check_equivalents(config, store)}
    assert compared["layers run again against kept"].error < 1e-9
    assert compared["attention in blocks against transformers' own"].agrees
    real = recompute._Gradient.apply  # half a gradient in each layer
    monkeypatch.setattr(recompute._Gradient, "apply", lambda *a: [g if g is None else g / 2 for g in real(*a)])
    monkeypatch.setattr(TaskModel, "why_not_again", None)
    assert not {f.subject: f for f in checks.check_equivalents(config, store)}["layers run again against kept"].agrees


def test_it_says_what_auto_makes_of_a_budget(words_csv):
    layers = {"config": {**small.BACKBONES["bert"], "num_hidden_layers": 3}}
    for budget, expected in ((2048, "2 of 2 inner steps kept, 0 of 3 "), (0.001, "0 of 2 inner steps kept, 3 of 3 ")):
        config = small.config(words_csv, model=layers, inner={"budget_mb": budget})
        store = open_store(build_store(config.data, config.task, config.model))
        assert expected in checks.memory_finding(config, store).verdict
    assert "kept" not in checks.memory_finding(small.config(words_csv, algorithm="fomaml"), store).verdict


def test_first_order_is_told_from_exact(words_csv, monkeypatch):
    """MAML that leaves the second derivatives out; and the true one, whose distance from it is large."""
    config, store = setting(words_csv, inner={"learn_lr": "scalar"})
    true = checks.check_meta_gradient(config, store)
    assert all(float(f.note.split()[3]) > 100 * f.error for f in true)
    monkeypatch.setattr(maml, "meta_gradient", checks.fomaml.meta_gradient)
    found = checks.check_meta_gradient(config, store)
    assert [f.agrees for f in found] == [False, False]
    assert found[0].verdict == "not the derivative of the query loss"


def test_a_wrong_reptile_is_noticed(words_csv, monkeypatch):
    config, store = setting(words_csv, algorithm="reptile")
    algorithm = checks.load_algorithm("reptile")
    right = algorithm.meta_gradient

    def wrong(*words, **options):
        result = right(*words, **options)
        return dataclasses.replace(result, grads={n: g * 1.001 for n, g in result.grads.items()})

    monkeypatch.setattr(algorithm, "meta_gradient", wrong)
    assert [f.agrees for f in checks.check_meta_gradient(config, store)] == [False]


class Ranks:
    """Stands for the processes: their result is one process' own, changed."""

    def __init__(self, change):
        self.change = change

    def result(self):
        return self.change


def test_a_wrong_scale_of_the_sharded_gradient_is_noticed(words_csv):
    config, store = setting(words_csv)
    _, after, norms = checks.plain_steps(config, store)
    assert all(f.agrees for f in checks.check_sharded(config, store, Ranks((after, norms))))
    scaled, _, _ = checks.plain_steps(config.model_copy(update={"deepspeed": {**config.deepspeed,
        "gradient_clipping": 0.9 * min(norms)}}), store), None, None  # fmt: skip
    found = checks.check_sharded(config, store, Ranks((scaled[1], [2 * n for n in norms])))
    assert [f.agrees for f in found] == [False, False]


@pytest.fixture
def without_ranks(monkeypatch):
    class Nothing:
        def __init__(self, *words):
            pass

        def __enter__(self):
            return self

        def __exit__(self, *error):
            pass

    monkeypatch.setattr(checks, "ShardedGroup", Nothing)
    monkeypatch.setattr(checks, "check_sharded", lambda *words: [])


def test_exit_1_and_its_row_where_something_differs(words_csv, tmp_path, monkeypatch, without_ranks, capsys):
    import yaml

    (tmp_path / "tiny.yaml").write_text(yaml.safe_dump(small.config(words_csv).model_dump(mode="json")))
    right = maml.meta_gradient

    def wrong(*words, **options):
        result = right(*words, **options)
        return dataclasses.replace(result, grads={n: g + 1e-3 * torch.sign(g) for n, g in result.grads.items()})

    for algorithm, code in ((wrong, 1), (right, 0)):
        monkeypatch.setattr(maml, "meta_gradient", algorithm)
        monkeypatch.setattr(sys, "argv", ["distmeta", "check", str(tmp_path / "tiny.yaml")])
        try:
            cli.main()
            ended = 0
        except SystemExit as end:
            ended = end.code or 0
        assert ended == code
        assert ("DIFFERS" in capsys.readouterr().out) == (code == 1)


def test_numbers_that_are_none_do_not_agree():
    assert not checks.Finding("x", "y", float("nan"), 1.0).agrees
    assert checks.report([checks.Finding("x", "y", float("nan"), 1.0)])["findings"][0]["error"] is None


def test_one_rank_is_refused():
    with pytest.raises(InputError, match="2 ranks or more"):
        checks.check(small.config(), ranks=1)


@pytest.mark.long
def test_the_command_with_its_ranks(words_csv, tmp_path):
    import yaml

    tiny = small.config(words_csv, deepspeed={"zero_optimization": {"stage": 2}, "gradient_clipping": 0.05})
    (tmp_path / "tiny.yaml").write_text(yaml.safe_dump(tiny.model_dump(mode="json")))
    done = small.cli("check", "tiny.yaml", "--json", cwd=tmp_path)
    assert done.returncode == 0, done.stderr[-3000:]
    found = json.loads(done.stdout)
    assert found["agrees"] is True and "Warning" not in done.stderr
    sharded = [f for f in found["findings"] if f["subject"].startswith("ZeRO stage 2, 2 ranks")]
    assert len(sharded) == 2 and all(f["error"] <= f["limit"] for f in sharded)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["tiny.yaml"]
