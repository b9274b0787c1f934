"""Several data sources in one run: each split as when alone, mixed by weights, drawn by the episode's index."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tasks_data import make_rows, write_jsonl

from distmeta.config import DataConfig, ModelConfig, TaskConfig, dump_config, load_config, make_config
from distmeta.errors import InputError
from distmeta.tasks import TaskStore, build_store, check_feasible, open_store
from distmeta.tasks.episodes import sample_episode

MODEL = ModelConfig(tokenizer="character", max_tokens=24)
DOMAIN = TaskConfig(shots=2, queries=3)
CLASSES = TaskConfig(family="classes", ways=2, shots=2, queries=3)


def by_class(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [row | {"label": f"{row['task']}.{row['label']}"} for row in rows]


def data(tmp_path: Path, family: str = "domain", **more: Any) -> DataConfig:
    """`few` (with a split column, 8 rows a task and label) and `many` (without, 24, other column names)."""
    few, many = make_rows(), make_rows(tasks=10, each=24, split=False)
    few, many = (rows if family == "domain" else by_class(rows) for rows in (few, many))
    many = [{"review": r["text"], "y": r["label"], "product": r["task"]} for r in many]
    sources = {
        "few": {"path": write_jsonl(tmp_path / "few.jsonl", few)},
        "many": {
            "path": write_jsonl(tmp_path / "many.jsonl", many), "text": "review", "label": "y", "task": "product",
            "fractions": (0.5, 0.2, 0.3),
        },
    }  # fmt: skip
    return DataConfig.model_validate({"sources": sources, "cache": str(tmp_path / "cache"), **more})


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> TaskStore:
    return open_store(build_store(data(tmp_path_factory.mktemp("mixture")), DOMAIN, MODEL))


def names(store: TaskStore, split: str) -> dict[str, list[str]]:
    named = store.tasks if store.family == "domain" else store.labels
    return {s: [named[i].split("/")[1] for i in g.ids] for s, g in store.sources[split].items()}


def test_each_source_is_split_as_when_it_is_alone(tmp_path: Path, store: TaskStore) -> None:
    both = data(tmp_path)
    for source in ("few", "many"):
        alone = open_store(build_store(both.of(source), DOMAIN, MODEL))
        assert not alone.sources["train"]
        for split in ("train", "validation", "test"):
            assert names(store, split)[source] == [alone.tasks[i] for i in alone.groups[split].ids]
    for split in ("train", "validation", "test"):
        assert sum(len(g.ids) for g in store.sources[split].values()) == len(store.groups[split].ids)
    assert store.labels == ["label0", "label1", "label2"] and store.rows == 6 * 3 * 8 + 10 * 3 * 24
    check_feasible(store, DOMAIN)


def test_lists_name_a_source_s_own_tasks(tmp_path: Path) -> None:
    made = data(tmp_path)
    assert made.sources is not None
    lists = {"train": ["task1", "task2"], "test": ["task4"]}
    many = made.sources["many"].model_copy(update={"splits": lists})
    store = open_store(build_store(made.model_copy(update={"sources": made.sources | {"many": many}}), DOMAIN, MODEL))
    assert names(store, "train")["many"] == ["task1", "task2"] and names(store, "test")["many"] == ["task4"]
    assert "many" not in store.sources["validation"] and "few" in store.sources["validation"]


def shares(store: TaskStore, count: int = 1000, split: str = "train", **task: Any) -> dict[str, float]:
    settings = DOMAIN.model_copy(update=task)
    check_feasible(store, settings)
    drawn = Counter(sample_episode(store, settings, 0, split, i).task.split("/")[0] for i in range(count))
    return {name: n / count for name, n in drawn.items()}


def test_the_weights_are_what_they_say(store: TaskStore) -> None:
    """few has 3 meta-train tasks x 24 examples, many 5 x 72."""
    few, many = 3 * 24, 5 * 72
    expected = {
        "uniform": 0.5,
        "proportional": few / (few + many),
        "temperature": few**0.5 / (few**0.5 + many**0.5),
    }
    for mixture, share in expected.items():
        found = shares(store, mixture=mixture, temperature=2.0 if mixture == "temperature" else 1.0)
        assert abs(found["few"] - share) < 4 * np.sqrt(share * (1 - share) / 1000)
    assert abs(shares(store, mixture={"few": 3, "many": 1})["few"] - 0.75) < 0.055
    assert shares(store, mixture={"few": 0, "many": 0.1}) == {"many": 1.0}


def test_the_source_is_a_function_of_the_index_alone(store: TaskStore) -> None:
    backwards = [sample_episode(store, DOMAIN, 0, "train", i).task for i in reversed(range(50))][::-1]
    assert backwards == [sample_episode(open_store(store.path), DOMAIN, 0, "train", i).task for i in range(50)]
    assert backwards != [sample_episode(store, DOMAIN, 1, "train", i).task for i in range(50)]


def test_an_episode_of_classes_is_of_one_source(tmp_path: Path) -> None:
    store = open_store(build_store(data(tmp_path, "classes", split="hash"), CLASSES, MODEL))
    check_feasible(store, CLASSES)
    met = Counter()
    for i in range(300):
        sources = {name.split("/")[0] for name in sample_episode(store, CLASSES, 0, "train", i).label_names}
        assert len(sources) == 1
        met[sources.pop()] += 1
    assert min(met.values()) > 100
    with pytest.raises(InputError, match=r"more than the \d classes of the split 'validation' in the source 'few'"):
        check_feasible(store, CLASSES.model_copy(update={"ways": 5}))


def test_the_key_knows_the_sources(tmp_path: Path, store: TaskStore) -> None:
    (tmp_path / "moved").mkdir()
    assert build_store(data(tmp_path / "moved"), DOMAIN, MODEL).name == store.key
    assert build_store(data(tmp_path / "moved", label="task"), DOMAIN, MODEL).name != store.key


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        ({"data": {"path": "a", "sources": {"b": {"path": "b"}}}}, "data.path and data.sources"),
        ({"data": {"splits": {"train": ["a"]}, "sources": {"b": {"path": "b"}}}}, "data.splits and data.sources"),
        ({"data": {"sources": {"a/b": {"path": "b"}}}}, "the name 'a/b' may hold letters"),
        ({"data": {"sources": {}}}, "data.sources is empty"),
        ({"data": {"sources": {"a": {"path": "b", "fractions": [1, 1, 1]}}}}, "three shares"),
        ({"data": {"sources": {"a": {"pat": "b"}}}}, "path"),
        ({"data": {"sources": {"a": {"path": "b", "labels": "c"}}}}, "unknown key 'data.sources.a.labels'.*'label'"),
        ({"task": {"mixture": "proportional"}}, "task.mixture needs several data.sources"),
        ({"task": {"mixture": "equal"}, "data": {"sources": {"a": {"path": "b"}}}}, "task.mixture"),
        ({"task": {"temperature": 2}, "data": {"sources": {"a": {"path": "b"}}}}, "belongs to task.mixture=temperat"),
    ],
)
def test_what_cannot_be_is_refused_in_one_line(content: dict[str, Any], reason: str) -> None:
    with pytest.raises(InputError, match=reason) as caught:
        make_config(content)
    assert "\n" not in str(caught.value)


def test_weights_that_fit_no_source_are_refused(store: TaskStore) -> None:
    for mixture, reason in (
        ({"few": 1, "mny": 1}, "no source 'mny'; data.sources has few, many. Did you mean 'many'"),
        ({"few": 1}, "the source 'many' has no weight"),
        ({"few": 0, "many": 0}, "no source with tasks in the split 'train' has a weight"),
    ):
        with pytest.raises(InputError, match=reason):
            check_feasible(store, DOMAIN.model_copy(update={"mixture": mixture}))


def test_sources_are_read_from_files_and_overrides(tmp_path: Path) -> None:
    made = data(tmp_path)
    config = make_config({"data": made.model_dump(mode="json"), "task": {"mixture": {"few": 1, "many": 2}}})
    (tmp_path / "run.yaml").write_text(dump_config(config))
    again = load_config(tmp_path / "run.yaml", ["data.sources.few.path=elsewhere", "task.mixture=proportional"])
    assert again.data.sources is not None and again.data.sources["few"].path == "elsewhere"
    assert load_config(tmp_path / "run.yaml") == config
    assert json.loads(json.dumps(config.model_dump(mode="json")))["task"]["mixture"] == {"few": 1.0, "many": 2.0}
