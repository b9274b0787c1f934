"""Layers that are run again on the way back: the same gradients from less memory, at every order."""

import re
from collections import Counter
from pathlib import Path

import pytest
import small
import torch
from test_models_language import texts

import distmeta
from distmeta.config.algorithms import load_algorithm
from distmeta.errors import InputError
from distmeta.inner import InnerLoop
from distmeta.inner.derivatives import is_twice
from distmeta.learner.gradients import group_gradient
from distmeta.models import attention, output
from distmeta.models.backbone import set_attention
from distmeta.models.build import build_model
from distmeta.models.language import LanguageModel
from distmeta.models.partial import Layers
from distmeta.tasks.episodes.collate import collate

VOCABULARY, PAD, CLASSES = 40, 0, 3


class Kept:
    """The most bytes that graphs keep at once; a storage counts for as long as a graph holds it."""

    def __init__(self):
        self.holders, self.now, self.peak = Counter(), 0, 0

    def pack(self, tensor):
        return Held(self, tensor)


class Held:
    def __init__(self, kept, tensor):
        storage = tensor.untyped_storage()
        self.kept, self.tensor, self.address, self.size = kept, tensor, storage.data_ptr(), storage.nbytes()
        kept.now += 0 if kept.holders[self.address] else self.size
        kept.holders[self.address] += 1
        kept.peak = max(kept.peak, kept.now)

    def __del__(self):
        self.kept.holders[self.address] -= 1
        self.kept.now -= 0 if self.kept.holders[self.address] else self.size


def run(kind, algorithm, adapt, again, dropout=0.0, layers=3, tasks=2, words=False, loop=None, base="auto"):
    """(gradients, query loss, the most bytes that graphs keep at once) of a group of tasks."""
    count = {"gpt2": "n_layer", "t5": "num_layers"}.get(kind, "num_hidden_layers")
    shape = {**small.BACKBONES[kind], count: layers}
    model = {"config": shape, "dropout": dropout, "activation_checkpointing": again}
    more = {"task": {"family": "text_to_text"}} if words else {"model": {"pooling": "mean"}}
    model |= {"max_tokens": 24, "answer_tokens": 6} if words else more.pop("model")
    config = small.config(
        architecture=kind, algorithm=algorithm, inner={"adapt": adapt}, outer={"base": base}, model=model, **more
    )
    model = build_model(config, VOCABULARY, PAD, 1 if words else CLASSES).double()
    generator = torch.Generator().manual_seed(3)  # LoRA begins where its products are zero
    fast = {n: v + 0.1 * torch.randn(v.shape, generator=generator, dtype=v.dtype) for n, v in model.fast.items()}
    shared = {n: v.detach().double() for n, v in model.shared.items()}
    model.train(dropout > 0)
    set_attention(model.backbone, load_algorithm(algorithm).ORDER)
    if words:
        sets = [texts(tasks, rows=4, seed=s) for s in (0, 1)]
    else:
        sets = [small.rows([6] * tasks, VOCABULARY, CLASSES, seed=s, pad=PAD) for s in (0, 1)]
    groups = tuple(model.batches(collate(rows, 1, PAD, part_tokens=50), "cpu") for rows in sets)
    kept = Kept()
    loop = loop or InnerLoop(steps=2, lr=0.3, seed=3 if dropout else None)
    with torch.autograd.graph.saved_tensors_hooks(kept.pack, lambda held: held.tensor):
        result, grads = group_gradient(model, fast, shared, load_algorithm(algorithm), loop, groups, ["a", "b"][:tasks])
    rates = {"lr": result.lr_grads} if isinstance(result.lr_grads, torch.Tensor) else {}
    return grads | rates, result.loss, kept.peak


def assert_same(found, expected):
    assert found.keys() == expected.keys()
    for name, g in expected.items():
        torch.testing.assert_close(found[name], g, rtol=1e-9, atol=1e-11)
    assert any(g.abs().max() > 1e-4 for name, g in found.items() if name.startswith("backbone"))


def exact(**kwargs):
    return InnerLoop(**{"steps": 3, "lr": torch.tensor(0.3, dtype=torch.float64), **kwargs})


EXACT = [
    ("bert", False, "all", "auto", "walk"), ("bert", False, "lora", "train", "walk"),
    ("gpt2", True, "all", "auto", "walk"), ("gpt2", True, "lora", "freeze", "unroll"),
    ("llama", True, "all", "auto", "auto"), ("llama", True, "lora", "freeze", "walk"),
    ("llama", True, "lora", "freeze", "unroll"), ("llama", True, "lora", "train", "auto"),
    ("t5", True, "all", "auto", "walk"), ("t5", True, "lora", "freeze", "auto"),
]  # fmt: skip


@pytest.mark.parametrize(("kind", "words", "adapt", "base", "memory"), EXACT)
def test_the_exact_meta_gradient_is_that_of_plain_double_backward(kind, words, adapt, base, memory):
    expected, loss, _ = run(kind, "maml", adapt, False, words=words, base=base, loop=exact(memory="unroll"))
    found, again, _ = run(kind, "maml", adapt, True, words=words, base=base, loop=exact(memory=memory))
    torch.testing.assert_close(again, loss, rtol=1e-12, atol=0)
    assert_same(found, expected)


@pytest.mark.parametrize(
    "loop",
    [{"optimizer": "momentum", "momentum": 0.5}, {"optimizer": "adam", "lr": torch.tensor(0.01, dtype=torch.float64)}],
)
@pytest.mark.parametrize("tasks", [1, 2])
def test_with_every_inner_optimizer_and_tasks_one_by_one_or_at_once(loop, tasks):
    expected, *_ = run("llama", "maml", "lora", False, words=True, tasks=tasks, loop=exact(memory="unroll", **loop))
    found, *_ = run("llama", "maml", "lora", True, words=True, tasks=tasks, loop=exact(memory="walk", **loop))
    assert_same(found, expected)


def test_with_dropout_each_run_draws_the_same_numbers():
    expected, *_ = run("bert", "maml", "all", False, dropout=0.3, loop=exact(memory="unroll", seed=5))
    found, *_ = run("bert", "maml", "all", True, dropout=0.3, loop=exact(memory="walk", seed=5))
    assert_same(found, expected)


def test_the_graph_of_an_exact_step_grows_by_boundaries_alone():
    """Two states a layer, h and the cotangent of its output, of the dozens that a double backward keeps."""

    def grown(again):
        few, many = (
            run("llama", "maml", "lora", again, layers=n, words=True, base="freeze", loop=exact(memory="walk"))[2]
            for n in (2, 8)
        )
        return many - few

    assert grown(True) < 0.15 * grown(False)


@pytest.mark.parametrize("adapt", ["all", "lora"])
@pytest.mark.parametrize("kind", small.BACKBONES)
def test_the_same_gradients(kind, adapt):
    expected, loss, _ = run(kind, "fomaml", adapt, False)
    found, again, _ = run(kind, "fomaml", adapt, True)
    torch.testing.assert_close(again, loss, rtol=1e-12, atol=0)
    assert_same(found, expected)


def test_reptile_and_dropout_too():
    for algorithm, dropout in (("reptile", 0.0), ("fomaml", 0.3)):
        expected, *_ = run("bert", algorithm, "all", False, dropout)
        found, *_ = run("bert", algorithm, "all", True, dropout)
        assert_same(found, expected)


def test_what_is_kept_grows_by_a_layer_s_input_alone():
    """Eager and batched code keeps dozens of tensors a layer."""

    def grown(again):
        few, many = (run("bert", "fomaml", "lora", again, layers=layers)[2] for layers in (2, 8))
        return many - few

    assert grown(True) < 0.35 * grown(False)


def test_a_model_whose_layers_cannot_be_told_apart_is_refused(monkeypatch):
    monkeypatch.setattr("distmeta.models.partial.find_layers", lambda backbone, tower: ("", []))
    config = small.config(architecture="bert", inner={"memory": "layers"})
    with pytest.raises(InputError, match="bert cannot run its layers again .*cannot be told apart.*inner.memory=walk"):
        build_model(config, VOCABULARY, PAD, CLASSES)


def test_a_layer_that_gives_another_gradient_when_it_is_run_again_is_refused(monkeypatch):
    from distmeta.models import partial

    real = partial.recompute
    monkeypatch.setattr(partial, "recompute", lambda run, *inputs, **more: 2 * real(run, *inputs, **more))
    with pytest.raises(InputError, match="llama cannot run its layers again .*another gradient"):
        build_model(small.config(architecture="llama", inner={"memory": "layers"}), VOCABULARY, PAD, CLASSES)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"algorithm": "fomaml", "cluster": {"episode": "group"}, "deepspeed": {"zero_optimization": {"stage": 3}}},
         r"cluster.episode = group does not work with model.activation_checkpointing = true"),
        ({"deepspeed": {"activation_checkpointing": {}}}, r"set model.activation_checkpointing=true"),
    ],
)  # fmt: skip
def test_what_cannot_be_is_refused(given, message):
    with pytest.raises(InputError, match=message):
        small.config(model={"activation_checkpointing": True}, **given)


def test_no_derivative_is_taken_in_forward_mode():
    """Reverse over forward is silently wrong in eager torch: layer_norm's tangent takes its mean for a constant."""
    for file in Path(distmeta.__file__).parent.rglob("*.py"):
        assert not re.search(r"forward_ad|func\.jvp|import jvp|jacfwd|linearize", file.read_text(encoding="utf-8")), (
            file
        )


@pytest.mark.parametrize(("kind", "adapt", "base", "tasks", "again"), [
    ("llama", "lora", "freeze", 2, False), ("llama", "lora", "train", 1, True), ("gpt2", "all", "auto", 2, False),
])  # fmt: skip
def test_scores_of_a_vocabulary_in_blocks_of_tokens_give_the_same_second_derivatives(
    kind, adapt, base, tasks, again, monkeypatch
):
    more = {"words": True, "base": base, "tasks": tasks, "layers": 2, "loop": exact(steps=2, memory="walk")}
    expected, loss, kept = run(kind, "maml", adapt, again, **more)
    monkeypatch.setattr(output, "SCORES", (3 * VOCABULARY * tasks,) * 2)  # three tokens of each task
    found, in_blocks, less = run(kind, "maml", adapt, again, **more)
    torch.testing.assert_close(in_blocks, loss, rtol=1e-12, atol=0)
    assert_same(found, expected)
    assert less < kept


@pytest.mark.parametrize("again", [False, True])
@pytest.mark.parametrize("kind", ["gpt2", "llama"])
def test_a_decoder_s_last_layer_runs_the_places_that_are_read(kind, again, monkeypatch):
    more = {"words": True, "base": "train", "layers": 2, "tasks": 1, "loop": exact(steps=2, memory="walk")}
    seen, real = [], Layers._read_rows

    def read(self, forward, hidden, arguments, rows):
        out = real(self, forward, hidden, arguments, rows)
        seen.append((rows.shape[1], hidden.shape[1]))
        return out

    monkeypatch.setattr(Layers, "_read_rows", read)
    found, loss, _ = run(kind, "maml", "lora", again, **more)
    assert seen and all(2 * read <= length for read, length in seen)
    monkeypatch.setattr(LanguageModel, "_rows_read", lambda self, batch: None)
    expected, whole, _ = run(kind, "maml", "lora", again, **more)
    torch.testing.assert_close(loss, whole, rtol=1e-12, atol=0)
    assert_same(found, expected)


@pytest.mark.parametrize("again", [False, True])
def test_what_is_differentiated_once_takes_the_fused_kernel(again, monkeypatch):
    """The descent of a step that is run again, and the query's gradient."""
    calls, real = [], attention.fused
    monkeypatch.setattr(attention, "fused", lambda *args: calls.append(is_twice()) or real(*args))
    more = {"words": True, "base": "freeze", "layers": 2, "tasks": 1, "loop": exact(steps=2, memory="walk")}
    found, *_ = run("llama", "maml", "lora", again, **more)
    assert calls and not any(calls)
    monkeypatch.setattr(attention, "is_twice", lambda: True)
    expected, *_ = run("llama", "maml", "lora", again, **more)
    assert_same(found, expected)


def test_dropout_which_a_fused_kernel_would_draw_in_another_way_takes_none(monkeypatch):
    real = attention.fused
    monkeypatch.setattr(attention, "fused", lambda module, *args: real(module, *args) if not module.training else 1 / 0)
    run("bert", "maml", "all", False, dropout=0.3, loop=exact(memory="walk", seed=5))


def test_a_kernel_without_a_second_derivative_is_refused_where_one_is_taken(monkeypatch):
    monkeypatch.setattr(attention, "is_twice", lambda: False)
    for again in (False, True):
        with pytest.raises(RuntimeError, match="flash_attention|once_differentiable"):
            run("llama", "maml", "lora", again, words=True, base="freeze", loop=exact(memory="walk"))
