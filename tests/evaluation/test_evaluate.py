"""Checkpoints evaluated: on their own data and on other, at other ways, shots and steps."""

import dataclasses
import json

import pytest
import small
import torch
from evaluated import assert_near
from typer.testing import CliRunner

from distmeta.cli import app
from distmeta.drive.train import prepare_store
from distmeta.errors import InputError
from distmeta.evaluation.evaluate import evaluate, load_model
from distmeta.evaluation.scoring import (
    Scoring,
    score_episodes,
    summarise,
)
from distmeta.inner import InnerLoop
from distmeta.learner.worker import learn
from distmeta.models.build import build_model
from distmeta.runs import checkpoint
from distmeta.tasks import summary
from distmeta.tasks.build import build_store
from distmeta.tasks.episodes.episode import sample_episode
from distmeta.tasks.store import open_store

CPU = torch.device("cpu")


def test_a_checkpoint_evaluates_as_its_run_did(undisturbed):
    """Again in one process what two ranks found; also for data that was split by hash, and on other data."""
    written = json.loads((undisturbed.run / "evaluation.json").read_text())
    found = evaluate(undisturbed.run, baselines=False)
    for name, score in written["meta_trained"].items():
        assert_near(found.methods["meta_trained"][name], score, 1e-4)
    fewer = evaluate(str(undisturbed.run / "checkpoints" / "step-000015"), episodes=4, baselines=False)
    assert fewer.methods["meta_trained"]["accuracy"]["episodes"] == 4
    assert fewer.methods["meta_trained"]["loss"]["mean"] != pytest.approx(
        found.methods["meta_trained"]["loss"]["mean"], abs=1e-9
    )


def test_evaluating_on_other_data(undisturbed, tmp_path):
    other = small.write_domains(tmp_path / "other.csv", tasks=3)
    found = evaluate(undisturbed.run, str(other), episodes=4)
    assert found.details["settings"]["split"] == "test"
    assert set(found.details["meta_trained"]["per_task"]) <= {"task0", "task1", "task2"}
    strange = tmp_path / "strange.csv"
    strange.write_text(other.read_text().replace(",yes,", ",maybe,"))
    with pytest.raises(InputError, match="maybe"):
        evaluate(undisturbed.run, str(strange), episodes=4)


def write_classes(path, classes=12, rows=8):
    lines = ["text,label"]
    lines += [f"{['a', 'the', 'so'][i % 3]} w{c} thing{i},c{c}" for c in range(classes) for i in range(rows)]
    path.write_text("\n".join(lines) + "\n")
    return path


def test_what_cannot_be_evaluated_is_refused_by_name(tmp_path, words_csv):
    source = small.checkpoint_of(tmp_path / "step-000001", words_csv)
    for asked, reason in (
        ({"episodes": 0}, "^episodes = 0: .*greater than or equal to 2"), ({"episodes": 1}, "^episodes = 1: "),
        ({"episodes": "many"}, "^episodes = 'many'"), ({"steps": -1}, "^steps = -1: "), ({"shots": 0}, "^shots = 0: "),
        ({"ways": 3}, "^ways = 3: "), ({"shots": 100}, "shots"), ({"split": "tset"}, "tset: .* one of .*mean 'test'"),
    ):  # fmt: skip
        with pytest.raises(InputError, match=reason) as caught:
            evaluate(source, **{"episodes": 4, **asked})
        assert "\n" not in str(caught.value)


def test_the_command_line_evaluates_at_other_steps(tmp_path, words_csv):
    source = small.checkpoint_of(tmp_path / "step-000001", words_csv)
    for steps in (0, 3):
        words = ["evaluate", str(source), "--episodes", "4", "--steps", str(steps), "--json"]
        shown = CliRunner().invoke(app, words)
        assert len(json.loads(shown.stdout)["meta_trained"]["accuracy"]["curve"]) == steps + 1


@pytest.mark.parametrize("split", ["train", "validation", "test"])
def test_all_tasks_of_other_data_count_as_the_split_that_is_asked_for(split, tmp_path, words_csv):
    source = small.checkpoint_of(tmp_path / "step-000001", words_csv)
    about = evaluate(source, str(words_csv), 4, split=split, baselines=False).details["settings"]
    assert about["split"] == split and about["tasks"] == 10


def test_a_run_that_followed_a_directory_is_evaluated_on_all_of_another(tmp_path, words_csv):
    source = small.checkpoint_of(tmp_path / "step-000001", words_csv)
    saved = checkpoint.load(source)
    follows = saved.config.model_copy(update={"data": saved.config.data.model_copy(update={"follow": 1.0})})
    parts = tmp_path / "parts"
    parts.mkdir()
    head, *rest = words_csv.read_text().splitlines()
    for number in range(2):
        (parts / f"{number}.csv").write_text("\n".join([head, *rest[number::2]]) + "\n")
    of_run = dataclasses.replace(saved, config=follows)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(checkpoint, "load", lambda *a, **k: of_run)
        about = evaluate(source, str(parts), 4, baselines=False).details["settings"]
    assert about["rows"] == len(rest)


def test_a_prototype_head_is_evaluated_at_other_ways_and_shots(tmp_path):
    """As scoring such episodes by hand; of the test classes that the run had, which its ways divided."""
    task = {"family": "classes", "ways": 4, "shots": 2, "queries": 4}
    data = write_classes(tmp_path / "classes.csv")
    path = small.checkpoint_of(tmp_path / "made", data, task=task, model={"head": "prototype"}, run={"keep": 1})
    found = evaluate(path, ways=2, shots=3, episodes=5, baselines=False)
    saved = checkpoint.load(path)
    store = open_store(build_store(saved.config.data, saved.config.task, saved.config.model))
    asked = saved.config.task.model_copy(update={"ways": 2, "shots": 3})
    episodes = [sample_episode(store, asked, 0, "test", i) for i in range(5)]
    assert all(len(e.label_names) == 2 and len(e.support.labels) == 6 for e in episodes)
    model = build_model(saved.config, store.vocab_size, store.pad_id, 2)
    fast, shared = ({n: saved.meta[n] for n in part} for part in (model.fast, model.shared))
    loop = InnerLoop(steps=saved.config.inner.steps, lr=saved.config.inner.lr)
    by_hand = score_episodes(Scoring(model, fast, shared, loop, saved.config, store.pad_id, CPU), episodes)
    for name, score in summarise(by_hand).items():
        assert_near(found.methods["meta_trained"][name], score, 1e-6)
    assert set(found.details["meta_trained"]["per_class"]) == {name for e in episodes for name in e.label_names}
    with pytest.raises(InputError, match="task.ways=20 is more than the"):
        evaluate(path, ways=20)


def test_other_ways_are_refused_where_the_head_has_its_own(undisturbed, tmp_path):
    with pytest.raises(InputError, match="ways = 3: task.family = domain has no number of ways"):
        evaluate(undisturbed.run, ways=3)
    task = {"family": "classes", "ways": 2, "shots": 2, "queries": 4}
    path = small.checkpoint_of(tmp_path / "made", write_classes(tmp_path / "classes.csv"), task=task)
    with pytest.raises(InputError, match="ways = 3: the head of this model has 2 outputs"):
        evaluate(path, ways=3)
    assert evaluate(path, ways=2, episodes=2, baselines=False).methods["meta_trained"]["accuracy"]["episodes"] == 2


def test_the_model_of_a_checkpoint_is_rebuilt(undisturbed):
    from distmeta.runs import checkpoint

    saved = checkpoint.load(undisturbed.run)
    first, again = load_model(saved), load_model(saved)
    assert set(saved.meta) == {*first.fast, *first.shared}
    assert all(torch.equal(v, again.fast[n]) for n, v in first.fast.items())
    assert any(not torch.equal(v, saved.meta[n]) for n, v in first.fast.items())


def test_meta_validation_and_evaluation_draw_episodes_of_their_own(tmp_path, words_csv, one_rank):
    """Four ways in training, of classes that meta-validation and meta-test have fewer of."""
    sections = {
        "task": {"family": "classes", "ways": 4}, "data": {"label": "task", "fractions": [0.6, 0.2, 0.2]},
        "model": {"head": "prototype"}, "outer": {"steps": 2}, "run": {"checkpoint_every": 2},
    }  # fmt: skip
    with pytest.raises(InputError, match=r"lower task.ways, or eval.ways for this split alone"):
        prepare_store(small.config(words_csv, **sections))
    asked = {"eval": {"every": 2, "ways": 2, "shots": 4, "queries": 3, "episodes": 6}}
    config = small.config(words_csv, **small.merge(sections, asked))
    learn(config, tmp_path, prepare_store(config), [], 0, 1, torch.device("cpu"))
    assert "validation" in small.records(tmp_path)[-1]
    details = json.loads((tmp_path / "evaluation_details.json").read_text())
    assert set(details["meta_trained"]["per_domain"]) == {"2-way"}
    assert sum(scores["rows"] for scores in details["meta_trained"]["per_class"].values()) == 6 * 2 * 3
    again = evaluate(tmp_path, episodes=6).methods["meta_trained"]
    assert again == json.loads((tmp_path / "evaluation.json").read_text())["meta_trained"]
    with pytest.raises(InputError, match=r"eval.ways = 3: the head of this model has 4 outputs"):
        small.config(words_csv, **small.merge(sections, {"eval": {"ways": 3}, "model": {"head": "linear"}}))


def test_tasks_that_a_run_was_trained_on_are_never_its_test_tasks(tmp_path, words_csv):
    saved = small.checkpoint_of(tmp_path / "checkpoints" / "step-000001", words_csv)
    splits = summary.summary(open_store(prepare_store(checkpoint.load(saved).config)))
    (tmp_path / "tasks.json").write_text(json.dumps(splits))
    assert evaluate(saved, episodes=2, baselines=False).methods
    splits["splits"]["train"], splits["splits"]["test"] = splits["splits"]["test"], splits["splits"]["train"]
    (tmp_path / "tasks.json").write_text(json.dumps(splits))  # of another division of the same tasks
    with pytest.raises(InputError, match="is in the split test now, and the run was trained on it"):
        evaluate(saved, episodes=2, baselines=False)


def test_a_checkpoint_whose_data_is_gone_says_how_to_give_it(tmp_path):
    data = small.write_domains(tmp_path / "words.csv")
    saved = small.checkpoint_of(tmp_path / "step-000001", data)
    data.rename(tmp_path / "elsewhere.csv")
    with pytest.raises(InputError, match=r"words.csv: no such file or directory .* --data"):
        evaluate(saved, episodes=2)
    result = evaluate(saved, str(tmp_path / "elsewhere.csv"), episodes=2, baselines=False)
    score = result.methods["meta_trained"]["accuracy"]
    shown = f"accuracy meta_trained {score['mean']:.3f} [{score['low']:.3f}, {score['high']:.3f}]"
    assert repr(result) == f"Evaluation(test tasks, 2 episodes; {shown})"
    assert "<td>meta_trained</td>" in result._repr_html_()
