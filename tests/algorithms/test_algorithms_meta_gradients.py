"""The learner's meta-gradients on a real model: against plain double backward, finite differences, task by task."""

import numpy as np
import pytest
import small
import torch

from distmeta.algorithms.rates import PREFIX, initial_log_rates, inner_loop, mean_rate, rates_of
from distmeta.config.algorithms import ALGORITHMS, load_algorithm
from distmeta.learner.gradients import meta_gradients
from distmeta.models.backbone import set_attention
from distmeta.models.batch import to_batches
from distmeta.models.build import build_model
from distmeta.tasks.build import build_store
from distmeta.tasks.episodes.collate import collate
from distmeta.tasks.episodes.episode import sample_episode
from distmeta.tasks.store import open_store

STEPS = 2


class Case:
    """A model in float64, its meta-parameters, and the episodes of one meta-batch."""

    def __init__(self, path, algorithm="maml", episodes=4, **sections):
        self.config = small.config(path, **sections)
        self.store = open_store(build_store(self.config.data, self.config.task, self.config.model))
        self.model = build_model(self.config, self.store.vocab_size, self.store.pad_id, 2).double()
        rates = {n: v.double() for n, v in initial_log_rates(self.config.inner, self.model.adapted).items()}
        generator = torch.Generator().manual_seed(0)
        self.meta = {n: v.detach().clone() for n, v in {**self.model.fast, **self.model.shared, **rates}.items()}
        for name, value in self.meta.items():  # away from zeros (biases, LoRA's B), where errors would not show
            if not name.startswith(PREFIX):
                value += 0.05 * torch.randn(value.shape, generator=generator, dtype=value.dtype)
        self.algorithm = load_algorithm(algorithm)
        self.episodes = [sample_episode(self.store, self.config.task, 0, "train", index) for index in range(episodes)]

    def gradients(self, meta=None, **inner):
        inner = {"buckets": 2, **inner}
        config = self.config.model_copy(update={"inner": self.config.inner.model_copy(update=inner)})
        return meta_gradients(
            self.model, meta or self.meta, self.algorithm, config, self.store, self.episodes, 1, torch.device("cpu")
        )

    def plain(self, rates, create_graph=True):
        """(sums over episodes of gradients by plain double backward, query losses, adapted weights, starts).

        `rates(log_rates, name, k)` is the inner rate; every other line is the textbook's algorithm, one task, one
        padded batch, PyTorch's own graph of everything.
        """
        set_attention(self.model.backbone, "exact")
        leaves = {n: v.clone().requires_grad_() for n, v in self.meta.items()}
        total, adapted = 0.0, []
        for episode in self.episodes:
            (support,), (query,) = (
                to_batches(collate([rows], 1, self.store.pad_id), "cpu", self.model.causal)
                for rows in (episode.support, episode.query)
            )
            shared = {n: leaves[n] for n in self.model.shared}
            theta = {n: leaves[n].clone() for n in self.model.fast}  # apart from the leaves that make the prototypes
            if self.model.prototype_head:
                values = {n: v for n, v in leaves.items() if not n.startswith(PREFIX)}
                theta |= self.model.start(values, [support])
            for k in range(STEPS):
                loss = self.model.loss({**shared, **theta}, support).sum()
                grads = torch.autograd.grad(loss, list(theta.values()), create_graph=create_graph)
                theta = {n: v - rates(leaves, n, k) * g for (n, v), g in zip(theta.items(), grads, strict=True)}
            adapted.append({n: v.detach() for n, v in theta.items()})
            total = total + self.model.loss({**shared, **theta}, query).sum()
        grads = torch.autograd.grad(total, list(leaves.values()), materialize_grads=True)
        return dict(zip(leaves, grads, strict=True)), float(total.detach()), adapted


RATES = {
    "none": lambda leaves, name, k: 0.2,
    "scalar": lambda leaves, name, k: leaves[PREFIX].exp(),
    "per_step": lambda leaves, name, k: leaves[PREFIX][k].exp(),
    "per_layer": lambda leaves, name, k: leaves[f"{PREFIX}.{name}"].exp(),
    "per_parameter": lambda leaves, name, k: leaves[f"{PREFIX}.{name}"].exp(),
}

CASES = {
    "all": {},
    "lora": {"inner": {"adapt": "lora", "learn_lr": "scalar"}},
    "head": {"inner": {"adapt": "head", "learn_lr": "per_parameter"}},
    "some": {"inner": {"adapt": "bias$|LayerNorm", "learn_lr": "per_step"}},
    "prototype": {"model": {"head": "prototype"}, "inner": {"lr": 0.2}},
    "prototype rates": {"model": {"head": "prototype"}, "inner": {"adapt": "lora", "learn_lr": "per_layer"}},
    "prototype all rates": {"model": {"head": "prototype"}, "inner": {"learn_lr": "per_parameter"}},
    "layers": {"inner": {"learn_lr": "per_layer"}},
    "decoder": {"architecture": "llama", "inner": {"adapt": "lora", "learn_lr": "per_layer"}},
    "gpt2": {"architecture": "gpt2", "inner": {"learn_lr": "per_step"}},
    "t5": {"architecture": "t5"},
}


@pytest.mark.parametrize("case", CASES)
def test_exact_is_plain_double_backward_at_once_and_task_by_task(case, words_csv):
    made = Case(words_csv, **CASES[case])
    expected, loss, _ = made.plain(RATES[made.config.inner.learn_lr])
    close = {"rtol": 1e-7, "atol": 1e-9} if case in ("decoder", "t5") else {"rtol": 1e-8, "atol": 1e-12}
    for inner in ({"task_batch": 1}, {"task_batch": 4}, {"task_batch": 3, "memory": "walk"}):
        grads, sums = made.gradients(**inner)
        assert set(grads) == set(expected)
        for name, value in expected.items():
            torch.testing.assert_close(grads[name], value, **close, msg=lambda m, at=(name, inner): f"{at}: {m}")
        assert sums[0] == pytest.approx(loss, rel=1e-6)
        assert 0 <= sums[1] <= 4 and len(sums) == 2 + STEPS + 1


def test_first_order_takes_the_jacobian_for_the_identity(words_csv):
    """By hand: the same loop with the inner gradients cut off from the graph."""
    exact, _ = Case(words_csv).gradients()
    made = Case(words_csv, "fomaml")
    expected, _, _ = made.plain(RATES["none"], create_graph=False)
    found, _ = made.gradients()
    for name, value in expected.items():
        torch.testing.assert_close(found[name], value, rtol=1e-5, atol=1e-7)  # the fused kernel's float32 mask
    apart = max(float((found[n] - exact[n]).norm() / exact[n].norm().clamp(min=1e-12)) for n in made.model.fast)
    assert apart > 0.01


@pytest.mark.parametrize("learnt", ["scalar", "per_step", "per_layer", "per_parameter"])
def test_learnt_inner_rates_agree_with_finite_differences(learnt, words_csv):
    made = Case(words_csv, inner={"learn_lr": learnt}, episodes=2)
    grads, _ = made.gradients()
    rng = np.random.default_rng(0)
    names = sorted(n for n in made.meta if n.startswith(PREFIX))
    assert names
    for name in rng.choice(names, min(3, len(names)), replace=False):
        value = made.meta[name]
        for place in {int(grads[name].abs().argmax()), int(rng.integers(value.numel()))}:
            step = torch.zeros(value.numel(), dtype=value.dtype)
            step[place] = 1e-4
            up, down = (
                made.gradients({**made.meta, name: value + sign * step.view(value.shape)})[1][0] for sign in (1, -1)
            )
            # sums are added up in float64, each loss in the model's
            assert float(grads[name].flatten()[place]) == pytest.approx((up - down) / 2e-4, rel=1e-5, abs=1e-9)


def test_reptile_moves_towards_the_adapted_weights(words_csv):
    made = Case(words_csv, "reptile")
    _, loss, adapted = made.plain(RATES["none"])
    grads, sums = made.gradients()
    for name in made.model.fast:
        expected = sum(made.meta[name] - one[name] for one in adapted)
        torch.testing.assert_close(grads[name], expected, rtol=1e-5, atol=1e-8)
    assert sums[0] == pytest.approx(loss, rel=1e-5)


def test_algorithms_by_name_state_their_order():
    exact = {"maml", "anil", "boil", "meta_sgd", "maml_pp", "proto_maml", "online"}
    others = {"imaml": "implicit", "finite_difference": "finite_difference"}
    for name in ALGORITHMS:
        expected = "exact" if name in exact else others.get(name, "first_order")
        assert expected == load_algorithm(name).ORDER and "arXiv" in (load_algorithm(name).__doc__ or "arXiv")


def test_rates_start_at_inner_lr_and_the_last_is_repeated():
    inner = small.config(inner={"lr": 0.3, "steps": 3, "learn_lr": "per_step"}).inner
    rates = initial_log_rates(inner, {})
    assert torch.allclose(rates_of(inner, rates), torch.full((3,), 0.3))
    rates[PREFIX] += torch.tensor([0.0, 1.0, 2.0])
    longer = inner_loop(inner, rates, 5).lr
    assert torch.allclose(longer, 0.3 * torch.tensor([0.0, 1.0, 2.0, 2.0, 2.0]).exp())
    assert inner_loop(inner, rates, 2).lr.shape == (2,)
    assert inner_loop(inner, rates, 0).lr.shape == (0,)
    assert mean_rate(inner, rates) == pytest.approx(float(0.3 * torch.tensor([0.0, 1.0, 2.0]).exp().mean()))
