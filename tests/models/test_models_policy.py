"""Policies: the surrogate's derivatives against those of the expected return, rollouts, environments."""

import itertools
import sys
from types import ModuleType, SimpleNamespace

import numpy as np
import pytest
import torch

from distmeta.config import make_config
from distmeta.errors import InputError
from distmeta.inner import InnerLoop, meta_gradient
from distmeta.inner.problem import seeded
from distmeta.learner.gradients import meta_gradients
from distmeta.models.build import build_for, build_model
from distmeta.models.policy import advantages, surrogate
from distmeta.tasks import environments
from distmeta.tasks.build import build_store
from distmeta.tasks.environments import load_environment
from distmeta.tasks.episodes.episode import sample_episode
from distmeta.tasks.store import open_store

# Two decisions between two actions: what is seen before the second is what was done first.
PATHS = list(itertools.product((0, 1), repeat=2))
SEEN = torch.tensor([[[0.0], [1.0 + first]] for first, _ in PATHS], dtype=torch.float64)  # [4, 2, 1]
STATES = torch.tensor([[0, 1 + first] for first, _ in PATHS])
ACTIONS = torch.tensor(PATHS)
REWARDS = {"support": torch.tensor([[1.0, 0.5], [1.0, -2.0], [0.3, 2.0], [0.3, 0.1]], dtype=torch.float64),
           "query": torch.tensor([[0.2, 1.0], [0.2, 0.0], [-1.0, 3.0], [-1.0, 0.5]], dtype=torch.float64)}  # fmt: skip
START = torch.tensor([[0.3, -0.2], [0.1, 0.6], [-0.4, 0.2]], dtype=torch.float64)  # scores of actions, by state


def scores(table):
    """Log probabilities of each path's actions, [4, 2]."""
    return table.log_softmax(-1)[STATES, ACTIONS]


def expected_return(table, rewards):
    return (scores(table).sum(-1).exp() * rewards.sum(-1)).sum()


def over_all_paths(params, batch):
    """The surrogate on every path, each as often as the policy takes it, less any baseline of what is seen."""
    log_p, rewards = scores(params["table"]), REWARDS[batch]
    togo = rewards.flip(-1).cumsum(-1).flip(-1) - torch.tensor([0.7, -0.4], dtype=torch.float64)
    ratio = log_p.cumsum(-1)
    often = log_p.sum(-1).exp().detach()
    return (often * surrogate(ratio - ratio.detach(), rewards, togo)).sum()


def slopes(function, at, order=2):
    """(value, gradient, Hessian) of a function of a table."""
    leaf = at.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(value := function(leaf), leaf, create_graph=True)
    rows = [torch.autograd.grad(g, leaf, retain_graph=True)[0] for g in gradient.flatten()]
    return value.detach(), gradient.detach(), torch.stack(rows)


def test_value_gradient_and_hessian_are_those_of_minus_the_expected_return():
    found = slopes(lambda t: over_all_paths({"table": t}, "support"), START)
    for one, other in zip(found, slopes(lambda t: -expected_return(t, REWARDS["support"]), START), strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=1e-12)


@pytest.mark.parametrize("memory", ["walk", "unroll"])
def test_the_exact_meta_gradient_is_that_of_the_return_expected_after_adaptation(memory):
    """In closed form: J_query(theta + a grad J_support(theta) + ...), over all that may happen."""
    loop = InnerLoop(steps=2, lr=0.4, memory=memory)
    found = meta_gradient(over_all_paths, {"table": START}, "support", "query", loop, "exact")
    theta = leaf = START.clone().requires_grad_()
    for _ in range(2):
        theta = theta + 0.4 * torch.autograd.grad(expected_return(theta, REWARDS["support"]), theta,
                                                  create_graph=True)[0]  # fmt: skip
    value = -expected_return(theta, REWARDS["query"])
    torch.testing.assert_close(found.loss, value.detach(), rtol=0, atol=1e-12)
    (right,) = torch.autograd.grad(value, leaf)
    torch.testing.assert_close(found.grads["table"], right, rtol=0, atol=1e-12)

    def published(params, batch):  # MAML's form: that theta chose the rollouts is left out
        log_p, togo = scores(params["table"]), REWARDS[batch].flip(-1).cumsum(-1).flip(-1)
        return -((log_p.sum(-1).exp().detach()[:, None]) * log_p * togo).sum()

    biased = meta_gradient(published, {"table": START}, "support", "query", loop, "exact").grads["table"]
    assert (biased - right).norm() > 0.05 * right.norm()
    first = meta_gradient(over_all_paths, {"table": START}, "support", "query", loop, "first_order").grads["table"]
    torch.testing.assert_close(first, slopes(lambda t: -expected_return(t, REWARDS["query"]), theta.detach())[1])


def test_a_baseline_that_is_fitted_to_the_other_rollouts_leaves_no_bias():
    """All that three rollouts can be, each as often as it happens."""
    alive = torch.ones(1, 3, 2, dtype=torch.float64)

    def loss(table):
        total, log_p = 0.0, scores(table)
        for three in itertools.product(range(4), repeat=3):
            drawn = list(three)
            left = advantages(SEEN[drawn][None], REWARDS["support"][drawn][None], alive)[0]
            ratio = log_p[drawn].cumsum(-1)
            often = log_p[drawn].sum().exp().detach()
            total = total + often * surrogate(ratio - ratio.detach(), REWARDS["support"][drawn], left).mean()
        return total

    for one, other in zip(slopes(loss, START), slopes(lambda t: -expected_return(t, REWARDS["support"]), START),
                          strict=True):  # fmt: skip
        torch.testing.assert_close(one, other, rtol=0, atol=1e-10)


class Target:
    """One step, whose reward is minus the squared distance of the action from the task's number."""

    observations, actions, discrete = 1, 1, False

    def tasks(self, rng, count):
        return rng.uniform(-1, 1, (count, 1))

    def reset(self, tasks, seeds):
        self.target = tasks
        return np.zeros((len(tasks), 1))

    def step(self, actions):
        return np.zeros((len(actions), 1)), -((actions - self.target) ** 2)[:, 0], np.ones(len(actions), bool)


class Corridor:
    """Left or right, until the end that the task's sign says is reached: a reward of 1. Observed: the place."""

    observations, actions, discrete = 1, 2, True

    def tasks(self, rng, count):
        return rng.choice([-1.0, 1.0], (count, 1))

    def reset(self, tasks, seeds):
        self.end, self.place = tasks[:, 0] * 2, np.zeros(len(tasks))
        return self.place[:, None]

    def step(self, actions):
        self.place = self.place + 2 * actions - 1
        over = self.place == self.end
        return self.place[:, None], over.astype(float), over


@pytest.fixture(autouse=True)
def their_module(monkeypatch):
    module = ModuleType("their_environments")
    module.Target, module.Corridor, module.Wrong = Target, Corridor, Wrong
    monkeypatch.setitem(sys.modules, "their_environments", module)
    monkeypatch.setattr(environments, "TASKS", {"train": 6, "validation": 3, "test": 5})
    monkeypatch.setenv("DISTMETA_MODULES", "")


class Wrong(Target):
    def step(self, actions):
        return np.zeros((len(actions), 2)), np.zeros(len(actions)), np.zeros(len(actions), bool)


def config(environment=None, sizes=None, **sections):
    task = {"family": "policy", "shots": 4, "queries": 3, "horizon": 5, "environment": environment}
    model = {"dimensions": sizes, "config": {"hidden_size": 6, "num_hidden_layers": 2}}
    short = {"inner": {"lr": 0.05, "steps": 2}, "outer": {"steps": 3, "meta_batch_size": 3},
             "eval": {"episodes": 3, "validation_episodes": 2}, "cluster": {"workers": 1}}  # fmt: skip
    return make_config({"task": task, "model": model, **short, **sections})


def opened(c):
    return open_store(build_store(c.data, c.task, c.model))


def batch_of(model, c, store, index, part="support"):
    from distmeta.tasks.episodes.collate import collate

    rows = getattr(sample_episode(store, c.task, 0, "train", index), part)
    return model.batches(collate([rows], 1, store.pad_id), "cpu")[0]


def test_the_model_s_meta_gradient_on_many_rollouts_is_that_of_the_closed_form():
    """Of a bandit: J = -(mean - target)^2 - deviation^2, of the two numbers that the policy is."""
    c = config("their_environments:Target", [1, 1], task={
        "family": "policy", "shots": 6000, "queries": 6000, "horizon": 1, "environment": "their_environments:Target",
    }, inner={"steps": 1, "lr": 0.1, "adapt": "^head_(bias|log_std)$"})  # fmt: skip
    store = opened(c)
    model = build_for(c, store)
    fast = {name: value.detach() + 0.2 for name, value in model.fast.items()}
    fast["head_log_std"] -= 0.9
    shared = {name: torch.zeros_like(value) for name, value in model.shared.items()}
    sets = [[batch_of(model, c, store, 0, part)] for part in ("support", "query")]
    target = sets[0][0].input_ids[0, :1].to(torch.int32).view(torch.float32)
    found = meta_gradient(lambda p, b: model.loss(p, b).sum(), fast, *sets, InnerLoop(1, 0.1, seed=0), shared=shared)
    mean, log_std = (leaf := [fast[n].clone().requires_grad_() for n in ("head_bias", "head_log_std")])
    for _ in range(2):
        loss = ((mean - target).square() + (2 * log_std).exp()).sum()
        g = torch.autograd.grad(loss, [mean, log_std], create_graph=True)
        before, (mean, log_std) = loss, (mean - 0.1 * g[0], log_std - 0.1 * g[1])
    right = torch.cat(torch.autograd.grad(before, leaf))
    torch.testing.assert_close(found.loss, before.detach(), rtol=0.03, atol=0)
    got = torch.cat([found.grads["head_bias"], found.grads["head_log_std"]])
    assert (got - right).norm() < 0.1 * right.norm()  # without that theta chose the rollouts: 0.3


def test_a_rollout_is_a_function_of_its_row_the_policy_and_the_inner_step():
    c = config()
    store = opened(c)
    model = build_for(c, store)
    batches = [batch_of(model, c, store, i) for i in (0, 1)]

    def drawn(batch, step=0, params=model.fast):
        with seeded(0, ("support", step, 0), torch.device("cpu")):
            return model.rollouts(params, batch)

    one = drawn(batches[0])
    assert one.actions.shape == (1, 4, 5, 2) and one.rewards.shape == (1, 4, 5)
    assert torch.equal(one.actions, drawn(batches[0]).actions)
    assert not torch.isclose(one.actions[0, 0], one.actions[0, 1]).any()
    assert not torch.isclose(one.actions, drawn(batches[0], 1).actions).any()
    goal = batches[0].input_ids[0, :2].to(torch.int32).view(torch.float32)
    places = one.observations[0] + 0.1 * one.actions[0].clamp(-1, 1)
    torch.testing.assert_close(one.rewards[0], -(places - goal).norm(dim=-1))
    both = [sample_episode(store, c.task, 0, "train", i) for i in (0, 1)]
    from distmeta.evaluation.scoring import load_group

    (together,), _ = load_group(both, model, c, store.pad_id, torch.device("cpu"))
    fast = {name: torch.stack([value, value]) for name, value in model.fast.items()}
    for t, batch in enumerate(batches):
        torch.testing.assert_close(drawn(together, params=fast).actions[t], drawn(batch).actions[0])


def test_meta_gradients_of_a_group_are_those_of_its_tasks_one_by_one_kept_or_drawn_again():
    c = config()
    store = opened(c)
    model = build_for(c, store)
    meta = {name: value.detach() for name, value in {**model.fast, **model.shared}.items()}
    episodes = [sample_episode(store, c.task, 0, "train", i) for i in range(3)]
    from distmeta.algorithms import maml

    def found(**inner):
        changed = c.model_copy(update={"inner": c.inner.model_copy(update=inner)})
        return meta_gradients(model, meta, maml, changed, store, episodes, 1, torch.device("cpu"))

    grads, sums = found()
    assert len(sums) == 2 + 3 and all(torch.isfinite(g).all() for g in grads.values())
    again, _ = found(task_batch=1, memory="walk")
    for name, g in grads.items():
        torch.testing.assert_close(again[name], g, rtol=1e-3, atol=1e-3 * float(g.abs().max()))


def test_what_comes_after_the_end_of_a_rollout_counts_for_nothing():
    c = config("their_environments:Corridor", [1, 2], task={
        "family": "policy", "shots": 40, "queries": 3, "horizon": 8, "environment": "their_environments:Corridor",
    })  # fmt: skip
    store = opened(c)
    model = build_for(c, store)
    batch = batch_of(model, c, store, 0)
    drawn = model.rollouts(model.fast, batch)
    ended = drawn.alive[0].sum(-1)
    assert bool((ended < 8).any()) and set(drawn.actions.unique().tolist()) == {0, 1}
    assert torch.equal(drawn.rewards[0].sum(-1)[ended < 8], torch.ones(int((ended < 8).sum())))
    left = advantages(drawn.observations, drawn.rewards, drawn.alive)
    assert not (left * (1 - drawn.alive)).any()


class Walk:
    """As an environment of gymnasium is."""

    def __init__(self):
        self.observation_space = SimpleNamespace(shape=(2,))
        self.action_space = SimpleNamespace(n=2, start=0)
        self.unwrapped = self

    def tasks(self, rng, count):
        return rng.integers(1, 3, (count, 1))

    def reset(self, seed, options):
        self.place, self.end = 0, int(options["task"][0])
        return np.array([self.place, seed % 7], np.float32), {}

    def step(self, action):
        self.place += action
        return np.array([self.place, 0], np.float32), 1.0, self.place == self.end, False, {}


def test_gymnasium_s_environments_are_taken_where_it_is_installed(monkeypatch):
    monkeypatch.setitem(sys.modules, "gymnasium", None)
    with pytest.raises(InputError, match=r"task.environment = gymnasium:Walk-v0: no module gymnasium; pip install"):
        load_environment("gymnasium:Walk-v0")
    plain = SimpleNamespace(unwrapped=None, observation_space=None, action_space=None)
    made = {"Walk-v0": Walk, "Plain-v0": lambda: plain}
    monkeypatch.setitem(sys.modules, "gymnasium", SimpleNamespace(make=lambda name: made[name]()))
    with pytest.raises(InputError, match="has no method tasks"):
        load_environment("gymnasium:Plain-v0")
    c = config("gymnasium:Walk-v0", [2, 2])
    store = opened(c)
    model = build_for(c, store)
    drawn = model.rollouts(model.fast, batch_of(model, c, store, 0))
    assert model.environment.discrete and drawn.observations.shape == (1, 4, 5, 2)
    assert torch.equal(drawn.rewards, drawn.alive) and not drawn.alive.all()


@pytest.mark.parametrize(("sections", "why"), [
    ({"algorithm": "imaml"}, "algorithm = imaml: it holds rollouts fixed"),
    ({"algorithm": "finite_difference"}, "algorithm = finite_difference: it holds rollouts fixed"),
    ({"algorithm": "proto_maml"}, "there are no classes"),
    ({"data": {"path": "x.jsonl"}}, "data.path = x.jsonl: the environment draws its tasks"),
    ({"model": {"pretrained": "gpt2"}}, "model.pretrained = gpt2: leave it out"),
    ({"model": {"dropout": 0.1}}, "model.dropout"),
    ({"task": {"family": "regression", "environment": "a:b"}}, "belongs to task.family=policy"),
    ({"task": {"family": "policy", "environment": "nothing"}, "model": {"dimensions": [1, 1]}}, "an import path"),
    ({"task": {"family": "policy", "environment": "a:b"}}, "task.environment = a:b needs model.dimensions"),
    ({"task": {"family": "policy", "augment": {"resplit": True}}}, "task.augment.resplit"),
    ({"eval": {"best": "accuracy:max"}}, "set one of return, loss"),
])  # fmt: skip
def test_what_does_not_go_with_policies_is_refused(sections, why):
    with pytest.raises(InputError, match=why):
        make_config({"task": {"family": "policy"}, **sections})


@pytest.mark.parametrize(("path", "sizes", "why"), [
    ("their_environments:Nothing", [1, 1], "task.environment = their_environments:Nothing: cannot be imported"),
    ("their_environments:Wrong", [1, 1], r"step gives \[2, 2\] for 2 rollouts; it must give \[2, 1\]"),
    ("their_environments:Corridor", [1, 1], r"takes 2 actions; set \[1,2\]"),
])  # fmt: skip
def test_an_environment_that_does_not_fit_is_refused(path, sizes, why):
    with pytest.raises(InputError, match=why):
        build_model(config(path, sizes), 2, 0, 1)
