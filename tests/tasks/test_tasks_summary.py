"""What tasks.json says of the splits."""

import json

import pytest

from distmeta.config import make_config
from distmeta.tasks import summary
from distmeta.tasks.build import build_store
from distmeta.tasks.store import open_store


def store_of(path, lines):
    path.write_text("\n".join(["text,label,task,split", *lines]) + "\n")
    config = make_config({"data": {"path": str(path), "cache": str(path.parent / "cache")}})
    return open_store(build_store(config.data, config.task, config.model))


def rows(task, split):
    texts = [f"{task} word{i}" for i in range(4)]
    return [f"{text},yes,{task},{split}" for text in texts] + [f"not {text},no,{task},{split}" for text in texts]


@pytest.mark.parametrize("part", [1, summary.PART])
def test_tasks_and_rows_of_each_split_and_texts_in_two(part, tmp_path, monkeypatch):
    monkeypatch.setattr(summary, "PART", part)
    clean = [*rows("a", "train"), *rows("b", "validation"), *rows("c", "test")]
    found = summary.summary(store_of(tmp_path / "clean.csv", clean))
    assert found["repeated"] == {} and summary.signs(found) == []
    assert found["splits"]["train"] == {"rows": 8, "tasks": {"a": 8}, "classes": {"no": 4, "yes": 4}}
    assert found["splits"]["test"]["tasks"] == {"c": 8}
    assert summary.headline(found) == "tasks: train 1 (8 rows), validation 1 (8 rows), test 1 (8 rows)"
    shared = [*clean, "A WORD1 ,yes,c,test", "a word2,no,c,test", "b word1,no,c,test"]
    found = summary.summary(store_of(tmp_path / "shared.csv", shared))
    assert found["repeated"] == {"test in train": 2, "test in validation": 1}
    said = "texts stand in two splits: 2 rows of test in train, 1 row of test in validation"
    assert summary.sentence(found["repeated"]) == said and summary.signs(found)[0]["what"] == said


def test_texts_that_are_cut_to_fit_and_unknown_words_are_counted(tmp_path):
    lines = [*rows("a", "train"), *rows("b", "validation"), *rows("c", "test")]
    lines += [f"{'a word1 ' * 40},yes,a,train", f"{' '.join(f'new{i}' for i in range(80))},yes,c,test"]
    store = store_of(tmp_path / "long.csv", lines)
    found = summary.summary(store)
    lost = found["encoding"]
    assert (lost["rows"], lost["cut"]) == (len(lines), 2)
    cut, unknown = (sign["what"] for sign in summary.signs(found))
    assert cut == f"texts are cut to fit: 2 of {len(lines)} rows are longer than {store.max_tokens} tokens"
    assert unknown.startswith(f"unknown words: {lost['unknown']} of {lost['tokens']} tokens")


def test_prompts_and_answers_that_are_cut_are_counted_apart(tmp_path):
    rows = [{"task": f"t{i}", "input": "a word", "target": "one two"} for i in range(6) for _ in range(3)]
    rows += [{"task": "t0", "input": "a word " * 40, "target": "one"}]
    rows += [{"task": "t1", "input": "a word", "target": ["one two one two one", "one"]}] * 2
    path = tmp_path / "texts.jsonl"
    path.write_text("\n".join(map(json.dumps, rows)))
    model = {"max_tokens": 24, "answer_tokens": 4, "tokenizer": "word"}
    config = make_config({"data": {"path": str(path), "cache": str(tmp_path)}, "model": model,
                          "task": {"family": "text_to_text"}})  # fmt: skip
    found = summary.summary(open_store(build_store(config.data, config.task, config.model)))
    lost = found["encoding"]
    assert (lost["rows"], lost["cut"], lost["cut_answers"], lost["answer_tokens"]) == (len(rows), 1, 2, 4)
    prompts, answers = (sign["what"] for sign in summary.signs(found) if "cut to fit" in sign["what"])
    assert prompts == f"texts are cut to fit: 1 of {len(rows)} rows are longer than 24 tokens, less 4 for the answer"
    assert answers.startswith(f"answers are cut to fit: 2 of {len(rows)} rows have one that is longer than 4 tokens")
    old = {key: value for key, value in lost.items() if key not in ("cut_answers", "answer_tokens")}  # of before
    assert len(summary.signs({"encoding": old})) == 1


def test_a_store_of_before_has_no_counts(tmp_path):
    store = store_of(tmp_path / "clean.csv", [*rows("a", "train"), *rows("b", "validation"), *rows("c", "test")])
    file = store.path / "meta.json"
    meta = json.loads(file.read_text())
    file.write_text(json.dumps({key: value for key, value in meta.items() if key != "encoding"}))
    assert summary.signs(summary.summary(open_store(store.path))) == []
