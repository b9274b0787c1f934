"""Augmentation: a pure function of (seed, index), of support rows alone, by the shares that are asked for."""

import hashlib
import itertools
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from distmeta.config import DataConfig, ModelConfig, TaskConfig, make_config
from distmeta.errors import InputError
from distmeta.tasks import augment, build_store, open_store
from distmeta.tasks.draws import Draws
from distmeta.tasks.episodes import sample_episode
from distmeta.tasks.episodes.sampler import Sampler

EACH = ({"token_dropout": 0.3}, {"word_swap": 0.5}, {"mix": 0.4}, {"permute_labels": True}, {"resplit": True})
ALL = {key: value for one in EACH for key, value in one.items()}


def task(**asked):
    return TaskConfig(shots=3, queries=2, augment=asked)


@pytest.fixture(scope="module")
def reviews(tmp_path_factory):
    data = DataConfig(cache=str(tmp_path_factory.mktemp("cache")))
    return open_store(build_store(data, task(), ModelConfig()))


def digest(episodes):
    hashed = hashlib.sha256()
    for e in episodes:
        hashed.update(f"{e.index} {e.task} {e.label_names}".encode())
        for rows in (e.support, e.query):
            for array in (rows.tokens, rows.offsets, rows.labels, rows.rows):
                hashed.update(np.ascontiguousarray(array).tobytes())
    return hashed.hexdigest()


def ragged(rows=400, longest=12, seed=0):
    """Tokens 10.., each row between a 2 and a 3; labels; which tokens are words."""
    rng = np.random.default_rng(seed)
    lengths = rng.integers(0, longest, rows)
    parts = [np.concatenate([[2], rng.integers(10, 10**6, n), [3]]) for n in lengths]
    tokens = np.concatenate(parts).astype(np.int32)
    offsets = np.concatenate([[0], np.cumsum(lengths + 2)])
    return tokens, offsets, rng.integers(0, 5, rows), tokens >= 10


def split(tokens, offsets):
    return [tokens[a:b].tolist() for a, b in itertools.pairwise(offsets)]


def test_a_fresh_process_and_another_order_give_the_same(reviews):
    code = f"""
import sys; sys.path[:0] = {[str(Path(__file__).parent), *sys.path]!r}
from test_tasks_augment import *
store = open_store({str(reviews.path)!r})
print(digest([sample_episode(store, task(**ALL), 3, "train", i, augment=True) for i in (10**12 + 1, 4)]))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    here = {i: sample_episode(reviews, task(**ALL), 3, "train", i, augment=True) for i in (4, 8, 10**12 + 1)}
    assert done.stdout.strip() == digest([here[10**12 + 1], here[4]])
    assert digest([sample_episode(reviews, task(**ALL), 4, "train", 4, augment=True)]) != digest([here[4]])


def test_off_and_what_is_scored_do_not_change_by_a_bit(reviews):
    plain = [sample_episode(reviews, TaskConfig(shots=3, queries=2), 0, "train", i) for i in range(8)]
    assert digest(Sampler(reviews, task(), 0).sample(range(8), "train")) == digest(plain)
    assert digest([sample_episode(reviews, task(**ALL), 0, "train", i) for i in range(8)]) == digest(plain)
    scored = [sample_episode(reviews, task(), 0, "validation", i) for i in range(8)]
    assert digest(Sampler(reviews, task(**ALL), 0).sample(range(8), "validation")) == digest(scored)
    assert digest(Sampler(reviews, task(**ALL), 0).sample(range(8), "train")) != digest(plain)


@pytest.mark.parametrize("asked", EACH[:3], ids=lambda asked: next(iter(asked)))
def test_tokens_change_in_the_support_set_alone(asked, reviews):
    before = [sample_episode(reviews, task(), 0, "train", i) for i in range(12)]
    after = [sample_episode(reviews, task(**asked), 0, "train", i, augment=True) for i in range(12)]
    assert any(a.support.tokens.tolist() != b.support.tokens.tolist() for a, b in zip(after, before))
    for a, b in zip(after, before):
        assert digest([a.__class__(a.index, a.task, a.label_names, b.support, a.query)]) == digest([b])
        for name in ("labels", "rows"):
            assert (getattr(a.support, name) == getattr(b.support, name)).all()
        assert len(a.support.offsets) == len(b.support.offsets) and a.support.offsets[-1] == len(a.support.tokens)
        for row in split(a.support.tokens, a.support.offsets):
            assert row[0] == reviews.cls_id and row[-1] == reviews.sep_id and len(row) > 2
            assert not {reviews.cls_id, reviews.sep_id} & set(row[1:-1])


def test_each_has_draws_of_its_own(reviews):
    alone = sample_episode(reviews, task(word_swap=0.5), 0, "train", 2, augment=True)
    both = sample_episode(reviews, task(word_swap=0.5, permute_labels=True), 0, "train", 2, augment=True)
    assert (alone.support.tokens == both.support.tokens).all() and (alone.support.rows == both.support.rows).all()


@pytest.mark.parametrize("share", [0.1, 0.6])
def test_dropout_leaves_out_that_share_and_never_a_whole_row(share):
    tokens, offsets, _, words = ragged()
    kept, ends = augment.token_dropout(tokens, offsets, words, share, Draws(0, 8, 1))
    rows = list(zip(split(kept, ends), split(tokens, offsets)))
    for after, before in rows:
        left = iter(before)
        assert all(token in left for token in after)  # in their order
        assert after[0] == 2 and after[-1] == 3 and (len(after) > 2) == (len(before) > 2)
    long = [(len(a) - 2, len(b) - 2) for a, b in rows if len(b) - 2 >= 6]  # of which a last one is seldom kept
    gone = 1 - sum(a for a, _ in long) / sum(b for _, b in long)
    assert abs(gone - share) < 0.03
    kept, ends = augment.token_dropout(tokens, offsets, words, 0.999999, Draws(0, 8, 2))
    assert {len(row) for row in split(kept, ends)} <= {2, 3}


def test_dropout_s_last_word_is_as_likely_the_first_as_any():
    tokens = np.array([2, 10, 11, 12, 3] * 3000, np.int32)
    offsets = np.arange(3001) * 5
    kept, _ = augment.token_dropout(tokens, offsets, tokens >= 10, 0.9999, Draws(0, 8, 3))
    counts = np.bincount(kept[kept >= 10] - 10)
    assert counts.sum() < 3010 and np.abs(counts - 1000).max() < 150


@pytest.mark.parametrize("share", [0.2, 0.9])
def test_swaps_are_of_neighbours_in_that_share_of_pairs(share):
    tokens, offsets, _, words = ragged()
    out = augment.word_swap(tokens, offsets, words, share, Draws(0, 9, 1))
    pairs = moved = 0
    for after, before in zip(split(out, offsets), split(tokens, offsets)):
        assert sorted(after) == sorted(before)
        changed = [i for i in range(len(before)) if after[i] != before[i]]
        for i, j in zip(changed[::2], changed[1::2]):
            assert j == i + 1 and after[i] == before[j] and after[j] == before[i]
        n = len(before) - 2
        pairs += (n // 2 + max(n - 1, 0) // 2) / 2  # from the first word or the second
        moved += len(changed) / 2
    assert abs(moved / pairs - share) < 0.05


@pytest.mark.parametrize("share", [0.2, 0.9])
def test_mixed_tokens_come_from_other_rows_of_the_class(share):
    tokens, offsets, labels, words = ragged()
    out = augment.mix(tokens, offsets, labels, words, share, Draws(0, 10, 1))
    owner = {}  # words are all different, as good as
    for row, before in enumerate(split(tokens, offsets)):
        for token in before[1:-1]:
            owner.setdefault(token, set()).add(row)
    changed = np.flatnonzero(out != tokens)
    row = augment.rows_of(offsets)
    assert words[changed].all()
    assert all(any(labels[o] == labels[row[i]] and o != row[i] for o in owner[int(out[i])]) for i in changed)
    assert abs(len(changed) / words.sum() - share) < 0.03
    donors = [next(iter(owner[int(out[i])])) for i in changed]
    assert len(set(donors)) > 100 * share  # from everywhere
    alone = np.arange(len(labels))  # a class of one row has nobody to take from
    assert (augment.mix(tokens, offsets, alone, words, share, Draws(0, 10, 1)) == tokens).all()


def test_mixing_takes_every_word_of_the_others_as_often():
    tokens, offsets = np.arange(10, 16, dtype=np.int32), np.array([0, 1, 3, 6])  # rows of 1, 2 and 3 words
    words, counts = np.ones(6, bool), np.zeros((6, 6))
    for index in range(4000):
        out = augment.mix(tokens, offsets, np.zeros(3, int), words, 0.5, Draws(0, 10, index))
        counts[np.arange(6), out - 10] += 1
    row = augment.rows_of(offsets)
    for i in range(6):
        others = row != row[i]
        expected = 2000 / others.sum()
        assert np.abs(counts[i, others] - expected).max() < 5 * np.sqrt(expected)
        assert counts[i, ~others].sum() == counts[i, i]


def test_permuted_labels_name_the_same_classes(reviews):
    episodes = [sample_episode(reviews, task(permute_labels=True), 0, "train", i, augment=True) for i in range(60)]
    assert len({e.label_names for e in episodes}) == 6
    for e in episodes:
        for rows in (e.support, e.query):
            names = [reviews.labels[reviews.label_ids[row]] for row in rows.rows]
            assert names == [e.label_names[label] for label in rows.labels]


def test_resplit_pairs_share_their_rows(reviews):
    episodes = Sampler(reviews, task(resplit=True), 0).sample(range(200), "train")
    plain = Sampler(reviews, task(), 0).sample(range(200), "train")
    again = stayed = 0
    for first, second, usual in zip(episodes[::2], episodes[1::2], plain[::2]):
        assert digest([first]) == digest([usual]) and second.index == first.index + 1
        assert first.task == second.task
        both = [np.concatenate([e.support.rows, e.query.rows]) for e in (first, second)]
        assert sorted(both[0]) == sorted(both[1])
        for rows in (second.support, second.query):
            assert (reviews.label_ids[rows.rows] == rows.labels).all()
        assert np.bincount(second.support.labels).tolist() == [3, 3, 3]
        again += 1
        stayed += len(set(first.support.rows) & set(second.support.rows))
    assert abs(stayed / (9 * again) - 3 / 5) < 0.05  # as many as chance leaves where they were


@pytest.mark.parametrize(
    ("changes", "key"),
    [
        ({"task": {"augment": {"mix": 0.1}, "shots": 1}}, "task.augment.mix"),
        ({"task": {"augment": {"permute_labels": True}, "permute_labels": True}}, "task.augment.permute_labels"),
        ({"task": {"augment": {"permute_labels": True}, "family": "classes"}}, "task.augment.permute_labels"),
        ({"task": {"augment": {"permute_labels": True}}, "model": {"head": "prototype"}}, "augment.permute_labels"),
        ({"task": {"augment": {"permute_labels": True}}, "algorithm": "multi_task"}, "task.augment.permute_labels"),
        ({"task": {"augment": {"resplit": True}, "mixture": "curriculum"}, "eval": {"every": 5},
          "data": {"sources": {"a": {"path": "x"}}}}, "task.augment.resplit"),
        ({"task": {"augment": {"token_dropout": 1.0}}}, "task.augment.token_dropout"),
    ],
)  # fmt: skip
def test_what_would_do_nothing_is_refused(changes, key):
    with pytest.raises(InputError, match=key):
        make_config(changes)


def test_states_of_changed_rows_are_not_kept(reviews):
    from distmeta.learner.gradients import state_cache
    from distmeta.models.build import build_model

    found = []
    for asked in ({}, {"mix": 0.1}, {"permute_labels": True}):
        config = make_config({"inner": {"adapt": "head"}, "outer": {"base": "freeze"}, "task": {"augment": asked}})
        model = build_model(config, reviews.vocab_size, reviews.pad_id, 3)
        found.append(state_cache(model, config, reviews) is not None)
    assert found == [True, False, True]
