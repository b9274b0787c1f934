"""The inner loop's settings, and the error of an inner loop that diverges."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from torch import Tensor

OPTIMIZERS = ("sgd", "momentum", "adam")
SOLVERS = ("cg", "neumann")
MEMORIES = ("auto", "walk", "unroll")
READINGS = ("auto", "step", "parameter")
DERIVATIVES = ("exact", "constant")

LearningRate = float | Tensor | Mapping[str, "float | Tensor"]


@dataclass(frozen=True, eq=False)
class InnerLoop:
    """How fast weights are adapted to a support set.

    lr            The inner learning rate. A tensor anywhere in it is learnt: `MetaGradient.lr_grads` has its
                  derivative. float or 0-d tensor: one rate for everything; tensor [steps]: one for each step
                  (MAML++, arXiv 1810.09502); dict by parameter name, each a float, a 0-d tensor, a tensor
                  [steps] (a rate for each layer and step) or a tensor of the parameter's own shape (Meta-SGD,
                  arXiv 1707.09835). A dict names every fast weight, those of `start` included. Rates have no
                  task axis.
    lr_per        How a tensor in a dict is read if it fits both [steps] and its parameter's shape (a bias of
                  5 numbers and 5 steps): "step" or "parameter". "auto" refuses such a tensor instead of
                  guessing.
    optimizer     sgd, momentum (m = momentum * m + g) or adam, each differentiated through its state.
    memory        walk: keep the fast weights of each step and recompute the step on the way back (memory flat
                  in `steps`); unroll: keep every step's graph (faster); auto: keep the graphs of as many
                  steps as `budget_mb` megabytes of measured saved tensors allow, recompute the others. The
                  same numbers.
    seed          Key of random numbers drawn in the loss (dropout), the same at each recomputation of a
                  (step, micro-batch). Without a seed, a loss that draws random numbers is refused where it
                  would have to be recomputed.
    proximal      Strength lam of lam/2 |theta - start|^2, added to every step's support loss (iMAML, arXiv
                  1909.04630). order="implicit" needs it, the other orders differentiate through it.
    solver        Of the linear system of order="implicit": cg (conjugate gradient) or neumann (a truncated series,
                  which converges where the Hessian's eigenvalues are below `proximal` in size).
    cg_steps      Steps of the solver: products of order="implicit".
    clip          Largest norm of a step's gradient, over all fast weights of a task; a longer one is scaled down to
                  it before the optimizer sees it. None: none is.
    clip_norm     Of the derivative of that scaling: exact, or constant (the norm is taken for a constant, so that
                  the part of the derivative along the gradient stays). Under the norm the two are the same.
    adam_root     exact, or constant: no derivative goes through the root that adam divides by.
    snapshots     How many steps' fast weights are kept at once on the way back (memory walk and auto); the steps
                  between two that are kept are run again, on as many levels as it takes. 0: as many as `budget_mb`
                  has room for.
    """

    steps: int = 1
    lr: LearningRate = 0.1
    optimizer: Literal["sgd", "momentum", "adam"] = "sgd"
    momentum: float = 0.9
    betas: tuple[float, float] = (0.9, 0.999)
    eps: float = 1e-8
    memory: Literal["auto", "walk", "unroll"] = "auto"
    budget_mb: float = 2048.0
    seed: int | None = None
    proximal: float = 0.0
    cg_steps: int = 10
    solver: Literal["cg", "neumann"] = "cg"
    lr_per: Literal["auto", "step", "parameter"] = "auto"
    clip: float | None = None
    clip_norm: Literal["exact", "constant"] = "exact"
    adam_root: Literal["exact", "constant"] = "exact"
    snapshots: int = 0

    def __post_init__(self) -> None:
        _whole("steps", self.steps, 0)
        _whole("cg_steps", self.cg_steps, 1)
        _choice("optimizer", self.optimizer, OPTIMIZERS)
        _choice("memory", self.memory, MEMORIES)
        _choice("solver", self.solver, SOLVERS)
        _choice("lr_per", self.lr_per, READINGS)
        _choice("clip_norm", self.clip_norm, DERIVATIVES)
        _choice("adam_root", self.adam_root, DERIVATIVES)
        _whole("snapshots", self.snapshots, 0)
        if self.clip is not None and not (self.clip > 0 and math.isfinite(self.clip)):
            raise ValueError(f"InnerLoop.clip is a positive number or None, not {self.clip!r}")
        _between("momentum", self.momentum, 0.0, 1.0)
        if len(self.betas) != 2:
            raise ValueError(f"InnerLoop.betas is a pair of numbers, not {self.betas!r}")
        for beta in self.betas:
            _between("betas", beta, 0.0, 1.0)
        if not self.eps > 0:
            raise ValueError(f"InnerLoop.eps is a positive number, not {self.eps!r}")
        if not self.budget_mb > 0:
            raise ValueError(f"InnerLoop.budget_mb is a positive number of megabytes, not {self.budget_mb!r}")
        if not (self.proximal >= 0 and math.isfinite(self.proximal)):
            raise ValueError(f"InnerLoop.proximal is a number >= 0, not {self.proximal!r}")
        if self.seed is not None and (not isinstance(self.seed, int) or isinstance(self.seed, bool)):
            raise ValueError(f"InnerLoop.seed is a whole number or None, not {self.seed!r}")
        if isinstance(self.lr, Mapping):
            for name, rate in self.lr.items():
                _rate(f"lr[{name!r}]", rate)
        else:
            _rate("lr", self.lr)
            if isinstance(self.lr, Tensor) and self.lr.ndim > 0 and tuple(self.lr.shape) != (self.steps,):
                raise ValueError(
                    f"InnerLoop.lr is a tensor of shape {tuple(self.lr.shape)}; allowed: a number, a 0-d tensor, "
                    f"a tensor [steps] = [{self.steps}], or a dict of rates by parameter name"
                )


class Diverged(ArithmeticError):
    """The loss of an inner loop is not a finite number.

    step: inner steps done when it was seen (from 0). loss: its value. tasks: the task indices, empty without
    a task axis. names: of the episodes concerned, if they were given.
    """

    def __init__(
        self,
        step: int,
        steps: int,
        loss: float,
        which: str,
        tasks: Sequence[int] = (),
        names: Sequence[str] = (),
    ) -> None:
        self.step, self.loss, self.tasks, self.names = step, loss, list(tasks), list(names)
        where = f" of task {', '.join(map(str, tasks))}" if tasks else ""
        episode = f" (episode {', '.join(names)})" if names else ""
        what = which if which == "meta-gradient" else f"{which} loss"
        super().__init__(
            f"the {what}{where}{episode} is {loss} after {step} of {steps} inner steps: the inner loop "
            f"diverges; use a smaller inner.lr"
        )

    def __reduce__(self) -> tuple[object, ...]:
        # An exception with arguments of its own does not survive pickling (to another process) unaided.
        return _rebuild, (type(self), self.args, self.__dict__)


def _rebuild(kind: type[Diverged], args: tuple[object, ...], state: dict[str, object]) -> Diverged:
    error = kind.__new__(kind, *args)
    error.args = args
    error.__dict__.update(state)
    return error


def _whole(key: str, value: object, least: int) -> None:
    if not isinstance(value, int) or isinstance(value, bool) or value < least:
        raise ValueError(f"InnerLoop.{key} is a whole number >= {least}, not {value!r}")


def _choice(key: str, value: object, choices: Sequence[str]) -> None:
    if value not in choices:
        raise ValueError(f"InnerLoop.{key} is one of {', '.join(choices)}, not {value!r}")


def _between(key: str, value: float, low: float, high: float) -> None:
    if not low <= value < high:
        raise ValueError(f"InnerLoop.{key} is at least {low} and below {high}, not {value!r}")


def _rate(key: str, rate: object) -> None:
    if isinstance(rate, Tensor):
        if not rate.is_floating_point():
            raise ValueError(f"InnerLoop.{key} is a tensor of {rate.dtype}; a rate is a floating point number")
    elif isinstance(rate, bool) or not isinstance(rate, int | float):
        raise ValueError(f"InnerLoop.{key} is a number or a tensor, not {type(rate).__name__}")
    elif not (rate >= 0 and math.isfinite(rate)):
        raise ValueError(f"InnerLoop.{key} is a finite number >= 0, not {rate!r}")
