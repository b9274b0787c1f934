"""data.trusted and data.subgroup: columns of rows, from the files to the store and its episodes."""

import numpy as np
import pytest
import small

from distmeta.errors import InputError
from distmeta.tasks.build import build_store
from distmeta.tasks.episodes.episode import sample_episode
from distmeta.tasks.families import check_feasible
from distmeta.tasks.store import open_store

FIRST = ("task", ["true", "False", "1", "0", "yes", "", "TRUE", "no"])


def write(path, rows=16, words=FIRST[1]):
    """Tasks of two labels; row i of a cell has words[i % 8] as trusted, and the subgroup a, b or none."""
    lines = ["text,label,task,good,dialect"]
    for t in range(10):
        for label in ("yes", "no"):
            for i in range(rows):
                good, dialect = words[i % len(words)], ["a", "b", "a", ""][i % 4]
                lines.append(
                    f"{label} {i} of {t} {good or 'none'} {dialect or 'none'},{label},task{t},{good},{dialect}"
                )
    path.write_text("\n".join(lines) + "\n")
    return path


def opened(path, **sections):
    config = small.config(path, **small.merge({"data": {"trusted": "good", "subgroup": "dialect"}}, sections))
    return config, open_store(build_store(config.data, config.task, config.model))


def is_trusted(store, row):
    return store.text(row).split()[-2].lower() in ("true", "1", "yes")


@pytest.mark.parametrize("family", ["domain", "classes"])
def test_meta_train_queries_are_of_trusted_rows_and_supports_of_all(tmp_path, family):
    classes = {"task": {"family": "classes", "ways": 2}, "data": {"label": "task"}} if family == "classes" else {}
    config, store = opened(write(tmp_path / "rows.csv"), **classes)
    supports = set()
    for i in range(30):
        episode = sample_episode(store, config.task, 0, "train", i)
        rows = np.concatenate([episode.support.rows, episode.query.rows])
        assert len(set(rows.tolist())) == len(rows)
        assert all(is_trusted(store, row) for row in episode.query.rows)
        supports |= {is_trusted(store, row) for row in episode.support.rows}
    assert supports == {True, False}
    tested = [sample_episode(store, config.task, 0, "test", i) for i in range(10)]
    assert {is_trusted(store, row) for episode in tested for row in episode.query.rows} == {True, False}


def test_each_row_keeps_its_subgroup(tmp_path):
    _, store = opened(write(tmp_path / "rows.csv"))
    assert store.subgroups == ["", "a", "b"]
    for row in range(store.rows):
        assert (store.subgroups[store.subgroup_ids[row]] or "none") == store.text(row).split()[-1]


def test_a_store_without_these_columns_is_the_one_of_before(tmp_path):
    path = write(tmp_path / "rows.csv")
    _, store = opened(path, data={"trusted": None, "subgroup": None})
    _, other = opened(path)
    assert store.key != other.key and store.subgroup_ids is None and store.groups["train"].trusted is None
    assert store.tokens.tolist() != other.tokens.tolist() and sorted(store.tokens) == sorted(other.tokens)


@pytest.mark.parametrize(
    ("words", "queries", "message"),
    [
        (
            ["true", "perhaps"],
            4,
            r"rows.csv row 2: column 'good' \(data.trusted\) is perhaps; it must be true or false",
        ),
        (["true", *["false"] * 7], 4, r"class 'no' of the task '.*' \(train\) has 2 trusted examples"),
    ],
)
def test_what_cannot_be_trusted_is_refused(tmp_path, words, queries, message):
    with pytest.raises(InputError, match=message):
        config, store = opened(write(tmp_path / "rows.csv", words=words), task={"queries": queries})
        check_feasible(store, config.task)


def test_a_column_that_is_not_there_is_refused(tmp_path):
    with pytest.raises(InputError, match=r"no column 'goood' \(data.trusted\)"):
        opened(write(tmp_path / "rows.csv"), data={"trusted": "goood"})
