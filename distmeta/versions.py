"""What differs between the releases of Ray, DeepSpeed and transformers that distmeta runs on, and what it uses of Ray
that Ray does not promise: where a release does not have it, distmeta goes without."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import os
import re
from collections.abc import Iterator
from typing import Any, TypeVar

C = TypeVar("C", bound=type)
UV_RUN = "RAY_ENABLE_UV_RUN_RUNTIME_ENV"


def model_config(cls: C) -> C:
    """A configuration class of transformers, whose annotated attributes are its settings, with their defaults.

    transformers makes it a dataclass that checks types, before 5.4 it is a class with an `__init__` of its own.
    """
    base: Any = cls.__base__
    if dataclasses.is_dataclass(base):
        from huggingface_hub import dataclasses as checking

        strict: Any = checking.strict
        checked: C = strict(cls)
        return checked
    defaults = {name: getattr(cls, name) for name in cls.__annotations__}

    def init(self: Any, **settings: Any) -> None:
        base.__init__(self, **defaults | settings)

    cls.__init__ = init  # type: ignore[misc]
    return cls


@contextlib.contextmanager
def no_fixed_port() -> Iterator[None]:
    """Within it ray.init, which has no option for it, lets its agent take any port: one that took 52365, the default of
    `ray start`, would leave a head that is started meanwhile on this machine without the agent that runs its jobs."""
    try:
        from ray._private import parameter

        usual: Any = parameter.RayParams
        changed = functools.partial(usual, dashboard_agent_listen_port=0)
        changed()
    except (ImportError, AttributeError, TypeError):
        yield
        return
    parameter.RayParams = changed
    try:
        yield
    finally:
        parameter.RayParams = usual


def read_token_again() -> None:
    """Have Ray go by RAY_AUTH_MODE and the token as they are now: it keeps what it has first read in a process."""
    import ray

    raylet: Any = getattr(ray, "_raylet", None)
    with contextlib.suppress(AttributeError):
        raylet.Config.initialize("")
        raylet.AuthenticationTokenLoader.instance().reset_cache()


def workers_without_uv_run() -> None:
    """Under `uv run`, have Ray start its workers with the interpreter of their node, as it does elsewhere.

    Ray would start each of them by `uv run` as well: they would all resolve the project at the same time, each in a
    copy of the working directory. Nothing changes where the environment sets RAY_ENABLE_UV_RUN_RUNTIME_ENV.
    """
    if UV_RUN in os.environ:
        return
    os.environ[UV_RUN] = "0"
    with contextlib.suppress(ImportError):
        from ray._private import ray_constants

        setattr(ray_constants, UV_RUN, False)  # which has read the environment if Ray was imported before


def gather_one_by_one() -> None:
    """Have DeepSpeed's ZeRO 3 gather one parameter after another before 0.19.8: of those that it gathers together it
    waits for the last alone, and the others' numbers may not be there yet."""
    import deepspeed

    version = tuple(int(number) for number in re.findall(r"\d+", deepspeed.__version__)[:3])
    sharded: Any = deepspeed.zero.Init
    together = sharded._allgather_params_coalesced
    if version >= (0, 19, 8) or together.__module__ == __name__:
        return

    def one_by_one(self: Any, parameters: list[Any], *more: Any, **named: Any) -> None:
        for parameter in parameters:
            together(self, [parameter], *more, **named)

    sharded._allgather_params_coalesced = one_by_one


def trainer_class() -> Any:
    """Ray Train's TorchTrainer without the actor that imports Ray Data, to divide data sets of which there are none."""
    from ray.train.torch import TorchTrainer

    class Trainer(TorchTrainer):  # type: ignore[misc]
        def _create_default_callbacks(self) -> list[Any]:  # called by no release that does not have it
            return [c for c in super()._create_default_callbacks() if type(c).__name__ != "DatasetsCallback"]

    return Trainer
