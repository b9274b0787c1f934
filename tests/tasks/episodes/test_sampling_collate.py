"""Micro-batches hold exactly what the episodes hold, with little padding."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest

from distmeta.tasks.episodes import Rows, collate
from distmeta.tasks.episodes.collate import MUCH_PADDING, PART_OVERHEAD


def ragged(n: int, seed: int, longest: int = 40) -> Rows:
    rng = np.random.default_rng(seed)
    lengths = rng.integers(1, longest + 1, n)
    offsets = np.concatenate([[0], np.cumsum(lengths)])
    tokens = rng.integers(1, 1000, offsets[-1]).astype(np.int32)
    return Rows(tokens, offsets, rng.integers(0, 5, n), np.arange(n))


@pytest.mark.parametrize("buckets", [0, 1, 2, 5, 100])
@pytest.mark.parametrize("multiple", [1, 8])
@pytest.mark.parametrize("tasks", [1, 3])
def test_the_content_is_that_of_the_rows(buckets: int, multiple: int, tasks: int) -> None:
    rows = [ragged(30, seed) for seed in range(tasks)]
    parts = collate(rows, buckets, pad_id=-7, multiple=multiple)
    assert buckets == 0 or len(parts) <= buckets
    seen = np.zeros((tasks, 30), int)
    for part in parts:
        size, length = part["labels"].shape[1], part["input_ids"].shape[2]
        assert part["input_ids"].shape == part["attention_mask"].shape == (tasks, size, length)
        assert part["total"] == 30 and length % multiple == 0
        assert part["attention_mask"].sum(2).max() > length - multiple  # no longer than need be
        assert all(part[key].dtype == np.int64 for key in part if key != "total")
        for t in range(tasks):
            for i, row in enumerate(part["rows"][t]):
                seen[t, row] += 1
                expected = rows[t].tokens[rows[t].offsets[row] : rows[t].offsets[row + 1]].tolist()
                padding = length - len(expected)
                assert part["input_ids"][t, i].tolist() == expected + [-7] * padding
                assert part["attention_mask"][t, i].tolist() == [1] * len(expected) + [0] * padding
                assert part["labels"][t, i] == rows[t].labels[row]
    assert (seen == 1).all()


def padded(parts: list[dict[str, np.ndarray]]) -> int:
    return sum(part["input_ids"].size for part in parts)


def test_the_cuts_are_the_best_ones() -> None:
    """Against every way to cut 8 rows in 3."""
    for seed in range(20):
        rows = [ragged(8, seed), ragged(8, seed + 100)]
        longest = np.sort([np.diff(r.offsets) for r in rows], axis=1).max(0)
        ways = [(0, a, b, 8) for a in range(1, 7) for b in range(a + 1, 8)]
        best = min(sum(2 * (q - p) * longest[q - 1] for p, q in pairwise(w)) for w in ways)
        assert padded(collate(rows, 3, 0)) <= best


def test_the_automatic_number_weighs_padding_against_parts() -> None:
    few = [ragged(6, 0, longest=8)]
    assert len(collate(few, 0, 0)) == 1  # nothing to save
    for tasks, rows in ((1, 25), (1, 75), (4, 100)):
        many = [ragged(rows, seed, longest=200) for seed in range(tasks)]
        real = sum(len(r.tokens) for r in many)
        sizes = [padded(collate(many, b, 0)) for b in range(1, 30)]
        b = len(collate(many, 0, 0))
        assert padded(collate(many, 0, 0)) == sizes[b - 1]

        def costs(size: int, real: int = real) -> int:
            return PART_OVERHEAD // (4 if 1 - real / size > MUCH_PADDING else 1)

        assert all(before - after > costs(before) for before, after in pairwise(sizes[:b]))
        assert sizes[b - 1] - sizes[b] <= costs(sizes[b - 1])
        if tasks == 1:
            assert 1 - real / sizes[b - 1] < MUCH_PADDING


def test_equal_lengths_make_one_part_and_unequal_numbers_are_refused() -> None:
    same = Rows(np.arange(12, dtype=np.int32), np.arange(0, 13, 3), np.zeros(4, np.int64), np.arange(4))
    assert len(collate([same, same], 5, 0)) == 1
    with pytest.raises(ValueError, match="different numbers of rows"):
        collate([same, ragged(5, 0)], 0, 0)
