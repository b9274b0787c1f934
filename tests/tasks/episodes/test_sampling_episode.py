"""An episode is a pure function of (store, task, seed, split, index), and what it promises to be."""

from __future__ import annotations

import hashlib
import subprocess
import sys
from collections import Counter
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from distmeta.config import DataConfig, ModelConfig, TaskConfig
from distmeta.tasks import TaskStore, build_store, open_store
from distmeta.tasks.draws import Draws
from distmeta.tasks.episodes import Episode, sample_episode

DOMAIN = TaskConfig(shots=5, queries=4)
CLASSES = TaskConfig(family="classes", ways=5, shots=2, queries=3)


@pytest.fixture(scope="module")
def reviews(tmp_path_factory: pytest.TempPathFactory) -> TaskStore:
    data = DataConfig(cache=str(tmp_path_factory.mktemp("cache")))
    return open_store(build_store(data, DOMAIN, ModelConfig()))


@pytest.fixture(scope="module")
def classes(tmp_path_factory: pytest.TempPathFactory) -> TaskStore:
    folder = tmp_path_factory.mktemp("classes")
    rows = [
        {"text": f"word{c} number {i}" + " more" * (i % 9), "label": f"c{c}"} for c in range(30) for i in range(5 + c)
    ]
    pq.write_table(pa.Table.from_pylist(rows), folder / "data.parquet")
    data = DataConfig(path=str(folder / "data.parquet"), cache=str(folder))
    return open_store(build_store(data, CLASSES, ModelConfig()))


def digest(episode: Episode) -> str:
    hashed = hashlib.sha256(f"{episode.index} {episode.task} {episode.label_names}".encode())
    for rows in (episode.support, episode.query):
        for array in (rows.tokens, rows.offsets, rows.labels, rows.rows):
            hashed.update(np.ascontiguousarray(array).tobytes())
    return hashed.hexdigest()


def test_a_fresh_process_draws_the_same_episode(reviews: TaskStore) -> None:
    code = f"""
import sys; sys.path[:0] = {[str(Path(__file__).parent), *sys.path]!r}
from test_sampling_episode import *
print(digest(sample_episode(open_store({str(reviews.path)!r}), DOMAIN, 3, "test", 12345678901)))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    for index in (5, 6):  # whatever was drawn before
        sample_episode(reviews, DOMAIN, 3, "test", index)
    assert done.stdout.strip() == digest(sample_episode(reviews, DOMAIN, 3, "test", 12345678901))


def test_draws_never_change() -> None:
    draws = Draws(7, 1, 42)
    assert draws.below(np.array([10, 1000, 2**31])).tolist() == [0, 788, 1794278935]
    assert draws.permutation(5).tolist() == [1, 4, 0, 2, 3]
    assert draws.distinct(np.array([4, 100]), 3).tolist() == [[0, 2, 3], [6, 30, 38]]


def test_seed_split_and_index_all_matter(classes: TaskStore) -> None:
    keys = [(0, "train", 0), (0, "train", 1), (1, "train", 0), (0, "test", 0), (0, "train", 2**40)]
    assert len({digest(sample_episode(classes, CLASSES, *key)) for key in keys}) == len(keys)


@pytest.mark.parametrize("family", ["domain", "classes"])
def test_support_and_query_are_disjoint_balanced_and_true(family: str, reviews: TaskStore, classes: TaskStore) -> None:
    store, task = (reviews, DOMAIN) if family == "domain" else (classes, CLASSES)
    for index in range(50):
        episode = sample_episode(store, task, 0, "train", index)
        every = np.concatenate([episode.support.rows, episode.query.rows])
        assert len(set(every.tolist())) == len(every)
        ways = len(episode.label_names)
        for rows, each in ((episode.support, task.shots), (episode.query, task.queries)):
            assert np.bincount(rows.labels).tolist() == [each] * ways
            assert rows.labels.tolist() != sorted(rows.labels.tolist())  # shuffled
            for i, row in enumerate(rows.rows):
                assert store.labels[store.label_ids[row]] == episode.label_names[rows.labels[i]]
                stored = store.tokens[store.offsets[row] : store.offsets[row + 1]]
                assert (rows.tokens[rows.offsets[i] : rows.offsets[i + 1]] == stored).all()
        if family == "domain":
            assert {store.tasks[i] for i in store.task_ids[every]} == {episode.task}
            assert episode.label_names == ("negative", "neutral", "positive")


def test_no_class_or_task_of_one_split_is_met_in_another(reviews: TaskStore, classes: TaskStore) -> None:
    for store, task in ((reviews, DOMAIN), (classes, CLASSES)):
        met = {}
        for split in ("train", "validation", "test"):
            episodes = [sample_episode(store, task, 0, split, i) for i in range(1500)]
            met[split] = {n for e in episodes for n in ([e.task] if task is DOMAIN else e.label_names)}
            assert len(met[split]) == len(store.groups[split].ids)  # all of them
        assert not (met["train"] & met["test"] or met["train"] & met["validation"] or met["test"] & met["validation"])


def test_splits_of_one_size_are_not_drawn_alike(reviews: TaskStore) -> None:
    def places(split: str) -> list[int]:
        tasks = [reviews.tasks[i] for i in reviews.groups[split].ids]
        return [tasks.index(sample_episode(reviews, DOMAIN, 0, split, i).task) for i in range(50)]

    assert len(reviews.groups["test"].ids) == len(reviews.groups["validation"].ids)
    assert places("test") != places("validation")


def test_the_order_of_classes_is_random_and_every_row_is_as_likely(classes: TaskStore) -> None:
    episodes = [sample_episode(classes, CLASSES, 0, "test", i) for i in range(3000)]
    first = Counter(e.label_names[0] for e in episodes)
    expected = 3000 / len(classes.groups["test"].ids)
    assert all(abs(count - expected) < 5 * np.sqrt(expected) for count in first.values())
    groups = classes.groups["test"]
    drawn = np.bincount(np.concatenate([e.support.rows for e in episodes]), minlength=classes.rows)
    for start, count in zip(groups.start[:, 0], groups.count[:, 0], strict=True):
        here = drawn[start : start + count]
        assert np.abs(here - here.mean()).max() < 5 * np.sqrt(here.mean())


def test_labels_are_permuted_on_request(reviews: TaskStore) -> None:
    task = DOMAIN.model_copy(update={"permute_labels": True})
    episodes = [sample_episode(reviews, task, 0, "train", i) for i in range(100)]
    assert len({e.label_names for e in episodes}) == 6
    for e in episodes[:10]:
        names = [reviews.labels[reviews.label_ids[row]] for row in e.query.rows]
        assert names == [e.label_names[label] for label in e.query.labels]
