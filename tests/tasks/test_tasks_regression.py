"""Functions as rows of tokens: numbers and their bits, tables, episodes, the built-in sinusoids."""

import json

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from distmeta.config import make_config
from distmeta.errors import InputError
from distmeta.tasks import regression
from distmeta.tasks.build import build_store
from distmeta.tasks.episodes.collate import collate
from distmeta.tasks.episodes.episode import sample_episode
from distmeta.tasks.shown import shown
from distmeta.tasks.store import open_store
from distmeta.tasks.texts import read_inputs

SIZES = (2, 1)


def config(**sections):
    task = {"family": "regression", "shots": 2, "queries": 3}
    return make_config({"model": {"dimensions": list(SIZES)}, "task": task, **sections})


def rows():
    """Six tasks, x -> k x0 + x1, of eight points."""
    rng = np.random.default_rng(0)
    for k in range(6):
        for x in rng.normal(size=(8, 2)).tolist():
            yield {"input": x, "target": k * x[0] + x[1], "task": f"f{k}"}


def read(path, cache, **data):
    c = config(data={"path": str(path), "cache": str(cache), "fractions": [0.34, 0.33, 0.33], **data})
    return open_store(build_store(c.data, c.task, c.model)), c


def test_a_number_s_token_is_its_bits_through_store_episode_and_batch(tmp_path):
    numbers = np.array([[0.0, -0.0, 1.5], [-3e-39, 3.4e38, -2.25]], np.float32)
    assert (regression.tokens(numbers.tolist()).view(np.float32) == numbers.ravel()).all()
    (tmp_path / "rows.jsonl").write_text("\n".join(map(json.dumps, rows())))
    store, c = read(tmp_path / "rows.jsonl", tmp_path / "cache")
    assert len(store.tasks) == 6 and store.labels == ["target"]
    episode = sample_episode(store, c.task, 0, "train", 0)
    (part,) = collate([episode.query], 1, store.pad_id)
    values = part["input_ids"][0].astype(np.int32).view(np.float32)
    slope = int(episode.task[1:])
    assert values.shape == (3, 3) and len(set(episode.support.rows) | set(episode.query.rows)) == 5
    np.testing.assert_allclose(values[:, 2], slope * values[:, 0] + values[:, 1], rtol=1e-5)
    for row, tokens in zip(part["store_rows"][0], values, strict=True):
        assert np.float32(regression.parse(store.text(int(row)))).tolist() == tokens.tolist()
    assert shown(store, c).count("input") == 2  # as a person reads them


def test_parquet_and_csv_hold_the_same_functions(tmp_path):
    each = list(rows())
    columns = {name: [row[name] for row in each] for name in ("input", "target", "task")}
    pq.write_table(pa.table({**columns, "target": [[y] for y in columns["target"]]}), tmp_path / "rows.parquet")
    lines = [f'"{row["input"]}",{row["target"]},{row["task"]}' for row in each]
    (tmp_path / "rows.csv").write_text("\n".join(["x,y,task", *lines]))
    one, _ = read(tmp_path / "rows.parquet", tmp_path / "cache")
    other, _ = read(tmp_path / "rows.csv", tmp_path / "cache", input="x", target="y")
    assert one.key != other.key
    assert (one.tokens == other.tokens).all() and one.tasks == other.tasks


@pytest.mark.parametrize(("change", "why"), [
    ({"input": [1, 2, 3]}, r"line 2: 'input' \(data.input\) has 3 numbers, and model.dimensions says 2"),
    ({"target": float("nan")}, r"line 2: 'target' \(data.target\) is nan; numbers must be finite"),
    ({"target": 1e39}, "numbers must be finite as float32"),
    ({"input": ["a", 1]}, "must hold a number or a list of numbers"),
    ({"input": None}, "must hold a number or a list of numbers"),
    ({"target": {}}, "must hold a number or a list of numbers"),
])  # fmt: skip
def test_what_is_no_vector_is_refused_with_its_line(tmp_path, change, why):
    each = list(rows())
    each[1] |= change
    (tmp_path / "rows.jsonl").write_text("\n".join(map(json.dumps, each)))
    with pytest.raises(InputError, match=why):
        read(tmp_path / "rows.jsonl", tmp_path / "cache")


def test_sinusoids_are_what_the_paper_says(monkeypatch):
    monkeypatch.setattr(regression, "TASKS", {"train": (2, 60), "validation": (1, 60), "test": (3, 60)})
    table = regression.make_sinusoids(3)
    assert table.equals(regression.make_sinusoids(3)) and not table.equals(regression.make_sinusoids(4))
    assert table["split"].value_counts().to_pylist() == [
        {"values": "train", "counts": 120}, {"values": "validation", "counts": 60}, {"values": "test", "counts": 180},
    ]  # fmt: skip
    for first in range(0, 360, 60):
        of_task = table.slice(first, 50).to_pydict()
        assert len(set(of_task["task"])) == 1
        x, y = np.array([regression.parse(text) for text in of_task["text"]]).T
        basis = np.stack([np.sin(x), np.cos(x)], 1)
        weights, residual, *_ = np.linalg.lstsq(basis, y, rcond=None)
        assert residual[0] < 1e-12 and 0.1 <= np.hypot(*weights) <= 5 and np.abs(x).max() <= 5


def test_inputs_to_predict_are_numbers_of_lines_and_tables(tmp_path):
    (tmp_path / "a.jsonl").write_text('{"input": [1, 2]}\n{"input": [3.5, 4]}\n')
    (tmp_path / "b.txt").write_text("[1, 2]\n\n[3.5, 4]\n")
    pq.write_table(pa.table({"input": [[1.0, 2.0], [3.5, 4.0]]}), tmp_path / "c.parquet")
    for name, blank in (("a.jsonl", 0), ("b.txt", 1), ("c.parquet", 0)):
        found = list(read_inputs(str(tmp_path / name), "input", numbers=True))
        assert found.count(None) == blank
        assert [regression.vector(text, 2, "x") for text in found if text] == [[1, 2], [3.5, 4]]


def test_a_search_is_over_rates_at_which_squared_errors_do_not_diverge():
    space = make_config({"task": {"family": "regression"}}).tune.space
    assert space["inner.lr"] == {"log_uniform": [0.001, 0.1]} and "inner.steps" in space
    own = {"inner.lr": {"choice": [0.3]}}
    assert make_config({"task": {"family": "regression"}, "tune": {"space": own}}).tune.space == own


@pytest.mark.parametrize(("sections", "why"), [
    ({"algorithm": "prototypes"}, "model.head = prototype: there are no classes"),
    ({"algorithm": "online", "task": {"family": "regression"}}, "online"),
    ({"model": {"architecture": "bert"}}, "model.architecture = bert: set mlp"),
    ({"model": {"image": [1, 8, 8]}}, "model.image"),
    ({"task": {"family": "regression", "ways": 3}}, "no number of ways"),
    ({"task": {"family": "domain"}, "model": {"dimensions": [1, 1]}}, "belongs to task.family=regression"),
    ({"task": {"family": "regression", "augment": {"mix": 0.5}}}, "task.augment"),
    ({"eval": {"best": "accuracy:max"}}, "not measured by accuracy; set one of loss"),
    ({"data": {"subgroup": "x"}}, "data.subgroup does not work with task.family = regression"),
])  # fmt: skip
def test_what_does_not_go_with_functions_is_refused(sections, why):
    with pytest.raises(InputError, match=why):
        make_config({"task": {"family": "regression"}, **sections})
