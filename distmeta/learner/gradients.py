"""A rank's meta-gradients: from its episodes of a meta-step to sums over them, as many tasks at once as there is room.

episodes -> batches -> (frozen layers, once) -> the algorithm -> gradients of all meta-parameters
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from distmeta.algorithms import data_weights, privacy, subgroups
from distmeta.algorithms.rates import inner_loop, log_rate_gradients, warm
from distmeta.config import Config
from distmeta.config.algorithms import load_algorithm
from distmeta.evaluation.reading import load_chunks
from distmeta.evaluation.scoring import group_episodes, load_group, split_meta, stack, tasks_at_once, with_ways
from distmeta.inner import Diverged, InnerLoop, MetaGradient
from distmeta.learner.group import group_gradients
from distmeta.models.backbone import set_attention
from distmeta.models.batch import TextBatch
from distmeta.models.footprint import Choice, budget_bytes, part_tokens
from distmeta.models.prefix import StateCache, fixed_prefix, has_prefix, is_frozen, learnt_prefix, pullback
from distmeta.models.sharding import all_together
from distmeta.models.task_model import TaskModel
from distmeta.tasks.rows import Episode
from distmeta.tasks.store import TaskStore

Params = dict[str, Tensor]
Parts = tuple[list[Any], list[TextBatch]]  # support: batches, or of documents a list of them for each chunk; query


@all_together
def meta_gradients(
    model: TaskModel,
    meta: Params,
    algorithm: Any,
    config: Config,
    store: TaskStore,
    episodes: list[Episode],
    step: int,
    device: torch.device,
    cache: StateCache | None = None,
    skipped: list[Diverged] | None = None,
    see: Callable[[Choice], None] = lambda choice: None,
    counts: Sequence[float] = (),
) -> tuple[Params, list[float]]:
    """Sums over this rank's episodes of the meta-gradient, and of [query loss, accuracy, inner losses 0..K].

    counts: with outer.worst_subgroup what a row of each subgroup counts, [G]; then there are more sums, 2 G: of each
    subgroup's query losses, and its query rows.

    skipped: where an episode whose loss or meta-gradient is not finite goes, which is then in neither sum; without it,
    Diverged is raised. see: is given how each group of tasks was run.
    """
    if model.fast_shards is not None:
        return group_gradients(model, meta, algorithm, config, store.pad_id, episodes, device, skipped)
    set_attention(model.backbone, algorithm.ORDER)
    model.train(config.model.dropout > 0)
    fast, shared, rates = split_meta(model, meta)
    grads = {name: torch.zeros_like(value) for name, value in meta.items()}
    progress = (step - 1) / config.outer.steps
    factor = warm(config.inner, progress)
    known = 3 + getattr(algorithm, "INNER_STEPS", config.inner.steps)
    sums = torch.zeros(known + 2 * len(counts), dtype=torch.float64)
    private, exact = config.outer.privacy, is_exact(config)

    def add(group: list[Episode]) -> None:
        """Raises Diverged, before anything is added."""
        budget = budget_bytes(config.inner, device) / 2**20
        loop = inner_loop(
            config.inner, rates, seed=dropout_seed(config, step, group[0]), budget_mb=budget, factor=factor
        )
        parts, names = load_parts(group, model, config, store, device), [e.task for e in group]
        if counts:
            parts = parts[0], subgroups.with_groups(parts[1], counts, store)
        numbers = {name: meta[name] for name in (data_weights.NAME,) if name in meta}
        result, of_group = group_gradient(
            model, fast, {**shared, **numbers}, algorithm, loop, parts, names, cache, progress
        )
        of_group |= log_rate_gradients(config.inner, rates, result.lr_grads, factor)
        refuse_infinite(of_group, loop.steps, names)
        for name, g in (of_group if private is None else privacy.clipped(of_group, private.clip)).items():
            grads[name] += g
        losses = result.inner_losses.reshape(len(names), -1).sum(0)
        hits, *of_subgroups = torch.stack(result.aux).reshape(-1, 1 + 2 * len(counts)).sum(0)
        sums.add_(torch.stack([result.loss.sum(), hits, *losses, *of_subgroups]).double().cpu())
        most, kept = part_tokens(model, config, device, exact), result.steps_kept if exact else None
        see(Choice(most, len(names), model.layers.recomputed, len(model.layers), kept, loop.steps))

    # One task at a time where each has something of its own: its clipped gradient, its dropout masks.
    apart = private is not None or config.model.dropout > 0
    for group in group_episodes(episodes, 1 if apart else tasks_at_once(model, config, episodes, device, exact)):
        try:
            add(group)
        except Diverged as error:
            if skipped is None:
                raise
            if len(group) == 1:
                skipped.append(error)
                continue
            for episode in group:  # the sums of a group are lost with any of it
                try:
                    add([episode])
                except Diverged as one:
                    skipped.append(one)
    model.eval()
    return grads, sums.tolist()


def is_exact(config: Config) -> bool:
    """Whether the algorithm differentiates losses twice."""
    return load_algorithm(config.algorithm).ORDER in ("exact", "implicit")


def refuse_infinite(grads: Params, steps: int, names: list[str]) -> None:
    """Raise Diverged where a meta-gradient is not finite, whatever its loss is."""
    if not bool(torch.stack([torch.isfinite(g).all() for g in grads.values()]).all()):
        raise Diverged(steps, steps, float("nan"), "meta-gradient", names=names)


def load_parts(group: list[Episode], model: TaskModel, config: Config, store: TaskStore, device: torch.device) -> Parts:
    """(support, query) of a group of episodes on `device`, with the number of each class where it is asked for.

    Of documents the support set is a list of chunks, one a step, and the query set the last chunk.
    """
    if config.task.family == "document":
        *before, last = load_chunks(group, model, config, store.pad_id, device, exact=is_exact(config))
        return before, last
    support, query = load_group(group, model, config, store.pad_id, device, training=True, exact=is_exact(config))
    if config.outer.data_weights is not None:
        support = data_weights.with_units(support, config, store)
    if not model.pooled:
        return support, query
    both = with_ways([*support, *query], group, store.label_ids)
    return both[: len(support)], both[len(support) :]


def group_gradient(
    model: TaskModel,
    fast: Params,
    shared: Params,
    algorithm: Any,
    loop: InnerLoop,
    parts: Parts,
    names: list[str],
    cache: StateCache | None = None,
    progress: float = 1.0,
) -> tuple[MetaGradient, Params]:
    """The algorithm's result on a group of tasks, `parts` being their (support, query), and its sums over the tasks.

    What lies below the lowest adapted layer is run once, whatever the number of inner steps. Of documents, whose
    support set is a list of chunks, the loss is the mean over all chunks, each scored before the step on it.
    """
    native = model.takes_task_axis and len(names) > 1  # a task axis of 1 only turns products into batched ones
    support, query = parts
    states: Params = {}
    if model.training or not has_prefix(model):  # dropout draws anew at each step, so that nothing stays the same
        pass
    elif model.prefix_shared and not getattr(algorithm, "LEARNS_ONLY_FAST", False):
        flat, states, leaves = learnt_prefix(model, shared, [*flattened(support), *query])
        support, query = regrouped(flat, support)
    else:
        support, query = regrouped(fixed_prefix(model, shared, [*flattened(support), *query], cache), support)
    more: dict[str, Any] = {"progress": progress, "pooled": None}
    reading: dict[str, Any] = {}
    if is_chunked(support):
        sets = len(support) + 1
        reading = {"by_step": True, "loss_weights": [1 / sets] * sets}
    if model.pooled:
        more["pooled"] = model.pooled_loss if native else one_task(model.pooled_loss)
    wanted = inspect.signature(algorithm.meta_gradient).parameters
    loss: Callable[[Params, TextBatch], tuple[Tensor, Tensor]] = model.loss_and_hits
    if data_weights.NAME in shared or query[0].groups is not None:
        loss = weighed(model)
    result = algorithm.meta_gradient(
        loss if native else one_task(loss),
        stack(fast, len(names)) if native else fast,
        support,
        query,
        loop,
        shared={**shared, **{name: value.detach() for name, value in states.items()}},
        start=model.start if model.starts else None,
        task_axis="native" if native else False,
        has_aux=True,
        names=names,
        **reading,
        **{name: value for name, value in more.items() if name in wanted},
    )
    if reading and getattr(algorithm, "ADAPTS", True):
        result = replace(result, loss=result.inner_losses.mean(-1))
    grads = {name: g.sum(0) if native else g for name, g in result.grads.items()}
    grads |= {name: g for name, g in result.shared_grads.items() if name not in states}
    if states:
        grads |= pullback(states, leaves, result.shared_grads)
    return result, grads


def weighed(model: TaskModel) -> Callable[[Params, TextBatch], tuple[Tensor, Tensor]]:
    """`model.loss_and_hits` with the weights of rows that batches have (outer.data_weights, outer.worst_subgroup).

    Of batches with subgroups the hits [T] become [T, 1 + 2 G]: after them each one's sum of losses, and its rows.
    """

    def loss(params: Params, batch: TextBatch) -> tuple[Tensor, Tensor]:
        losses, right = model.row_scores({n: v for n, v in params.items() if n != data_weights.NAME}, batch)
        scores = hits = right.sum(1) / batch.total
        if batch.groups is not None:
            assert batch.factors is not None
            zeros = hits.new_zeros(len(hits), len(batch.factors))
            of_groups = (zeros.scatter_add(1, batch.groups, x.to(hits.dtype)) for x in (losses.detach(), right | True))
            scores = torch.cat([hits.unsqueeze(1), *of_groups], 1)
            losses = losses * batch.factors[batch.groups]
        if batch.units is not None:
            losses = losses * data_weights.weights(params[data_weights.NAME])[batch.units]
        return losses.sum(1) / batch.total, scores

    return loss


def is_chunked(support: Sequence[Any]) -> bool:
    """Whether a support set is a list of chunks, each a list of batches."""
    return isinstance(support[0], list)


def flattened(support: Sequence[Any]) -> list[TextBatch]:
    """The batches of a support set, chunks or not."""
    return [batch for chunk in support for batch in chunk] if is_chunked(support) else list(support)


def regrouped(flat: Sequence[TextBatch], support: Sequence[Any]) -> Parts:
    """(support, query) of the batches of both, one after another; support: what it is grouped as."""
    rest = iter(flat)
    again = [[next(rest) for _ in chunk] for chunk in support] if is_chunked(support) else [next(rest) for _ in support]
    return again, list(rest)


def one_task(loss: Any) -> Any:
    """The loss of tasks [T] as a scalar, for one of them."""

    def of_one(params: Params, batch: Any) -> tuple[Tensor, Tensor]:
        value, logits = loss(params, batch)
        return value.sum(), logits

    return of_one


def dropout_seed(config: Config, step: int, episode: Episode) -> int | None:
    """The key of an episode's dropout masks in a meta-step, whatever rank it is on; without dropout that of rollouts,
    whose rows have seeds of their own, or None."""
    if config.model.dropout == 0:
        return config.noise_seed
    return int(np.random.SeedSequence([config.run.seed, step, episode.index]).generate_state(1)[0])


def state_cache(model: TaskModel, config: Config, store: TaskStore) -> StateCache | None:
    """Where the states of a prefix that is frozen for the whole run are kept by row; None where they may change."""
    if config.task.augment.changes_rows or config.task.family == "document":
        return None
    if not is_frozen(model) or config.model.dropout > 0 or config.inner.prefix_mb == 0:
        return None
    return StateCache(store.rows, config.inner.prefix_mb)
