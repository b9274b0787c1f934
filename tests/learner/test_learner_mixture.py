"""A run on two data sources: trained, cut off and continued, evaluated, and continued only as the same run."""

import json

import pytest
import small
import torch

from distmeta.config import TaskConfig
from distmeta.errors import InputError
from distmeta.evaluation.evaluate import evaluate
from distmeta.learner.worker import learn
from distmeta.runs import checkpoint
from distmeta.runs.directory import check_resumable
from distmeta.tasks.build import build_store
from distmeta.tasks.mixture import curriculum

pytestmark = pytest.mark.usefixtures("one_rank")


class Stopped(Exception):
    pass


def configured(folder, **sections):
    paths = [small.write_domains(folder / f"{name}.csv", tasks) for name, tasks in (("a", 5), ("b", 10))]
    both = {
        "data": {"sources": {path.stem: {"path": str(path)} for path in paths}},
        "task": {"mixture": {"a": 0.3, "b": 0.7}},
        "outer": {"steps": 6},
        "run": {"checkpoint_every": 1},
    }
    return small.config(None, **small.merge(both, sections))


def train(run, config, at=None):
    def report(shown):
        if shown["step"] == at:
            raise Stopped

    run.mkdir(exist_ok=True)
    learn(config, run, build_store(config.data, config.task, config.model), [], 0, 1, torch.device("cpu"), report)
    return run


def test_a_run_on_two_sources(tmp_path, words_csv):
    config = configured(tmp_path)
    whole = train(tmp_path / "whole", config)
    with pytest.raises(Stopped):
        train(tmp_path / "cut", config, at=3)
    train(tmp_path / "cut", config)
    last = "checkpoints/step-000006/meta.safetensors"
    assert (whole / last).read_bytes() == (tmp_path / "cut" / last).read_bytes()
    assert small.records(whole) == small.records(tmp_path / "cut")

    found = evaluate(whole, episodes=20, baselines=False)
    assert {name.split("/")[0] for name in found.details["meta_trained"]["per_task"]} == {"a", "b"}
    other = evaluate(whole, str(words_csv), episodes=4, baselines=False)
    assert all("/" not in name for name in other.details["meta_trained"]["per_task"])

    from distmeta.config import dump_config

    store = build_store(config.data, config.task, config.model)
    (whole / "config.yaml").write_text(dump_config(config))
    (whole / "environment.json").write_text(json.dumps({"store": str(store)}))
    (tmp_path / "moved").mkdir()
    moved = configured(tmp_path / "moved")
    check_resumable(whole, moved, build_store(moved.data, moved.task, moved.model))
    with pytest.raises(InputError, match=r"--resume: task\.mixture\.a is 0\.5 but"):
        check_resumable(whole, configured(tmp_path, task={"mixture": {"a": 0.5, "b": 0.5}}), store)
    label = configured(tmp_path, data={"sources": {"a": {"label": "text"}}})
    with pytest.raises(InputError, match=r"--resume: data\.sources\.a\.label is 'text' but"):
        check_resumable(whole, label, store)


def test_a_curriculum_goes_by_what_is_known_and_a_run_that_goes_on_by_the_same(tmp_path):
    """Sources with a higher meta-validation loss come more often, from `lag` steps on; cut off, it goes on alike."""
    section = {
        "task": {"mixture": "curriculum", "lag": 4, "temperature": 0.05}, "sampling": {"window": 4},
        "eval": {"every": 2}, "outer": {"steps": 12}, "cluster": {"workers": 1},
    }  # fmt: skip
    config = configured(tmp_path, **section)
    whole = train(tmp_path / "whole", config)
    with pytest.raises(Stopped):
        train(tmp_path / "cut", config, at=7)
    train(tmp_path / "cut", config)
    assert small.records(whole) == small.records(tmp_path / "cut")
    saved = checkpoint.load(whole, which="last").state["validations"]
    assert [v["step"] for v in saved] == [2, 4, 6, 8, 10, 12] and all(set(v["sources"]) == {"a", "b"} for v in saved)
    plain = train(
        tmp_path / "plain",
        configured(tmp_path, **small.merge(section, {"task": {"mixture": "uniform", "temperature": 1.0}})),
    )
    assert small.records(plain)[:5] == small.records(whole)[:5] and small.records(plain) != small.records(whole)


def test_the_weights_of_a_curriculum():
    task = TaskConfig(mixture="curriculum", lag=3, temperature=0.5)
    told = [{"step": 2, "sources": {"a": 1.0, "b": 2.0}}, {"step": 4, "sources": {"a": 3.0, "b": 1.0}}]
    assert curriculum(task, ["a", "b"], told, 4) is None
    assert curriculum(task, ["a", "b"], told, 6) == {"a": 1.0, "b": 4.0}
    assert curriculum(task, ["a", "b", "c"], told, 7) == {"a": 9.0, "b": 1.0, "c": 4.0}


@pytest.mark.parametrize(("batch", "ranks", "ahead"), [(4, 1, 10), (8, 3, 18), (5, 3, 34)])
def test_the_lag_of_a_curriculum_covers_the_rank_that_looks_furthest_ahead(batch, ranks, ahead):
    """Which has the least share of a meta-batch: 32 episodes are many of its meta-steps."""
    sections = {"data": {"sources": {"a": {"path": "a.csv"}}}, "cluster": {"workers": ranks}, "eval": {"every": 2},
                "sampling": {"window": 32}, "outer": {"meta_batch_size": batch}}  # fmt: skip
    small.config(None, **sections, task={"mixture": "curriculum", "lag": ahead})
    with pytest.raises(InputError, match=f"task.lag = {ahead - 1}: episodes are asked for up to {ahead} meta-steps"):
        small.config(None, **sections, task={"mixture": "curriculum", "lag": ahead - 1})


FAMILIES = {
    "document": ({"model": {"max_tokens": 16}, "task": {"chunks": 2, "chunk_tokens": 4, "context_tokens": 4},
                  "inner": {"steps": 1}}, ["{0} {1} thing is here", "anyone"]),
    "text_to_text": ({"model": {"answer_tokens": 4}, "task": {"shots": 2, "queries": 2}}, ["{0} {1} thing", "{0}"]),
}  # fmt: skip


@pytest.mark.parametrize("family", FAMILIES)
def test_tasks_without_classes_are_mixed_and_a_curriculum_goes_by_their_sources(family, tmp_path):
    """Each source with columns of its own; author: what documents of both sources share says nothing of theirs."""
    sections, (first, second) = FAMILIES[family]
    words, sources = small.PLENTY, {}
    for name, (one, other) in {"a": ("text", "author"), "b": ("body", "who")}.items():
        lines = [{one: first.format(words[t], words[i]), other: second.format(words[t]), "task": f"task{t}"}
                 for t in range(9) for i in range(6)]  # fmt: skip
        (tmp_path / f"{name}.jsonl").write_text("\n".join(map(json.dumps, lines)))
        columns = ("text", "author") if family == "document" else ("input", "target")
        sources[name] = {"path": str(tmp_path / f"{name}.jsonl"), **dict(zip(columns, (one, other), strict=True))}
    config = small.config(None, "gpt2", **small.merge({
        "algorithm": "fomaml", "data": {"sources": sources, "split": "hash"},
        "task": {"family": family, "mixture": "curriculum", "lag": 20},
        "outer": {"steps": 3}, "eval": {"every": 1, "episodes": 4, "baselines": False},
    }, sections))  # fmt: skip
    run = train(tmp_path / "run", config)
    saved = checkpoint.load(run, which="last").state["validations"]
    assert [set(validation["sources"]) for validation in saved] == 3 * [{"a", "b"}]
