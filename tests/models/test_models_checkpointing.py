"""Layers that are run again on the way back: the same gradients from less memory, at first order alone."""

import pytest
import small
import torch

from distmeta.config.algorithms import load_algorithm
from distmeta.errors import InputError
from distmeta.inner import InnerLoop
from distmeta.learner.gradients import group_gradient
from distmeta.models.backbone import set_attention
from distmeta.models.batch import to_batches
from distmeta.models.build import build_model
from distmeta.tasks.episodes.collate import collate

VOCABULARY, PAD, CLASSES = 40, 0, 3


def run(kind, algorithm, adapt, again, dropout=0.0, layers=3):
    """(gradients, query loss, bytes that are kept at once by the graphs) of a group of two tasks."""
    count = {"gpt2": "n_layer", "t5": "num_layers"}.get(kind, "num_hidden_layers")
    config = small.config(
        architecture=kind, algorithm=algorithm, inner={"adapt": adapt},
        model={"config": {**small.BACKBONES[kind], count: layers}, "pooling": "mean", "dropout": dropout,
               "activation_checkpointing": again},
    )  # fmt: skip
    model = build_model(config, VOCABULARY, PAD, CLASSES).double()
    model.train(dropout > 0)
    set_attention(model.backbone, "first_order")
    sets = [small.rows([6, 6], VOCABULARY, CLASSES, seed=s, pad=PAD) for s in (0, 1)]
    groups = tuple(to_batches(collate(rows, 1, PAD), "cpu", model.causal) for rows in sets)
    kept = {}

    def keep(tensor):
        kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    loop = InnerLoop(steps=2, lr=0.3, seed=3 if dropout else None)
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        result, grads = group_gradient(
            model, model.fast, model.shared, load_algorithm(algorithm), loop, groups, ["a", "b"]
        )
    return grads, result.loss, sum(kept.values())


@pytest.mark.parametrize("adapt", ["all", "lora"])
@pytest.mark.parametrize("kind", small.BACKBONES)
def test_the_same_gradients(kind, adapt):
    expected, loss, _ = run(kind, "fomaml", adapt, False)
    found, again, _ = run(kind, "fomaml", adapt, True)
    assert torch.equal(loss, again)
    for name, g in expected.items():
        torch.testing.assert_close(found[name], g, rtol=1e-10, atol=1e-12)
    assert any(g.abs().max() > 1e-4 for name, g in found.items() if name.startswith("backbone"))


def test_reptile_and_dropout_too():
    for algorithm, dropout in (("reptile", 0.0), ("fomaml", 0.3)):
        expected, *_ = run("bert", algorithm, "all", False, dropout)
        found, *_ = run("bert", algorithm, "all", True, dropout)
        for name, g in expected.items():
            torch.testing.assert_close(found[name], g, rtol=1e-10, atol=1e-12)


def test_what_is_kept_grows_by_a_layer_s_input_alone():
    """Eager and batched code keeps dozens of tensors a layer."""

    def grown(again):
        few, many = (run("bert", "fomaml", "lora", again, layers=layers)[2] for layers in (2, 8))
        return many - few

    assert grown(True) < 0.35 * grown(False)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"algorithm": "maml"}, r"model.activation_checkpointing does not go with algorithm = maml: .*memory=walk"),
        ({"algorithm": "fomaml", "cluster": {"episode": "group"}, "deepspeed": {"zero_optimization": {"stage": 3}}},
         r"cluster.episode = group does not go with model.activation_checkpointing = true"),
        ({"deepspeed": {"activation_checkpointing": {}}}, r"set model.activation_checkpointing=true"),
    ],
)  # fmt: skip
def test_what_cannot_be_is_refused(given, message):
    with pytest.raises(InputError, match=message):
        small.config(model={"activation_checkpointing": True}, **given)
