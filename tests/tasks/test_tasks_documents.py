"""Documents as tasks: how they are read, divided among splits, and cut into chunks."""

import json
import pickle

import numpy as np
import pytest
import small

from distmeta.errors import InputError
from distmeta.tasks.build import build_store
from distmeta.tasks.episodes.episode import sample_episode
from distmeta.tasks.families import check_feasible
from distmeta.tasks.passages import document_tokens
from distmeta.tasks.splits import SPLITS
from distmeta.tasks.store import open_store

SIZES = {"family": "document", "chunks": 3, "chunk_tokens": 8, "context_tokens": 4}
WORDS = [f"w{i}" for i in range(30)]


def config_of(path, **sections):
    task = SIZES | sections.pop("task", {})
    sections["model"] = {"max_tokens": 12} | sections.get("model", {})
    return small.config(
        path, "gpt2", task=task | {"shots": 5, "queries": 10}, inner={"steps": task["chunks"] - 1}, **sections
    )


def store_of(config):
    return open_store(build_store(config.data, config.task, config.model))


def words(count, first=0):
    return " ".join(WORDS[(first + i * i) % 30] for i in range(count))


def write_rows(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


@pytest.fixture(scope="module")
def config(tmp_path_factory):
    """Twelve documents of two rows each, by four authors; the last one is too short to be read."""
    rows = [
        {"text": words(40 if d < 11 else 4, d + part), "task": f"d{d:02}", "author": f"a{d % 4}"}
        for d in range(12)
        for part in range(2)
    ]
    path = write_rows(tmp_path_factory.mktemp("documents") / "rows.jsonl", rows)
    return config_of(path, data={"fractions": [0.5, 0.25, 0.25]})


@pytest.fixture(scope="module")
def store(config):
    return store_of(config)


def test_a_document_is_the_rows_of_its_name_in_order(store):
    groups = store.groups["train"]
    row = int(groups.start[0, 0])
    assert int(groups.count[0, 0]) == 2
    number = int(store.tasks[groups.ids[0]][1:])
    assert [store.text(row), store.text(row + 1)] == [words(40, number), words(40, number + 1)]
    assert document_tokens(store, groups)[0] == 80


def test_authors_are_never_divided(store):
    by_split = {s: {store.authors[i] for i in store.groups[s].ids} for s in SPLITS}
    assert all(by_split.values())
    assert sum(map(len, by_split.values())) == len(set().union(*by_split.values()))


def test_an_episode_is_a_passage_in_chunks(store, config):
    task = config.task
    for split in SPLITS:
        for index in range(6):
            episode = sample_episode(store, task, 0, split, index)
            assert episode.support.labels.tolist() == [1, 4]
            assert episode.query.labels.tolist() == [4]
            assert np.diff(episode.support.offsets).tolist() == [8, 12]
            first, second = np.split(episode.support.tokens, [8])
            assert second[:4].tolist() == first[-4:].tolist()  # the context is what came before
            assert episode.query.tokens[:4].tolist() == second[-4:].tolist()
            group = store.groups[split].ids.tolist().index(store.tasks.index(episode.task))
            begin = int(store.offsets[store.groups[split].start[group, 0]])
            passage = [*first, *second[4:], *episode.query.tokens[4:]]
            document = store.tokens[begin : begin + int(document_tokens(store, store.groups[split])[group])].tolist()
            assert any(document[at : at + 24] == passage for at in range(0, len(document) - 23, 24))


def test_an_episode_depends_on_nothing_but_its_index(store, config):
    again = pickle.loads(pickle.dumps(store))
    for index in (5, 0, 3):
        one, two = (sample_episode(s, config.task, 0, "train", index) for s in (store, again))
        assert one.task == two.task
        assert one.support.tokens.tolist() == two.support.tokens.tolist()


def test_what_is_scored_is_scored_once_before_anything_is_scored_twice(store, config):
    sizes = document_tokens(store, store.groups["test"])
    passages = int((sizes // 24).sum())
    seen = [sample_episode(store, config.task, 0, "test", i) for i in range(passages)]
    assert len({tuple(e.support.tokens) + tuple(e.query.tokens) for e in seen}) == passages
    assert len({e.task for e in seen[: len(sizes)]}) == len(sizes)


def test_documents_that_are_too_short_are_never_drawn(store, config):
    short = config.task.model_copy(update={"chunk_tokens": 50})
    with pytest.raises(InputError, match="no document of the split 'train' has the 150 tokens .* the longest has 80"):
        check_feasible(store, short)


def test_text_files_are_documents(tmp_path):
    for name in ("one", "two", "three", "four", "five"):
        (tmp_path / f"{name}.txt").write_text(f"{words(30)}\n\n{words(10)}\n")
    splits = {"train": ["one", "two", "three"], "test": ["four", "five"]}
    named = {split: [f"{tmp_path.name}/{name}" for name in names] for split, names in splits.items()}
    store = store_of(config_of(tmp_path, data={"splits": named}))
    assert sorted(store.tasks) == sorted(n for names in named.values() for n in names)
    assert store.text(0) == f"{words(30)}\n\n{words(10)}\n"


def test_without_a_name_each_row_is_a_document(tmp_path):
    path = write_rows(tmp_path / "rows.jsonl", [{"text": words(30, i)} for i in range(10)])
    store = store_of(config_of(path))
    assert len(store.tasks) == 10
    assert store.authors == []


def test_a_document_of_two_authors_is_refused(tmp_path):
    rows = [{"text": words(30), "task": "d", "author": "x"}, {"text": words(30), "task": "d", "author": "y"}]
    path = write_rows(tmp_path / "rows.jsonl", rows)
    with pytest.raises(InputError, match="names 'x' for a document that another row says is by 'y'|'y'.*'x'"):
        store_of(config_of(path))


@pytest.mark.parametrize(
    ("sections", "message"),
    [
        ({"inner": {"steps": 5}}, "inner.steps = 5: 3 chunks are read in 2 steps"),
        ({"model": {"max_tokens": 11}}, "model.max_tokens = 11: a chunk of 8 tokens and 4 before it need 12"),
        ({"algorithm": "imaml", "inner": {"proximal": 1.0}}, "inner.proximal"),
        ({"algorithm": "in_context"}, "document does not work with"),
        ({"eval": {"shots": 3}}, "a document has chunks"),
        ({"eval": {"best": "accuracy:max"}}, "not measured by accuracy; set one of loss, perplexity, bits_per_byte"),
    ],
)
def test_what_does_not_go_with_documents_is_refused(sections, message):
    from distmeta.config import make_config

    base = {"task": SIZES, "model": {"architecture": "gpt2", "config": small.BACKBONES["gpt2"]}}
    with pytest.raises(InputError, match=message):
        make_config({**base, **sections, "model": {**base["model"], **sections.get("model", {})}})


def test_sizes_follow_from_the_episode():
    from distmeta.config import make_config

    made = make_config({"task": SIZES | {"chunks": 5}, "model": {"architecture": "gpt2"}})
    assert (made.inner.steps, made.model.max_tokens) == (4, 12)
    again = make_config(made.model_dump(mode="json"))
    assert again == made
