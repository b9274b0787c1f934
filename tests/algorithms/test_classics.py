"""The classics' tasks are functions of their keys; their gradients are those of what they say they minimise."""

import functools
import json
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import nn

from distmeta.inner import InnerLoop, adapt, meta_gradient

sys.path.append(str(Path(__file__).parents[2] / "benchmarks"))

import classics
import classics_navigation as navigation
import classics_omniglot as omniglot
import classics_sinusoid as sinusoid
from classics_shared import parameters, stack

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


def test_sinusoid_tasks_depend_on_their_key_alone():
    state = torch.get_rng_state()
    x, y = sinusoid.tasks(500, 40, "train", 0, 7)
    again, other = sinusoid.tasks(500, 40, "train", 0, 7), sinusoid.tasks(500, 40, "train", 0, 8)
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.equal(x, again[0]) and torch.equal(y, again[1]) and not torch.equal(x, other[0])
    assert x.shape == y.shape == (500, 40, 1) and -5 <= x.min() < -4.9 and 4.9 < x.max() <= 5
    # y = a sin x + b cos x with a = A cos p, b = -A sin p: the task is known from its points.
    basis = torch.cat([x.sin(), x.cos()], -1).double()
    a, b = torch.linalg.lstsq(basis, y.double()).solution.squeeze(-1).unbind(-1)
    amplitude, phase = (a**2 + b**2).sqrt(), torch.atan2(-b, a)
    assert 0.1 <= amplitude.min() < 0.2 and 4.9 < amplitude.max() <= 5
    assert -1e-3 <= phase.min() < 0.1 and 3.0 < phase.max() <= torch.pi + 1e-3
    torch.testing.assert_close(basis @ torch.stack([a, b], -1).unsqueeze(-1), y.double(), rtol=0, atol=1e-4)


def test_the_exact_gradient_of_the_sinusoid_is_that_of_the_loss_after_adaptation():
    module, start = parameters(sinusoid.network, 0)
    start = double(start)
    one = functools.partial(sinusoid.loss, module)
    support, query = (tuple(t.double() for t in b) for b in sinusoid.split(sinusoid.tasks(3, 12, "t"), 5))
    loop = InnerLoop(steps=2, lr=0.01)
    found = {o: meta_gradient(one, stack(start, 3), support, query, loop, o, task_axis=True)
             for o in ("exact", "first_order")}  # fmt: skip

    def after(bias):
        fast = adapt(one, stack({**start, "4.bias": bias}, 3), support, loop, task_axis=True).params
        return torch.vmap(one)(fast, query).sum()

    expected = central(after, start["4.bias"])
    torch.testing.assert_close(found["exact"].grads["4.bias"].sum(0), expected, rtol=1e-6, atol=1e-9)
    assert (found["first_order"].grads["4.bias"].sum(0) - expected).abs().max() > 0.01 * expected.abs().max()


def test_training_continues_from_its_file_as_if_it_had_not_stopped(tmp_path):
    options = SimpleNamespace(meta_batch=4, points=5, steps=6)
    function = functools.partial(
        meta_gradient, functools.partial(sinusoid.loss, sinusoid.network()), order="exact", task_axis=True
    )
    whole = sinusoid.meta_train("exact", 0, options, function, tmp_path / "whole.safetensors")
    options.steps = 3
    sinusoid.meta_train("exact", 0, options, function, tmp_path / "cut.safetensors")
    options.steps = 6
    resumed = sinusoid.meta_train("exact", 0, options, function, tmp_path / "cut.safetensors")
    assert resumed.losses == whole.losses and len(whole.losses) == 6
    assert all(torch.equal(p, resumed.params[name]) for name, p in whole.params.items())
    _, start = parameters(sinusoid.network, 0)
    assert not torch.equal(whole.params["0.weight"], start["0.weight"])


def drawings(classes):
    """Drawing d of class c is everywhere 20 c + d, but for its corner, which is -1."""
    out = torch.arange(classes * 20.0).view(classes, 20, 1, 1).repeat(1, 1, 28, 28)
    out[..., 0, 0] = -1
    return out


def test_omniglot_episodes():
    support, query = omniglot.episodes(drawings(9), 3, 5, 4, "train", 1)
    again, _ = omniglot.episodes(drawings(9), 3, 5, 4, "train", 1)
    assert torch.equal(support[0], again[0])
    assert support[0].shape == (3, 5, 1, 28, 28) and query[0].shape == (3, 20, 1, 28, 28)
    for t in range(3):
        ids, seen = query[0][t, :, 0, 5, 5], support[0][t, :, 0, 5, 5]
        assert len({*ids.tolist(), *seen.tolist()}) == 25  # no drawing twice
        for way in range(5):
            classes = {int(i) // 20 for i in ids[query[1][t] == way]}
            assert classes == {int(seen[support[1][t] == way]) // 20}
        assert len({int(i) // 20 for i in seen}) == 5


def test_a_rotation_is_a_class_of_its_own():
    four = omniglot.with_rotations(drawings(3))
    assert four.shape == (12, 20, 28, 28)
    corners = [(0, 0), (27, 0), (27, 27), (0, 27)]
    for quarter, (row, column) in enumerate(corners):
        part = four[3 * quarter : 3 * quarter + 3]
        assert (part[..., row, column] == -1).all() and torch.equal(part[..., 5, 5], drawings(3)[..., 5, 5])


def test_omniglot_s_alphabets_are_apart():
    data = Path(__file__).parents[3] / "shared" / "data"
    if not (data / "omniglot_small").exists():
        pytest.skip(f"{data} is not there")
    sets = omniglot.read(data)
    alphabets = {split: {name.split("/")[0] for name in names} for split, (_, names) in sets.items()}
    assert len(alphabets["train"]) == 5 and len(alphabets["test"]) == 3 and not alphabets["train"] & alphabets["test"]
    assert [len(sets[split][0]) for split in ("train", "test")] == [136, 106]
    assert all(set(images.unique().tolist()) == {0.0, 1.0} for images, _ in sets.values())


def test_the_four_blocks_with_a_task_axis_are_those_of_each_task():
    module, start = parameters(functools.partial(omniglot.network, 3, 4), 0)
    start, one = double(start), functools.partial(omniglot.loss, module)
    images = torch.rand(6, 20, 28, 28, generator=torch.Generator().manual_seed(0), dtype=F64)
    support, query = omniglot.episodes(images, 2, 3, 2, "t")
    settings = {"inner": InnerLoop(steps=2, lr=0.4), "has_aux": True}
    found = meta_gradient(one, stack(start, 2), support, query, task_axis=True, **settings)
    for t in range(2):
        alone = meta_gradient(one, start, *((x[t], y[t]) for x, y in (support, query)), **settings)
        torch.testing.assert_close(found.loss[t], alone.loss, rtol=1e-9, atol=1e-12)
        for name, g in alone.grads.items():
            torch.testing.assert_close(found.grads[name][t], g, rtol=1e-6, atol=1e-9)


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


@pytest.mark.parametrize("words", [
    ["sinusoid", "--no-compile", "--steps", "3", "--tasks", "8", "--meta-batch", "4"],
    ["navigation", "--steps", "2", "--tasks", "6", "--meta-batch", "3", "--trajectories", "4", "--horizon", "4"],
])  # fmt: skip
def test_a_classic_runs_and_writes_its_figures(words, tmp_path, monkeypatch, capsys):
    out = tmp_path / "out.json"
    more = ["--seeds", "0", "1", "--run-dir", str(tmp_path), "--out", str(out)]
    monkeypatch.setattr(sys, "argv", ["classics.py", *words, *more])
    classics.main()
    found = json.loads(out.read_text())
    assert found["seeds"] == {"0": 0, "1": 1} and found["versions"]["torch"] and found["hardware"]["threads"] == 1
    assert {"exact", "first_order", "pretrained"} <= set(found["methods"])
    assert "pretrained" in capsys.readouterr().out
