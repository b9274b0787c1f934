"""Few-shot evaluation: adapt on each episode's support set, score its query set, with intervals and baselines.

Letters: T tasks of a group, E episodes, n query rows, K inner steps, C classes.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from distmeta import checkpoint as checkpoints
from distmeta import metrics
from distmeta.algorithms.rates import PREFIX, inner_loop
from distmeta.config import Config
from distmeta.errors import InputError
from distmeta.inner import InnerLoop, adapt
from distmeta.models.backbone import set_attention
from distmeta.models.batch import TextBatch, to_batches
from distmeta.models.prefix import fixed_prefix
from distmeta.models.sharding import all_together
from distmeta.models.task_model import TaskModel, build_model
from distmeta.sampling.collate import collate
from distmeta.sampling.episode import Episode, sample_episode

if TYPE_CHECKING:
    from distmeta.tasks.store import TaskStore

FINE_TUNE_FACTORS = (0.3, 1.0, 3.0)  # of inner.lr: what the fine-tuned baseline may choose from on meta-validation
FINE_TUNE_LENGTH = 4  # it takes this many times the inner steps
# What a loss that is no number counts as in means: -log of the smallest positive float32, the least probability that
# a softmax can give to the right class.
WORST_LOSS = 103.28


@dataclass(frozen=True)
class Scored:
    """One episode's query set after 0..K inner steps. `loss` is not finite where the inner loop diverged."""

    task: str
    label_names: tuple[str, ...]
    labels: NDArray[np.int64]  # [n]
    predicted: NDArray[np.int64]  # [K+1, n], or [1, n] after the last step alone
    loss: NDArray[np.float64]  # [K+1] or [1]


def group_episodes(episodes: Sequence[Episode], size: int) -> list[list[Episode]]:
    """Consecutive groups of at most `size` episodes whose support and query sets have equal numbers of rows."""
    groups: list[list[Episode]] = []
    for episode in episodes:
        shape = (len(episode.support.labels), len(episode.query.labels), len(episode.label_names))
        last = groups[-1] if groups else None
        if last and len(last) < size and shape == (
            len(last[0].support.labels), len(last[0].query.labels), len(last[0].label_names)
        ):  # fmt: skip
            last.append(episode)
        else:
            groups.append([episode])
    return groups


def tasks_at_once(model: TaskModel, config: Config, episodes: Sequence[Episode], device: torch.device) -> int:
    """How many tasks run as one: `inner.task_batch`, or chosen by the tokens of a support set.

    On a CPU batching pays below about 1,000 tokens a step and task; on a GPU always.
    """
    if not model.takes_task_axis:
        return 1
    if config.inner.task_batch:
        return config.inner.task_batch
    if device.type != "cpu":
        return 32
    tokens = max((len(e.support.tokens) for e in episodes[:4]), default=1)
    return max(1, min(16, 2000 // max(tokens, 1)))


def load_group(
    group: Sequence[Episode], model: TaskModel, config: Config, pad_id: int, device: torch.device
) -> tuple[list[TextBatch], list[TextBatch]]:
    """Support and query sets of a group of episodes as length-sorted parts on `device`."""
    inner = config.inner
    tokens = inner.part_tokens or (4096 if device.type == "cpu" else 0)
    support, query = (
        collate(part, inner.buckets, pad_id, part_tokens=tokens)
        for part in ([e.support for e in group], [e.query for e in group])
    )
    return to_batches(support, device, model.causal), to_batches(query, device, model.causal)


def stack(fast: Mapping[str, Tensor], tasks: int) -> dict[str, Tensor]:
    """Fast weights with a task axis, [T, ...], all tasks starting from the same values (no copy is made)."""
    return {name: value.unsqueeze(0).expand(tasks, *value.shape) for name, value in fast.items()}


@all_together
def score_episodes(
    model: TaskModel,
    fast: Mapping[str, Tensor],
    shared: Mapping[str, Tensor],
    loop: InnerLoop,
    episodes: Sequence[Episode],
    config: Config,
    pad_id: int,
    device: torch.device,
    curve: bool = True,
) -> list[Scored]:
    """Adapt to each episode and predict its query set after 0..K inner steps; curve=False: after the last one only.

    An episode whose inner loop diverges does not end the evaluation: its rows without finite scores are wrong.
    """
    set_attention(model.backbone, "first_order")
    out: list[Scored] = []
    for group in group_episodes(episodes, tasks_at_once(model, config, episodes, device)):
        support, query = load_group(group, model, config, pad_id, device)
        support, query = (fixed_prefix(model, {**fast, **shared}, part) for part in (support, query))
        native = model.takes_task_axis
        params = stack(fast, len(group)) if native else dict(fast)
        adapted = adapt(
            model.loss if native else lambda p, b: model.loss(p, b).sum(),
            params, support, loop, shared=dict(shared), start=model.start if model.prototype_head else None,
            task_axis="native" if native else False, trajectory=curve, last_inner_loss=False, check=False,
        )  # fmt: skip
        path = adapted.trajectory or [adapted.params]
        labels = np.concatenate([b.labels.cpu().numpy() for b in query], 1)  # [T, n]
        predicted, losses = [], []
        with torch.no_grad():
            for params_k in path:
                logits = torch.cat([model.logits({**shared, **params_k}, b) for b in query], 1)  # [T, n, C]
                target = torch.cat([b.labels for b in query], 1)
                predicted.append(predictions(logits, target).cpu().numpy())
                losses.append(F.cross_entropy(logits.mT, target, reduction="none").mean(1).double().cpu().numpy())
        for t, episode in enumerate(group):
            out.append(
                Scored(
                    task=episode.task,
                    label_names=episode.label_names,
                    labels=labels[t],
                    predicted=np.stack([p[t] for p in predicted]),
                    loss=np.array([loss[t] for loss in losses]),
                )
            )
    return out


def predictions(logits: Tensor, labels: Tensor) -> Tensor:
    """The class with the highest score, [T, n] of [T, n, C]; a wrong class where a score is not a finite number.

    argmax takes NaN for the largest, which would make a diverged model look as if it had chosen a class, at times
    the right one. The wrong class is the one after the label, so that no class is favoured.
    """
    wrong = (labels + 1) % logits.shape[-1]
    return torch.where(logits.isfinite().all(-1), logits.argmax(-1), wrong)


@all_together
def score_prototypes(
    model: TaskModel,
    values: Mapping[str, Tensor],
    episodes: Sequence[Episode],
    config: Config,
    pad_id: int,
    device: torch.device,
) -> list[Scored]:
    """Nearest class mean of the features (Snell et al. 2017, arXiv 1703.05175), without any gradient step."""
    set_attention(model.backbone, "first_order")
    out: list[Scored] = []
    with torch.no_grad():
        for episode in episodes:
            support, query = load_group([episode], model, config, pad_id, device)
            x = torch.cat([model.features(dict(values), b) for b in support], 1)[0]
            y = torch.cat([b.labels for b in support], 1)[0]
            centres = torch.stack([x[y == c].mean(0) for c in range(len(episode.label_names))])
            q = torch.cat([model.features(dict(values), b) for b in query], 1)[0]
            target = torch.cat([b.labels for b in query], 1)[0]
            negative = -torch.cdist(q, centres).pow(2)
            out.append(
                Scored(
                    task=episode.task,
                    label_names=episode.label_names,
                    labels=target.cpu().numpy(),
                    predicted=negative.argmax(-1, keepdim=True).mT.cpu().numpy(),
                    loss=np.array([float(F.cross_entropy(negative, target))]),
                )
            )
    return out


def summarise(scored: Sequence[Scored]) -> dict[str, Any]:
    """Each metric's mean, 95% interval over episodes, and mean after 0..K inner steps."""
    return {name: metrics.interval(values) for name, values in by_episode(scored).items()}


def curves(scored: Sequence[Scored]) -> dict[str, dict[str, list[float]]]:
    """Each metric's mean and 95% interval (mean, low, high) after 0..K inner steps, by that number."""
    return {name: metrics.curve(values) for name, values in by_episode(scored).items()}


def by_episode(scored: Sequence[Scored]) -> dict[str, NDArray[np.float64]]:
    """Each metric's values, [E, K+1]."""
    per_episode: dict[str, list[NDArray[np.float64]]] = {}
    for s in scored:
        matrices = metrics.confusion(np.broadcast_to(s.labels, s.predicted.shape), s.predicted, len(s.label_names))
        loss = np.where(np.isfinite(s.loss), s.loss, WORST_LOSS)
        for name, value in {**metrics.scores(matrices), "loss": loss}.items():
            per_episode.setdefault(name, []).append(value)
    return {name: np.stack(values) for name, values in per_episode.items()}


def details(scored: Sequence[Scored], fixed_labels: bool) -> dict[str, Any]:
    """How many episodes diverged; where all share their labels, accuracy by task and scores of each class."""
    by_task: dict[str, list[float]] = {}
    for s in scored:
        by_task.setdefault(s.task, []).append(float((s.predicted[-1] == s.labels).mean()))
    out: dict[str, Any] = {"diverged": sum(not np.isfinite(s.loss[-1]) for s in scored)}
    if fixed_labels:
        names = sorted({name for s in scored for name in s.label_names})
        total = np.zeros((len(names), len(names)), np.int64)
        for s in scored:
            ids = np.array([names.index(name) for name in s.label_names])
            total += metrics.confusion(ids[s.labels], ids[s.predicted[-1]], len(names))
        per_class = metrics.class_scores(total)
        out["per_class"] = {
            name: {metric: float(per_class[metric][i]) for metric in per_class} for i, name in enumerate(names)
        }
        out["confusion"] = {"labels": names, "rows_are_labels": total.tolist()}
        out["per_task"] = {task: metrics.interval(np.array(v)) for task, v in sorted(by_task.items())}
    return out


def split_meta(
    model: TaskModel, meta: Mapping[str, Tensor]
) -> tuple[dict[str, Tensor], dict[str, Tensor], dict[str, Tensor]]:
    """Meta-parameters by role: (fast, shared, logarithms of the inner learning rates)."""
    fast = {name: meta[name] for name in model.fast}
    shared = {name: meta[name] for name in model.shared}
    rates = {name: value for name, value in meta.items() if name.split(".")[0] == PREFIX}
    return fast, shared, rates


@dataclass(frozen=True)
class Evaluation:
    """The result of `evaluate`: `methods` as in evaluation.json, `details` as in evaluation_details.json."""

    methods: dict[str, Any]
    details: dict[str, Any]

    def save(self, directory: Path) -> None:
        checkpoints.write_text(directory / "evaluation.json", json.dumps(self.methods, indent=1))
        text = json.dumps(self.details, indent=1, ensure_ascii=False)
        checkpoints.write_text(directory / "evaluation_details.json", text)


Gather = Callable[[list[Scored]], list[Scored]]


def evaluate_methods(
    model: TaskModel,
    meta: Mapping[str, Tensor],
    store: TaskStore,
    config: Config,
    device: torch.device,
    *,
    split: str = "test",
    rank: int = 0,
    world: int = 1,
    gather: Gather = lambda mine: mine,
    score: Callable[..., list[Scored]] | None = None,
    say: Callable[[str], None] = lambda line: None,
) -> Evaluation:
    """Score the meta-trained model, and with `eval.baselines` those that were not, on the same episodes.

    Episodes 0.. of the split are divided over `world` ranks; `gather` brings the parts together in order, on
    every rank that goes on to use the result. score: in the place of `score_episodes`, by ranks that all see the whole
    of an episode's score; then there is no baseline `prototypes`.

    meta_trained: the meta-parameters, after `eval.steps` inner steps. no_adaptation: the same before the first.
    fine_tuned: the untrained initial weights, adapted by the same inner optimizer with several times the steps
    and a learning rate chosen on meta-validation (or -train) episodes where there are any. prototypes: nearest
    class mean of the untrained initial features.
    """
    pad_id = store.pad_id
    scored_by = score or score_episodes
    count, seed = config.eval.episodes, config.run.seed
    mine = [sample_episode(store, config.task, seed, split, i) for i in _share(count, rank, world)]
    fast, shared, rates = split_meta(model, meta)
    steps = config.inner.steps if config.eval.steps is None else config.eval.steps
    loop = inner_loop(config.inner, rates, steps)
    fixed = config.task.family == "domain"

    say(f"evaluating on {count} episodes ({split})")
    trained = gather(scored_by(model, fast, shared, loop, mine, config, pad_id, device))
    about: dict[str, Any] = {"split": split, "episodes": count, "seed": seed, "inner_steps": steps}
    lost = sum(not np.isfinite(s.loss[-1]) for s in trained)
    if lost:
        say(f"the inner loop diverged in {lost} of {count} episodes, whose rows count as wrong; use a smaller inner.lr")
    methods = {"meta_trained": summarise(trained)}
    more: dict[str, Any] = {"settings": about, "meta_trained": details(trained, fixed)}
    if config.eval.baselines:
        start = [dataclasses.replace(s, predicted=s.predicted[:1], loss=s.loss[:1]) for s in trained]
        methods["no_adaptation"] = summarise(start)
        untrained_fast, untrained_shared = dict(model.fast), dict(model.shared)

        def untrained(loop: InnerLoop, episodes: list[Episode]) -> list[Scored]:
            values = untrained_fast, untrained_shared
            return scored_by(model, *values, loop, episodes, config, pad_id, device, curve=False)

        tuned = dataclasses.replace(inner_loop(config.inner, {}, max(1, steps) * FINE_TUNE_LENGTH))
        # On tasks that are not those scored; data given to `evaluate` may have none, then the rate is inner.lr.
        held = next((name for name in ("validation", "train") if name != split and len(store.groups[name].ids)), None)
        few = [sample_episode(store, config.task, seed, held, i) for i in _share(24, rank, world)] if held else []
        best, best_lr = -1.0, config.inner.lr
        for factor in FINE_TUNE_FACTORS if held else ():
            trial = dataclasses.replace(tuned, lr=config.inner.lr * factor)
            tried = gather(untrained(trial, few))
            accuracy = summarise(tried)["accuracy"]["mean"]
            if accuracy > best:
                best, best_lr = accuracy, config.inner.lr * factor
        tuned = dataclasses.replace(tuned, lr=best_lr)
        chosen = f" (chosen on {held} episodes)" if held else ""
        say(f"baseline fine_tuned: {tuned.steps} steps at lr {best_lr:g}{chosen}")
        scored = gather(untrained(tuned, mine))
        methods["fine_tuned"] = summarise(scored)
        more["fine_tuned"] = {"steps": tuned.steps, "lr": best_lr, "chosen_on": held, **details(scored, fixed)}
        if score is None:
            say("baseline prototypes")
            values = {**untrained_fast, **untrained_shared}
            scored = gather(score_prototypes(model, values, mine, config, pad_id, device))
            methods["prototypes"] = summarise(scored)
            more["prototypes"] = details(scored, fixed)
    return Evaluation(methods, more)


def _share(count: int, rank: int, world: int) -> range:
    """This rank's consecutive share of range(count)."""
    return range(rank * count // world, (rank + 1) * count // world)


def evaluate(
    checkpoint: str | Path,
    data: str | Sequence[str] | None = None,
    episodes: int | None = None,
    *,
    split: str = "test",
    baselines: bool | None = None,
    say: Callable[[str], None] = lambda line: None,
) -> Evaluation:
    """Evaluate a checkpoint (or a run's newest) in this process, on its own data or on `data`.

    split: train, validation or test tasks. `data` is read with the run's columns and tokenizer; all of its tasks
    count as `split` unless it has a split column. Raises InputError.
    """
    saved = checkpoints.load(checkpoint)
    changes: dict[str, Any] = {}
    if episodes is not None:
        changes["episodes"] = episodes
    if baselines is not None:
        changes["baselines"] = baselines
    config = saved.config.model_copy(update={"eval": saved.config.eval.model_copy(update=changes)})
    if data is not None:
        path = data if isinstance(data, str) else list(data)
        config = config.model_copy(
            update={"data": config.data.model_copy(update={"path": path, "splits": None, "sources": None})}
        )
    store = _store_of(saved, config, only_test=data is not None)
    if split not in store.groups or len(store.groups[split].ids) == 0:
        there = [name for name, groups in store.groups.items() if len(groups.ids)]
        raise InputError(f"split = {split}: the data has no such tasks; it has {', '.join(there)}")
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    model = load_model(saved).to(device)
    meta = {name: value.to(device) for name, value in saved.meta.items()}
    return evaluate_methods(model, meta, store, config, device, split=split, say=say)


def load_model(saved: checkpoints.Checkpoint) -> TaskModel:
    """The model of a checkpoint at its initial values; its meta-parameters are `saved.meta`."""
    state = saved.state
    return build_model(
        saved.config, state["vocab_size"], state["pad_id"], state["classes"], labels=len(state["labels"])
    )


def _store_of(saved: checkpoints.Checkpoint, config: Config, only_test: bool) -> TaskStore:
    from distmeta.tasks.families import check_feasible
    from distmeta.tasks.store import build_store, open_store

    labels = saved.state["labels"] if config.task.family == "domain" else None
    path = build_store(
        config.data, config.task, config.model, tokenizer_file=saved.tokenizer_file, labels=labels, only_test=only_test
    )
    store = open_store(path)
    check_feasible(store, config.task)
    return store
