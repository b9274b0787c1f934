"""Meta-reinforcement learning: point navigation in the plane (after Finn et al. 2017, section 5.3).

A task is a goal, drawn in the unit square; the agent begins in its centre and does not see the goal. It sees where it
is and chooses a velocity, cut to 0.1 in each direction; the reward of a step is minus the distance to the goal. A
policy is a Gaussian whose mean is a network 2-64-64-2 (tanh) and whose log standard deviations are learnt too.

Inner loop: one policy-gradient step on the surrogate

    L(theta, trajectories) = - mean over trajectories of  sum_t log pi_theta(a_t | s_t) A_t

A_t: the rewards from t on, less a linear baseline in (place, time) fitted to the same trajectories; in the inner loop
divided by their standard deviation. Meta-gradient: the same surrogate on query trajectories that the adapted policies
drew, so it takes `adapt` first, then `meta_gradient` on both sets. What that is (J: expected return of a policy):

    d theta_1 / d theta, trajectories held fixed     exact (order="exact": through the Hessian of the surrogate)
    grad J(theta_1), by the query trajectories       the score-function estimate, unbiased but for the baseline, which
                                                     is fitted to the same trajectories: a bias that falls as 1 / n
    that theta chose the support trajectories        left out, as in MAML's published form: biased. The term is
                                                     J(theta_1) grad_theta sum log pi_theta(support) (E-MAML, Stadie
                                                     et al. 2018, arXiv 1803.01118), `sampling_gradient`: in a row of
                                                     its own, "exact and sampling"

Letters: T tasks, n trajectories of a task, H steps.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from classics_shared import Named, Trained, figure, generator, mean_over_tasks, parameters, shown, stack, train
from torch import Tensor, nn
from torch.func import functional_call

from distmeta.inner import InnerLoop, adapt, meta_gradient

SPEED = 0.1
RATES = (0.003, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5)  # of the pretrained policy's step
METHODS = ("exact", "exact and sampling", "first_order", "pretrained")


class Policy(nn.Module):
    """Places [..., 2] -> (means [..., 2] of the actions in units of SPEED, log standard deviations [2])."""

    def __init__(self, width: int = 64) -> None:
        super().__init__()
        self.net = nn.Sequential(
            nn.Linear(2, width), nn.Tanh(), nn.Linear(width, width), nn.Tanh(), nn.Linear(width, 2)
        )
        self.log_std = nn.Parameter(torch.zeros(2))

    def forward(self, places: Tensor) -> tuple[Tensor, Tensor]:
        return self.net(places), self.log_std


@dataclass(frozen=True)
class Trajectories:
    places: Tensor  # [T, n, H, 2], before each action
    actions: Tensor  # [T, n, H, 2], as drawn, in units of SPEED
    rewards: Tensor  # [T, n, H]

    @property
    def returns(self) -> Tensor:
        """Mean over trajectories of the sum of rewards, [T]."""
        return self.rewards.sum(-1).mean(-1)


def log_probability(module: nn.Module, params: Named, batch: dict[str, Tensor]) -> Tensor:
    """Of the actions at the places, [...]."""
    mean, log_std = functional_call(module, params, (batch["places"],))
    z = (batch["actions"] - mean) * torch.exp(-log_std)
    return -(0.5 * z.square() + log_std).sum(-1)


def surrogate(module: nn.Module, params: Named, batch: dict[str, Tensor]) -> Tensor:
    """L above, of one task's trajectories [n, H]; its gradient is minus an estimate of that of the expected return."""
    return -(log_probability(module, params, batch) * batch["advantages"]).sum(-1).mean()


def goals(count: int, *key: object) -> Tensor:
    """[T, 2] in the unit square around the origin, which depend on the key alone."""
    return torch.rand(count, 2, generator=generator("goals", *key)) - 0.5


def roll_out(module: nn.Module, params: Named, goal: Tensor, n: int, horizon: int, *key: object) -> Trajectories:
    """n trajectories for each of the goals [T, 2], of the policies whose weights `params` lead with T."""
    g = generator("noise", *key)
    act = torch.vmap(lambda p, places: functional_call(module, p, (places,)))
    place = torch.zeros(len(goal), n, 2)
    places, actions, rewards = [], [], []
    with torch.no_grad():
        for _ in range(horizon):
            mean, log_std = act(params, place)
            action = mean + log_std.exp().unsqueeze(1) * torch.randn(mean.shape, generator=g)
            places.append(place)
            actions.append(action)
            place = place + SPEED * action.clamp(-1, 1)
            rewards.append(-(place - goal.unsqueeze(1)).norm(dim=-1))
    return Trajectories(*(torch.stack(x, 2) for x in (places, actions, rewards)))


def with_advantages(drawn: Trajectories, scaled: bool = True) -> dict[str, Tensor]:
    """A batch of `surrogate`, for each task: what was done, and how much better it went than the linear baseline."""
    togo = drawn.rewards.flip(-1).cumsum(-1).flip(-1)
    time = torch.linspace(0, 1, togo.shape[-1], dtype=togo.dtype).expand(togo.shape)
    powers = torch.stack([torch.ones_like(time), time, time**2, time**3], -1)
    features = torch.cat([drawn.places, drawn.places.square(), powers], -1).flatten(1, 2)
    ridge = 1e-3 * torch.eye(features.shape[-1], dtype=togo.dtype)
    weights = torch.linalg.solve(features.mT @ features + ridge, features.mT @ togo.flatten(1).unsqueeze(-1))
    advantages = togo - (features @ weights).view_as(togo)
    if scaled:
        advantages = advantages / advantages.flatten(1).std(1).clamp(min=1e-6).view(-1, 1, 1)
    return {"places": drawn.places, "actions": drawn.actions, "advantages": advantages}


def sampling_gradient(module: nn.Module, params: Named, support: dict[str, Tensor], returns: Tensor) -> Named:
    """E-MAML's term, as a gradient to descend: - mean over tasks of grad sum log pi(support) times the return [T] after
    adaptation, less the mean of the other tasks' returns. Unbiased; params without a task axis."""
    others = (returns.sum() - returns) / max(1, len(returns) - 1)
    leaves = {name: p.detach().requires_grad_() for name, p in params.items()}
    score = log_probability(module, leaves, support).flatten(1).sum(1)
    value = -((returns - others) * score).mean()
    return dict(zip(leaves, torch.autograd.grad(value, list(leaves.values())), strict=True))


def meta_train(method: str, seed: int, options: Any, file: Path) -> Trained:
    """Every method draws 2 n trajectories of each goal in a meta-step: support and query, or all from one policy."""
    module, start = parameters(Policy, seed)
    one = functools.partial(surrogate, module)
    loop = InnerLoop(steps=1, lr=options.inner_lr, memory="unroll")
    tasks, n, horizon = options.meta_batch, options.trajectories, options.horizon
    order: Any = method.split()[0]

    def gradient(params: Named, step: int) -> tuple[Named, float]:
        goal = goals(tasks, "train", seed, step)
        stacked = stack(params, tasks)
        if method == "pretrained":
            drawn = roll_out(module, stacked, goal, 2 * n, horizon, "support", seed, step)
            batch = with_advantages(drawn, scaled=False)
            result = meta_gradient(one, stacked, batch, batch, InnerLoop(steps=0),
                                  task_axis=True, last_inner_loss=False)  # fmt: skip
            return mean_over_tasks(result.grads), -float(drawn.returns.mean())
        support = with_advantages(roll_out(module, stacked, goal, n, horizon, "support", seed, step))
        fast = adapt(one, stacked, support, loop, task_axis=True, last_inner_loss=False).params
        drawn = roll_out(module, fast, goal, n, horizon, "query", seed, step)
        query = with_advantages(drawn, scaled=False)
        result = meta_gradient(one, stacked, support, query, loop, order, task_axis=True, last_inner_loss=False)
        grads = mean_over_tasks(result.grads)
        if method == "exact and sampling":
            more = sampling_gradient(module, params, support, drawn.returns)
            grads = {name: g + more[name] for name, g in grads.items()}
        return grads, -float(drawn.returns.mean())

    return train(start, gradient, options.steps, options.outer_lr, file, every=50)


def returns(params: Named, lr: float, goal: Tensor, options: Any, *key: object, steps: int = 3) -> Tensor:
    """Of the policies after 0..steps steps, each on n new trajectories of the policy before it, [T, steps + 1]."""
    module, _ = parameters(Policy, 0)
    one = functools.partial(surrogate, module)
    fast, curve = stack(params, len(goal)), []
    for k in range(steps + 1):
        curve.append(roll_out(module, fast, goal, 40, options.horizon, "score", *key, k).returns)
        if k < steps:
            drawn = roll_out(module, fast, goal, options.trajectories, options.horizon, "adapt", *key, k)
            fast = adapt(one, fast, with_advantages(drawn), InnerLoop(steps=1, lr=lr), task_axis=True,
                         last_inner_loss=False).params  # fmt: skip
    return torch.stack(curve, 1)


def straight(goal: Tensor, horizon: int) -> Tensor:
    """The return of an agent that knows the goal and goes there, [T]."""
    place, total = torch.zeros_like(goal), torch.zeros(len(goal))
    for _ in range(horizon):
        place = place + (goal - place).clamp(-SPEED, SPEED)
        total = total - (place - goal).norm(dim=-1)
    return total


def run(options: Any) -> dict[str, Any]:
    test, validation = goals(options.tasks, "test"), goals(options.tasks, "validation")
    methods: dict[str, Any] = {}
    for method in METHODS:
        curves, seconds, rates = [], [], []
        for seed in options.seeds:
            file = options.run_dir / f"navigation-{method.replace(' ', '-')}-{seed}.safetensors"
            trained = meta_train(method, seed, options, file)
            lr = options.inner_lr
            if method == "pretrained":  # its own best step
                tried = {
                    r: returns(trained.params, r, validation, options, "held", steps=1)[:, 1].mean() for r in RATES
                }
                lr = max(RATES, key=lambda r: float(tried[r]))
            curves.append(returns(trained.params, lr, test, options, "test", seed))
            seconds.append(trained.seconds)
            rates.append(lr)
        entry = {f"return_after_{k}": figure([c[:, k] for c in curves]) for k in range(curves[0].shape[1])}
        methods[method] = {**entry, "seconds": seconds, "rates": rates, "curves": curves}
    difference = [a - b for a, b in zip(*(methods[m]["curves"] for m in ("exact", "pretrained")), strict=True)]
    gain = figure([d[:, 1] for d in difference])
    for entry in methods.values():
        del entry["curves"]
    return {
        "protocol": {
            "goals": "uniform, [-0.5, 0.5]^2", "test_goals": options.tasks, "horizon": options.horizon, "speed": SPEED,
            "trajectories": options.trajectories, "meta_batch": options.meta_batch, "meta_steps": options.steps,
            "inner_lr": options.inner_lr, "inner_steps": 1, "outer": f"Adam {options.outer_lr:g}",
            "pretrained_rates": RATES,
        },
        "methods": methods,
        "knows_the_goal": figure([straight(test, options.horizon)]),
        "exact_less_pretrained_after_1": gain,
        "holds": {"return after one step above that of the pretrained policy": gain["low"] > 0},
    }  # fmt: skip


COLUMNS = ("return after 0", "after 1 step", "after 2", "after 3", "seconds a seed")


def rows(result: dict[str, Any]) -> list[tuple[str, ...]]:
    out = [
        (n, *(shown(m[f"return_after_{k}"], 2) for k in range(4)), f"{sum(m['seconds']) / len(m['seconds']):.0f}")
        for n, m in result["methods"].items()
    ]
    return [*out, ("knows the goal", shown(result["knows_the_goal"], 2), "", "", "", "")]
