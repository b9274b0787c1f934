"""Documents as tasks: how they are read, divided among splits, and cut into chunks."""

import json
import pickle

import numpy as np
import pytest
import small

from distmeta.errors import InputError
from distmeta.tasks import documents, summary
from distmeta.tasks.build import build_store
from distmeta.tasks.episodes.episode import sample_episode
from distmeta.tasks.families import check_feasible
from distmeta.tasks.passages import document_tokens, in_turn
from distmeta.tasks.sources import TEXT_KINDS, find_sources
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


@pytest.mark.parametrize("counts", [[1], [1, 3], [4, 1, 2, 1], [2, 2, 2]])
def test_passages_take_their_turn_whatever_their_number(counts):
    drawn = [in_turn(np.array(counts), i) for i in range(sum(counts))]
    assert drawn == sorted(((d, n) for d in range(len(counts)) for n in range(counts[d])), key=lambda p: (p[1], p[0]))
    assert in_turn(np.array(counts), sum(counts)) == drawn[0]


def test_documents_that_are_too_short_are_never_drawn(store, config):
    short = config.task.model_copy(update={"chunk_tokens": 50})
    with pytest.raises(InputError, match="no document of the split 'train' has the 150 tokens .* the longest has 80"):
        check_feasible(store, short)


def test_documents_that_are_never_drawn_are_counted_and_said(store, config):
    (split,) = [s for s in SPLITS if "d11" in {store.tasks[i] for i in store.groups[s].ids}]  # the short one
    content = summary.summary(store, config.task)
    assert content["short"] == {split: 1}
    assert f"never drawn: 1 of {split}" in summary.signs(content)[-1]["what"]
    assert "short" not in summary.summary(store, config.task.model_copy(update={"chunk_tokens": 2}))


def test_text_files_are_documents(tmp_path):
    for name in ("one", "two", "three", "four", "five"):
        (tmp_path / f"{name}.txt").write_text(f"{words(30)}\n\n{words(10)}\n")
    splits = {"train": ["one", "two", "three"], "test": ["four", "five"]}
    named = {split: [f"{tmp_path.name}/{name}" for name in names] for split, names in splits.items()}
    store = store_of(config_of(tmp_path, data={"splits": named}))
    assert sorted(store.tasks) == sorted(n for names in named.values() for n in names)
    assert store.text(0) == f"{words(30)}\n\n{words(10)}\n"


def test_no_two_files_are_one_document(tmp_path):
    files = ["vol.1.txt", "vol.2.txt", "x/a/one.txt", "y/a/one.txt", "z/b/one.txt", "rows.jsonl", "rows.csv"]
    for file in files:
        (tmp_path / file).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / file).write_text({"jsonl": '{"text": "w1"}', "csv": "text\nw1"}.get(file[-5:].split(".")[-1], "w1"))
    names = documents.file_names(find_sources(str(tmp_path), TEXT_KINDS))
    root = tmp_path.name
    assert sorted(names) == sorted(
        [f"{root}/vol.1", f"{root}/vol.2", "x/a/one", "y/a/one", "b/one", f"{root}/rows.jsonl", f"{root}/rows.csv"]
    )


def test_files_with_other_names_are_another_store(tmp_path):
    for place in ("a", "b"):
        (tmp_path / place).mkdir()
        for n in range(6):
            (tmp_path / place / f"{n}.txt").write_text(words(30, n))
    stores = [store_of(config_of(tmp_path / place)) for place in ("a", "b")]
    assert [store.tasks[0] for store in stores] == ["a/0", "b/0"]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("w1 w2".encode("utf-16"), "iconv -f utf-16 -t utf-8"),
        ("w1 w2".encode("utf-16-le"), "iconv -f utf-16le -t utf-8"),
        ("é".encode("latin1"), "iconv -f latin1 -t utf-8"),
    ],
)
def test_text_files_of_another_encoding_are_refused(tmp_path, content, message):
    (tmp_path / "one.txt").write_bytes(content)
    with pytest.raises(InputError, match=message):
        store_of(config_of(tmp_path))


@pytest.mark.parametrize("role", ["author", "task", "split"])
def test_a_text_file_has_no_columns(tmp_path, role):
    (tmp_path / "one.txt").write_text(words(30))
    with pytest.raises(InputError, match=rf"no column 'x' \(data.{role}\): a .txt file is a text and has none"):
        store_of(config_of(tmp_path, data={role: "x"}))


def test_splits_are_of_all_files_or_of_none(tmp_path):
    rows = [{"text": words(30), "split": split} for split in SPLITS]
    write_rows(tmp_path / "rows.jsonl", rows)
    (tmp_path / "texts.txt").write_text(words(30))
    with pytest.raises(InputError, match="no column 'split' .data.split.: a .txt file"):
        store_of(config_of(tmp_path))


def test_a_document_without_an_author_stands_for_itself(tmp_path):
    rows = [{"text": words(30), "author": [None, " ", "x", "y"][i % 4]} for i in range(12)]
    store = store_of(config_of(write_rows(tmp_path / "rows.jsonl", rows)))
    assert {a for a in store.authors if "/" not in a} == {"x", "y"}
    assert len(set(store.authors)) == 2 + 6


def test_a_source_of_short_documents_is_refused_by_its_name(tmp_path):
    for name, count in (("long", 40), ("short", 4)):
        write_rows(tmp_path / f"{name}.jsonl", [{"text": words(count, i), "split": SPLITS[i % 3]} for i in range(6)])
    sources = {name: {"path": str(tmp_path / f"{name}.jsonl")} for name in ("long", "short")}
    config = config_of(None, data={"sources": sources})
    with pytest.raises(InputError, match="from the source 'short' has the 24 tokens"):
        check_feasible(store_of(config), config.task)


def test_without_a_name_each_row_is_a_document(tmp_path):
    path = write_rows(tmp_path / "rows.jsonl", [{"text": words(30, i)} for i in range(10)])
    store = store_of(config_of(path))
    assert len(store.tasks) == 10
    assert store.authors == []


def test_a_document_of_two_authors_is_refused(tmp_path):
    rows = [{"text": words(30), "task": "d", "author": "x"}, {"text": words(30), "task": "d", "author": "y"}]
    path = write_rows(tmp_path / "rows.jsonl", rows)
    with pytest.raises(InputError, match="the document 'd' is by 'x' in one row and by 'y'"):
        store_of(config_of(path))


@pytest.mark.parametrize(
    ("sections", "message"),
    [
        ({"inner": {"steps": 5}}, "inner.steps = 5: 3 chunks are read in 2 steps"),
        ({"model": {"max_tokens": 11}}, "model.max_tokens = 11: a chunk of 8 tokens and 4 before it need 12"),
        ({"algorithm": "imaml", "inner": {"proximal": 1.0}}, "algorithm = imaml: set maml, fomaml"),
        ({"algorithm": "in_context"}, "document does not work with algorithm = in_context: set maml"),
        ({"inner": {"adapt": "head"}}, "inner.adapt = head: a language model has no head"),
        ({"eval": {"shots": 3}}, "a document has chunks"),
        ({"eval": {"best": "accuracy:max"}}, "not measured by accuracy; set one of loss, perplexity, bits_per_byte"),
    ],
)
def test_what_does_not_go_with_documents_is_refused(sections, message):
    from distmeta.config import make_config

    base = {"task": SIZES, "model": {"architecture": "gpt2", "config": small.BACKBONES["gpt2"]}}
    with pytest.raises(InputError, match=message):
        make_config({**base, **sections, "model": {**base["model"], **sections.get("model", {})}})


def test_a_search_fits_documents():
    from distmeta.config import load_config
    from distmeta.search import base_config, check_metric
    from distmeta.search.results import recipe
    from distmeta.search.space import points, read_space

    config = load_config("documents")
    check_metric(config)
    assert points(read_space(config), config)
    base = base_config(config)
    row = {"kind": "search", "params": {"inner.lr": 0.1}, "run": "r", "adapt_steps": config.inner.steps,
           "number": 0, "value": 1.0, "low": 0.9, "high": 1.1, "history": "[]"}  # fmt: skip
    assert "after 7 adaptation steps" in recipe(config, base, row)
    assert load_config("documents", ["tune.space={outer.lr: {uniform: [0.1, 0.2]}}"]).tune.space.keys() == {"outer.lr"}


def test_sizes_follow_from_the_episode():
    from distmeta.config import make_config

    made = make_config({"task": SIZES | {"chunks": 5}, "model": {"architecture": "gpt2"}})
    assert (made.inner.steps, made.model.max_tokens) == (4, 12)
    least = {"family": "document", "chunks": 2, "chunk_tokens": 2, "context_tokens": 1}
    assert make_config({"task": least, "model": {"architecture": "gpt2"}}).model.max_tokens == 4
    again = make_config(made.model_dump(mode="json"))
    assert again == made
