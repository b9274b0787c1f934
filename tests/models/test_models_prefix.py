"""Nothing is run twice that cannot change, and nothing that is not read: with the same numbers as the whole model."""

import dataclasses

import numpy as np
import pytest
import small
import torch

from distmeta.config.algorithms import load_algorithm
from distmeta.inner import InnerLoop
from distmeta.learner.gradients import group_gradient
from distmeta.models.batch import to_batches
from distmeta.models.build import build_model
from distmeta.models.prefix import StateCache, fixed_prefix, is_frozen
from distmeta.tasks.episodes.collate import collate

VOCABULARY, PAD, CLASSES = 40, 0, 3
TOP = {
    "bert": r"layer\.2\..*(query|value|LayerNorm)",
    "gpt2": r"h\.2\.|ln_f",
    "llama": r"layers\.2\.|^backbone\.norm",
    "qwen2": r"layers\.2\..*mlp",
    "lstm": r"layers\.2\.",
}
THREE = {
    kind: {**config, ("n_layer" if kind == "gpt2" else "num_layers" if kind == "t5" else "num_hidden_layers"): 3}
    for kind, config in small.BACKBONES.items()
}


def build(kind, adapt, base="freeze", pooling="auto", **model):
    config = small.config(
        architecture=kind,
        inner={"adapt": adapt},
        outer={"base": base},
        model={"config": THREE[kind], "pooling": pooling, "lora_rank": 2, **model},
    )
    return build_model(config, VOCABULARY, PAD, CLASSES).double()


def parts(model, tasks=2, seed=0):
    """Support and query sets of two tasks, all examples different rows of a store."""
    sets = [small.rows([6] * tasks, VOCABULARY, CLASSES, seed=s, pad=PAD) for s in (seed, seed + 1)]
    numbers = iter(range(100))
    sets = [[dataclasses.replace(r, rows=np.array([next(numbers) for _ in r.rows])) for r in rows] for rows in sets]
    return tuple(to_batches(collate(rows, 2, PAD), "cpu", model.causal) for rows in sets)


def run(model, order, groups, cache=None):
    """(query loss, gradients) of a group of two tasks after three steps, every way that the learner has."""
    loop = InnerLoop(steps=3, lr=torch.tensor(0.3, dtype=torch.float64))
    result, grads = group_gradient(
        model, model.fast, model.shared, load_algorithm(order), loop, groups, ["a", "b"], cache
    )
    return result.loss, {**grads, "lr": result.lr_grads.sum(0)}


def same(kind, loss, found, expected_loss, expected):
    """Some families round their softmax and norms to float32 whatever their dtype."""
    tolerance = 1e-5 if kind in ("llama", "qwen2", "t5") else 1e-10
    torch.testing.assert_close(loss, expected_loss, rtol=tolerance, atol=0)
    assert found.keys() == expected.keys()
    largest = max(float(value.abs().max()) for value in expected.values())
    for name, value in expected.items():
        torch.testing.assert_close(found[name], value, rtol=tolerance, atol=tolerance * largest, msg=name)


def whole(model):
    """The same model, never run in part."""
    model.entry, model.prefix_shared, model.layers.can_prune, model.entry_is_pooled = 0, (), False, False
    return model


@pytest.mark.parametrize("order", ["maml", "fomaml"])
@pytest.mark.parametrize("base", ["freeze", "train"])
@pytest.mark.parametrize(
    ("kind", "adapt"), [(kind, adapt) for kind in TOP for adapt in (TOP[kind] + "|^head", "head")] + [("t5", "head")]
)
def test_with_and_without_a_prefix(kind, adapt, base, order):
    model = build(kind, adapt, base)
    assert model.entry == (3 if adapt == "head" else 2)
    assert bool(model.prefix_shared) == (base == "train")
    loss, found = run(model, order, parts(model))
    expected_loss, expected = run(whole(build(kind, adapt, base)), order, parts(model))
    same(kind, loss, found, expected_loss, expected)
    if base == "train":  # the meta-learnt prefix has a gradient, which first order has in part only
        assert max(float(found[name].abs().max()) for name in model.prefix_shared) > 1e-6


@pytest.mark.parametrize("pooling", ["first", "last"])
@pytest.mark.parametrize("kind", ["bert", "gpt2", "llama", "qwen2"])
def test_the_last_layer_runs_the_rows_that_are_read(kind, pooling):
    model = build(kind, "all", pooling=pooling)
    assert model.layers.can_prune
    seen = []
    up = {"bert": "intermediate", "gpt2": "mlp", "llama": "mlp", "qwen2": "mlp"}[kind]
    getattr(model.layers.layers[-1], up).register_forward_hook(lambda m, args, out: seen.append(out.shape[1]))
    loss, found = run(model, "maml", parts(model))
    assert seen and set(seen) == {1}
    expected_loss, expected = run(whole(build(kind, "all", pooling=pooling)), "maml", parts(model))
    same(kind, loss, found, expected_loss, expected)


def test_layers_that_cannot_be_run_in_part_are_run():
    """T5's layers pass a tuple on."""
    model = build("t5", r"block\.2\.")
    assert model.entry == 0 and not model.layers.can_enter
    assert run(model, "maml", parts(model))[0].isfinite().all()


def test_the_prefix_runs_once():
    model = build("bert", TOP["bert"])
    calls = []
    model.layers.layers[0].attention.register_forward_hook(lambda *_: calls.append(1))
    groups = parts(model)
    run(model, "maml", groups)
    assert len(calls) == sum(len(part) for part in groups)


@pytest.mark.parametrize(("kind", "adapt"), [("bert", TOP["bert"]), ("gpt2", TOP["gpt2"]), ("llama", "head")])
def test_states_of_examples_are_kept_across_meta_steps(kind, adapt):
    model = build(kind, adapt)
    assert is_frozen(model)
    cache = StateCache(100, 1.0)
    expected = run(model, "maml", parts(model))
    first = run(model, "maml", parts(model), cache)
    assert (cache.hits, cache.misses) == (0, 24)
    before = cache.misses
    again = run(model, "maml", parts(model), cache)
    assert cache.misses == before
    for loss, grads in (first, again):
        torch.testing.assert_close(loss, expected[0], rtol=1e-9, atol=1e-12)
        for name, value in expected[1].items():
            torch.testing.assert_close(grads[name], value, rtol=1e-6, atol=1e-9, msg=name)


def test_a_full_cache_keeps_what_it_has_and_runs_the_rest():
    model = build("bert", TOP["bert"])
    (group,) = small.rows([12], VOCABULARY, CLASSES, seed=3)
    batches = to_batches(collate([group], 3, PAD), "cpu", model.causal)
    whole = fixed_prefix(model, {}, batches)
    half = int(sum(int(b.last.sum()) + len(b.last) for b in batches) * 0.6)
    cache = StateCache(100, half * 16 * 8 / 2**20)
    for _ in range(2):
        found = fixed_prefix(model, {}, batches, cache)
        for a, b in zip(found, whole, strict=True):
            torch.testing.assert_close(a.states * b.keep.unsqueeze(-1), b.states * b.keep.unsqueeze(-1))
    assert 0 < cache.used <= half and cache.hits > 0


@pytest.mark.parametrize("head", ["linear", "prototype"])
@pytest.mark.parametrize(("kind", "adapt"), [("bert", "lora"), ("gpt2", "all"), ("llama", TOP["llama"])])
def test_a_group_of_one_task_is_run_without_a_task_axis(kind, adapt, head):
    """With the numbers that it has beside another: the sums over two groups are those over one of both."""
    model = build(kind, adapt, "train", head=head)
    loop = InnerLoop(steps=2, lr=torch.tensor(0.1, dtype=torch.float64))
    sets = [small.rows([6] * 2, VOCABULARY, CLASSES, seed=s, pad=PAD) for s in (0, 1)]

    def run(*tasks):
        groups = tuple(to_batches(collate([rows[t] for t in tasks], 1, PAD), "cpu", model.causal) for rows in sets)
        result, grads = group_gradient(
            model, model.fast, model.shared, load_algorithm("maml"), loop, groups, [str(t) for t in tasks]
        )
        return result.loss.sum(), {
            **grads,
            "lr": result.lr_grads.sum(),
            "inner": result.inner_losses.view(-1, 3).sum(0),
        }

    loss, found = run(0, 1)
    apart = [run(t) for t in (0, 1)]
    same(kind, loss, found, sum(a for a, _ in apart), {name: apart[0][1][name] + apart[1][1][name] for name in found})
