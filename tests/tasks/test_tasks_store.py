"""The store holds every example once, in groups, and the same content always gives the same store."""

from __future__ import annotations

import multiprocessing
import pickle
import shutil
import tracemalloc
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from tasks_data import make_rows, write_jsonl
from tokenizers import Tokenizer

from distmeta.config import DataConfig, ModelConfig, TaskConfig
from distmeta.errors import InputError
from distmeta.tasks import TaskStore, build_store, check_feasible, open_store, spool
from distmeta.tasks.spool import spool_examples, spooled_texts

CHARACTERS = ModelConfig(tokenizer="character", max_tokens=24)
FAMILY = {name: TaskConfig(family=name, shots=2, queries=3) for name in ("domain", "classes")}


def build(tmp_path: Path, rows: list[dict[str, Any]], family: str = "domain", **more: Any) -> TaskStore:
    keys = {"labels", "tokenizer_file", "only", "progress"}
    data = DataConfig(
        path=write_jsonl(tmp_path / "data.jsonl", rows),
        cache=str(tmp_path / "cache"),
        **{key: value for key, value in more.items() if key not in keys},
    )
    task = FAMILY[family]
    return open_store(build_store(data, task, CHARACTERS, **{k: v for k, v in more.items() if k in keys}))


def by_class(**more: Any) -> list[dict[str, Any]]:
    """18 classes, six of each split."""
    rows = [row | {"label": f"{row['task']}.{row['label']}"} for row in make_rows()]
    return [{k: v for k, v in row.items() if k != "task"} for row in rows]


@pytest.mark.parametrize("family", ["domain", "classes"])
def test_every_example_is_there_once_in_its_group(tmp_path: Path, family: str) -> None:
    rows = make_rows() if family == "domain" else by_class()
    store = build(tmp_path, rows, family)
    tokenizer = Tokenizer.from_file(str(store.tokenizer_file))
    tokenizer.no_padding()
    found: Counter[tuple[str, ...]] = Counter()
    for split, groups in store.groups.items():
        for g, number in enumerate(groups.ids):
            for c in range(groups.count.shape[1]):
                for row in range(groups.start[g, c], groups.start[g, c] + groups.count[g, c]):
                    label = store.labels[store.label_ids[row]]
                    if family == "domain":
                        assert (store.task_ids[row], store.label_ids[row]) == (number, c)
                        found[store.text(row), label, store.tasks[number], split] += 1
                    else:
                        assert store.label_ids[row] == number
                        found[store.text(row), label, split] += 1
                    tokens = store.tokens[store.offsets[row] : store.offsets[row + 1]]
                    assert tokens.tolist() == tokenizer.encode(store.text(row)).ids
    alias = {"train": "train", "val": "validation", "test": "test"}
    columns = ("text", "label", "task") if family == "domain" else ("text", "label")
    assert found == Counter((*(row[c] for c in columns), alias[row["split"]]) for row in rows)
    assert store.rows == len(rows) and max(np.diff(store.offsets)) <= CHARACTERS.max_tokens


def test_rows_are_sorted_by_cell_chunk_by_chunk(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(spool, "CHUNK", 7)
    rng = np.random.default_rng(0)
    cells = rng.integers(-1, 5, 100).astype(np.int32)
    count = np.bincount(cells[cells >= 0], minlength=6)  # the last one is empty
    out = np.full(count.sum(), -1)
    spool.sort_by_cell(cells, count, out)
    expected = np.argsort(cells, kind="stable")
    assert out.tolist() == expected[cells[expected] >= 0].tolist()


@pytest.mark.parametrize("family", ["domain", "classes"])
def test_the_chunks_change_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, family: str) -> None:
    rows = make_rows(each=20) if family == "domain" else by_class()
    stores = []
    for chunk in (1 << 18, 10):
        monkeypatch.setattr(spool, "CHUNK", chunk)
        (tmp_path / str(chunk)).mkdir()
        stores.append(build(tmp_path / str(chunk), rows, family).path)
    for file in ("rows.arrow", "groups.arrow", "names.arrow"):
        assert (stores[0] / file).read_bytes() == (stores[1] / file).read_bytes()


def test_memory_does_not_grow_with_the_rows(tmp_path: Path) -> None:
    """What arrays and Python objects take at most while a store is built, of 8 times as many rows."""
    peaks = []
    for each in (500, 4000):
        data = DataConfig(path=str(tmp_path / f"{each}.parquet"), cache=str(tmp_path / "cache"))
        texts = pa.array(["one two three", "four five"]).take(pa.array(np.arange(each * 20) % 2))
        table = {
            "text": texts,
            **{role: pa.array(np.arange(each * 20) % n) for role, n in (("label", 2), ("task", 10))},
        }
        pq.write_table(pa.table(table), data.path)
        tracemalloc.start()
        build_store(data, FAMILY["domain"], ModelConfig(tokenizer="word", max_tokens=8))
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    assert peaks[1] < 1.5 * peaks[0]


def test_a_slice_of_a_batch_is_spooled_as_what_it_shows(tmp_path: Path) -> None:
    batch = pa.RecordBatch.from_pydict(
        {"text": pa.array(["not this", "é", "three 3"], pa.large_string()), "label": ["z", "a", "a"]}
    )
    spool = spool_examples(iter([batch.slice(1), batch.slice(1, 1)]), tmp_path, None)
    assert [text for part in spooled_texts(spool, np.array([2, 0, 1])) for text in part] == [
        "é",
        "é",
        "three 3",
    ]
    assert spool.names["label"][spool.codes["label"][0]] == "a"


def test_the_vocabulary_comes_from_the_meta_train_text(tmp_path: Path) -> None:
    rows = [
        row | {"text": row["text"] + {"train": " α", "val": " β", "test": " γ"}[row["split"]]} for row in make_rows()
    ]
    vocabulary = Tokenizer.from_file(str(build(tmp_path, rows).tokenizer_file)).get_vocab()
    assert "α" in vocabulary and "β" not in vocabulary and "γ" not in vocabulary


def test_the_key_is_the_content(tmp_path: Path) -> None:
    first = build(tmp_path, make_rows())
    (tmp_path / "elsewhere").mkdir()
    shutil.copy(tmp_path / "data.jsonl", tmp_path / "elsewhere" / "other.jsonl")
    cache = str(tmp_path / "cache")
    moved = DataConfig(path=str(tmp_path / "elsewhere" / "other.jsonl"), cache=cache)
    assert build_store(moved, FAMILY["domain"], CHARACTERS) == first.path
    others = [
        build_store(moved, FAMILY["domain"], ModelConfig(tokenizer="word", max_tokens=24)),
        build_store(moved, FAMILY["domain"], ModelConfig(tokenizer="character", max_tokens=25)),
        build(tmp_path, [*make_rows()[:-1], make_rows()[-1] | {"text": "changed"}]).path,
    ]
    assert len({first.path, *others}) == 4


def test_a_store_is_not_built_twice_and_opens_anywhere(tmp_path: Path) -> None:
    seen: list[tuple[str, int, int | None]] = []
    store = build(tmp_path, make_rows(), progress=lambda *a: seen.append(a))
    assert seen[0] == ("reading", 144, None) and seen[-1] == ("tokenising", 144, 144)
    seen.clear()
    assert build(tmp_path, make_rows(), progress=lambda *a: seen.append(a)).key == store.key and not seen
    again = pickle.loads(pickle.dumps(store))
    assert (again.tokens == store.tokens).all() and not again.tokens.flags.writeable


def test_a_cache_below_the_data_is_not_data(tmp_path: Path) -> None:
    write_jsonl(tmp_path / "data.jsonl", make_rows())
    data = DataConfig(path=str(tmp_path), cache=str(tmp_path / "cache"))
    first = build_store(data, FAMILY["domain"], CHARACTERS)
    assert build_store(data, FAMILY["domain"], CHARACTERS) == first


def _build_in_process(data: DataConfig, out: Any) -> None:
    out.put(build_store(data, FAMILY["domain"], CHARACTERS))


def test_two_processes_may_build_at_once(tmp_path: Path) -> None:
    data = DataConfig(path=write_jsonl(tmp_path / "d.jsonl", make_rows(each=80)), cache=str(tmp_path / "cache"))
    context = multiprocessing.get_context("spawn")
    out = context.Queue()
    both = [context.Process(target=_build_in_process, args=(data, out)) for _ in range(2)]
    for process in both:
        process.start()
    paths = {out.get(timeout=60) for _ in both}
    for process in both:
        process.join()
    assert len(paths) == 1 and open_store(paths.pop()).rows == 6 * 3 * 80
    assert len(list((tmp_path / "cache").iterdir())) == 1


def test_an_error_leaves_nothing_behind(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"no 'text'"):
        build(tmp_path, [*make_rows(), {"label": "a"}])
    assert not list((tmp_path / "cache").iterdir())


def test_a_damaged_store_is_named(tmp_path: Path) -> None:
    store = build(tmp_path, make_rows())
    (store.path / "rows.arrow").write_bytes((store.path / "rows.arrow").read_bytes()[:100])
    with pytest.raises(InputError, match=r"not a whole task store .*delete it"):
        open_store(store.path)


def test_new_data_takes_the_tokenizer_and_labels_of_a_checkpoint(tmp_path: Path) -> None:
    old = build(tmp_path, make_rows())
    labels = ["label2", "label0", "label1"]
    kept = tmp_path / "tokenizer.json"
    shutil.copy(old.tokenizer_file, kept)
    rows = make_rows(tasks=2, split=False)
    new = build(tmp_path, rows, tokenizer_file=kept, labels=labels, only="test")
    assert new.labels == labels and new.vocab_size == old.vocab_size and new.pad_id == old.pad_id
    assert {split: len(groups.ids) for split, groups in new.groups.items()} == {
        "train": 0,
        "validation": 0,
        "test": 2,
    }
    check_feasible(new, FAMILY["domain"])
    with pytest.raises(InputError, match=r"unknown label 'label2' in the data; known here: label0, label1"):
        build(tmp_path, rows, tokenizer_file=kept, labels=["label0", "label1"], only="test")


def test_lists_leave_out_what_they_do_not_name(tmp_path: Path) -> None:
    store = build(tmp_path, make_rows(), splits={"train": ["task0", "task1"], "test": ["task5"]})
    assert store.left_out == ["task2", "task3", "task4"] and store.rows == 3 * 24
    assert len(store.groups["validation"].ids) == 0


def test_without_a_split_column_the_hash_decides(tmp_path: Path) -> None:
    store = build(tmp_path, make_rows(tasks=10, split=False))
    assert [len(store.groups[s].ids) for s in ("train", "validation", "test")] == [6, 2, 2]


def test_a_class_in_two_splits_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"class 'label0' is in two splits, train and validation"):
        build(tmp_path, make_rows(), "classes")


HUB = ("data/train-00000-of-00002.jsonl", "data/train-00001-of-00002.jsonl", "data/validation-00000-of-00001.jsonl",
       "data/test-00000-of-00001.jsonl")  # fmt: skip
LAYOUTS = {
    "of the hub": HUB,
    "one file a split": ("train.jsonl", "training.jsonl", "dev.jsonl", "test.jsonl"),
    "folders": ("en/train/0000.jsonl", "en/train/0001.jsonl", "en/valid/0000.jsonl", "en/test/0000.jsonl"),
    "words in names": ("reviews_train.jsonl", "books.train.jsonl", "reviews_val.jsonl", "reviews-test.v2.jsonl"),
}


def in_files(tmp_path: Path, names: Sequence[str], family: str = "domain", only: str | None = None, **data: Any) -> Any:
    """task0, task1 ... in a file each, without a column that splits them."""
    root = tmp_path / "files"
    for number, name in enumerate(names):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        write_jsonl(root / name, (row for row in make_rows(split=False) if row["task"] == f"task{number}"))
    config = DataConfig(path=str(root), cache=str(tmp_path / "cache"), **data)
    return open_store(build_store(config, FAMILY[family], CHARACTERS, only=only))


def tasks_of(store: TaskStore, split: str) -> list[str]:
    return [store.tasks[i] for i in store.groups[split].ids]


@pytest.mark.parametrize("layout", LAYOUTS)
def test_files_named_by_their_splits_are_these_splits(layout: str, tmp_path: Path) -> None:
    store = in_files(tmp_path, LAYOUTS[layout])
    assert tasks_of(store, "train") == ["task0", "task1"]
    assert (tasks_of(store, "validation"), tasks_of(store, "test")) == (["task2"], ["task3"])


@pytest.mark.parametrize("data", [{"split": "hash"}, {"splits": {"train": ["task3"], "test": ["task0", "task2"]}}])
def test_a_split_that_is_set_goes_before_the_names_of_the_files(data: dict[str, Any], tmp_path: Path) -> None:
    store = in_files(tmp_path, HUB, **data)
    assert (tasks_of(store, "train"), tasks_of(store, "test")) != (["task0", "task1"], ["task3"])


def test_words_in_names_that_are_no_splits_change_nothing(tmp_path: Path) -> None:
    for names in (("reading_test.jsonl", "writing_test.jsonl"), ("train_times.jsonl", "weather.jsonl")):
        store = in_files(tmp_path / names[0], names)
        assert store.rows == 2 * 24 and len(tasks_of(store, "train")) == 1


def test_classes_in_files_of_two_splits_are_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"class 'label0' is in two splits, train and test;.* data.split=hash"):
        in_files(tmp_path, ("train.jsonl", "test.jsonl"), "classes")
    assert in_files(tmp_path, ("train.jsonl", "test.jsonl"), "classes", split="hash").rows == 2 * 24


def test_a_file_beside_those_of_splits_whose_name_gives_none_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"more.jsonl: no column 'split' .* a name that gives their split"):
        in_files(tmp_path, ("more.jsonl", *HUB))


def test_other_data_is_evaluated_on_its_files_of_that_split(tmp_path: Path) -> None:
    """Also where all splits hold the same classes, as most published sets do."""
    store = in_files(tmp_path, HUB, "classes", only="test")
    assert store.rows == 24 and len(store.groups["test"].ids) == 3


def test_infeasible_episodes_are_refused_before_the_first(tmp_path: Path) -> None:
    store = build(tmp_path, by_class(), "classes")
    check_feasible(store, FAMILY["classes"].model_copy(update={"ways": 3}))
    with pytest.raises(InputError, match=r"task.ways=7 is more than the 3 classes of the split 'validation'"):
        check_feasible(store, FAMILY["classes"].model_copy(update={"ways": 7}), ["validation", "test"])
    with pytest.raises(InputError, match=r"class 'task0.label0' \(train\) has 8 examples; .* need 9: lower task.q.* 4"):
        check_feasible(store, TaskConfig(family="classes", ways=2, shots=4, queries=5))
    lacking = [row for row in make_rows() if (row["task"], row["label"]) != ("task2", "label1")]
    with pytest.raises(InputError, match=r"class 'label1' of the task 'task2' \(validation\) has 0 examples"):
        check_feasible(build(tmp_path, lacking), FAMILY["domain"])


@pytest.mark.parametrize(("text", "refused"), [("a b x", False), ("a x y", True)])
def test_a_pretrained_tokenizer_that_knows_less_than_half_of_the_data_is_refused(tmp_path, text, refused):
    from tokenizers import models, pre_tokenizers

    names = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "a", "b"]
    tokenizer = Tokenizer(models.WordLevel({name: i for i, name in enumerate(names)}, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    (tmp_path / "model").mkdir()
    tokenizer.save(str(tmp_path / "model" / "tokenizer.json"))
    rows = [f"{text},{label}" for label in "klmnopqrst" for _ in range(4)]
    (tmp_path / "a.csv").write_text("\n".join(["text,label", *rows]) + "\n")
    data = DataConfig(path=str(tmp_path / "a.csv"), cache=str(tmp_path / "cache"))
    task, model = TaskConfig(family="classes", ways=2), ModelConfig(pretrained=str(tmp_path / "model"))
    if not refused:
        build_store(data, task, model)
        return
    with pytest.raises(InputError, match=r"unknown words: 80 of 120 tokens \(67%\) .* of its tokenizer; give a model"):
        build_store(data, task, model)
    assert not list((tmp_path / "cache").iterdir())
