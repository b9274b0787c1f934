"""`distmeta bench sampling`: how fast one core makes episodes, what padding costs, what the object store adds.

Rates are of CPU seconds, which other work on the machine disturbs less than the clock. An episode counts as made once
it is collated: token ids, masks and labels of its support and query sets as arrays that a model takes. MB are 2**20
bytes.
"""

from __future__ import annotations

import dataclasses
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import torch
from numpy.typing import NDArray

from distmeta.bench import measure
from distmeta.config import Config, make_config
from distmeta.errors import InputError
from distmeta.evaluation.scoring import group_episodes, tasks_at_once, tokens_of
from distmeta.tasks import TaskStore, build_store, check_feasible, open_store
from distmeta.tasks.episodes import Episode, EpisodeWindow, Rows, Sampler, collate, start_samplers
from distmeta.versions import workers_without_uv_run

# What is measured where no configuration is given: 5 ways, 5 shots, 15 queries, every text 64 tokens long.
PLAIN = {
    "model": {"max_tokens": 64, "vocab_size": 8000},
    "task": {"family": "classes", "ways": 5, "shots": 5, "queries": 15},
}
INLINE = "this process's own memory (Ray sends less than 100 kB with the reply)"
GROUP = 8  # episodes that are asked for at once, as a meta-batch is


def bench_sampling(
    config: Config | None = None, seconds: float = 2.0, say: Callable[[str], None] = lambda line: None
) -> dict[str, Any]:
    """Rates, padding and the object store's hop on the episodes of `config`, as JSON. Raises InputError.

    config: None for PLAIN. seconds: CPU seconds of each measurement.
    """
    if seconds <= 0:
        raise InputError(f"--seconds {seconds:g}: give more than 0")
    with tempfile.TemporaryDirectory(prefix="distmeta-bench-") as place:
        config = config or plain_config(Path(place))
        say("task store")
        store = open_store(build_store(config.data, config.task, config.model, seed=config.run.seed))
        check_feasible(store, config.task)
        sampler = Sampler(store, config.task, config.run.seed)
        say("one process")
        alone = in_one_process(sampler, config, store.pad_id, seconds)
        say("padding")
        padding = padding_share(sampler.sample(range(200), "train"), config, store.pad_id)
        say("object store")
        hop = through_object_store(store, config, seconds)
    task = config.task
    return {
        **measure.setting({"run.seed": config.run.seed}),
        "data": config.data.path or "the built-in reviews", "family": task.family, "shots": task.shots,
        "queries": task.queries, "max_tokens": config.model.max_tokens,
        "one_process": alone, "padding": padding, "object_store": hop,
    }  # fmt: skip


def plain_config(place: Path, classes: int = 100, rows: int = 200) -> Config:
    """PLAIN on data that are written into `place`: `rows` texts of 62 random words in each class, all different."""
    rng = np.random.default_rng(0)
    words = pa.array([f"word{i}" for i in range(5000)]).take(pa.array(rng.integers(0, 5000, classes * rows * 62)))
    texts = pc.binary_join(
        pa.ListArray.from_arrays(pa.array(np.arange(0, len(words) + 1, 62).astype(np.int32)), words), " "
    )
    labels = pa.array(np.arange(classes * rows) % classes)
    pq.write_table(pa.table({"text": texts, "label": labels}), place / "plain.parquet")
    data = {"path": str(place / "plain.parquet"), "cache": str(place / "cache")}
    return make_config({**PLAIN, "data": data})


def in_one_process(sampler: Sampler, config: Config, pad_id: int, seconds: float) -> dict[str, float]:
    """Episodes a CPU second: made; made and collated one by one; made and collated as the learner groups them."""
    groups = [sampler.sample(range(begin, begin + GROUP), "train") for begin in range(0, 4 * GROUP, GROUP)]
    size = sum(bytes_of(e) for group in groups for e in group) / (4 * GROUP)

    def rate(make: Callable[[int], object]) -> float:
        make(0)
        made, began = 0, time.process_time()
        while time.process_time() - began < seconds:
            make(made)
            made += GROUP
        return made / (time.process_time() - began)

    def draw(begin: int) -> list[Episode]:
        return sampler.sample(range(begin, begin + GROUP), "train")

    both = rate(lambda i: [collated([e], config, pad_id) for e in draw(i)])
    return {
        "episodes_per_s": rate(draw), "collated_per_s": both,
        "collated_in_groups_per_s": rate(lambda i: [collated(g, config, pad_id) for g in grouped(draw(i), config)]),
        "kb_per_episode": size / 1024, "mb_per_s": both * size / measure.MB,
        "tokens_per_episode": float(np.mean([tokens_of(e) for group in groups for e in group])),
    }  # fmt: skip


def collated(group: Sequence[Episode], config: Config, pad_id: int, buckets: int = 0) -> list[dict[str, Any]]:
    """Micro-batches of a group's support and query sets, as `evaluate.load_group` on a CPU, or `buckets` at most."""
    tokens = 0 if buckets else config.inner.part_tokens or 4096
    sets = ([e.support for e in group], [e.query for e in group])
    return [part for rows in sets for part in collate(rows, buckets or config.inner.buckets, pad_id, 1, tokens)]


def grouped(episodes: list[Episode], config: Config) -> list[list[Episode]]:
    """As the learner groups them for a model that takes a task axis, and so little memory that it sets no limit."""
    model: Any = SimpleNamespace(takes_task_axis=True, reads_sets=False, fast={}, fast_shards=True, work_unit=1)
    return group_episodes(episodes, tasks_at_once(model, config, episodes, torch.device("cpu")))


def padding_share(episodes: list[Episode], config: Config, pad_id: int) -> dict[str, float]:
    """Padding over all tokens, real and padding: of one batch a set, of micro-batches by length, and in groups."""
    real = sum(tokens_of(e) for e in episodes)

    def share(groups: list[list[Episode]], buckets: int = 0) -> tuple[float, int]:
        parts = [part for group in groups for part in collated(group, config, pad_id, buckets)]
        return 1 - real / sum(part["input_ids"].size for part in parts), len(parts)

    alone = [[e] for e in episodes]
    (one, _), (sorted_, count), (together, _) = share(alone, 1), share(alone), share(grouped(episodes, config))
    return {
        "one_batch_a_set": one, "by_length": sorted_, "by_length_in_groups": together,
        "micro_batches_a_set": count / (2 * len(episodes)), "tasks_in_a_group": len(grouped(episodes, config)[0]),
    }  # fmt: skip


def through_object_store(store: TaskStore, config: Config, seconds: float) -> dict[str, Any]:
    """One sampler actor to a window here: rates by the clock and by CPU, without a copy and with one."""
    import ray

    ours = not ray.is_initialized()
    if ours:
        workers_without_uv_run()
        ray.init(address="local", num_cpus=2, include_dashboard=False, log_to_driver=False, logging_level="ERROR")
    (actor,) = start_samplers(store.path, config.task, config.run.seed, 1)
    try:
        ray.get(actor.sample.remote(range(GROUP), "train"))  # opens the store
        without, arrays = _receive(actor, seconds, lambda group: None)
        with_copy, _ = _receive(actor, seconds, lambda group: [copied(e) for e in group])
    finally:
        ray.kill(actor)
        if ours:
            ray.shutdown()
    places = {file_of(a.__array_interface__["data"][0]) for a in arrays}
    return {
        "without_copy": without, "with_copy": with_copy,
        "writeable_arrays": sum(a.flags.writeable for a in arrays), "arrays": len(arrays),
        "memory_they_lie_in": sorted(place or INLINE for place in places),
    }  # fmt: skip


def _receive(actor: Any, seconds: float, use: Callable[[list[Episode]], object]) -> tuple[dict[str, float], list[Any]]:
    """What the hop costs, and the arrays of a group as they arrived."""
    import ray

    def cpu_of_sampler() -> float:
        return float(ray.get(actor.__ray_call__.remote(lambda self: time.process_time())))

    groups = ([*range(begin, begin + 2 * GROUP)] for begin in range(0, 10**9, 2 * GROUP))
    made, theirs, began, cpu_began = 0, cpu_of_sampler(), time.perf_counter(), time.process_time()
    for group, _ in EpisodeWindow(groups, [actor], split="train", window=8 * GROUP):
        use(group)
        made += len(group)
        if time.perf_counter() - began > seconds:
            break
    wall, cpu = time.perf_counter() - began, time.process_time() - cpu_began
    rates = {
        "episodes_per_s": made / wall, "mb_per_s": made * bytes_of(group[0]) / measure.MB / wall,
        "sampler_cpu_us_per_episode": (cpu_of_sampler() - theirs) / made * 1e6,
        "learner_cpu_us_per_episode": cpu / made * 1e6,
    }  # fmt: skip
    return rates, [array for e in group for array in arrays_of(e)]


def file_of(address: int) -> str | None:
    """The file (such as the object store's shared memory) that is mapped at an address of this process, if any."""
    for line in Path("/proc/self/maps").read_text().splitlines():
        first, last = (int(end, 16) for end in line.split()[0].split("-"))
        if first <= address < last:
            return " ".join(line.split()[5:]) or None
    return None


def arrays_of(episode: Episode) -> Iterator[NDArray[Any]]:
    for rows in (episode.support, episode.query):
        held = (getattr(rows, field.name) for field in dataclasses.fields(rows))
        yield from (array for array in held if array is not None)


def copied(episode: Episode) -> Episode:
    def copy(rows: Rows) -> Rows:
        return dataclasses.replace(rows, **{n: v.copy() for n, v in vars(rows).items() if v is not None})

    return dataclasses.replace(episode, support=copy(episode.support), query=copy(episode.query))


def bytes_of(episode: Episode) -> int:
    return sum(array.nbytes for array in arrays_of(episode))


def table(result: dict[str, Any]) -> Any:
    """A rich table of what `bench_sampling` returned."""
    from distmeta.runs import tables

    alone, padding, hop = result["one_process"], result["padding"], result["object_store"]
    rows = [
        [f"one core: {name}", f"{alone[key]:,.0f}"]
        for name, key in (("made", "episodes_per_s"), ("and collated", "collated_per_s"),
                          ("in groups", "collated_in_groups_per_s"))
    ]  # fmt: skip
    for name, key in (("without a copy", "without_copy"), ("with a copy", "with_copy")):
        cpu = f"{hop[key]['learner_cpu_us_per_episode']:.0f} us of the learner"
        rows.append([f"from an actor, {name} ({cpu})", f"{hop[key]['episodes_per_s']:,.0f}"])
    rows += [
        ["padding: one batch a set", f"{padding['one_batch_a_set']:.1%}"],
        ["padding: by length, a task alone", f"{padding['by_length']:.1%}"],
        [
            f"padding: by length, {padding['tasks_in_a_group']:.0f} tasks as one",
            f"{padding['by_length_in_groups']:.1%}",
        ],
    ]
    title = f"episodes of {alone['tokens_per_episode']:.0f} tokens, {alone['kb_per_episode']:.0f} kB"
    return tables.table(title, ("", "episodes/s"), rows)


def sentence(result: dict[str, Any]) -> str:
    """Where the arrays are, in words."""
    hop = result["object_store"]
    return (
        f"{hop['arrays']} arrays of a group, {hop['writeable_arrays']} of them writeable, lie in "
        f"{', '.join(hop['memory_they_lie_in'])}"
    )
