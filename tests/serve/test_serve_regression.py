"""Models of functions: the network, the loss, the inner loop, and every verb that takes a checkpoint."""

import json
import math
import re

import numpy as np
import pytest
import small
import torch
import torch.nn.functional as F
from serving import Server
from torch import nn

from distmeta.cli.adapting import check_lora
from distmeta.errors import InputError
from distmeta.evaluation.adapt import adapt, load_adapted
from distmeta.evaluation.evaluate import evaluate, store_of
from distmeta.evaluation.fine_tuning import merit
from distmeta.evaluation.many import adapt_each
from distmeta.evaluation.regression import RegressionScored
from distmeta.export.export import export
from distmeta.inner import InnerLoop, meta_gradient
from distmeta.models.build import build_model
from distmeta.runs import checkpoint
from distmeta.serve.batches import Base
from distmeta.tasks import regression
from distmeta.tasks.episodes.episode import sample_episode

SECTIONS = {
    "architecture": "mlp", "model": {"dimensions": [2, 1]},
    "task": {"family": "regression", "shots": 4, "queries": 3}, "inner": {"lr": 0.05, "steps": 3},
    "data": {"fractions": [0.34, 0.33, 0.33]},
}  # fmt: skip


def build(**sections):
    return build_model(small.config(**SECTIONS, **sections), 2, 0, 1)


def part(seed, tasks=1, n=5):
    numbers = np.random.default_rng(seed).normal(size=(tasks * n, 3))
    ids = regression.tokens(numbers.tolist()).reshape(tasks, n, 3).astype(np.int64)
    rows = np.tile(np.arange(n), (tasks, 1))
    return {"input_ids": ids, "attention_mask": np.ones_like(ids), "labels": 0 * rows, "rows": rows,
            "store_rows": rows, "total": n}  # fmt: skip


def plain(params):
    """The network that torch would have, of a model's parameters."""
    layers = [nn.Linear(2, 6), nn.ReLU(), nn.Linear(6, 6), nn.ReLU(), nn.Linear(6, 1)]
    names = ["backbone.layers.0.linear.", "backbone.layers.1.linear.", "head_"]
    for layer, name in zip(layers[::2], names, strict=True):
        layer.load_state_dict({key: params[name + key].detach().clone() for key in ("weight", "bias")})
    return nn.Sequential(*layers)


def stepped(network, x, y, lr, steps):
    """The losses before each step of gradient descent, and at last."""
    losses = []
    for _ in range(steps + 1):
        loss = F.mse_loss(network(x), y)
        losses.append(loss.item())
        for p, g in zip(network.parameters(), torch.autograd.grad(loss, list(network.parameters())), strict=True):
            p.data.sub_(lr * g if len(losses) <= steps else 0)
    return losses


def test_the_loss_is_torch_s_squared_error_of_the_network():
    model = build()
    (batch,) = model.batches([part(0)], "cpu")
    numbers = torch.tensor(np.random.default_rng(0).normal(size=(5, 3)), dtype=torch.float32)
    expected = F.mse_loss(plain(model.fast)(numbers[:, :2]), numbers[:, 2:])
    torch.testing.assert_close(model.loss(model.fast, batch)[0], expected)


@pytest.mark.parametrize("adapt_what", ["all", "head", "lora"])
def test_the_exact_meta_gradient_of_functions_is_that_of_differences(adapt_what):
    model = build_model(small.config(**{
        **SECTIONS, "model": {**SECTIONS["model"], "lora_targets": "all-linear"},
        "inner": {"lr": 0.05, "steps": 3, "adapt": adapt_what},
    }), 2, 0, 1).double()  # fmt: skip
    support, query = (model.batches([part(seed)], "cpu") for seed in (1, 2))
    shared = {name: value.detach() for name, value in model.shared.items()}
    fast = {name: value.detach() + 0.01 for name, value in model.fast.items()}
    loop = InnerLoop(steps=3, lr=0.05)

    def after(params):
        return meta_gradient(lambda p, b: model.loss(p, b).sum(), params, support, query, loop, "exact", shared=shared)

    direction = {n: torch.randn(v.shape, dtype=v.dtype, generator=torch.Generator().manual_seed(0))
                 for n, v in fast.items()}  # fmt: skip
    ends = [after({n: v + e * direction[n] for n, v in fast.items()}).loss for e in (1e-6, -1e-6)]
    along = sum((g * direction[n]).sum() for n, g in after(fast).grads.items())
    torch.testing.assert_close(along, (ends[0] - ends[1]) / 2e-6, rtol=1e-5, atol=1e-8)


def test_functions_with_weights_of_their_own_run_together():
    model = build()
    assert model.takes_task_axis
    (both,) = model.batches([part(3, tasks=2)], "cpu")
    own = [{n: v + 0.1 * t for n, v in model.fast.items()} for t in range(2)]
    found = model.loss({n: torch.stack([w[n] for w in own]) for n in own[0]}, both)
    for t in range(2):
        alone = {n: v[t : t + 1] if isinstance(v, np.ndarray) else v for n, v in part(3, tasks=2).items()}
        torch.testing.assert_close(found[t], model.loss(own[t], model.batches([alone], "cpu")[0])[0])


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """A checkpoint over the functions x -> k x0 + x1, and the points of one that is new."""
    place, rng = tmp_path_factory.mktemp("functions"), np.random.default_rng(0)
    rows = [{"input": x, "target": k * x[0] + x[1], "task": f"f{k}"}
            for k in range(6) for x in rng.normal(size=(9, 2)).tolist()]  # fmt: skip
    (place / "rows.jsonl").write_text("\n".join(map(json.dumps, rows)))
    sections = {**SECTIONS, "data": {**SECTIONS["data"], "cache": str(place / "cache")}}
    folder = small.checkpoint_of(place / "step-000001", place / "rows.jsonl", **sections)
    new = [{"input": x, "target": [9 * x[0] - x[1]]} for x in rng.normal(size=(6, 2)).tolist()]
    return folder, new


def test_an_evaluation_is_gradient_descent_on_each_function_s_points(saved):
    folder, _ = saved
    found = evaluate(folder, episodes=3, baselines=True)
    assert list(found.methods) == ["meta_trained", "no_adaptation", "fine_tuned", "multi_task"]
    trained = checkpoint.load(folder)
    store = store_of(trained, trained.config)
    curves = []
    for i in range(3):
        episode = sample_episode(store, trained.config.task, trained.config.run.seed, "test", i)
        support, query = (torch.tensor(rows.tokens.reshape(-1, 3).view(np.float32)) for rows in
                          (episode.support, episode.query))  # fmt: skip
        network, curve = plain(trained.meta), []
        for k in range(4):
            curve.append(F.mse_loss(network(query[:, :2]), query[:, 2:]).item())
            stepped(network, support[:, :2], support[:, 2:], 0.05, 1 if k < 3 else 0)
        curves.append(curve)
    scores = found.methods["meta_trained"]["loss"]
    np.testing.assert_allclose(scores["curve"], np.mean(curves, 0), rtol=1e-4)
    assert scores["low"] <= scores["mean"] <= scores["high"]


def test_a_new_function_is_adapted_to_predicted_saved_and_served(saved, tmp_path):
    folder, rows = saved
    adapted = adapt(folder, rows)
    trained = checkpoint.load(folder)
    x, y = (torch.tensor([row[key] for row in rows]) for key in ("input", "target"))
    network = plain(trained.meta)
    np.testing.assert_allclose(adapted.inner_losses, stepped(network, x, y, 0.05, 3), rtol=1e-4)
    found = adapted.predict([row["input"] for row in rows])
    np.testing.assert_allclose([one["target"] for one in found], network(x).tolist(), rtol=1e-4, atol=1e-6)
    adapted.save(tmp_path / "task")
    assert load_adapted(tmp_path / "task").predict([json.dumps(rows[0]["input"])]) == found[:1]
    with pytest.raises(InputError, match="input 1 has 1 numbers, and model.dimensions says 2"):
        adapted.predict([[1, 2], 3])

    (tmp_path / "many.jsonl").write_text("\n".join(json.dumps(row | {"who": "a"}) for row in rows))
    ((name, one),) = adapt_each(folder, str(tmp_path / "many.jsonl"), "who")
    assert name == "a" and one.predict([rows[0]["input"]]) == found[:1]

    with Server(Base(folder), tmp_path / "tasks") as server:
        task = server.ask("POST", "/tasks", {"support": rows})
        assert task.status == 201, task.error
        place = f"/tasks/{task.json['task']}/predict"
        answer = server.ask("POST", place, {"inputs": [row["input"] for row in rows]})
        np.testing.assert_allclose([one["target"] for one in answer.json["predictions"]],
                                   [one["target"] for one in found], rtol=1e-5)  # fmt: skip
        for wrong in ("1", [True, 1], []):
            assert server.ask("POST", place, {"inputs": [wrong]}).status == 400
        refused = server.ask("POST", place, {"inputs": [[1.0]]})
        assert refused.status == 400 and "model.dimensions says 2" in refused.error


def test_an_export_of_a_function_is_the_network(saved, tmp_path):
    folder, rows = saved
    adapted = adapt(folder, rows)
    out = export(adapted.save(tmp_path / "task"), tmp_path / "out")
    code = re.search("```python\n(.*?)```", (out / "README.md").read_text(), re.S)[1]
    x = torch.tensor([row["input"] for row in rows])
    namespace = {"folder": str(out), "x": x, "print": lambda scores: namespace.update(scores=scores)}
    exec(re.sub("torch.zeros.*", "x", code), namespace)
    expected = [one["target"] for one in adapted.predict([row["input"] for row in rows])]
    np.testing.assert_allclose(namespace["scores"].tolist(), expected, rtol=1e-4, atol=1e-6)


def test_a_way_to_fine_tune_that_diverges_is_worse_than_any_error():
    found = merit([RegressionScored("f", ("target",), np.array([500.0, 900.0, math.nan]))])
    assert found[0] > found[1] >= found[2]


def test_what_functions_cannot_do_says_so(saved, tmp_path):
    folder, _ = saved
    with pytest.raises(InputError, match="export: --quantise int8 is for models of texts"):
        export(folder, tmp_path / "out", quantise="int8")
    with pytest.raises(InputError, match="--peft writes adapters of models of texts"):
        check_lora(str(folder), "best")
    with pytest.raises(InputError, match="support, example 0: 'target'"):
        adapt(folder, [{"input": [1, 2]}])
