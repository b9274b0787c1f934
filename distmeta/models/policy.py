"""Policies (family policy): rollouts of an environment under the weights at hand, and a loss whose derivatives are
those of the expected return.

A task's rollouts at weights theta, drawn within the loss, have the loss

    L = - mean over rollouts of  R + sum_t (box(W_t) - box(W_t-1)) A_t        box(x) = exp(x - x held constant) = 1

R: the return, a constant. W_t: sum of log pi_theta(a_s | o_s) up to t. A_t: rewards from t on less a linear baseline.
So L is minus the return, its gradient the policy gradient, and its Hessian that of the expected return with the term
which says that theta chose the rollouts: loaded DiCE (Farquhar et al. 2019, arXiv 1909.10549; DiCE: Foerster et al.
2018, arXiv 1802.05098) with rewards to go. Both are unbiased: each rollout's baseline is fitted to the others. What an
order of derivative in distmeta.inner makes of L is therefore what it makes of the expected return.

Letters: T tasks, n rollouts of a task, N = T n, H steps, O numbers of an observation, A of an action (or actions).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from distmeta.config import Config
from distmeta.errors import InputError
from distmeta.models.batch import TextBatch
from distmeta.models.regression import RegressionModel, numbers_of
from distmeta.models.task_model import Params
from distmeta.tasks.environments import SEEDS, drawn_tasks, load_environment, noise
from distmeta.tasks.regression import tokens

RIDGE = 1e-3  # of the baseline's fit


@dataclass(frozen=True)
class Rollouts:
    """What a policy did, without a derivative."""

    observations: Tensor  # [T, n, H, O], before each action
    actions: Tensor  # [T, n, H, A], or of discrete ones whole numbers [T, n, H]
    rewards: Tensor  # [T, n, H]
    alive: Tensor  # [T, n, H]: 1 until the rollout is over, then 0
    reference: Tensor  # [T, n, H]: W_t of the policy that acted


class PolicyModel(RegressionModel):
    """As `TaskModel`, of policies: a normal distribution around the outputs, with log standard deviations of its own,
    or of discrete actions the softmax of the outputs. A batch's rows are rollouts (distmeta.tasks.environments)."""

    reads_sets = True  # the baseline is fitted to a task's rollouts

    def __init__(self, backbone: Any, config: Config) -> None:
        self.environment = load_environment(config.task.environment)
        sizes = self.environment.observations, self.environment.actions
        if sizes != config.model.dimensions:
            raise InputError(
                f"model.dimensions = {list(config.model.dimensions or ())}: the environment observes {sizes[0]} "
                f"numbers and takes {sizes[1]} {'actions' if self.environment.discrete else 'numbers of an action'}; "
                f"set [{sizes[0]},{sizes[1]}]"
            )
        self.trial_tasks = drawn_tasks(self.environment, config.run.seed, 0, 6)
        self.horizon = config.task.horizon
        self._held: dict[Any, Rollouts] | None = None
        super().__init__(backbone, config)

    def _check_own(self, config: Config) -> None:
        if self.own_loss is not None:
            raise InputError(f"model.module = {config.model.module}: its method loss is for task.family=regression; "
                             "remove it, and let it give features")  # fmt: skip

    def _add_head(self, generator: torch.Generator) -> None:
        super()._add_head(generator)
        if not self.environment.discrete:
            self.head_log_std = nn.Parameter(torch.zeros(self.outputs))

    def _trial_ids(self, rows: int) -> NDArray[Any]:
        """Rollouts of some tasks; as observations, whatever their numbers are."""
        seeds = np.arange(rows, dtype=np.int32)[:, None]
        ids = np.concatenate([tokens(self.trial_tasks[:rows].tolist()).reshape(rows, -1), seeds], 1)
        return np.pad(ids, ((0, 0), (0, max(0, self.inputs - ids.shape[1]))))

    def row_scores(self, params: Mapping[str, Tensor], batch: TextBatch) -> tuple[Tensor, Tensor]:
        """Each rollout's part of L, [T, n]; and zeros: no rollout is right."""
        drawn = self.rollouts(params, batch)
        with torch.no_grad():
            left = advantages(drawn.observations, drawn.rewards, drawn.alive)
        scores = self._log_probabilities(params, batch, drawn.observations, drawn.actions) * drawn.alive
        losses = surrogate(scores.cumsum(-1) - drawn.reference, drawn.rewards, left)
        return losses, torch.zeros_like(losses)

    @torch.no_grad()
    def rollouts(self, params: Mapping[str, Tensor], batch: TextBatch) -> Rollouts:
        """Of the policies of T tasks, n each. What they draw is a function of each row's seed and of a number from
        torch's generator: of the inner step, under InnerLoop(seed=...)."""
        step = int(torch.randint(SEEDS, ()))
        size = self.trial_tasks.shape[1]
        seeds = batch.input_ids[:, size].cpu().numpy()
        key = step, seeds.tobytes(), batch.input_ids[:, :size].cpu().numpy().tobytes()
        if self._held is not None and key in self._held:
            return self._held[key]
        shape, device = batch.labels.shape, batch.input_ids.device
        dtype = next(iter(params.values())).dtype
        of_environment, uniform = noise(seeds, step, (self.horizon, 1 if self.environment.discrete else self.outputs))
        chance = torch.as_tensor(uniform, device=device).view(*shape, self.horizon, -1)
        tasks = numbers_of(batch)[:, :size].cpu().numpy().astype(np.float64)
        seen: Any = self.environment.reset(tasks, of_environment)
        alive = np.ones(len(tasks))
        steps: list[tuple[Tensor, ...]] = []
        for t in range(self.horizon):
            observation = torch.as_tensor(np.array(seen, np.float64), dtype=dtype, device=device).view(*shape, 1, -1)
            action = self._act(params, batch, observation, chance[:, :, t])
            of_step = action.flatten(0, 1).cpu().numpy()
            seen, reward, over = self.environment.step(of_step.astype(np.int64 if self.environment.discrete else float))
            here = (torch.as_tensor(x, dtype=dtype, device=device).view(shape) for x in (reward * alive, alive))
            steps.append((observation[:, :, 0], action, *here))
            alive = alive * ~np.asarray(over, bool)
        observations, actions, rewards, living = (torch.stack(each, 2) for each in zip(*steps, strict=True))
        scores = self._log_probabilities(params, batch, observations, actions) * living
        drawn = Rollouts(observations, actions, rewards, living, scores.cumsum(-1))
        if self._held is not None:
            self._held[key] = drawn
        return drawn

    @contextmanager
    def held(self) -> Iterator[None]:
        """Within it rollouts with the same seeds in the same step stay as they were drawn first, whatever the policy is
        by then: L is then the return as estimated from them, whose derivative where they were drawn is that of L."""
        self._held = {}
        try:
            yield
        finally:
            self._held = None

    def _outputs(self, params: Mapping[str, Tensor], batch: TextBatch, observations: Tensor) -> Tensor:
        """Of observations [T, n, H, O]: [T, n, H, A]."""
        shape = observations.shape
        labels = batch.labels.new_zeros(shape[0], shape[1] * shape[2])
        outputs = self.logits(dict(params), replace(batch, input_ids=observations.flatten(0, 2), labels=labels))
        return outputs.view(*shape[:3], -1)

    def _log_std(self, params: Mapping[str, Tensor]) -> Tensor:
        """[T or 1, 1, 1, A]."""
        return params.get("head_log_std", self.head_log_std).view(-1, 1, 1, self.outputs)

    def _act(self, params: Mapping[str, Tensor], batch: TextBatch, observation: Tensor, chance: Tensor) -> Tensor:
        """Actions [T, n, A], or [T, n] of discrete ones, at observations [T, n, 1, O]. chance: from 0 to 1, [T, n, A]
        or [T, n, 1]."""
        outputs = self._outputs(params, batch, observation)
        if self.environment.discrete:
            below: Tensor = outputs[:, :, 0].double().softmax(-1).cumsum(-1) < chance
            return below.sum(-1).clamp(max=self.outputs - 1)
        noise: Tensor = torch.special.ndtri(chance).to(outputs.dtype)
        return outputs[:, :, 0] + self._log_std(params)[:, 0].exp() * noise

    def _log_probabilities(
        self, params: Mapping[str, Tensor], batch: TextBatch, observations: Tensor, actions: Tensor
    ) -> Tensor:
        """Of actions at observations, [T, n, H]; of a normal distribution without its constant."""
        outputs = self._outputs(params, batch, observations)
        if self.environment.discrete:
            return outputs.log_softmax(-1).gather(-1, actions.unsqueeze(-1)).squeeze(-1)
        log_std = self._log_std(params)
        z = (actions - outputs) * torch.exp(-log_std)
        return -(0.5 * z.square() + log_std).sum(-1)

    def answers(self, params: Params, batch: TextBatch) -> Tensor:
        """The mean action at each observation, [T, n, A]; of discrete ones the likeliest one's number, [T, n, 1]."""
        outputs = self.logits(params, batch)
        return outputs.argmax(-1, keepdim=True) if self.environment.discrete else outputs


def surrogate(ratio: Tensor, rewards: Tensor, advantages: Tensor) -> Tensor:
    """Each rollout's part of L, [...], of [..., H]. ratio: W_t less that of the policy that drew it, so 0 there."""
    box = ratio.exp()
    before = torch.cat([torch.ones_like(box[..., :1]), box[..., :-1]], -1)
    return -(rewards + (box - before) * advantages).sum(-1)


def advantages(observations: Tensor, rewards: Tensor, alive: Tensor) -> Tensor:
    """Rewards from each step on, less a baseline that is linear in the observation, its square and powers of the time,
    fitted to the task's other rollouts, [T, n, H]; without others less nothing. observations: [T, n, H, O]."""
    togo = rewards.flip(-1).cumsum(-1).flip(-1).double()
    time = torch.linspace(0, 1, togo.shape[-1], dtype=togo.dtype, device=togo.device).expand(togo.shape)
    powers = torch.stack([time**power for power in range(4)], -1)
    seen = observations.double()
    features = torch.cat([seen, seen.square(), powers], -1) * alive.unsqueeze(-1)
    squares, products = features.mT @ features, (features.mT @ togo.unsqueeze(-1)).squeeze(-1)
    ridge = RIDGE * torch.eye(features.shape[-1], dtype=togo.dtype, device=togo.device)
    others = squares.sum(1, keepdim=True) - squares + ridge, products.sum(1, keepdim=True) - products
    weights: Tensor = torch.linalg.solve(*others)
    baseline = (features @ weights.unsqueeze(-1)).squeeze(-1)
    return ((togo - baseline) * alive).to(rewards.dtype)
