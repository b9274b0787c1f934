"""Every algorithm against a problem whose answer is known, and on a real model against finite differences."""

import itertools

import numpy as np
import pytest
import small
import torch

from distmeta.algorithms.maml_pp import ANNEALED, FIRST_ORDER, step_weights
from distmeta.algorithms.rates import initial_log_rates, log_rate_gradients, rates_of
from distmeta.bench.check import check_equivalents, check_meta_gradient
from distmeta.config.algorithms import ALGORITHMS, load_algorithm
from distmeta.config.trees import merge, nested
from distmeta.inner import InnerLoop
from distmeta.tasks.build import build_store
from distmeta.tasks.store import open_store

K, LR, LAM, N = 3, 0.1, 0.7, 4


class Quadratics:
    """Support 1/2 (x - a)' A (x - a), query 1/2 (x - b)' B (x - b): everything about them has a closed form."""

    def __init__(self):
        generator = torch.Generator().manual_seed(0)
        draw = lambda *shape: torch.randn(*shape, generator=generator, dtype=torch.float64)  # noqa: E731
        self.A, self.B = (m @ m.T / N for m in (draw(N, N), draw(N, N)))
        self.a, self.b, self.x = draw(N), draw(N), draw(N)
        self.eye = torch.eye(N, dtype=torch.float64)

    def run(self, algorithm, loop=None, **options):
        loop = loop or InnerLoop(steps=K, lr=LR)
        return load_algorithm(algorithm).meta_gradient(
            lambda p, at: 0.5 * (p["x"] - at[1]) @ at[0] @ (p["x"] - at[1]),
            {"x": self.x}, (self.A, self.a), [(self.B, self.b)], loop, **options,
        )  # fmt: skip

    def after(self, k):
        return self.a + torch.linalg.matrix_power(self.eye - LR * self.A, k) @ (self.x - self.a)

    def query_gradient(self, k):
        return self.B @ (self.after(k) - self.b)

    def exact(self, k):
        return torch.linalg.matrix_power(self.eye - LR * self.A, k) @ self.query_gradient(k)


@pytest.fixture(scope="module")
def problem():
    return Quadratics()


def agree(found, expected, tolerance=1e-12):
    torch.testing.assert_close(found, expected, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("name", ["maml", "anil", "boil", "meta_sgd", "proto_maml", "maml_pp"])
def test_exact_ones(name, problem):
    """They differ in what adapts and what is learnt, which the configuration says; the derivative is one."""
    agree(problem.run(name).grads["x"], problem.exact(K))


def test_finite_difference_is_exact_on_quadratics_but_for_rounding(problem):
    agree(problem.run("finite_difference").grads["x"], problem.exact(K), 1e-9)


def test_first_order_ones(problem):
    agree(problem.run("fomaml").grads["x"], problem.query_gradient(K))
    agree(problem.run("reptile").grads["x"], problem.x - problem.after(K))


def test_a_rate_for_each_number(problem):
    rate = torch.full((N,), LR, dtype=torch.float64)
    found = problem.run("meta_sgd", InnerLoop(steps=1, lr={"x": rate}))
    agree(found.lr_grads["x"], -problem.query_gradient(1) * (problem.A @ (problem.x - problem.a)))


@pytest.mark.parametrize("solver", ["cg", "neumann"])
def test_implicit_at_the_minimum(solver, problem):
    """Two steps of Newton's size would be at it; here many small ones are, and the solver has room to end."""
    loop = InnerLoop(steps=400, lr=0.2, proximal=LAM, solver=solver, cg_steps=N if solver == "cg" else 400)
    strong = float(torch.linalg.eigvalsh(problem.A).max())
    if solver == "neumann":  # the series converges where lam is above the largest eigenvalue
        loop = InnerLoop(steps=400, lr=0.1, proximal=strong * 1.5, solver=solver, cg_steps=100)
    lam = loop.proximal
    best = torch.linalg.solve(problem.A + lam * problem.eye, problem.A @ problem.a + lam * problem.x)
    expected = lam * torch.linalg.solve(problem.A + lam * problem.eye, problem.B @ (best - problem.b))
    agree(problem.run("imaml", loop).grads["x"], expected, 1e-9)


def test_multi_task_is_the_gradient_at_the_initial_weights(problem):
    expected = (problem.A @ (problem.x - problem.a) + problem.B @ (problem.x - problem.b)) / 2
    found = problem.run("multi_task")
    agree(found.grads["x"], expected)
    agree(found.adapted["x"], problem.x)


def test_multi_task_prefers_the_classifier_over_all_classes(problem):
    found = problem.run("multi_task", pooled=lambda p, at: 3 * p["x"].sum())
    agree(found.grads["x"], torch.full_like(problem.x, 3.0))


def test_fine_tune_changes_nothing_and_scores_the_adapted(problem):
    found = problem.run("fine_tune")
    assert not found.grads["x"].any()
    agree(found.adapted["x"], problem.after(K))
    agree(found.loss, 0.5 * (problem.after(K) - problem.b) @ problem.query_gradient(K))


def test_prototypes_have_no_inner_loop(problem):
    agree(problem.run("prototypes", InnerLoop(steps=0)).grads["x"], problem.query_gradient(0))


def test_maml_pp_goes_from_all_steps_at_first_order_to_the_last_exactly(problem):
    first = problem.run("maml_pp", progress=0.0)
    agree(first.grads["x"], sum(problem.query_gradient(k) for k in range(1, K + 1)) / K)
    agree(problem.run("maml_pp", progress=max(ANNEALED, FIRST_ORDER)).grads["x"], problem.exact(K))
    weights = [step_weights(K, p) for p in np.linspace(0, ANNEALED * 0.99, 5)]
    assert all(sum(w) == pytest.approx(1) for w in weights)
    assert all(later[-1] > earlier[-1] for earlier, later in itertools.pairwise(weights))


def test_losses_after_every_step_are_walked_back(problem):
    from distmeta.inner import meta_gradient

    weights = [0.5, 0.2, 0.3]
    for memory in ("walk", "unroll"):
        found = meta_gradient(
            lambda p, at: 0.5 * (p["x"] - at[1]) @ at[0] @ (p["x"] - at[1]),
            {"x": problem.x}, (problem.A, problem.a), (problem.B, problem.b),
            InnerLoop(steps=K, lr=LR, memory=memory), step_weights=weights,
        )  # fmt: skip
        agree(found.grads["x"], sum(w * problem.exact(k + 1) for k, w in enumerate(weights)))


# On a real model


@pytest.fixture(scope="module")
def classes_csv(tmp_path_factory):
    path = tmp_path_factory.mktemp("data") / "classes.csv"
    rows = [f"please {small.PLENTY[(c + i) % 14]} thing{c} now,class{c}" for c in range(9) for i in range(8)]
    path.write_text("\n".join(["text,label", *rows]) + "\n")
    return path


def settled(name, path, **sections):
    if name == "multi_task":
        sections = {"task": {"family": "classes", "ways": 3}, "data": {"fractions": [0.34, 0.33, 0.33]}, **sections}
    own = nested(ALGORITHMS[name].settings)
    if name == "in_context":
        sections = {"architecture": "gpt2", "model": {"config": {**small.BACKBONES["gpt2"], "n_positions": 256}}}
    config = small.config(path, algorithm=name, **merge({"inner": {"memory": "walk"}, **sections}, own))
    return config, open_store(build_store(config.data, config.task, config.model))


@pytest.mark.parametrize("name", [n for n in ALGORITHMS if n not in ("maml", "fomaml", "reptile")])
def test_on_a_model_as_check_sees_it(name, words_csv, classes_csv):
    """The derivative that is claimed, in float64; tasks at once as one by one."""
    config, store = settled(name, classes_csv if name == "multi_task" else words_csv)
    found = check_meta_gradient(config, store) + check_equivalents(config, store)
    assert found and all(f.agrees for f in found), [f for f in found if not f.agrees]
    if name in ("anil", "multi_task"):
        assert any("shared" in f.subject for f in found)


# Rates


@pytest.mark.parametrize("learnt", ["scalar", "per_step", "per_layer", "per_layer_step"])
@pytest.mark.parametrize("kind", ["linear", "cosine", "warmup"])
def test_schedules_of_the_inner_rate(kind, learnt):
    config = small.config(inner={"lr": 0.3, "steps": 4, "schedule": kind, "learn_lr": learnt}).inner
    expected = {"linear": [1, 0.75, 0.5, 0.25], "cosine": [1, 0.853553, 0.5, 0.146447], "warmup": [0.25, 0.5, 0.75, 1]}
    start = initial_log_rates(config, {"w": torch.zeros(2)})
    for steps in (2, 4, 6):
        rates = rates_of(config, start, steps)
        rate = rates["w"] if isinstance(rates, dict) else rates
        whole = torch.tensor(expected[kind] + 2 * expected[kind][-1:])
        agree(rate, 0.3 * whole[:steps], 1e-6)
    # the chain rule to the logarithms: each is (the sum of what it governs) of rate * derivative
    grads = torch.tensor([1.0, -2.0, 3.0, 0.5])
    found = log_rate_gradients(config, start, {"w": grads} if "layer" in learnt else grads)
    parts = 0.3 * torch.tensor(expected[kind]) * grads
    agree(next(iter(found.values())), parts if learnt.endswith("step") else parts.sum(), 1e-5)


# The configuration


@pytest.mark.parametrize(
    ("sections", "message"),
    [
        ({"algorithm": "anil", "inner": {"adapt": "lora"}}, "inner.adapt = lora: algorithm = anil is defined by"),
        ({"algorithm": "imaml", "inner": {"proximal": 0}}, "inner.proximal above 0"),
        ({"algorithm": "meta_sgd", "inner": {"schedule": "cosine"}}, "does not work with inner.learn_lr=per_parameter"),
        ({"algorithm": "maml_pp", "inner": {"schedule": "linear"}}, "learns a rate for each inner step"),
        ({"algorithm": "fine_tune", "outer": {"weight_decay": 0.1}}, "set outer.weight_decay=0"),
        ({"algorithm": "mamll"}, "Did you mean 'maml'"),
        ({"inner": {"steps": 0}}, "adapts nothing"),
        ({"outer": {"schedule": "plateau"}}, "set eval.every"),
    ],
)
def test_what_does_not_fit_is_refused(sections, message):
    from distmeta.errors import InputError

    with pytest.raises(InputError, match=message):
        small.config(**sections)


def test_an_algorithm_asked_for_by_name_brings_its_settings():
    from distmeta.config import dump_config, load_config, make_config

    config = load_config("default", ["algorithm=maml_pp"])
    assert config.inner.learn_lr == "per_layer_step" and config.outer.schedule == "cosine"
    assert load_config("default", ["algorithm=maml_pp", "outer.schedule=linear"]).outer.schedule == "linear"
    import yaml

    assert make_config(yaml.safe_load(dump_config(config))) == config
