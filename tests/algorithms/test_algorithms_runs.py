"""Every algorithm through the learner's loop, its evaluation and its checkpoint; one of a user's own as well."""

import json
import re
import sys
from pathlib import Path

import pytest
import small
import torch

from distmeta.config import load_config
from distmeta.config.algorithms import ALGORITHMS
from distmeta.config.trees import merge, nested
from distmeta.errors import InputError
from distmeta.evaluation.evaluate import evaluate
from distmeta.learner.worker import learn
from distmeta.runs import checkpoint
from distmeta.tasks.build import build_store

pytestmark = pytest.mark.usefixtures("one_rank")


@pytest.fixture(scope="module")
def classes_csv(tmp_path_factory):
    path = tmp_path_factory.mktemp("data") / "classes.csv"
    rows = [f"please {small.PLENTY[(c + i) % 14]} thing{c} now,class{c}" for c in range(9) for i in range(8)]
    path.write_text("\n".join(["text,label", *rows]) + "\n")
    return path


def train(run, path, algorithm, **sections):
    short = {"outer": {"steps": 3}, "run": {"checkpoint_every": 3}, "eval": {"episodes": 4}}
    own = nested(ALGORITHMS[algorithm].settings) if algorithm in ALGORITHMS else {}
    if algorithm == "in_context":
        long = {"config": {**small.BACKBONES["gpt2"], "n_positions": 256}}
        sections = merge(sections, {"architecture": "gpt2", "model": long})
    config = small.config(path, algorithm=algorithm, **merge(merge(short, sections), own))
    run.mkdir()
    learn(config, run, build_store(config.data, config.task, config.model), [], 0, 1, torch.device("cpu"))
    return config


CLASSES = {"task": {"family": "classes", "ways": 3}, "data": {"fractions": [0.34, 0.33, 0.33]}}


# To the others it is all one of which family the tasks are.
BY_CLASS = ["maml", "proto_maml", "prototypes", "in_context", "multi_task"]


@pytest.mark.parametrize(
    ("name", "family"), [*((name, "domain") for name in ALGORITHMS), *((name, "classes") for name in BY_CLASS)]
)
def test_every_algorithm_trains_evaluates_and_is_read_again(name, family, words_csv, classes_csv, tmp_path):
    sections, data = ({}, words_csv) if family == "domain" else (CLASSES, classes_csv)
    baselines = name in ("maml", "prototypes")  # which do not depend on the algorithm
    config = train(tmp_path / "run", data, name, **sections, eval={"baselines": baselines})
    records = small.records(tmp_path / "run")
    assert [r["step"] for r in records] == [1, 2, 3]
    loops = 0 if name in ("prototypes", "multi_task", "in_context") else config.inner.steps
    assert all(len(r["inner_loss"]) == loops + 1 and 0 <= r["query_accuracy"] <= 1 for r in records)
    found = json.loads((tmp_path / "run" / "evaluation.json").read_text())
    first = {"no_adaptation"} if config.inner.steps else set()  # else it would be the meta-trained model again
    others = {"fine_tuned", "multi_task", "prototypes"} | first
    assert set(found) == {"meta_trained"} | (others if baselines else set())
    again = evaluate(tmp_path / "run", baselines=False).methods["meta_trained"]
    assert again == found["meta_trained"]
    moved = {"fine_tune": 0.0}.get(name)
    first, last = (r["grad_norm"] for r in (records[0], records[-1]))
    assert (first == last == 0) if moved == 0.0 else first > 0


def test_multi_task_is_the_baseline_of_that_name(words_csv, tmp_path):
    """Trained as a run, or on the way as a baseline: the same weights, where the outer loop is the baseline's."""
    from distmeta.evaluation.pooled import train_pooled
    from distmeta.models.build import build_model
    from distmeta.tasks.store import open_store

    config = train(tmp_path / "run", words_csv, "multi_task", deepspeed={"gradient_clipping": 0.0}, outer={"eps": 1e-2})
    store = open_store(build_store(config.data, config.task, config.model))
    model = build_model(config, store.vocab_size, store.pad_id, len(store.labels))
    fast, shared = train_pooled(model, store, config, torch.device("cpu"))
    saved = checkpoint.load(tmp_path / "run").meta
    for name, value in {**fast, **shared}.items():
        torch.testing.assert_close(saved[name], value, rtol=1e-4, atol=1e-6)


def test_an_algorithm_of_ones_own_as_the_readme_has_it(words_csv, tmp_path, monkeypatch):
    """The file of docs/algorithms.md, named by its import path, through training, evaluation and `check`."""
    readme = (Path(__file__).parents[2] / "docs" / "algorithms.md").read_text()
    name, code = re.search(r"```python\n# (\w+)\.py.*?\n(.*?)```", readme, re.S).groups()
    assert len(code.splitlines()) < 40
    folder = tmp_path / "mine"
    folder.mkdir()
    (folder / "__init__.py").write_text("")
    (folder / f"{name}.py").write_text(code)
    monkeypatch.syspath_prepend(tmp_path)
    try:
        config = train(tmp_path / "run", words_csv, f"mine.{name}")
        assert [r["step"] for r in small.records(tmp_path / "run")] == [1, 2, 3]
        assert evaluate(tmp_path / "run", baselines=False).methods["meta_trained"]["accuracy"]["episodes"] == 4
        assert config.inner.learn_lr == sys.modules[f"mine.{name}"].SETTINGS["inner.learn_lr"]
    finally:
        sys.modules.pop(f"mine.{name}", None)


def test_reading_a_checkpoint_imports_no_algorithm(words_csv, tmp_path, monkeypatch):
    """Whoever is given a checkpoint runs nothing that its configuration names."""
    train(tmp_path / "run", words_csv, "maml")
    (tmp_path / "trap").mkdir()
    (tmp_path / "trap" / "sprung.py").write_text("raise SystemExit('imported')")
    monkeypatch.syspath_prepend(tmp_path)
    saved = checkpoint.newest_whole(tmp_path / "run", print)
    config = saved / "config.yaml"
    read = checkpoint.read_config
    monkeypatch.setattr(checkpoint, "damage", lambda path: None)  # as if it had been written so
    config.write_text(config.read_text().replace("algorithm: maml", "algorithm: trap.sprung"))
    assert read(config).algorithm == "trap.sprung"
    assert evaluate(saved, baselines=False).methods["meta_trained"]["accuracy"]["episodes"] == 4
    assert "trap.sprung" not in sys.modules


def test_an_algorithm_of_ones_own_is_refused_what_it_does_not_need(words_csv, tmp_path, monkeypatch):
    (tmp_path / "strict").mkdir()
    code = "from distmeta.algorithms.fomaml import ORDER, meta_gradient\nSETTINGS = {'inner.learn_lr': 'scalar'}\n"
    (tmp_path / "strict" / "own.py").write_text(code)
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(InputError, match="inner.learn_lr = none: algorithm = strict.own is defined by"):
        train(tmp_path / "run", words_csv, "strict.own", inner={"learn_lr": "none"})
    assert load_config("default", ["algorithm=strict.own"]).inner.learn_lr == "scalar"
