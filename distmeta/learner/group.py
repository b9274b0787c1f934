"""The whole group on one episode at a time, for a model whose weights are too many for a rank: cluster.episode=group.

    meta-parameters, fast weights, gradients, optimizer state    in shards, one on each rank (models.fast_shards)
    support and query sets                                       each rank has its share of the rows

The inner loop is the one of every other run: a step, Reptile's difference and the sum over episodes are elementwise, so
that they are taken on shards. What differs is the loss: a rank's is that of its rows, whose gradient comes back as this
rank's part of the gradient of all rows. First order only: a second derivative would need the gathering's own.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor

from distmeta.algorithms.rates import inner_loop, log_rate_gradients, mean_rate
from distmeta.config import Config
from distmeta.evaluation.scoring import Scored, Scoring, confidences, load_group, predictions, split_meta
from distmeta.inner import Diverged, adapt
from distmeta.inner.adapt import follow, refuse_divergence
from distmeta.learner.engine import Divided, MetaEngine
from distmeta.models.backbone import set_attention
from distmeta.models.batch import TextBatch
from distmeta.models.fast_shards import FastShards
from distmeta.models.task_model import TaskModel
from distmeta.tasks.rows import Episode

Params = dict[str, Tensor]


@dataclass(frozen=True)
class Part:
    """A rank's rows of a micro-batch of n: which they are [m], and 1 for each [m], or 0 for one that counts nothing."""

    batch: TextBatch
    index: Tensor
    counts: Tensor
    labels: Tensor  # [n]


class GroupEngine(MetaEngine):
    """The outer step on this rank's shards. What a checkpoint has whole is gathered one by one."""

    def __init__(self, values: Mapping[str, Tensor], config: Config, device: torch.device, shards: FastShards) -> None:
        parted = [name for name, value in values.items() if shards.has_part_of(name, value)]
        super().__init__(values, config, device, Divided(parted))
        self._fast, self._own = shards, frozenset(parted)
        self.whole_shapes |= {name: shape for name in parted if (shape := shards.shape_of(name)) is not None}

    def snapshot(self) -> Params:
        """This rank's parts themselves, no copies: the next step changes them."""
        return {names[0]: p.detach().view(self.shapes[names[0]]) for names, p in self._each()}

    def parameters(self, names: Collection[str]) -> Params:
        return self._gathered(self.snapshot(), names)

    def optimizer_state(self, names: Collection[str] | None = None) -> Params:
        return self._gathered(super().optimizer_state(), names)

    def _gathered(self, shards: Params, names: Collection[str] | None) -> Params:
        """Those that this rank keeps, whole, on the CPU. One is gathered at a time, by all ranks."""
        out = {}
        for key, shard in shards.items():
            value, name = shard, key.split("/")[-1]
            if name in self._own:
                (value,) = self._fast.collect([key], [shard.to(self._fast.device)], shard.dtype)
            if names is None or name in names:
                out[key] = value.to("cpu", copy=True)
        return out


def rows_of_rank(batch: TextBatch, shards: FastShards) -> Part:
    """Every world-th row, so that lengths are spread evenly; a rank without one runs a row that counts nothing."""
    count = batch.labels.numel()
    index = torch.arange(count)[shards.rank :: shards.world]
    counts = torch.ones(len(index))
    if len(index) == 0:
        index, counts = torch.zeros(1, dtype=torch.int64), torch.zeros(1)
    device = batch.labels.device
    index = index.to(device)
    return Part(batch.of_rows(index), index, counts.to(device), batch.labels.flatten())


def rank_loss(model: TaskModel, shards: FastShards) -> Callable[[Params, Part], tuple[Tensor, Tensor]]:
    """(this rank's part of the mean loss, logits [1, m, C]) as a function of shards; parts add up over ranks."""

    def loss(params: Params, part: Part) -> tuple[Tensor, Tensor]:
        small = dict(zip(shards.small, shards.whole(shards.small, [params[name] for name in shards.small])))
        logits = model.logits({**params, **small}, part.batch)
        losses = F.cross_entropy(logits[0], part.batch.labels[0], reduction="none")
        return (losses * part.counts).sum() / part.batch.total, logits

    return loss


def group_gradients(
    model: TaskModel,
    meta: Params,
    algorithm: Any,
    config: Config,
    pad_id: int,
    episodes: Sequence[Episode],
    device: torch.device,
    skipped: list[Diverged] | None = None,
) -> tuple[Params, list[float]]:
    """As `meta_gradients`, of the same episodes on every rank: sums of shards, and this rank's part of the scores."""
    shards = model.fast_shards
    assert shards is not None
    set_attention(model.backbone, algorithm.ORDER)
    fast, _, rates = split_meta(model, meta)
    loop, loss = inner_loop(config.inner, rates), rank_loss(model, shards)
    grads = {name: torch.zeros_like(value) for name, value in meta.items()}
    sums = torch.zeros(3 + config.inner.steps, dtype=torch.float64)
    for episode in episodes:
        support, query = parts_of_rank(model, config, pad_id, episode, device)
        result = algorithm.meta_gradient(loss, fast, support, query, loop, has_aux=True, check=False)
        infinite = float(sum(int((~torch.isfinite(g)).sum()) for g in result.grads.values()))
        *losses, infinite = shards.sum_over_ranks([*result.inner_losses.tolist(), float(result.loss), infinite])
        values = list(torch.tensor(losses))
        steps, names = config.inner.steps, [episode.task]
        try:  # the same on every rank
            refuse_divergence(values[:-1], values[-1], steps, names)
            if infinite:
                raise Diverged(steps, steps, math.nan, "meta-gradient", names=names)
        except Diverged as error:
            if skipped is None:
                raise
            skipped.append(error)
            continue
        for name, g in result.grads.items():
            grads[name] += g
        for name, g in log_rate_gradients(config.inner, rates, result.lr_grads).items():
            if shards.world > 1 and not shards.has_part_of(name, g):
                dist.all_reduce(g)  # a rate of many numbers, of which each rank has summed up its own
            grads[name] += g
        scored = zip(result.aux, query, strict=True)
        hits = [((x.argmax(-1) == p.batch.labels)[0] * p.counts).sum() / p.batch.total for x, p in scored]
        sums += torch.stack([result.loss, torch.stack(hits).sum(), *result.inner_losses]).double().cpu()
        del result, g  # the adapted weights, before those of the next episode
    return grads, sums.tolist()


def mean_rate_in_group(config: Config, rates: Params, shards: FastShards) -> float:
    """The mean inner learning rate, over all ranks' parts of rates for each number."""
    if not any(shards.has_part_of(name, value) for name, value in rates.items()):
        return mean_rate(config.inner, rates)
    parts = [shards.without_padding(name, value) for name, value in rates.items()]
    total, count = shards.sum_over_ranks(
        [float(sum(v.exp().sum() for v in parts)), float(sum(v.numel() for v in parts))]
    )
    return total / count


def parts_of_rank(
    model: TaskModel, config: Config, pad_id: int, episode: Episode, device: torch.device
) -> tuple[list[Part], list[Part]]:
    """This rank's rows of an episode's support and query sets, in as many micro-batches as every other rank's."""
    assert model.fast_shards is not None
    support, query = load_group([episode], model, config, pad_id, device)
    return [rows_of_rank(b, model.fast_shards) for b in support], [rows_of_rank(b, model.fast_shards) for b in query]


def score_in_group(scoring: Scoring, episodes: Sequence[Episode], curve: bool = True) -> list[Scored]:
    """As `score_episodes`, of the same episodes on every rank, with `fast` in shards. `shared` is empty."""
    model, device = scoring.model, scoring.device
    set_attention(model.backbone, "first_order")
    shards = model.fast_shards
    assert shards is not None
    loss = rank_loss(model, shards)
    out = []
    for episode in episodes:
        support, query = parts_of_rank(model, scoring.config, scoring.pad_id, episode, device)
        problem = (loss, dict(scoring.fast), support, scoring.loop)
        path = follow(*problem, has_aux=True) if curve else iter(
            [adapt(*problem, has_aux=True, last_inner_loss=False, check=False).params]
        )  # fmt: skip
        labels = torch.cat([part.labels for part in query])
        predicted, losses, confidence = [], [], []
        for params in path:
            rows = torch.zeros(3, len(labels), dtype=torch.float64, device=device)  # predictions, losses, confidences
            first = 0
            for part in query:
                with torch.no_grad():
                    logits = loss(params, part)[1]
                each = F.cross_entropy(logits[0], part.batch.labels[0], reduction="none")
                chosen = predictions(logits, part.batch.labels)[0]
                of_rank = torch.stack([chosen.double(), each.double(), confidences(logits)[0]])
                rows[:, first + part.index] += of_rank * part.counts
                first += len(part.labels)
            if shards.world > 1:
                dist.all_reduce(rows)
            predicted.append(rows[0].long().cpu().numpy())
            losses.append(float(rows[1].mean()))
            confidence.append(rows[2].cpu().numpy())
        arrays = labels.cpu().numpy(), np.stack(predicted), np.array(losses), np.stack(confidence)
        out.append(Scored(episode.task, episode.label_names, *arrays))
    return out
