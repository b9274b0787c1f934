"""Tasks that arrive one after another, files that are added, and several data sources: what does not go with them."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from distmeta.config import Config


def check_arrivals(config: Config) -> None:
    """Raises ValueError where tasks that arrive, or files that are added, have no meaning."""
    data, task = config.data, config.task
    if task.arrive_every and (task.family == "classes" or data.sources is not None):
        raise ValueError(
            "task.arrive_every is for data with tasks, of one source: task.family=classes makes tasks of classes, and "
            "data.sources mixes several; set it to 0"
        )
    for fits, what in (
        (data.path is not None, "data.path, a directory or glob"),
        (task.arrive_every > 0, "task.arrive_every above 0: tasks arrive with their files"),
        (config.sampling.actors != "auto", "a number for sampling.actors: `auto` measures with tasks to come"),
    ):
        if data.follow is not None and not fits:
            raise ValueError(f"data.follow needs {what}")


def check_mixture(config: Config) -> None:
    """Raises ValueError where several data sources cannot be mixed as task.mixture says."""
    task = config.task
    if task.mixture != "uniform" and config.data.sources is None:
        raise ValueError("task.mixture needs several data.sources; without them there is nothing to mix")
    if task.temperature != 1.0 and task.mixture not in ("temperature", "curriculum"):
        raise ValueError("task.temperature belongs to task.mixture=temperature or curriculum")
    if task.mixture == "curriculum":
        if config.eval.every == 0:
            raise ValueError("task.mixture = curriculum goes by meta-validations: set eval.every")
        # An episode is asked for that many meta-steps ahead, at most, and what it is drawn by must be known by then.
        # The rank with the least share of a meta-batch looks furthest ahead.
        size = config.outer.meta_batch_size
        least = size if config.cluster.episode == "group" else size // config.cluster.most
        ahead = -(-config.sampling.window // least) + 2 + config.eval.beside
        if task.lag < ahead:
            raise ValueError(
                f"task.lag = {task.lag}: episodes are asked for up to {ahead} meta-steps ahead (sampling.window "
                f"over a rank's share of outer.meta_batch_size); set at least {ahead}, or lower sampling.window"
            )
