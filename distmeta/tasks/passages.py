"""An episode of the family document: a passage of a text, in consecutive chunks.

The support set is all chunks but the last, in order, one a step; the query set is the last one. A row is a chunk with
up to `context_tokens` tokens of the passage before it, and its label is how many these are, since they are read and
not scored again. The first token of a passage has nothing before it, and is not scored.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from distmeta.config import TaskConfig
from distmeta.errors import InputError
from distmeta.tasks.draws import Draws
from distmeta.tasks.rows import Episode, Rows
from distmeta.tasks.splits import SPLITS

if TYPE_CHECKING:
    from distmeta.tasks.store import Groups, TaskStore


def sample_passage(
    store: TaskStore, groups: Groups, task: TaskConfig, seed: int, split: str, index: int, draws: Draws
) -> Episode:
    """Episode `index` of `groups`, of `readable` ones: training draws a document and a passage of it.

    The other splits go through the first passages of all documents in an order of the seed's, then through the second
    ones, and so on, so that no passage is scored twice before all have been scored once.
    """
    counts = document_tokens(store, groups) // task.passage_tokens
    if split == "train":
        place = int(draws.below(np.array([len(counts)]))[0])
        number = int(draws.below(counts[place : place + 1])[0])
    else:
        order = Draws(seed, SPLITS.index(split), 0).permutation(len(counts))
        place, number = in_turn(counts[order], index)
        place = int(order[place])
    row = int(groups.start[place, 0])
    begin = int(store.offsets[row]) + number * task.passage_tokens
    rows = chunks_of(np.asarray(store.span(begin, begin + task.passage_tokens)), task, row)
    support, query = rows.part(0, task.chunks - 1), rows.part(task.chunks - 1, task.chunks)
    return Episode(index, store.tasks[groups.ids[place]], tuple(store.labels), support, query)


def in_turn(counts: NDArray[np.int64], index: int) -> tuple[int, int]:
    """(document, number of its passage) of episode `index`, where documents have so many passages, in their order."""
    index %= int(counts.sum())
    low, high = 0, int(counts.max())  # of the turns whose episodes all come before
    while high - low > 1:
        turn = (low + high) // 2
        low, high = (turn, high) if np.minimum(counts, turn).sum() <= index else (low, turn)
    before = int(np.minimum(counts, low).sum())
    return int(np.flatnonzero(counts > low)[index - before]), low


def chunks_of(tokens: NDArray[np.int32], task: TaskConfig, row: int) -> Rows:
    """The chunks of `tokens`, each with what is read before it; the last one may be shorter. row: of the store."""
    begins = np.arange(0, len(tokens), task.chunk_tokens)
    ends = np.minimum(begins + task.chunk_tokens, len(tokens))
    before = np.minimum(begins, task.context_tokens)
    pieces = [tokens[b - c : e] for b, c, e in zip(begins, before, ends, strict=True)]
    offsets = np.concatenate([[0], np.cumsum(ends - begins + before)]).astype(np.int64)
    return Rows(np.concatenate(pieces), offsets, np.maximum(before, 1), np.full(len(begins), row, np.int64))


def document_tokens(store: TaskStore, groups: Groups) -> NDArray[np.int64]:
    """How many tokens each document has, [G]."""
    first = groups.start[:, 0]
    sizes: NDArray[np.int64] = store.offsets[first + groups.count[:, 0]] - store.offsets[first]
    return sizes


def readable(store: TaskStore, groups: Groups, task: TaskConfig) -> Groups:
    """The groups that an episode may be of: all, but for documents that are shorter than a passage."""
    if task.family != "document":
        return groups
    return groups[document_tokens(store, groups) >= task.passage_tokens]


def check_passages(store: TaskStore, task: TaskConfig, splits: Sequence[str]) -> None:
    """Raises InputError where no document of a split, or of a source in it, that has any is as long as an episode."""
    need = task.passage_tokens
    for split in splits:
        for source, groups in (store.sources[split] or {"": store.groups[split]}).items():
            sizes = document_tokens(store, groups)
            if len(sizes) and sizes.max() < need:
                where = f"the split '{split}'" + (f" from the source '{source}'" if source else "")
                raise InputError(
                    f"no document of {where} has the {need} tokens of an episode (task.chunks = {task.chunks} "
                    f"of task.chunk_tokens = {task.chunk_tokens}); the longest has {sizes.max()}: lower one of them"
                )


def too_short(store: TaskStore, task: TaskConfig) -> dict[str, int]:
    """How many documents of each split are shorter than an episode, and therefore never drawn."""
    sizes = {split: document_tokens(store, store.groups[split]) for split in SPLITS}
    return {split: int((each < task.passage_tokens).sum()) for split, each in sizes.items()}
