"""Scoring episodes: adapt on each support set, predict its query set, and sum up with intervals.

Letters: T tasks of a group, E episodes, n query rows, K inner steps, C classes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Literal

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from distmeta.algorithms.rates import PREFIX
from distmeta.config import Config
from distmeta.evaluation import metrics
from distmeta.evaluation.soft_means import soft_k_means
from distmeta.inner import InnerLoop, adapt
from distmeta.inner.adapt import follow
from distmeta.models.backbone import set_attention
from distmeta.models.batch import TextBatch
from distmeta.models.footprint import CPU_TOKENS, budget_bytes, fit_layers, part_tokens
from distmeta.models.language import LanguageModel
from distmeta.models.prefix import fixed_prefix
from distmeta.models.sharding import all_together
from distmeta.models.task_model import TaskModel
from distmeta.tasks.episodes.collate import collate
from distmeta.tasks.rows import Episode, Rows, after_examples
from distmeta.tasks.spool import gather

# What a loss that is no number counts as in means: -log of the smallest positive float32, the least probability that
# a softmax can give to the right class.
WORST_LOSS = 103.28
WEIGHT_COPIES = 8  # of a task's fast weights that a step holds at once: leaves, gradients, states, products


@dataclass(frozen=True)
class Scoring:
    """What episodes are scored with: a model at given fast and shared weights, its inner loop, and where it runs.

    pad_id: the token that rows are padded with.
    """

    model: TaskModel
    fast: Mapping[str, Tensor]
    shared: Mapping[str, Tensor]
    loop: InnerLoop
    config: Config
    pad_id: int
    device: torch.device

    @property
    def values(self) -> dict[str, Tensor]:
        """All weights, as no episode has changed them."""
        return {**self.fast, **self.shared}

    @property
    def without_steps(self) -> Scoring:
        """The same without an inner step."""
        return replace(self, loop=replace(self.loop, steps=0, lr=0.0))

    def load(self, group: Sequence[Episode]) -> tuple[list[TextBatch], list[TextBatch]]:
        """Support and query sets of a group of episodes, as `load_group` gives them."""
        return load_group(group, self.model, self.config, self.pad_id, self.device, adapts=self.loop.steps > 0)

    def groups(self, episodes: Sequence[Episode]) -> list[list[Episode]]:
        """The episodes in groups that run as one."""
        return group_episodes(episodes, tasks_at_once(self.model, self.config, episodes, self.device))


@dataclass(frozen=True)
class Scored:
    """One episode's query set after 0..K inner steps. `loss` is not finite where the inner loop diverged."""

    task: str
    label_names: tuple[str, ...]
    labels: NDArray[np.int64]  # [n]
    predicted: NDArray[np.int64]  # [K+1, n], or [1, n] after the last step alone
    loss: NDArray[np.float64]  # [K+1] or [1]
    confidence: NDArray[np.float64]  # [K+1, n] or [1, n]: the predicted class's probability
    rows: NDArray[np.int64] | None = None  # [n]: which examples of the task store

    def at_start(self) -> Scored:
        """The same before the first inner step."""
        return replace(self, predicted=self.predicted[:1], loss=self.loss[:1], confidence=self.confidence[:1])

    def at_end(self) -> Scored:
        """The same after the last inner step."""
        return replace(self, predicted=self.predicted[-1:], loss=self.loss[-1:], confidence=self.confidence[-1:])

    def metrics(self) -> dict[str, NDArray[np.float64]]:
        """Each metric after 0..K inner steps, [K+1] or [1]."""
        classes = len(self.label_names)
        matrices = metrics.confusion(np.broadcast_to(self.labels, self.predicted.shape), self.predicted, classes)
        return {
            **metrics.scores(matrices),
            "loss": np.where(np.isfinite(self.loss), self.loss, WORST_LOSS),
            "ece": metrics.calibration_error(self.confidence, self.predicted == self.labels),
        }


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


def tasks_at_once(
    model: TaskModel, config: Config, episodes: Sequence[Episode], device: torch.device, exact: bool = False
) -> int:
    """How many tasks run as one: `inner.task_batch`, or chosen by the tokens of a support set and by what they take.

    On a CPU batching pays below about 1,000 tokens a step and task; on a GPU always. The budget of a step
    (distmeta.models.footprint) has room for the fast weights of each task, after every step and as derivatives, and
    for the tokens of a micro-batch, which has a row of each task at least.
    """
    if not model.takes_task_axis:
        return 1
    if config.inner.task_batch:
        return config.inner.task_batch
    some = episodes[:4]
    in_context = model.reads_sets or (isinstance(model, LanguageModel) and model.reads_support)  # a task is one row
    longest = max((tokens_of(e) if in_context else longest_row(e) for e in some), default=1)
    fast = sum(value.numel() * value.element_size() for value in model.fast.values())
    copies = config.inner.steps + WEIGHT_COPIES
    fit = min(part_tokens(model, config, device, exact) // max(longest, 1),
              int(budget_bytes(config.inner, device) // max(1, fast * copies)))  # fmt: skip
    fit = max(1, fit)
    if device.type != "cpu":
        return min(32, fit)
    a_step = longest_row if config.task.family == "document" else lambda e: len(e.support.tokens)
    tokens = max((a_step(e) for e in some), default=1)
    return max(1, min(16, fit, 2000 * model.work_unit // max(tokens, 1)))


def tokens_of(episode: Episode) -> int:
    return len(episode.support.tokens) + len(episode.query.tokens)


def longest_row(episode: Episode) -> int:
    return max(int(np.diff(rows.offsets).max(initial=1)) for rows in (episode.support, episode.query))


def load_group(
    group: Sequence[Episode],
    model: TaskModel,
    config: Config,
    pad_id: int,
    device: torch.device,
    training: bool = False,
    exact: bool = False,
    adapts: bool | None = None,
) -> tuple[list[TextBatch], list[TextBatch]]:
    """Support and query sets of a group of episodes as length-sorted parts on `device`, to train on or to score.

    exact: whether losses will be differentiated twice. adapts: whether there are inner steps; None: by the
    configuration. The model has layers run again where the largest part asks for it (distmeta.models.footprint).
    """
    tokens = 0 if model.reads_sets else part_tokens(model, config, device, exact)
    cut = partial(collate, buckets=config.inner.buckets, pad_id=pad_id, part_tokens=tokens)
    support, query = [e.support for e in group], [e.query for e in group]
    sets = model.sets(cut(support), cut(query), device, training, [e.label_names for e in group])
    adapts = config.inner.steps > 0 if adapts is None else adapts
    if adapts and isinstance(model, LanguageModel) and model.leaves_one_out:
        asked = [after_examples(s, q) for s, q in zip(support, query, strict=True)] if training else []
        sets = left_one_out(model, support, sets[0], cut), model.batches(cut(asked), device) if training else sets[1]
    fit_layers(model, config, device, [*sets[0], *sets[1]], exact)
    return sets


def left_one_out(
    model: LanguageModel, support: Sequence[Rows], read: Sequence[TextBatch], cut: Callable[..., list[Any]]
) -> list[TextBatch]:
    """Support sets whose rows each have the others before them. read: as they are read before a query; cut: `collate`
    with its settings."""
    parts = cut([after_examples(rows) for rows in support])
    return [replace(batch, read=read) for batch in model.batches(parts, read[0].labels.device)]


def with_ways(batches: Sequence[TextBatch], group: Sequence[Episode], label_ids: NDArray[np.int32]) -> list[TextBatch]:
    """The batches of a group with the numbers that their classes have in the task store, of `label_ids` [rows]."""
    ways = np.zeros((len(group), len(group[0].label_names)), np.int64)
    for t, episode in enumerate(group):
        ways[t, episode.support.labels] = label_ids[episode.support.rows]
    return [replace(batch, ways=torch.as_tensor(ways, device=batch.labels.device)) for batch in batches]


def stack(fast: Mapping[str, Tensor], tasks: int) -> dict[str, Tensor]:
    """Fast weights with a task axis, [T, ...], all tasks starting from the same values (no copy is made)."""
    return {name: value.unsqueeze(0).expand(tasks, *value.shape) for name, value in fast.items()}


def adaptation(scoring: Scoring, support: Sequence[TextBatch], tasks: int, curve: bool) -> Iterator[dict[str, Tensor]]:
    """The fast weights of a group of tasks after 0..K inner steps, one after another; curve=False: after the last only.

    With a task axis where the model takes one. They are not finite where the inner loop diverges.
    """
    model = scoring.model
    native = model.takes_task_axis
    loss = model.loss if native else lambda p, b: model.loss(p, b).sum()
    fast = stack(scoring.fast, tasks) if native else dict(scoring.fast)
    start = model.start if model.starts and not isinstance(model, LanguageModel) else None  # which `settle` is for
    axis: Literal["native", False] = "native" if native else False
    shared = dict(scoring.shared)
    if curve:
        yield from follow(loss, fast, support, scoring.loop, shared=shared, start=start, task_axis=axis)
        return
    adapted = adapt(
        loss, fast, support, scoring.loop, shared=shared, start=start, task_axis=axis, last_inner_loss=False,
        check=False,
    )  # fmt: skip
    yield adapted.params


@all_together
def score_episodes(
    scoring: Scoring, episodes: Sequence[Episode], curve: bool = True, in_context: bool = True
) -> list[Scored]:
    """Adapt to each episode and predict its query set after 0..K inner steps; curve=False: after the last one only.

    in_context: whether a language model that reads its support set answers with that before its eyes. An episode whose
    inner loop diverges does not end the evaluation: its rows without finite scores are wrong.
    """
    model = scoring.model
    set_attention(model.backbone, "first_order")
    if model.prototype_head and not scoring.loop.steps and not model.reads_sets:
        return score_prototypes(scoring, episodes, curve)
    out: list[Scored] = []
    for group in scoring.groups(episodes):
        support, query = (fixed_prefix(model, scoring.values, part) for part in scoring.load(group))
        labels = np.concatenate([b.labels.cpu().numpy() for b in query], 1)  # [T, n]
        rows = np.concatenate([b.store_rows.reshape(b.labels.shape) for b in query], 1)
        predicted, losses, confidence = [], [], []
        for values in adaptation(scoring, support, len(group), curve):
            params = {**scoring.shared, **values}
            with torch.no_grad():
                settled = model.settle(params, support)
                params |= {n: v for n, v in settled.items() if in_context or not n.startswith("context_")}
                logits = torch.cat([model.logits(params, b) for b in query], 1)  # [T, n, C]
                target = torch.cat([b.labels for b in query], 1)
                predicted.append(predictions(logits, target).cpu().numpy())
                confidence.append(confidences(logits).cpu().numpy())
                losses.append(F.cross_entropy(logits.mT, target, reduction="none").mean(1).double().cpu().numpy())
        for t, episode in enumerate(group):
            out.append(
                Scored(
                    task=episode.task,
                    label_names=episode.label_names,
                    labels=labels[t],
                    predicted=np.stack([p[t] for p in predicted]),
                    loss=np.array([loss[t] for loss in losses]),
                    confidence=np.stack([c[t] for c in confidence]),
                    rows=rows[t],
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


def confidences(logits: Tensor) -> Tensor:
    """The predicted class's probability, [T, n] of [T, n, C]; 1, the worst for a wrong row, where `predictions` makes
    one of scores that are not finite.
    """
    likely = logits.double().softmax(-1).amax(-1)
    return torch.where(logits.isfinite().all(-1), likely, torch.ones_like(likely))


@all_together
def score_prototypes(scoring: Scoring, episodes: Sequence[Episode], curve: bool = True) -> list[Scored]:
    """Nearest class mean of the features (Snell et al. 2017, arXiv 1703.05175), without any gradient step.

    Distances are scaled as by the model's own prototype head, or not at all. Since no episode changes the model, the
    features of a row are computed once, however many episodes it is in. With eval.refine the curve is that after 0 and
    more rounds of `soft_k_means`; curve=False: after the last one only.
    """
    set_attention(scoring.model.backbone, "first_order")
    scale = scoring.shared["head_log_scale"].exp() if "head_log_scale" in scoring.shared else 1.0
    scored = score_means(*row_features(scoring, episodes), episodes, float(scale), scoring.config.eval.refine)
    return scored if curve else [one.at_end() for one in scored]


def score_means(
    ids: NDArray[np.int64], features: Tensor, episodes: Sequence[Episode], scale: float = 1.0, rounds: int = 0
) -> list[Scored]:
    """Nearest class mean of `features` [n, D], which are of the store's rows `ids` [n], ascending; after 0..rounds of
    `soft_k_means` on each query set."""
    device = features.device
    out: list[Scored] = []
    for episode in episodes:
        x, q = (features[np.searchsorted(ids, part.rows)] for part in (episode.support, episode.query))
        target = torch.as_tensor(episode.query.labels, device=device)
        chosen = F.one_hot(torch.as_tensor(episode.support.labels, device=device), len(episode.label_names)).to(x.dtype)
        scores = torch.stack(list(soft_k_means(q, chosen.mT @ x, chosen.sum(0), scale, rounds)))  # [K+1, n, C]
        targets = target.expand(len(scores), -1)
        losses = F.cross_entropy(scores.double().mT, targets, reduction="none").mean(1)
        out.append(
            Scored(
                task=episode.task,
                label_names=episode.label_names,
                labels=episode.query.labels,
                predicted=predictions(scores, targets).cpu().numpy(),
                loss=losses.cpu().numpy(),
                confidence=confidences(scores).cpu().numpy(),
                rows=episode.query.rows,
            )
        )
    return out


@torch.no_grad()
def row_features(scoring: Scoring, episodes: Sequence[Episode]) -> tuple[NDArray[np.int64], Tensor]:
    """The distinct rows of episodes that are not augmented: ascending row numbers of the store [n], features [n, D]."""
    model, inner, device = scoring.model, scoring.config.inner, scoring.device
    if not episodes:
        return np.zeros(0, np.int64), torch.zeros(0, model.width, device=device)
    sets = [rows for episode in episodes for rows in (episode.support, episode.query)]
    lengths = np.concatenate([[0], *(np.diff(rows.offsets) for rows in sets)])
    ids, first = np.unique(np.concatenate([rows.rows for rows in sets]), return_index=True)
    tokens, offsets = gather(np.concatenate([rows.tokens for rows in sets]), lengths.cumsum(), first)
    each = Rows(tokens, offsets, np.zeros(len(ids), np.int64), ids)
    parts = collate(
        [each], inner.buckets, scoring.pad_id, part_tokens=inner.part_tokens or CPU_TOKENS * scoring.model.work_unit
    )
    features = torch.empty(len(ids), model.width, device=device)
    for part in parts:
        (batch,) = model.batches([part], device)  # one at a time: the masks of all of them together may be gigabytes
        features[torch.as_tensor(part["rows"][0], device=device)] = model.features(scoring.values, batch)[0]
    return ids, features


def summarise(scored: Sequence[Any]) -> dict[str, Any]:
    """Each metric's mean, 95% interval over episodes, and mean after 0..K inner steps."""
    scores = by_episode(scored)
    return {name: metrics.interval(values, metrics.limits(name)) for name, values in scores.items()}


def curves(scored: Sequence[Any]) -> dict[str, dict[str, list[float]]]:
    """Each metric's mean and 95% interval (mean, low, high) after 0..K inner steps, by that number."""
    scores = by_episode(scored)
    return {name: metrics.curve(values, metrics.limits(name)) for name, values in scores.items()}


def by_episode(scored: Sequence[Any]) -> dict[str, NDArray[np.float64]]:
    """Each metric's values, [E, K+1] or [E, 1], of `Scored` or what has its `metrics`; of the episodes that have it."""
    each = [s.metrics() for s in scored]
    names = dict.fromkeys(name for scores in each for name in scores)
    return {name: np.stack([scores[name] for scores in each if name in scores]) for name in names}


def split_meta(
    model: TaskModel, meta: Mapping[str, Tensor]
) -> tuple[dict[str, Tensor], dict[str, Tensor], dict[str, Tensor]]:
    """Meta-parameters by role: (fast, shared, logarithms of the inner learning rates)."""
    fast = {name: meta[name] for name in model.fast}
    shared = {name: meta[name] for name in model.shared}
    rates = {name: value for name, value in meta.items() if name.split(".")[0] == PREFIX}
    return fast, shared, rates
