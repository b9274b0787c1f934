"""Three disjoint sets of names, from lists, a column or a stable hash."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from distmeta.errors import InputError
from distmeta.tasks.splits import (
    check_not_empty,
    read_lists,
    split_by_column,
    split_by_hash,
    split_by_lists,
)

NAMES = [f"name{i}" for i in range(100)]


def test_the_hash_depends_on_the_name_alone() -> None:
    out = split_by_hash(NAMES, (0.6, 0.2, 0.2))
    assert np.bincount(out).tolist() == [60, 20, 20]
    order = np.random.default_rng(0).permutation(100)
    assert (split_by_hash([NAMES[i] for i in order], (0.6, 0.2, 0.2)) == out[order]).all()
    # One name more moves at most those beside the cuts.
    assert np.sum(split_by_hash([*NAMES, "more"], (0.6, 0.2, 0.2))[:100] != out) <= 2
    # Known for ever: a change of the hash would silently leak meta-test names into meta-train.
    known = split_by_hash(["kettle", "tent", "lamp", "sofa", "iron"], (0.6, 0.2, 0.2))
    assert known.tolist() == [0, 0, 0, 2, 1]


@pytest.mark.parametrize(
    ("count", "fractions", "least", "sizes"),
    [
        (2, (0.6, 0.2, 0.2), 1, [1, 0, 1]),
        (3, (0.6, 0.2, 0.2), 1, [1, 1, 1]),
        (15, (0.6, 0.2, 0.2), 5, [5, 5, 5]),
        (12, (0.6, 0.2, 0.2), 5, [5, 2, 5]),
        (8, (0.6, 0.2, 0.2), 5, [4, 0, 4]),
        (10, (0.5, 0.0, 0.5), 1, [5, 0, 5]),
        (1, (0.6, 0.2, 0.2), 1, None),
    ],
)
def test_small_splits_get_enough_where_there_is_enough(
    count: int, fractions: tuple[float, ...], least: int, sizes: list[int] | None
) -> None:
    found = np.bincount(split_by_hash(NAMES[:count], fractions, least), minlength=3).tolist()
    assert sum(found) == count and (sizes is None or found == sizes)


def test_aliases_and_names_that_are_left_out() -> None:
    out = split_by_lists(["a", "b", "c", "d"], {"train": ["a"], "dev": ["b"], "test": ["d"]}, "class")
    assert out.tolist() == [0, 1, -1, 2]
    out = split_by_column(["a", "b"], [(0, "train"), (0, "Train"), (1, "valid")], "task", "split")
    assert out.tolist() == [0, 1]


def test_a_name_in_two_splits_is_an_error_that_names_both() -> None:
    both = "'b' is in two splits, train and test"
    with pytest.raises(InputError, match=f"class {both}"):
        split_by_lists(["a", "b"], {"train": ["a", "b"], "test": ["b"]}, "class")
    with pytest.raises(InputError, match=f"task {both}"):
        split_by_column(["a", "b"], [(1, "test"), (0, "train"), (1, "train")], "task", "split")


def test_unusable_splits_are_named() -> None:
    with pytest.raises(InputError, match=r"no class 'bb' in the data. Did you mean 'bbb'"):
        split_by_lists(["aaa", "bbb"], {"train": ["aaa"], "test": ["bb"]}, "class")
    with pytest.raises(InputError, match=r"unknown split 'tests'.*Did you mean 'test'"):
        split_by_lists(["a"], {"tests": ["a"]}, "class")
    with pytest.raises(InputError, match=r"column 'part' \(data.split\): unknown split 'fold1'"):
        split_by_column(["a"], [(0, "fold1")], "class", "part")
    with pytest.raises(InputError, match=r"no class in the split 'test' .train 2, validation 1, test 0."):
        check_not_empty(np.array([0, 0, 1], np.int8), "class")


def test_lists_in_a_file(tmp_path: Path) -> None:
    lists = {"train": ["a", 3], "val": [], "test": ["c"]}
    file = tmp_path / "splits.json"
    file.write_text(json.dumps({"01": lists, "02": lists}))
    assert read_lists(f"{file}#02") == {"train": ["a", "3"], "val": [], "test": ["c"]}
    with pytest.raises(InputError, match=r"no key '03'.*01, 02"):
        read_lists(f"{file}#03")
    with pytest.raises(InputError, match=r"did you mean one of its keys, such as .*splits.json#01"):
        read_lists(str(file))
    with pytest.raises(InputError, match=r"no such file"):
        read_lists(str(tmp_path / "other.json"))
    file.write_text("{")
    with pytest.raises(InputError, match=r"not readable JSON"):
        read_lists(str(file))
