"""`distmeta check`: does the configured algorithm compute what it says, and do ranks compute what one process does?

On the configuration's own model, tasks and inner loop, with few and small episodes:

1. the meta-gradient against central differences of the whole adapt-then-query function, in float64, and its distance
   from the first-order gradient;
2. outer steps of the sharded learner, each rank a process of its own, against a plain torch optimizer in this one;
3. tasks batched against one by one, and every step's graph kept against every step recomputed;
4. the attention kernel and the way the derivative is taken, and why.

The functions here only compare; what is compared is what a run uses.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

from distmeta.algorithms import fomaml
from distmeta.algorithms.rates import inner_loop, log_rate_gradients
from distmeta.bench.differences import EXACT, derivative, directions, dot, norm, relative
from distmeta.bench.sharded import OUTER_STEPS, ShardedGroup, episodes_of, plain_steps
from distmeta.config import Config, make_config
from distmeta.config.algorithms import load_algorithm
from distmeta.errors import InputError
from distmeta.evaluation.scoring import split_meta, tasks_at_once
from distmeta.inner import adapt
from distmeta.inner.problem import seeded
from distmeta.learner.gradients import (
    dropout_seed,
    group_gradient,
    is_exact,
    load_parts,
    meta_gradients,
    one_task,
)
from distmeta.learner.state import initial_values
from distmeta.models.attention import BLOCK, TRIAL_BLOCK, name_of
from distmeta.models.backbone import set_attention
from distmeta.models.build import build_for
from distmeta.models.footprint import Choice
from distmeta.models.policy import PolicyModel
from distmeta.models.task_model import TaskModel
from distmeta.tasks.rows import Episode
from distmeta.tasks.store import TaskStore, open_store

Params = dict[str, Tensor]

MOST_SHOTS, MOST_STEPS, MOST_CHUNKS = 2, 5, 4  # of a class; of the inner loop; of a document
SAME = 1e-9  # relative difference of two ways to the same number, in float64
SHARDED = 1e-3  # difference in float32, as a part of how far the outer steps moved the meta-parameters
ROLES = ("initial weights", "shared weights", "inner learning rates")  # of meta-parameters, as `split_meta` has them
OUTER_EPS = 1e-2  # Adam with a small eps hides the scale of a gradient, and turns rounding of a zero into a step


@dataclass(frozen=True)
class Finding:
    """One comparison: `error` against its `limit`; None for both where something is only stated."""

    subject: str
    verdict: str
    error: float | None = None
    limit: float | None = None
    note: str = ""

    @property
    def agrees(self) -> bool:
        return self.error is None or self.limit is None or self.error <= self.limit  # a NaN does not agree


def check(config: Config, ranks: int = 2, say: Callable[[str], None] = lambda line: None) -> list[Finding]:
    """All comparisons for a configuration, with `ranks` processes for the sharded one. Raises InputError."""
    from distmeta.drive.train import prepare_store

    if ranks < 2:
        raise InputError(f"--ranks {ranks}: the sharded step is compared at 2 ranks or more; give at least 2")
    whole, config = config, small_version(config, ranks)
    say("reading tasks")
    store = open_store(prepare_store(config))
    group = ShardedGroup(config, store, ranks)  # the ranks start while the rest is compared
    with group:
        say("meta-gradient against finite differences, in float64")
        findings = check_meta_gradient(config, store)
        say("batched tasks, kept graphs")
        findings += check_equivalents(config, store)
        say(f"sharded outer steps, {ranks} ranks")
        findings += check_sharded(config, store, group)
    say("a group of tasks as a run has them")
    return [*findings, *describe(config, store), memory_finding(whole, store)]


def small_version(config: Config, ranks: int) -> Config:
    """The configuration with few and small episodes; an uneven meta-batch, so that the ranks' shares differ."""
    task, inner = config.task, config.inner
    changes: dict[str, dict[str, Any]] = {
        "task": {"shots": min(task.shots, MOST_SHOTS), "queries": min(task.queries, MOST_SHOTS)},
        "inner": {"steps": min(inner.steps, MOST_STEPS)},
        "outer": {"eps": max(config.outer.eps, OUTER_EPS), "meta_batch_size": ranks + 1},
        "cluster": {"workers": ranks},
    }
    if task.family == "document":
        chunks = min(task.chunks, MOST_CHUNKS)
        changes |= {"task": {"chunks": chunks}, "inner": {"steps": chunks - 1}}
    content = config.model_dump(mode="json")
    return make_config({**content, **{key: {**content[key], **change} for key, change in changes.items()}})


# 1. The meta-gradient


class InDouble(TorchFunctionMode):
    """Keeps float64 where a model asks for float32 by name: attention's softmax, masks and the like."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = dict(kwargs or {})
        first = args[0] if args else None
        if isinstance(first, Tensor) and first.dtype == torch.float64:
            if func is Tensor.float:
                return first
            args = tuple(torch.float64 if a is torch.float32 else a for a in args)
            kwargs = {key: torch.float64 if value is torch.float32 else value for key, value in kwargs.items()}
            if func is torch.nn.functional.scaled_dot_product_attention:
                mask = kwargs.get("attn_mask")
                kwargs["attn_mask"] = None if mask is None else mask.double()
        return func(*args, **kwargs)


def check_meta_gradient(config: Config, store: TaskStore) -> list[Finding]:
    """The algorithm's derivative with respect to each group of meta-parameters, on one episode."""
    algorithm = load_algorithm(config.algorithm)
    model, meta = double_model(config, store)
    setting = Setting(model, algorithm.ORDER, config, store, episodes_of(config, store, 1)[0])
    held = model.held() if isinstance(model, PolicyModel) else nullcontext()  # what differences cannot draw anew
    with held, InDouble():
        grads, first_grads = setting.meta_gradient(algorithm, meta), setting.meta_gradient(fomaml, meta)
        if config.algorithm == "reptile":
            return [reptile_finding(setting, meta, grads)]
        if config.algorithm == "fine_tune":
            return [Finding("step of the initial weights", "none", norm(grads), 0.0, "no meta-training")]
        adapts = getattr(algorithm, "ADAPTS", True)
        order = algorithm.ORDER if adapts else "exact"  # one derivative is all there is
        return [
            derivative_finding(name, order, setting, meta, part, grads, first_grads, None if adapts else algorithm)
            for name, part in zip(ROLES, split_meta(model, meta))
            if part
        ]


def double_model(config: Config, store: TaskStore) -> tuple[TaskModel, Params]:
    """The model in float64, and its initial meta-parameters, slightly moved.

    As they begin, LoRA's B is zero and with it half of the derivatives.
    """
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    model = build_for(config, store).to(device).double()
    generator = torch.Generator().manual_seed(config.run.seed)
    moved = {}
    for name, value in initial_values(config, model).items():
        noise = torch.randn(value.shape, generator=generator, dtype=torch.float64)
        moved[name] = value.detach().double() + 0.02 * noise.to(device)
    return model, moved


@dataclass(frozen=True)
class Setting:
    """One episode, and everything that its meta-gradient is a function of but the meta-parameters."""

    model: TaskModel
    order: str
    config: Config
    store: TaskStore
    episode: Episode

    def meta_gradient(self, algorithm: Any, meta: Params) -> Params:
        """By the names of the meta-parameters, as the learner computes it: batched, with what is frozen run once."""
        result, grads = self._gradient(algorithm, meta)
        rates = split_meta(self.model, meta)[2]
        return {**grads, **log_rate_gradients(self.config.inner, rates, result.lr_grads)}

    def own_loss(self, algorithm: Any, meta: Params) -> float:
        """The loss of an algorithm that does not adapt."""
        return float(self._gradient(algorithm, meta)[0].loss)

    def query_loss(self, meta: Params) -> float:
        """The function that is differenced: adapt to the support set, loss on the query set.

        Of a document: the mean over its chunks of the loss before the step on each.
        """
        loss, fast, support, query, loop = self._arguments(meta)
        options = self._options(meta)
        adapted = adapt(lambda p, b: loss(p, b)[0], fast, support, loop, **options)
        with torch.no_grad():
            last = 0.0
            for j, part in enumerate(query):
                with seeded(loop.seed, ("query", j), part.labels.device):
                    last += float(loss({**options["shared"], **adapted.params}, part)[0])
        if not options["by_step"]:
            return last
        return (float(adapted.inner_losses.sum()) + last) / (len(support) + 1)

    def adapted(self, meta: Params) -> Params:
        loss, fast, support, _, loop = self._arguments(meta)
        return adapt(lambda p, b: loss(p, b)[0], fast, support, loop, **self._options(meta)).params

    def _gradient(self, algorithm: Any, meta: Params) -> Any:
        _, fast, support, query, loop = self._arguments(meta)
        shared = split_meta(self.model, meta)[1]
        return group_gradient(self.model, fast, shared, algorithm, loop, (support, query), [self.episode.task])

    def _arguments(self, meta: Params) -> tuple[Any, Params, Any, Any, Any]:
        set_attention(self.model.backbone, self.order)
        fast, _, rates = split_meta(self.model, meta)
        device = next(iter(fast.values())).device
        support, query = load_parts([self.episode], self.model, self.config, self.store, device)
        loop = inner_loop(self.config.inner, rates, seed=dropout_seed(self.config, 1, self.episode))
        return one_task(self.model.loss_and_hits), fast, support, query, loop

    def _options(self, meta: Params) -> dict[str, Any]:
        start = self.model.start if self.model.starts else None
        by_step = self.config.task.family == "document"
        return {"shared": split_meta(self.model, meta)[1], "start": start, "by_step": by_step}


def derivative_finding(
    name: str, order: str, setting: Setting, meta: Params, part: Params, grads: Params, first: Params,
    algorithm: Any = None,
) -> Finding:  # fmt: skip
    """<g, v> against the difference along v, for random directions v within `part` of the meta-parameters.

    algorithm: given, what is differenced is its own loss and not that of the query set after adaptation.
    """
    subject = f"d query loss / d {name}"
    f = setting.query_loss if algorithm is None else lambda values: setting.own_loss(algorithm, values)
    missing = [n for n in part if n not in grads]
    if missing:
        return Finding(subject, f"no derivative of {missing[0]}", float("nan"), EXACT)
    differences, ours, theirs = [], [], []
    for v in directions(meta, list(part), setting.config.run.seed):
        differences.append(derivative(f, meta, v))
        ours.append(dot(grads, v))
        theirs.append(dot(first, v))
    error, distance = relative(ours, differences), relative(theirs, differences)
    away = f"first order is {distance:.1e} away"
    if order == "first_order":
        off = relative(ours, theirs)
        verdict = "first order" if off <= SAME else "neither exact nor first order"
        return Finding(subject, verdict, off, SAME, f"as {setting.config.algorithm} claims; {error:.1e} from exact")
    if order == "exact":
        right = "exact second order" if algorithm is None else "exact, without an inner loop"
        verdict = right if error <= EXACT else "not the derivative of the query loss"
        return Finding(subject, verdict, error, EXACT, away if algorithm is None else "")
    if order == "finite_difference":
        verdict = "second order by differences" if error <= 1e-2 else "not the derivative of the query loss"
        return Finding(subject, verdict, error, 1e-2, away)
    return Finding(subject, f"order {order}", None, None, f"{error:.1e} from the derivative of these steps; {away}")


def reptile_finding(setting: Setting, meta: Params, grads: Params) -> Finding:
    """Reptile's is no derivative: it is where adaptation began less where it ended."""
    fast = split_meta(setting.model, meta)[0]
    adapted = setting.adapted(meta)
    moved = {name: value - adapted[name] for name, value in fast.items()}
    gap = {name: grads[name] - value for name, value in moved.items()}
    error = norm(gap) / norm(moved)
    verdict = "theta - theta_K" if error <= SAME else "not theta - theta_K"
    return Finding("step of the initial weights", verdict, error, SAME, "a first-order method, no derivative")


# 2. The sharded step


def check_sharded(config: Config, store: TaskStore, group: ShardedGroup) -> list[Finding]:
    """The meta-parameters after the sharded steps, and the gradient norms on the way, against one process."""
    before, expected, expected_norms = plain_steps(config, store)
    measured, norms = group.result()
    moved = max(float((expected[name] - before[name]).abs().max()) for name in before)
    gap = max(float((measured[name] - expected[name]).abs().max()) for name in before)
    stage, ranks = config.deepspeed["zero_optimization"]["stage"], config.cluster.most
    subject = f"ZeRO stage {stage}, {ranks} ranks"
    note = f"largest difference after {OUTER_STEPS} outer steps, of the largest move {moved:.1e}"
    if config.outer.optimizer != "sgd":
        note += f"; outer.eps {config.outer.eps:g}"
    return [
        Finding(f"{subject}: meta-parameters", "as one process", gap / moved, SHARDED, note),
        Finding(f"{subject}: gradient norm", "as one process", relative(norms, expected_norms), SHARDED, "unclipped"),
    ]


# 3. Ways to the same numbers


def check_equivalents(config: Config, store: TaskStore) -> list[Finding]:
    """The learner's meta-gradient of a meta-batch: tasks one by one and batched; steps recomputed and kept."""
    algorithm = load_algorithm(config.algorithm)
    model, meta = double_model(config, store)
    model.layers.recomputed = 0  # until they are compared
    episodes = episodes_of(config, store, 1)
    device = next(iter(meta.values())).device

    def gradient(**inner: Any) -> Params:
        changed = config.model_copy(update={"inner": config.inner.model_copy(update=inner)})
        with InDouble():
            grads, _ = meta_gradients(model, meta, algorithm, changed, store, episodes, 1, device)
        return grads

    alone = gradient(task_batch=1, memory="walk")

    def finding(subject: str, other: Params, note: str, expected: Params = alone) -> Finding:
        error = norm({n: other[n] - g for n, g in expected.items()}) / max(norm(expected), 1e-300)
        return Finding(subject, "the same numbers", error, SAME, note)

    findings = []
    if not model.takes_task_axis:
        findings.append(Finding("tasks batched", "one by one", note="a layer that adapts cannot carry a task axis"))
    elif config.model.dropout:
        findings.append(Finding("tasks batched", "not compared", note="with dropout each task runs by itself"))
    else:
        batched = gradient(task_batch=len(episodes), memory="walk")
        findings.append(finding("tasks batched against one by one", batched, f"{len(episodes)} episodes"))
    if algorithm.ORDER == "exact":
        findings.append(
            finding("steps kept against recomputed", gradient(task_batch=1, memory="unroll"), "inner.memory")
        )
    if model.why_not_again is None:
        model.layers.recomputed = len(model.layers)
        again = gradient(task_batch=1, memory="layers")
        model.layers.recomputed = 0
        findings.append(finding("layers run again against kept", again, "inner.memory=layers"))
    else:
        findings.append(Finding("layers run again", "not possible", note=model.why_not_again))
    backbone: Any = model.backbone
    chosen = getattr(backbone, "exact_attention", None)
    if algorithm.ORDER in ("exact", "implicit") and chosen is not None:
        backbone.exact_attention = name_of(model.causal, TRIAL_BLOCK)
        blocks = gradient(task_batch=1, memory="walk")
        backbone.exact_attention = "eager"
        eager = gradient(task_batch=1, memory="walk")
        backbone.exact_attention = chosen
        note = f"blocks of {TRIAL_BLOCK} queries here, of {BLOCK} in a run"
        findings.append(finding("attention in blocks against transformers' own", blocks, note, eager))
    return findings


# 4. What is in use


def describe(config: Config, store: TaskStore) -> list[Finding]:
    """The attention kernel and the derivative mode, and why."""
    algorithm = load_algorithm(config.algorithm)
    model = build_for(config, store)
    kernel = set_attention(model.backbone, algorithm.ORDER)
    scoring = set_attention(model.backbone, "first_order")
    twice = algorithm.ORDER in ("exact", "implicit")
    why = "fused kernels have no second derivative" if twice else "one derivative only, so the fused kernel serves"
    if kernel == "eager" and not twice:
        why = "this architecture has no fused form"
    modes = {
        "exact": ("reverse over reverse", f"one Hessian-vector product a step, inner.memory={config.inner.memory}"),
        "first_order": ("reverse", "inner gradients are constants; no graph of a step is kept"),
        "implicit": ("reverse over reverse", "conjugate gradients at the adapted weights"),
        "finite_difference": ("differences of reverse", "one central difference of gradients a step"),
    }
    mode, reason = modes[algorithm.ORDER]
    return [
        Finding("attention in meta-training", kernel, note=why),
        Finding("attention in evaluation", scoring, note="no derivative of a derivative"),
        Finding(f"derivative ({config.algorithm}: {algorithm.ORDER})", mode, note=reason),
    ]


def memory_finding(config: Config, store: TaskStore) -> Finding:
    """How the first group of tasks of a run is run: its whole episodes, once."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    model = build_for(config, store).to(device)
    meta = {name: value.detach().to(device) for name, value in initial_values(config, model).items()}
    algorithm, episodes = load_algorithm(config.algorithm), episodes_of(config, store, 1)
    first = episodes[: tasks_at_once(model, config, episodes, device, is_exact(config))]
    choices: list[Choice] = []
    meta_gradients(model, meta, algorithm, config, store, first, 1, device, skipped=[], see=choices.append)
    verdict = str(choices[0]) if choices else "not measured: the inner loop diverges"
    return Finding("memory of a meta-step", verdict, note=f"inner.memory={config.inner.memory}")


def table(findings: Sequence[Finding]) -> Any:
    """A rich table."""
    from rich.text import Text

    from distmeta.runs import tables

    rows: list[list[Any]] = []
    for f in findings:
        verdict = Text.assemble(f.verdict, (f"\n{f.note}" if f.note else "", "dim"))
        shown = ["" if x is None else f"{x:.1e}" for x in (f.error, f.limit)]
        sign = Text("agrees", "green") if f.agrees else Text("DIFFERS", "bold red")
        rows.append([f.subject, verdict, *shown, "" if f.error is None else sign])
    heads = ("compared", "found", "error", "limit", "")
    return tables.table("distmeta check", heads, rows, texts=("compared", "found"), show_lines=True)


def report(findings: Sequence[Finding]) -> dict[str, Any]:
    """The findings as JSON; numbers that are none as null."""
    return {
        "agrees": all(f.agrees for f in findings),
        "findings": [dataclasses.asdict(f) | {"error": _number(f.error), "agrees": f.agrees} for f in findings],
    }


def _number(value: float | None) -> float | None:
    return value if value is not None and math.isfinite(value) else None
