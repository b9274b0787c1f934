"""The classics' tasks are functions of their keys; their gradients are those of what they say they minimise."""

import functools
import json
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from distmeta.config import load_config
from distmeta.inner import InnerLoop, adapt, meta_gradient

sys.path.append(str(Path(__file__).parents[2] / "benchmarks"))

import classics
import classics_navigation as navigation
from classics_shared import parameters, stack, train

F64 = torch.float64


def double(tensors):
    return {name: t.double() for name, t in tensors.items()}


def central(function, at, step=1e-5):
    """d function / d at, by central differences."""
    out = torch.zeros_like(at)
    for i in range(at.numel()):
        unit = torch.zeros(at.numel(), dtype=at.dtype)
        unit[i] = step
        out.view(-1)[i] = (function(at + unit.view_as(at)) - function(at - unit.view_as(at))) / (2 * step)
    return out


def test_training_continues_from_its_file_as_if_it_had_not_stopped(tmp_path):
    def trained(steps, name):
        return train(
            {"w": torch.ones(3)},
            lambda params, step: ({"w": params["w"] - step}, float(step)),
            steps,
            0.1,
            tmp_path / name,
        )

    whole = trained(6, "whole.safetensors")
    trained(3, "cut.safetensors")
    resumed = trained(6, "cut.safetensors")
    assert resumed.losses == whole.losses == [0, 1, 2, 3, 4, 5]
    assert torch.equal(whole.params["w"], resumed.params["w"]) and not torch.equal(whole.params["w"], torch.ones(3))


@pytest.mark.parametrize("name", classics.WORDS)
def test_a_classic_is_a_recipe_with_its_protocol_s_words(name):
    config = load_config(name, classics.WORDS[name])
    assert config.algorithm == "maml" and config.inner.steps == 1 and config.run.name == name
    assert config.of_evaluation().task.shots == {"sinusoid": 5, "omniglot": 1}[name]


def test_navigation_is_a_function_of_its_keys_and_obeys_its_rules():
    module, start = parameters(navigation.Policy, 0)
    goal = navigation.goals(50, "test")
    assert torch.equal(goal, navigation.goals(50, "test")) and not torch.equal(goal, navigation.goals(50, "train", 0))
    assert -0.5 <= goal.min() < -0.45 and 0.45 < goal.max() <= 0.5
    drawn = navigation.roll_out(module, stack(start, 50), goal, 3, 6, "a")
    again = navigation.roll_out(module, stack(start, 50), goal, 3, 6, "a")
    assert torch.equal(drawn.actions, again.actions) and drawn.rewards.shape == (50, 3, 6)
    moves = drawn.places[..., 1:, :] - drawn.places[..., :-1, :]
    torch.testing.assert_close(moves, navigation.SPEED * drawn.actions[..., :-1, :].clamp(-1, 1))
    torch.testing.assert_close(
        drawn.rewards[..., :-1], -(drawn.places[..., 1:, :] - goal.view(50, 1, 1, 2)).norm(dim=-1)
    )
    assert (drawn.places[..., 0, :] == 0).all() and (drawn.actions.abs() > 1).any()
    assert (navigation.straight(goal, 6) > drawn.returns).all()


def test_advantages_are_what_the_baseline_does_not_know():
    """Rewards that place and time explain leave nothing; the baseline takes no part of the actions' own effect."""
    g = torch.Generator().manual_seed(0)
    places = torch.randn(2, 30, 5, 2, generator=g, dtype=F64)
    actions = torch.randn(2, 30, 5, 2, generator=g, dtype=F64)
    togo = places.sum(-1) + 2 * torch.linspace(0, 1, 5, dtype=F64)
    rewards = togo - torch.cat([togo[..., 1:], torch.zeros(2, 30, 1, dtype=F64)], -1)
    left = navigation.with_advantages(navigation.Trajectories(places, actions, rewards), scaled=False)["advantages"]
    assert left.abs().max() < 1e-3
    rewards[..., -1] += 3 * actions[..., -1, 0]
    found = navigation.with_advantages(navigation.Trajectories(places, actions, rewards))["advantages"]
    assert torch.corrcoef(torch.stack([found[..., -1].flatten(), actions[..., -1, 0].flatten()]))[0, 1] > 0.95
    torch.testing.assert_close(found.flatten(1).std(1), torch.ones(2, dtype=F64))


class Bandit(nn.Module):
    """A policy of one step: action ~ N(mean, exp(log_std)^2), whatever the place."""

    def __init__(self):
        super().__init__()
        self.mean = nn.Parameter(torch.tensor([0.3], dtype=F64))
        self.log_std = nn.Parameter(torch.tensor([-0.2], dtype=F64))

    def forward(self, places):
        return self.mean.expand_as(places), self.log_std


LR, GOAL = 0.07, 0.9
NODES, WEIGHTS = (torch.from_numpy(x) for x in np.polynomial.hermite_e.hermegauss(10))
WEIGHTS = WEIGHTS / WEIGHTS.sum()  # of expectations over a standard normal, exact for polynomials


def reward(action):
    return -((action - GOAL) ** 2)


def expected_after(mean, log_std):
    """Expected reward after one policy-gradient step of the mean on one drawn action: a polynomial in its noise."""
    std = log_std.exp()
    adapted = mean + LR * reward(mean + std * NODES) * NODES / std
    return (WEIGHTS * -((adapted - GOAL) ** 2 + std**2)).sum()


def test_the_policy_s_meta_gradient_is_that_of_the_expected_return_after_adaptation():
    """With every support action of the quadrature as a task, and every query action in its place.

    Without the term of how the support actions were drawn, which MAML leaves out, it is not.
    """
    module, params = parameters(Bandit, 0)
    one = functools.partial(navigation.surrogate, module)
    std, count = params["log_std"].exp(), len(NODES)
    actions = (params["mean"] + std * NODES).view(count, 1, 1, 1)
    support = {"places": torch.zeros_like(actions), "actions": actions, "advantages": reward(actions).squeeze(-1)}
    stacked, shared = stack({"mean": params["mean"]}, count), {"log_std": params["log_std"]}
    settings = {"inner": InnerLoop(steps=1, lr=LR), "task_axis": True, "shared": shared}
    fast = adapt(one, stacked, support, **settings).params
    drawn = (fast["mean"] + std * NODES).view(count, count, 1, 1)
    weights = (WEIGHTS.unsqueeze(1) * count * WEIGHTS).unsqueeze(-1)  # the surrogate takes a mean over trajectories
    query = {"places": torch.zeros_like(drawn), "actions": drawn, "advantages": weights * reward(drawn).squeeze(-1)}
    found = meta_gradient(one, stacked, support, query, **settings)
    held = {"mean": -found.grads["mean"].sum(0), "log_std": -found.shared_grads["log_std"]}

    returns = -((fast["mean"].squeeze(1) - GOAL) ** 2 + std**2)
    score = {"mean": NODES / std, "log_std": NODES**2 - 1}
    expected = {"mean": central(lambda m: expected_after(m, params["log_std"]), params["mean"]),
                "log_std": central(lambda s: expected_after(params["mean"], s), params["log_std"])}  # fmt: skip
    for name in params:
        whole = held[name] + (WEIGHTS * returns * score[name]).sum()
        torch.testing.assert_close(whole, expected[name], rtol=1e-6, atol=1e-8)
        assert (held[name] - expected[name]).abs() > 0.02 * expected[name].abs()
    first = meta_gradient(one, stacked, support, query, order="first_order", **settings)
    assert (first.grads["mean"].sum(0) + held["mean"]).abs() > 0.01 * held["mean"].abs()


def test_the_term_of_how_the_support_was_drawn_is_unbiased():
    """Its mean over many drawn supports is the derivative by the score function, on the bandit with a known return."""
    module, params = parameters(Bandit, 0)
    g = torch.Generator().manual_seed(0)
    noise = torch.randn(200_000, generator=g, dtype=F64)
    actions = (params["mean"] + params["log_std"].exp() * noise).view(-1, 1, 1, 1)
    support = {"places": torch.zeros_like(actions), "actions": actions}
    found = navigation.sampling_gradient(module, params, support, actions.flatten() ** 2)
    # E a^2 = mean^2 + std^2
    torch.testing.assert_close(found["mean"], -2 * params["mean"], rtol=0.05, atol=0)
    torch.testing.assert_close(found["log_std"], -2 * (2 * params["log_std"]).exp(), rtol=0.05, atol=0)


def test_navigation_runs_and_writes_its_figures(tmp_path, monkeypatch, capsys):
    out = tmp_path / "out.json"
    sizes = ["--steps", "2", "--tasks", "6", "--meta-batch", "3", "--trajectories", "4", "--horizon", "4"]
    more = ["--seeds", "0", "1", "--run-dir", str(tmp_path), "--out", str(out)]
    monkeypatch.setattr(sys, "argv", ["classics.py", "navigation", *sizes, *more])
    classics.main()
    found = json.loads(out.read_text())
    assert found["seeds"] == {"0": 0, "1": 1} and found["versions"]["torch"] and found["hardware"]["threads"] == 1
    assert {"exact", "first_order", "pretrained"} <= set(found["methods"])
    assert "pretrained" in capsys.readouterr().out
