"""`distmeta bench inner`: what the inner loop costs on a user's own model and episodes, and what `auto` chooses there.

Every figure is of one meta-step's gradient as the learner takes it (`learner.gradients.meta_gradients`), without outer
steps. The floor is the matrix-product FLOPs of the leanest path (graphs kept, no padding at all) over the rate of this
machine on a square matrix product; below one times it no arrangement of the same mathematics can come.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any, cast

import torch

from distmeta.algorithms import fomaml, maml
from distmeta.algorithms.rates import initial_log_rates
from distmeta.bench import measure
from distmeta.config import Config, make_config
from distmeta.errors import InputError
from distmeta.evaluation.scoring import group_episodes, load_group, tasks_at_once, tokens_of
from distmeta.learner.gradients import meta_gradients, state_cache
from distmeta.models.backbone import set_attention
from distmeta.models.build import build_for
from distmeta.models.footprint import Choice
from distmeta.models.prefix import StateCache
from distmeta.models.task_model import TaskModel
from distmeta.tasks.build import build_store
from distmeta.tasks.episodes.episode import sample_episode
from distmeta.tasks.families import check_feasible
from distmeta.tasks.rows import Episode
from distmeta.tasks.store import TaskStore, open_store


@dataclass(frozen=True)
class Variant:
    """One way to the meta-gradient. tasks: how many run as one, 0 as chosen. kept: prefix states are there already.

    attention: transformers' name of a kernel in the place of the chosen one.
    """

    algorithm: Any
    memory: str = "auto"
    tasks: int = 0
    kept: bool = False
    attention: str = ""


@dataclass(frozen=True)
class Subject:
    """What is measured: the model, a meta-batch of meta-train episodes, where they came from."""

    config: Config
    model: TaskModel
    store: TaskStore
    episodes: list[Episode]
    device: torch.device

    def with_inner(self, **inner: Any) -> Subject:
        changed = self.config.inner.model_copy(update=inner)
        return dataclasses.replace(self, config=self.config.model_copy(update={"inner": changed}))


def load_subject(config: Config) -> Subject:
    """Raises InputError."""
    store = open_store(build_store(config.data, config.task, config.model, seed=config.run.seed))
    check_feasible(store, config.task)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    model = build_for(config, store).to(device)
    count = config.outer.meta_batch_size
    episodes = [sample_episode(store, config.task, config.run.seed, "train", i) for i in range(count)]
    return Subject(config, model, store, episodes, device)


def variants(subject: Subject) -> dict[str, Variant]:
    """Those that this model can run."""
    out = {
        "exact, unroll": Variant(maml, "unroll"),
        "exact, walk": Variant(maml, "walk"),
        "exact, auto": Variant(maml),
        "first order": Variant(fomaml),
    }
    if subject.model.why_not_again is None:
        out["exact, layers"] = Variant(maml, "layers")
    if hasattr(subject.model.backbone, "exact_attention"):  # the same up to 128 tokens, above in blocks
        out["exact, walk, transformers' attention"] = Variant(maml, "walk", attention="eager")
    if subject.model.takes_task_axis and len(subject.episodes) > 1:
        out["exact, auto, tasks one by one"] = Variant(maml, tasks=1)
        out["exact, auto, tasks at once"] = Variant(maml, tasks=len(subject.episodes))
    if state_cache(subject.model, subject.config, subject.store) is not None:
        out["exact, auto, second pass"] = Variant(maml, kept=True)
    return out


def runner(subject: Subject, variant: Variant) -> Callable[[int], None]:
    """Runs the meta-step's gradient once, whatever the round; with `kept`, prefix states are filled in here and now."""
    configured = subject.with_inner(memory=variant.memory, **({"task_batch": variant.tasks} if variant.tasks else {}))
    cache = state_cache(configured.model, configured.config, configured.store) if variant.kept else None

    def run(number: int) -> None:
        model, backbone = subject.model, cast(Any, subject.model.backbone)
        kernel = getattr(backbone, "exact_attention", "eager")
        model.layers.recomputed = len(model.layers) if configured.config.runs_layers_again else 0
        backbone.exact_attention = variant.attention or kernel
        try:
            gradients(configured, variant.algorithm, cache)
        finally:
            model.layers.recomputed, backbone.exact_attention = 0, kernel

    if variant.kept:
        run(0)
    return run


def gradients(
    subject: Subject,
    algorithm: Any,
    cache: StateCache | None = None,
    see: Callable[[Choice], None] = lambda choice: None,
) -> None:
    model, config = subject.model, subject.config
    rates = initial_log_rates(config.inner, model.adapted)
    meta = {n: v.to(subject.device) for n, v in {**model.fast, **model.shared, **rates}.items()}
    meta_gradients(model, meta, algorithm, config, subject.store, subject.episodes, 1, subject.device, cache, see=see)


def bench_inner(
    config: Config, rounds: int = 3, say: Callable[[str], None] = lambda line: None, memory: bool = True
) -> dict[str, Any]:
    """Time, peak memory and multiple of the floor of each variant, as JSON. Raises InputError, Diverged.

    memory: also measure the peaks, each in a fresh process.
    """
    if rounds < 1:
        raise InputError(f"--rounds {rounds}: give at least 1")
    if not torch.cuda.is_available():
        torch.set_num_threads(max(1, int(config.cluster.cpus_per_worker)))  # as a learner's rank has
    subject = load_subject(config)
    chosen = variants(subject)
    say("matrix rate, floor, and what auto chooses")
    rate = measure.matrix_rate()
    floors = {algorithm: floor(subject, algorithm) / rate for algorithm in (maml, fomaml)}
    choices = _choices(subject)
    runs = {name: runner(subject, variant) for name, variant in chosen.items()}
    for name, run in runs.items():
        say(f"warm-up: {name}")
        run(0)
    say(f"{rounds} interleaved rounds")
    timings = measure.interleave(runs, rounds)
    results: dict[str, Any] = {}
    for name, times in timings.items():
        seconds = measure.spread(measure.seconds(times))
        results[name] = {
            "seconds": dataclasses.asdict(seconds),
            "wall_s": [t.wall_s for t in times],
            "over_floor": seconds.median / floors[chosen[name].algorithm],
            "over_auto": dataclasses.asdict(measure.ratio(times, timings["exact, auto"])),
            "peak_mb": None,
        }
    for name in chosen if memory else ():
        say(f"peak memory in a fresh process: {name}")
        results[name]["peak_mb"] = peak_in_fresh_process(config, name)
    return {
        **measure.setting({"run.seed": config.run.seed}),
        "tasks": len(subject.episodes), "clock": "wall" if torch.cuda.is_available() else "cpu", "rounds": rounds,
        "matrix_gflops_per_s": rate / 1e9,
        "floor_s": {"exact": floors[maml], "first order": floors[fomaml]},
        "auto_chooses": choices, "variants": results,
    }  # fmt: skip


def floor(subject: Subject, algorithm: Any) -> float:
    """FLOPs of the leanest path: graphs kept, a micro-batch for each length of text; eager attention can be counted."""
    lean = subject.with_inner(memory="unroll", buckets=10**6, part_tokens=0, task_batch=1)
    countable = SimpleNamespace(ORDER="exact", meta_gradient=algorithm.meta_gradient)
    layers, before = subject.model.layers, subject.model.layers.recomputed
    layers.recomputed = 0
    try:
        return measure.matrix_flops(lambda: gradients(lean, countable))
    finally:
        layers.recomputed = before


def _choices(subject: Subject) -> dict[str, Any]:
    """What inner.memory=auto, inner.task_batch=0, inner.buckets=0 and the order decide for these episodes."""
    automatic, model, config = subject.with_inner(memory="auto"), subject.model, subject.config
    count = tasks_at_once(model, config, subject.episodes, subject.device, exact=True)
    group = group_episodes(subject.episodes, count)[0]
    support, query = load_group(group, model, config, subject.store.pad_id, subject.device, training=True, exact=True)
    choices: list[Choice] = []
    gradients(dataclasses.replace(automatic, episodes=group), maml, see=choices.append)
    return {
        "steps_kept": choices[0].steps_kept,
        "steps": config.inner.steps,
        "tasks_at_once": len(group),
        "part_tokens": choices[0].part_tokens,
        "layers_again": choices[0].layers_again,
        "layers": choices[0].layers,
        "support_micro_batches": len(support),
        "query_micro_batches": len(query),
        "padded_over_real_tokens": sum(b.tokens for b in [*support, *query]) / sum(map(tokens_of, group)),
        "attention": {order: set_attention(model.backbone, order) for order in ("exact", "first_order")},
        "layers_run_once": model.entry,
    }


def peak_in_fresh_process(config: Config, name: str) -> float | None:
    """MB; None where the kernel cannot tell."""
    answer = measure.in_fresh_process("distmeta.bench.inner", "peak", config=config.model_dump(mode="json"), name=name)
    return None if answer is None else float(answer)


def peak(config: dict[str, Any], name: str) -> float | None:
    """Runs in the fresh process: warms up on two rows a set, then measures one run."""
    subject = load_subject(make_config(config))
    variant = variants(subject)[name]
    few = [dataclasses.replace(e, support=e.support.part(0, 2), query=e.query.part(0, 2)) for e in subject.episodes[:1]]
    runner(dataclasses.replace(subject, episodes=few), variant)(0)
    try:
        return measure.peak_mb(functools.partial(runner(subject, variant), 0))
    except OSError:
        return None


def table(result: dict[str, Any]) -> Any:
    """A rich table of what `bench_inner` returned."""
    from distmeta.runs import tables

    rows = []
    for name, measured in result["variants"].items():
        s, mb = measured["seconds"], measured["peak_mb"]
        rows.append([
            name, f"{s['median']:.3g}", f"{s['low']:.3g}-{s['high']:.3g}", f"{measured['over_auto']['median']:.2f}",
            f"{measured['over_floor']:.2f}", "" if mb is None else f"{mb:.0f}",
        ])  # fmt: skip
    heads = ("variant", f"{result['clock']} s", "low-high", "over auto", "x floor", "peak MB")
    return tables.table(f"meta-gradient of {result['tasks']} tasks, {result['rounds']} interleaved rounds", heads, rows)


def sentences(result: dict[str, Any]) -> Sequence[str]:
    """What auto chooses, in words."""
    auto = result["auto_chooses"]
    return [
        f"auto keeps the graphs of {auto['steps_kept']} of {auto['steps']} inner steps and recomputes the others, runs "
        f"{auto['layers_again']} of {auto['layers']} layers again; {auto['tasks_at_once']} tasks run as one",
        f"micro-batches: {auto['support_micro_batches']} of a support set, {auto['query_micro_batches']} of a query "
        f"set, {auto['padded_over_real_tokens']:.2f} padded tokens for each real one",
        f"attention: {auto['attention']['exact']} for exact, {auto['attention']['first_order']} for first order; "
        f"layers below the lowest adapted one, run once an episode: {auto['layers_run_once']}",
    ]
