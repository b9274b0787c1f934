"""The family policy: a task is what an environment is to be mastered for, a goal say, and an example a rollout in it.

An environment (task.environment) steps many rollouts at once, on numpy arrays. A row of the store is a task's numbers,
whose bits are tokens as in distmeta.tasks.regression, and a token more, which the episode replaces by the seed of a
rollout: so a rollout is a pure function of its row, the policy, and the number of the inner step.

Built in: point navigation (Finn et al. 2017, arXiv 1703.03400, section 5.3).

Letters: N rollouts, G numbers of a task, O of an observation, A of an action (or actions), H steps.
"""

from __future__ import annotations

import importlib
import json
import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Protocol

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from distmeta.config.modules import GYMNASIUM, load_builder
from distmeta.errors import InputError
from distmeta.tasks.draws import Draws
from distmeta.tasks.regression import tokens

LABEL = "return"  # the one label of the family
VERSION = 1
TASKS = {"train": 2000, "validation": 100, "test": 600}
SEEDS = 2**31 - 1  # of a rollout, below this

Numbers = NDArray[np.float64]


class Environment(Protocol):
    """N rollouts side by side. What it does is a function of the tasks, seeds and actions alone.

    observations: O. actions: A, numbers of an action, or with `discrete` how many actions there are to choose from.
    """

    observations: int
    actions: int
    discrete: bool

    def tasks(self, rng: np.random.Generator, count: int) -> Any:
        """Tasks drawn by `rng`, [count, G]."""
        ...

    def reset(self, tasks: Numbers, seeds: NDArray[np.int64]) -> Any:
        """The first observations [N, O] of rollouts of the tasks [N, G]; seeds [N]: of whatever it draws."""
        ...

    def step(self, actions: NDArray[Any]) -> tuple[Any, Any, Any]:
        """Observations [N, O], rewards [N], and which rollouts are over [N], after actions [N, A], or [N] whole numbers
        of `discrete` ones. Rollouts that are over go on being stepped; what they give no longer counts."""
        ...


class PointNavigation:
    """An agent in the plane begins at 0, and is rewarded by minus its distance to a goal in the unit square around it,
    which it does not see. It sees where it is, and chooses a velocity in units of 0.1, cut to 1 in each direction."""

    observations = 2
    actions = 2
    discrete = False

    def tasks(self, rng: np.random.Generator, count: int) -> Numbers:
        return rng.random((count, 2)) - 0.5

    def reset(self, tasks: Numbers, seeds: NDArray[np.int64]) -> Numbers:
        self.goal, self.place = tasks, np.zeros((len(tasks), 2))
        return self.place

    def step(self, actions: NDArray[Any]) -> tuple[Numbers, Numbers, NDArray[np.bool_]]:
        self.place = self.place + 0.1 * actions.clip(-1, 1)
        rewards = -np.linalg.norm(self.place - self.goal, axis=1)
        return self.place, rewards, np.zeros(len(rewards), bool)


class Gymnasium:
    """An environment of gymnasium, one for each rollout, that has a method tasks(rng, count) -> [count, G] and takes a
    task's numbers in reset(seed=..., options={"task": numbers})."""

    def __init__(self, make: Callable[[], Any]) -> None:
        first = make()
        self._make, self._all, action = make, [first], first.action_space
        if not hasattr(first.unwrapped, "tasks"):
            raise InputError("it has no method tasks(rng, count), which draws tasks as numbers [count, G]")
        self.tasks = first.unwrapped.tasks
        self.discrete = hasattr(action, "n")
        self.observations = int(np.prod(first.observation_space.shape))
        self.actions = int(action.n if self.discrete else np.prod(action.shape))

    def reset(self, tasks: Numbers, seeds: NDArray[np.int64]) -> Numbers:
        self._all += [self._make() for _ in range(len(tasks) - len(self._all))]
        self._over = np.zeros(len(tasks), bool)
        each = zip(self._all, tasks, seeds.tolist(), strict=False)
        seen = [one.reset(seed=seed, options={"task": task})[0] for one, task, seed in each]
        self._seen = np.array(seen, np.float64).reshape(len(tasks), -1)
        return self._seen

    def step(self, actions: NDArray[Any]) -> tuple[Numbers, Numbers, NDArray[np.bool_]]:
        rewards, self._seen, self._over = np.zeros(len(actions)), self._seen.copy(), self._over.copy()
        space = self._all[0].action_space
        for i in np.flatnonzero(~self._over):
            if self.discrete:
                action = int(space.start) + int(actions[i])
            else:
                action = actions[i].reshape(space.shape).clip(space.low, space.high).astype(space.dtype)
            seen, rewards[i], over, cut_off, _ = self._all[i].step(action)
            self._seen[i], self._over[i] = np.ravel(seen), over or cut_off
        return self._seen, rewards, self._over


def load_environment(path: str | None) -> Environment:
    """The environment of task.environment, tried on two rollouts; None: the built-in one. Raises InputError."""
    if path is None:
        return PointNavigation()
    where = f"task.environment = {path}"
    try:
        environment: Environment
        if path.startswith(GYMNASIUM):
            make = importlib.import_module("gymnasium").make
            environment = Gymnasium(lambda: make(path.removeprefix(GYMNASIUM)))
        else:
            environment = load_builder(path, "task.environment")()
        _try(environment)
    except ModuleNotFoundError as error:
        mend = "; pip install gymnasium, or name an environment of your own" if error.name == "gymnasium" else ""
        raise InputError(f"{where}: no module {error.name}{mend}") from None
    except InputError as error:
        line = str(error)
        raise InputError(line if line.startswith(where) else f"{where}: {line}") from None
    except Exception as error:  # whatever the user's code raises
        raise InputError(f"{where}: fails: {type(error).__name__}: {error}") from None
    return environment


def _try(environment: Environment) -> None:
    """Raises InputError where shapes are not those of `Environment`."""
    wide = 2, environment.observations
    seen: list[tuple[Any, Any]] = [(environment.reset(drawn_tasks(environment, 0, 0, 2), np.arange(2)), wide)]
    actions = np.zeros(2, np.int64) if environment.discrete else np.zeros((2, environment.actions))
    seen += zip(environment.step(actions), (wide, (2,), (2,)), strict=True)
    for what, (value, shape) in zip(("reset", "step", "step's rewards", "step's ends"), seen, strict=True):
        if np.shape(value) != shape:
            raise InputError(f"{what} gives {list(np.shape(value))} for 2 rollouts; it must give {list(shape)}")


def drawn_tasks(environment: Environment, seed: int, number: int, count: int) -> Numbers:
    """`count` tasks of the split `number`, [count, G], as float32 holds them. Raises InputError."""
    tasks = np.asarray(environment.tasks(np.random.default_rng([seed, VERSION, number]), count), np.float32)
    if tasks.ndim != 2 or len(tasks) != count or not tasks.shape[1] or not np.isfinite(tasks).all():
        raise InputError(f"tasks(rng, {count}) gives {list(tasks.shape)}; it must give finite numbers [{count}, G]")
    return tasks.astype(np.float64)


def make_tasks(seed: int, environment: Environment) -> pa.Table:
    """A table with columns text, label, task, split: a row for each task."""
    columns: dict[str, list[str]] = {"text": [], "label": [], "task": [], "split": []}
    for number, (split, count) in enumerate(TASKS.items()):
        columns["text"] += map(line, drawn_tasks(environment, seed, number, count).tolist())
        columns["task"] += [f"{split} task {i:04d}" for i in range(count)]
        columns["label"] += [LABEL] * count
        columns["split"] += [split] * count
    return pa.table({name: pa.array(values, pa.large_string()) for name, values in columns.items()})


def line(task: Sequence[float]) -> str:
    """A task as text."""
    return json.dumps({"task": task})


def encode(batches: Iterator[list[str]]) -> Iterator[tuple[NDArray[np.int32], Any]]:
    """As `distmeta.tasks.tokenizer.encode`, of tasks: their numbers, and after them the place of a seed."""
    for texts in batches:
        rows = [[*json.loads(text)["task"], 0.0] for text in texts]
        yield tokens(rows), np.full(len(rows), len(rows[0]), np.int64)


def with_seeds(rows: NDArray[np.int32], offsets: NDArray[np.int64], draws: Draws) -> NDArray[np.int32]:
    """The tokens of rows, each with a seed of its own at its end."""
    out = rows.copy()
    out[offsets[1:] - 1] = draws.below(np.full(len(offsets) - 1, SEEDS))
    return out


def noise(seeds: NDArray[np.int64], step: int, shape: tuple[int, ...]) -> tuple[NDArray[np.int64], Numbers]:
    """Of rollouts with these seeds [N] in the inner step with the key `step`: the environment's seeds [N], and numbers
    between 0 and 1, [N, *shape]. By SplitMix64 (Steele et al. 2014), all at once, from a hash of seed and step."""
    begin = _mixed(_mixed(seeds.astype(np.uint64)) + np.uint64(step))[:, None]
    count = np.arange(1, 2 + math.prod(shape), dtype=np.uint64)
    words = _mixed(begin + count * np.uint64(0x9E3779B97F4A7C15)) >> np.uint64(33)  # below 2**31
    return words[:, 0].astype(np.int64), ((words[:, 1:] + 0.5) / 2**31).reshape(len(seeds), *shape)


def _mixed(words: NDArray[np.uint64]) -> NDArray[np.uint64]:
    for shift, factor in ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB)):
        words = (words ^ (words >> np.uint64(shift))) * np.uint64(factor)
    return words ^ (words >> np.uint64(31))
