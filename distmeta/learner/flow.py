"""The flow of episodes as a learner sees it: a window over them, more samplers where these are needed, gauges for
Prometheus."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from distmeta.config import Config
from distmeta.learner.ranks import Rank, all_sum, episodes_of_rank, gather
from distmeta.learner.source import Source
from distmeta.tasks.episodes.flow import samplers_needed, seconds_per_episode
from distmeta.tasks.episodes.sampler import Sampler, start_samplers
from distmeta.tasks.episodes.window import EpisodeWindow
from distmeta.tasks.mixture import curriculum
from distmeta.tasks.store import TaskStore

MEASURED = (2, 4)  # meta-steps of a process whose time decides: not the first, which warms up

GAUGES = {
    "distmeta_tasks_per_second": "episodes that all ranks learn from, a second",
    "distmeta_wait_share": "share of a meta-step's time in which the rank waited for episodes",
    "distmeta_window_in_flight": "episodes asked for and not yet used",
    "distmeta_step_seconds": "seconds of a meta-step",
    "distmeta_outer_loss": "query loss after adaptation",
}


def episode_window(
    rank: Rank, source: Source, samplers: Sequence[Any], step: int, validations: list[dict[str, Any]]
) -> EpisodeWindow:
    """The rank's episodes of each meta-step after `step`. validations: of the run, to which later ones are added."""
    config, stream, size = rank.config, source.stream, rank.config.outer.meta_batch_size
    share = episodes_of_rank(config, size, rank.number, rank.world)
    own_turn = [*samplers[rank.number :], *samplers[: rank.number]]
    return EpisodeWindow(
        ([t * size + j for j in share] for t in range(step, config.outer.steps)),
        own_turn or Sampler(stream or source.store, config.task, config.run.seed).sample,
        split="train", window=config.sampling.window, timeout_s=config.sampling.timeout_s,
        mixture=mixture_by(validations, config, source.store),
        ready=lambda indices: stream is None or not indices or stream.covers(indices[-1]),
    )  # fmt: skip


def mixture_by(
    validations: list[dict[str, Any]], config: Config, store: TaskStore
) -> Callable[[int], dict[str, float] | None]:
    """The weights of the data sources for the episode of an index, by the meta-validations so far."""
    size, sources = config.outer.meta_batch_size, list(store.sources["train"])
    if config.task.mixture != "curriculum":
        return lambda index: None
    return lambda index: curriculum(config.task, sources, validations, index // size + 1)


class AutoSamplers:
    """sampling.actors=auto: more samplers, once the first meta-steps have shown how many are needed."""

    def __init__(self, rank: Rank, store_path: Path, samplers: Sequence[Any]) -> None:
        self._rank, self._store_path, self._have = rank, store_path, len(samplers)
        self._busy: list[float] = []  # seconds of the first meta-steps but for the wait for episodes
        self._chosen = rank.config.sampling.actors != "auto" or not samplers
        if not self._chosen:
            sampler = samplers[rank.number % len(samplers)]
            self._make_s = seconds_per_episode(sampler, rank.config.sampling.timeout_s)

    def see(self, seconds: dict[str, float], window: EpisodeWindow) -> None:
        """After a meta-step with these seconds of its phases: add to the window what is wanting, if it is time."""
        if self._chosen:
            return
        self._busy.append(seconds["inner_s"] + seconds["peers_s"] + seconds["aggregate_s"])
        if len(self._busy) < MEASURED[1]:
            return
        self._chosen, steps = True, self._busy[MEASURED[0] - 1 :]
        make_s, busy_s = (total / self._rank.world for total in all_sum([self._make_s, sum(steps) / len(steps)]))
        window.add(gather(self._more(make_s, busy_s)))

    def _more(self, make_s: float, busy_s: float) -> list[Any]:
        """Handles of the samplers that are wanting, as rank 0 starts them; none on other ranks.

        make_s, busy_s: as in `samplers_needed`. No more than the cluster has CPUs for. They end with rank 0's process.
        """
        if self._rank.number != 0:
            return []
        import ray

        config, have = self._rank.config, self._have
        episodes, cpus = config.outer.meta_batch_size, config.cluster.cpus_per_sampler
        needed = samplers_needed(make_s, busy_s, episodes)
        new = max(0, needed - have)
        if new and cpus:
            new = min(new, int(ray.available_resources().get("CPU", 0) / cpus))
        self._rank.say(
            f"sampling.actors=auto: an episode is made in {make_s * 1e3:.2g} ms, a meta-step of {episodes} takes "
            f"{busy_s * 1e3:.3g} ms: {needed} needed, {have + new} there"
        )
        return start_samplers(self._store_path, config.task, config.run.seed, new, cpus)


class Gauges:
    """distmeta_* gauges of one rank, which Ray exports to Prometheus; nothing where Ray is not."""

    def __init__(self, config: Config, rank: int) -> None:
        self._tasks = config.outer.meta_batch_size
        self._gauges: dict[str, Any] = {}
        try:
            import ray
        except ImportError:
            return
        if ray.is_initialized():
            from ray.util.metrics import Gauge

            tags = {"run": config.run.name, "rank": str(rank)}
            for name, what in GAUGES.items():
                self._gauges[name] = Gauge(name, description=what, tag_keys=tuple(tags))
                self._gauges[name].set_default_tags(tags)

    def set(self, seconds: dict[str, float], in_flight: int, outer_loss: float) -> None:
        """After a meta-step. seconds: of its phases, as in metrics.jsonl."""
        phases = ("wait_s", "inner_s", "peers_s", "aggregate_s", "checkpoint_s")
        step_s = max(sum(seconds[phase] for phase in phases), 1e-9)
        values = (self._tasks / step_s, seconds["wait_s"] / step_s, in_flight, step_s, outer_loss)
        for gauge, value in zip(self._gauges.values(), values, strict=False):
            gauge.set(float(value))
