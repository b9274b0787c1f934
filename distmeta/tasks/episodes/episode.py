"""An episode as a pure function of (task store, task, seed, split, index)."""

from __future__ import annotations

import numpy as np

from distmeta.config import AugmentConfig, TaskConfig
from distmeta.tasks.arrivals import arrived_tasks
from distmeta.tasks.augment import STREAMS, augment_tokens, permute_labels, resplit
from distmeta.tasks.draws import Draws
from distmeta.tasks.environments import with_seeds
from distmeta.tasks.families import FAMILIES
from distmeta.tasks.images import turned
from distmeta.tasks.mixture import drawn_groups
from distmeta.tasks.passages import readable, sample_passage
from distmeta.tasks.rows import Episode, Rows
from distmeta.tasks.splits import SPLITS
from distmeta.tasks.store import TaskStore


def sample_episode(
    store: TaskStore,
    task: TaskConfig,
    seed: int,
    split: str,
    index: int,
    only: int | None = None,
    augment: bool = False,
) -> Episode:
    """Episode `index` of a split: the same in every process, whatever was drawn before.

    only: of this task of the split, by its number among those that are drawn, in the store's order.
    augment: by `task.augment`, as the episodes that are learnt from. The data must have passed `check_feasible`.
    """
    by = task.augment if augment else AugmentConfig()
    drawn = index - index % 2 if by.resplit else index  # the episode whose rows these are
    if len(task.augment.turns) > 1 and not augment:
        task = task.model_copy(update={"augment": by})
    task = sized(task, Draws(seed, STREAMS["size"], drawn))
    draws = Draws(seed, SPLITS.index(split), drawn)
    if only is not None:
        groups = readable(store, store.groups[split], task).part(only, only + 1)
    else:
        groups = readable(store, drawn_groups(store, task, split, draws), task)
        if split == "train":
            groups = arrived_tasks(task, groups, drawn)
    if task.family == "document":
        return sample_passage(store, groups, task, seed, split, index, draws)
    choice = FAMILIES[task.family](store, groups, task, draws)
    chosen, names = choice.rows, choice.label_names
    if drawn < index:
        chosen = resplit(chosen, Draws(seed, STREAMS["resplit"], index))
    ways = len(names)
    labels = np.repeat(np.arange(ways), task.shots + task.queries).reshape(chosen.shape)
    # Support, then query, each in a random order.
    first = draws.permutation(ways * task.shots)
    second = draws.permutation(ways * task.queries)
    rows = np.concatenate([chosen[:, : task.shots].ravel()[first], chosen[:, task.shots :].ravel()[second]])
    label = np.concatenate([labels[:, : task.shots].ravel()[first], labels[:, task.shots :].ravel()[second]])
    if task.family == "text_to_text":
        label = store.label_ids[rows].astype(np.int64)
    if by.permute_labels:
        names, label = permute_labels(names, label, Draws(seed, STREAMS["permute_labels"], index))
    tokens, offsets = store.read(rows)
    if task.family == "policy":
        tokens = with_seeds(tokens, offsets, draws)
    if choice.turns is not None:
        assert store.image is not None, "only images are turned"
        tokens = turned(tokens, choice.turns[label], store.image)
    if by.flips == "images":
        assert store.image is not None, "only images are mirrored"
        tokens = turned(tokens, 4 * Draws(seed, STREAMS["flips"], index).below(np.full(len(rows), 2)), store.image)
    cut = len(first)
    middle = offsets[cut]
    words = ~np.isin(tokens[:middle], [i for i in (store.cls_id, store.sep_id) if i is not None])
    changed = augment_tokens(tokens[:middle], offsets[: cut + 1], label[:cut], words, by, seed, index)
    heads = store.heads[rows] if store.heads is not None else None
    halves = (None, None) if heads is None else (heads[:cut], heads[cut:])
    support = Rows(*changed, label[:cut], rows[:cut], halves[0], store.later)
    query = Rows(tokens[middle:], offsets[cut:] - middle, label[cut:], rows[cut:], halves[1], store.later)
    return Episode(index, choice.task, names, support, query)


def sized(task: TaskConfig, draws: Draws) -> TaskConfig:
    """`task` with the numbers of classes and shots of one episode, where they differ by episode."""
    most = {"ways": task.ways or 5, "shots": task.shots}
    least = {"ways": task.least_ways, "shots": task.least_shots}
    if all(value is None for value in least.values()):
        return task
    fewer = {key: most[key] if value is None else value for key, value in least.items()}
    more = draws.below(np.array([most[key] - fewer[key] + 1 for key in most]))
    sizes = {key: fewer[key] + int(n) for key, n in zip(most, more, strict=True) if least[key] is not None}
    return task.model_copy(update=sizes)
