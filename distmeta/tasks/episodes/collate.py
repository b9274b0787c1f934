"""Ragged rows of several episodes as a few length-sorted, hardly padded micro-batches."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray

from distmeta.tasks.rows import Rows

# One more micro-batch costs about as much as this many tokens, the fixed price of forward and backward: in a very
# small model. It is less the larger the model, so that a part may save only a quarter while there is much padding.
PART_OVERHEAD = 256
MUCH_PADDING = 0.15  # of all tokens
MOST_CUTS = 32


def collate(
    rows: Sequence[Rows], buckets: int, pad_id: int, multiple: int = 1, part_tokens: int = 0
) -> list[dict[str, Any]]:
    """The supports (or queries) of T episodes with n rows each, as micro-batches.

    Each episode's rows are sorted by length and cut at the same places. A micro-batch with m rows of at
    most L tokens (L rounded up to `multiple`) is
        input_ids, attention_mask  int64 [T, m, L]
        labels, rows, store_rows   int64 [T, m]; rows: the position in the episode's own order
        total                      n
    and where an example is written another way in a context (`Rows.later`) heads int64 [T, m], later [k].
    `buckets` is the largest number of micro-batches; 0 chooses the number that costs least. Those of more than
    `part_tokens` padded tokens are cut into equal parts, down to a row of each episode; 0: they are not.
    """
    n = len(rows[0].labels)
    if any(len(r.labels) != n for r in rows):
        raise ValueError(f"episodes with different numbers of rows: {[len(r.labels) for r in rows]}")
    offsets = np.stack([r.offsets for r in rows])
    lengths = np.diff(offsets, axis=1)
    order = np.argsort(lengths, axis=1, kind="stable")
    lengths = np.take_along_axis(lengths, order, 1)
    tokens = np.concatenate([r.tokens for r in rows])
    begins = np.concatenate([[0], np.cumsum(offsets[:, -1])[:-1]])
    start = begins[:, None] + np.take_along_axis(offsets[:, :-1], order, 1)
    labels = np.take_along_axis(np.stack([r.labels for r in rows]), order, 1)
    store_rows = np.take_along_axis(np.stack([r.rows for r in rows]), order, 1)
    headed = [r.heads for r in rows if r.heads is not None]
    heads = np.take_along_axis(np.stack(headed).astype(np.int64), order, 1) if headed else None
    longest = -(-lengths.max(0) // multiple) * multiple
    parts = []
    for first, last in _limited(_cuts(longest, len(rows), buckets, len(tokens)), longest * len(rows), part_tokens):
        place = np.arange(longest[last - 1])
        mask = place < lengths[:, first:last, None]
        ids = tokens[np.where(mask, start[:, first:last, None] + place, 0)]
        parts.append({
            "input_ids": np.where(mask, ids, pad_id).astype(np.int64),
            "attention_mask": mask.astype(np.int64),
            "labels": np.ascontiguousarray(labels[:, first:last]),
            "rows": np.ascontiguousarray(order[:, first:last]),
            "store_rows": np.ascontiguousarray(store_rows[:, first:last]),
            "total": n,
            **({} if heads is None else {"heads": heads[:, first:last], "later": rows[0].later}),
        })  # fmt: skip
    return parts


def _cuts(longest: NDArray[np.int64], tasks: int, buckets: int, real: int) -> list[tuple[int, int]]:
    """Where to cut n rows, of ascending lengths `longest`, so that the padded tokens are fewest; `real` are none.

    Dynamic programming over the places where the length changes (at most MOST_CUTS of them): with one more
    part at a time, until a part saves less than it costs (buckets = 0) or there are `buckets` of them.
    """
    n = len(longest)
    edges = np.flatnonzero(np.diff(longest)) + 1
    if len(edges) > MOST_CUTS:
        edges = edges[np.linspace(0, len(edges) - 1, MOST_CUTS).astype(int)]
    edges = np.concatenate([[0], edges, [n]])
    if len(edges) == 2 or buckets == 1:
        return [(0, n)]
    # cost[i, j]: tokens of one part from edge i to edge j
    cost = tasks * (edges - edges[:, None]) * longest[edges - 1]
    cost = np.where(edges > edges[:, None], cost, np.iinfo(np.int64).max // 4)
    best = [cost[0]]
    back: list[NDArray[np.int64]] = []
    while len(best) < min(buckets or n, len(edges) - 1):
        through = best[-1][:, None] + cost
        came = through.argmin(0)
        reached = through[came, np.arange(len(edges))]
        saved = best[-1][-1] - reached[-1]
        padded = best[-1][-1]
        costs = PART_OVERHEAD // 4 if padded - real > MUCH_PADDING * padded else PART_OVERHEAD
        if saved <= 0 or (buckets == 0 and saved <= costs):
            break
        best.append(reached)
        back.append(came)
    ends = [len(edges) - 1]
    for came in reversed(back):
        ends.append(int(came[ends[-1]]))
    places = [0, *(int(edges[end]) for end in reversed(ends))]
    return list(pairwise(places))


def _limited(cuts: list[tuple[int, int]], tokens: NDArray[np.int64], most: int) -> list[tuple[int, int]]:
    """Cuts of which none has more than `most` padded tokens, where `tokens` [n] is what one row of each task costs."""
    if most == 0:
        return cuts
    out = []
    for first, last in cuts:
        fit = max(1, most // int(tokens[last - 1]))
        pieces = -(-(last - first) // fit)
        places = [first + (last - first) * i // pieces for i in range(pieces + 1)]
        out += list(pairwise(places))
    return out
