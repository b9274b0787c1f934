"""Evaluation: curves, baselines, divided over ranks, and loops that diverge."""

import dataclasses
import io
import json
import sys

import numpy as np
import pytest
import small
import torch
from typer.testing import CliRunner

from distmeta.algorithms.rates import initial_log_rates
from distmeta.cli import app
from distmeta.drive.train import prepare_store
from distmeta.errors import InputError
from distmeta.evaluation import metrics
from distmeta.evaluation.evaluate import evaluate, evaluate_methods, load_model
from distmeta.evaluation.pooled import train_pooled
from distmeta.evaluation.scoring import (
    WORST_LOSS,
    Scored,
    Scoring,
    confidences,
    details,
    group_episodes,
    predictions,
    score_episodes,
    summarise,
)
from distmeta.inner import InnerLoop
from distmeta.learner.worker import learn
from distmeta.models.build import build_model
from distmeta.runs import checkpoint
from distmeta.runs.progress import closing
from distmeta.tasks import summary
from distmeta.tasks.build import build_store
from distmeta.tasks.episodes.episode import sample_episode
from distmeta.tasks.store import open_store

CPU = torch.device("cpu")


def assert_near(found, expected, within):
    assert found.keys() == expected.keys()
    for key, value in expected.items():
        assert found[key] == pytest.approx(value, abs=within), key


class Setting:
    def __init__(self, path, **sections):
        self.config = small.config(path, **sections)
        self.store = open_store(build_store(self.config.data, self.config.task, self.config.model))
        self.model = build_model(self.config, self.store.vocab_size, self.store.pad_id, 2)
        self.meta = {
            **self.model.fast, **self.model.shared, **initial_log_rates(self.config.inner, self.model.adapted)
        }  # fmt: skip

    def methods(self, say=lambda line: None, **keywords):
        config = self.config.model_copy(update={"eval": self.config.eval.model_copy(update=keywords.pop("eval", {}))})
        return evaluate_methods(self.model, self.meta, self.store, config, CPU, say=say, **keywords)

    def episodes(self, count):
        return [sample_episode(self.store, self.config.task, 0, "test", i) for i in range(count)]


def test_evaluation_has_the_design_s_shape(words_csv, tmp_path):
    setting = Setting(words_csv, inner={"steps": 3})
    found = setting.methods()
    assert list(found.methods) == ["meta_trained", "no_adaptation", "fine_tuned", "multi_task", "prototypes"]
    for name, scores in found.methods.items():
        assert set(scores) == {"accuracy", "precision", "recall", "f1", "loss", "ece"}
        steps = {"meta_trained": 3}.get(name, 0)  # of the curve
        for score in scores.values():
            assert set(score) == {"mean", "low", "high", "episodes", "curve"}
            assert score["low"] <= score["mean"] <= score["high"] and score["episodes"] == 8
            assert len(score["curve"]) == steps + 1 and score["curve"][-1] == pytest.approx(score["mean"])
    assert found.methods["no_adaptation"]["accuracy"]["mean"] == found.methods["meta_trained"]["accuracy"]["curve"][0]
    assert set(found.details["meta_trained"]["per_class"]) == {"yes", "no"}
    assert np.sum(found.details["meta_trained"]["confusion"]["rows_are_labels"]) == 8 * 2 * 4
    assert found.details["meta_trained"]["diverged"] == 0
    found.save(tmp_path)
    assert json.loads((tmp_path / "evaluation.json").read_text()) == found.methods
    assert list(setting.methods(eval={"baselines": False}).methods) == ["meta_trained"]


@pytest.mark.parametrize("learnt", ["none", "per_step"])
def test_a_curve_s_point_k_is_evaluating_with_k_steps(learnt, words_csv):
    setting = Setting(words_csv, inner={"steps": 3, "learn_lr": learnt})
    whole = setting.methods(eval={"baselines": False}).methods["meta_trained"]
    for k in (0, 1, 2):
        found = setting.methods(eval={"baselines": False, "steps": k}).methods["meta_trained"]
        for name, score in found.items():
            assert score["mean"] == pytest.approx(whole[name]["curve"][k], abs=1e-7)
    longer = setting.methods(eval={"baselines": False, "steps": 5}).methods["meta_trained"]
    assert longer["loss"]["curve"][:4] == pytest.approx(whole["loss"]["curve"], abs=1e-6)


def test_divided_over_ranks_is_one_process(words_csv):
    setting = Setting(words_csv)
    whole = setting.methods(eval={"episodes": 7})
    world = 3
    # Each rank runs once to tell its parts, then once more with everybody's: what a collective would do.
    told = {rank: [] for rank in range(world)}
    for rank in range(world):
        setting.methods(eval={"episodes": 7}, rank=rank, world=world,
                        gather=lambda mine, rank=rank: told[rank].append(mine) or mine)  # fmt: skip
    assert [len(parts[0]) for parts in told.values()] == [2, 2, 3]
    assert len({len(parts) for parts in told.values()}) == 1
    for rank in range(world):
        calls = iter(range(len(told[0])))
        found = setting.methods(
            eval={"episodes": 7}, rank=rank, world=world,
            gather=lambda mine, calls=calls: (lambda i: [s for r in range(world) for s in told[r][i]])(next(calls)),
        )  # fmt: skip
        for method in ("meta_trained", "no_adaptation", "prototypes"):
            for name, score in whole.methods[method].items():
                assert_near(found.methods[method][name], score, 1e-5)


def test_groups_of_tasks_are_tasks_one_by_one(words_csv):
    setting = Setting(words_csv, model={"head": "prototype"})
    episodes = setting.episodes(5)
    loop = InnerLoop(steps=2, lr=0.2)
    found = []
    for size in (1, 3):
        config = setting.config.model_copy(
            update={"inner": setting.config.inner.model_copy(update={"task_batch": size})}
        )
        found.append(
            score_episodes(
                Scoring(setting.model, setting.model.fast, setting.model.shared, loop, config, 0, CPU), episodes
            )
        )
    for one, many in zip(*found, strict=True):
        assert one.task == many.task
        order = np.argsort(one.labels, kind="stable"), np.argsort(many.labels, kind="stable")
        assert (one.labels[order[0]] == many.labels[order[1]]).all()
        np.testing.assert_allclose(one.loss, many.loss, rtol=1e-5)
        assert (one.confidence >= 0.5).all() and one.confidence.shape == one.predicted.shape
        np.testing.assert_allclose(np.sort(one.confidence), np.sort(many.confidence), rtol=1e-4)
        assert ((one.predicted == one.labels).sum(1) == (many.predicted == many.labels).sum(1)).all()


def test_where_nothing_adapts_a_row_s_features_are_computed_once(words_csv, monkeypatch):
    """The start of each episode's curve, which reads every episode anew; of fewer rows."""
    setting = Setting(words_csv, model={"head": "prototype"})
    episodes = setting.episodes(9)
    read = []
    features = type(setting.model).features
    monkeypatch.setattr(
        type(setting.model), "features", lambda *a: read.extend(a[2].store_rows) or features(*a)
    )  # fmt: skip
    model, loop, pad_id = setting.model, InnerLoop(steps=0, lr=0.2), setting.store.pad_id
    scoring = Scoring(model, model.fast, model.shared, loop, setting.config, pad_id, CPU)
    once = score_episodes(scoring, episodes)
    assert len(read) == len(set(read)) < sum(len(e.support.labels) + len(e.query.labels) for e in episodes)
    curves = score_episodes(dataclasses.replace(scoring, loop=InnerLoop(steps=1, lr=0.2)), episodes)
    for one, curve in zip(once, curves, strict=True):
        start = curve.at_start()
        order, other = (np.argsort(s.labels, kind="stable") for s in (one, start))
        assert one.task == start.task and (one.labels[order] == start.labels[other]).all()
        np.testing.assert_allclose(one.loss, start.loss, rtol=1e-5)
        np.testing.assert_allclose(np.sort(one.confidence[0][order]), np.sort(start.confidence[0][other]), rtol=1e-4)
        assert (one.predicted == one.labels).sum() == (start.predicted == start.labels).sum()
    assert score_episodes(scoring, []) == []


def test_an_episode_that_diverges_counts_as_wrong_and_ends_nothing(words_csv):
    """By a rate that sends every loop out of the finite numbers, meta-trained and baselines alike."""
    setting = Setting(words_csv, inner={"lr": 1e20, "steps": 3})
    said = []
    found = setting.methods(said.append)
    ours = found.methods["meta_trained"]
    assert ours["accuracy"]["mean"] == 0 and ours["accuracy"]["curve"][0] > 0
    assert ours["loss"]["mean"] == pytest.approx(WORST_LOSS)
    assert found.details["meta_trained"]["diverged"] == 8
    assert found.methods["prototypes"]["accuracy"]["mean"] > 0
    assert any("diverged in 8 of 8 episodes" in line for line in said)
    json.loads(json.dumps(found.methods, allow_nan=False))


def test_one_task_that_diverges_does_not_touch_its_neighbours(words_csv):
    setting = Setting(words_csv)
    episodes, bad = setting.episodes(3), 4  # [MASK], which no text has
    spoilt = dataclasses.replace(
        episodes[1],
        support=dataclasses.replace(episodes[1].support, tokens=np.full_like(episodes[1].support.tokens, bad)),
    )
    fast = {name: value.detach().clone() for name, value in setting.model.fast.items()}
    fast["backbone.embeddings.word_embeddings.weight"][bad] = float("inf")
    loop = InnerLoop(steps=2, lr=0.2)
    scoring = Scoring(setting.model, fast, setting.model.shared, loop, setting.config, 0, CPU)
    found = score_episodes(scoring, [episodes[0], spoilt, episodes[2]])
    assert not np.isfinite(found[1].loss[-1]) and (found[1].predicted[-1] != found[1].labels).all()
    clean = score_episodes(dataclasses.replace(scoring, fast=setting.model.fast), episodes)
    for i in (0, 2):
        np.testing.assert_allclose(found[i].loss, clean[i].loss, rtol=1e-5)


def test_scores_that_are_no_numbers_are_wrong_predictions():
    nan = float("nan")
    logits = torch.tensor([[[0.0, 1.0, 2.0], [nan, 1.0, 2.0], [0.0, nan, nan], [float("inf"), 0.0, 0.0]]])
    labels = torch.tensor([[2, 2, 0, 0]])
    assert predictions(logits, labels).tolist() == [[2, 0, 1, 1]]
    sure = confidences(logits)
    assert sure[0].tolist() == [pytest.approx(1 / (1 + np.exp(-1) + np.exp(-2))), 1, 1, 1]
    predicted = predictions(logits, labels).numpy()
    scored = Scored("t", ("a", "b", "c"), labels[0].numpy(), predicted, np.array([nan]), sure.numpy())
    assert summarise([scored])["accuracy"]["mean"] == 0.25
    assert details([scored], False)["diverged"] == 1


def test_summary_is_the_mean_of_episodes():
    rng = np.random.default_rng(0)
    scored = [
        Scored("t", ("a", "b"), rng.integers(0, 2, 6), rng.integers(0, 2, (3, 6)), rng.random(3), rng.random((3, 6)))
        for _ in range(9)
    ]
    found = summarise(scored)
    accuracy = np.array([[(p == s.labels).mean() for p in s.predicted] for s in scored])
    assert found["accuracy"] == metrics.interval(accuracy)
    assert found["loss"]["curve"] == pytest.approx(np.mean([s.loss for s in scored], 0).tolist())


@pytest.mark.parametrize("split", ["test", "validation"])
def test_the_rate_of_a_baseline_is_chosen_on_other_tasks_than_it_is_scored_on(split, words_csv, monkeypatch):
    setting, drawn = Setting(words_csv), []
    sample = sample_episode
    module = sys.modules["distmeta.evaluation.evaluate"]
    monkeypatch.setattr(module, "sample_episode", lambda *a: drawn.append(a[3]) or sample(*a))
    found = setting.methods(split=split)
    other = {"test": "validation", "validation": "train"}[split]
    assert found.details["fine_tuned"]["chosen_on"] == found.details["multi_task"]["chosen_on"] == other
    assert drawn == [split] * 8 + [other] * 24


def test_an_interval_over_tasks_is_wider_than_over_episodes_of_the_same_tasks():
    rng = np.random.default_rng(0)
    right = [0.95, 0.6, 0.8]
    scored = []
    for i in range(60):
        labels = rng.integers(0, 2, 20)
        predicted = np.where(rng.random(20) < right[i % 3], labels, 1 - labels)[None]
        scored.append(Scored(f"t{i % 3}", ("a", "b"), labels, predicted, np.array([0.5]), np.ones((1, 20))))
    over, within = details(scored, True)["over_tasks"], summarise(scored)["accuracy"]
    assert over["tasks"] == 3 and over["mean"] == pytest.approx(within["mean"])
    assert over["high"] - over["low"] > 3 * (within["high"] - within["low"])
    assert over["low"] >= 0 and over["high"] <= 1
    assert "over_tasks" not in details(scored[::3], True)
    assert details(scored, False)["over_tasks"]["classes"] == 2


def test_one_task_is_said_to_tell_nothing_about_others():
    settings = {"settings": {"tasks": 1, "rows": 60}, "meta_trained": {"per_task": {"books": {}}}}
    warning = {"what": "the inner loop does nothing", "key": "inner.lr"}
    assert closing({**settings, "warnings": [warning, warning]}) == [
        "60 rows of one task (books): this says nothing about other tasks.",
        "warning: the inner loop does nothing; change inner.lr",
    ]


def test_permuted_labels_are_counted_under_their_names():
    labels, predicted = np.array([0, 1, 1]), np.array([[0, 1, 0]])
    one = Scored("t", ("a", "b"), labels, predicted, np.array([0.1]), np.ones((1, 3)))
    other = Scored("t", ("b", "a"), labels, predicted, np.array([0.1]), np.ones((1, 3)))
    assert details([one, other], True)["confusion"] == {"labels": ["a", "b"], "rows_are_labels": [[2, 1], [1, 2]]}


def random_episodes(names_of, count=40):
    """Episodes of three ways and six rows, with tasks and labels by `names_of` the episode's number."""
    rng = np.random.default_rng(3)
    out = []
    for i in range(count):
        task, names = names_of(i, rng)
        labels, confidence = rng.integers(0, 3, 6), rng.uniform(1 / 3, 1, (2, 6))
        predicted = np.where(rng.random((2, 6)) < 0.6, labels, rng.integers(0, 3, (2, 6)))
        out.append(Scored(task, names, labels, predicted, rng.random(2), confidence))
    return out


def test_tables_of_tasks_and_domains_are_scikit_learn_s_means():
    from sklearn.metrics import accuracy_score, precision_recall_fscore_support

    tasks = ["a/x", "a/y", "b/z"]
    scored = random_episodes(lambda i, rng: (tasks[i % 3], ("p", "q", "r")))
    found = details(scored, True, True)
    for table, part in (("per_task", slice(None)), ("per_domain", 0)):
        for name, scores in found[table].items():
            mine = [s for s in scored if name == (s.task if table == "per_task" else s.task.split("/")[part])]
            each = []
            for s in mine:
                three = precision_recall_fscore_support(s.labels, s.predicted[-1], average="macro", zero_division=0)[:3]
                each.append([accuracy_score(s.labels, s.predicted[-1]), *three])
            for column, metric in enumerate(("accuracy", "precision", "recall", "f1")):
                assert scores[metric] == pytest.approx(metrics.interval(np.array(each)[:, column])), (name, metric)
    assert sorted(found["per_task"]) == tasks and sorted(found["per_domain"]) == ["a", "b"]
    worst = min(found["per_task"].items(), key=lambda item: item[1]["accuracy"]["mean"])
    assert found["worst_task"] == {"task": worst[0], **worst[1]["accuracy"]}
    means = [table["accuracy"]["mean"] for table in found["per_task"].values()]
    assert found["mean_over_tasks"]["mean"] == pytest.approx(np.mean(means)) and found["mean_over_tasks"]["tasks"] == 3
    pooled = (
        np.concatenate([s.confidence[-1] for s in scored]),
        np.concatenate([s.predicted[-1] == s.labels for s in scored]),
    )
    assert found["ece_pooled"] == pytest.approx(float(metrics.calibration_error(*pooled)))
    assert details(scored, True)["per_domain"] == found["per_task"]  # without sources a domain is a task


def test_classes_of_many_episodes_are_scored_as_scikit_learn_does():
    from sklearn.metrics import precision_recall_fscore_support

    classes = [f"a/{i}" for i in range(4)] + [f"b/{i}" for i in range(4)]

    def three(i, rng):
        return "3-way", tuple(str(c) for c in rng.permutation(classes[:4] if i % 2 else classes[4:])[:3])

    scored = random_episodes(three)
    found = details(scored, False, True)
    named = [np.array(s.label_names) for s in scored]
    labels = np.concatenate([n[s.labels] for n, s in zip(named, scored)])
    predicted = np.concatenate([n[s.predicted[-1]] for n, s in zip(named, scored)])
    expected = precision_recall_fscore_support(labels, predicted, labels=classes, zero_division=0)
    for i, name in enumerate(classes):
        told = found["per_class"][name]
        assert [told[k] for k in ("precision", "recall", "f1", "rows")] == pytest.approx([e[i] for e in expected])
    assert "confusion" not in found and "per_task" not in found
    assert sorted(found["per_domain"]) == ["a", "b"] and found["worst_task"]["task"] in ("a", "b")
    assert "worst_task" not in details(scored, False)


def test_the_printed_table_names_the_worst_task_and_the_hardest_classes():
    from rich.console import Console

    from distmeta.runs.progress import class_table, evaluation_table

    scored = random_episodes(lambda i, rng: (f"t{i % 3}", ("p", "q", "r")))
    told = details(scored, True)
    methods, more = {"meta_trained": summarise(scored)}, {"settings": {}, "meta_trained": told}
    console = Console(width=200, record=True, file=io.StringIO())
    console.print(evaluation_table(methods, details=more), class_table(more, most=1))
    text = console.export_text()
    assert f"{told['worst_task']['mean']:.3f} {told['worst_task']['task']}" in text
    hardest = min(told["per_class"], key=lambda name: told["per_class"][name]["f1"])
    assert f"│ {hardest} " in text and "1 hardest" in " ".join(text.split())
    assert text.count("│ p ") + text.count("│ q ") + text.count("│ r ") == 1


def test_groups_hold_equal_shapes_in_order(words_csv):
    setting = Setting(words_csv)
    episodes = setting.episodes(5)
    shorter = dataclasses.replace(episodes[2], label_names=("a", "b", "c"))
    groups = group_episodes([*episodes[:2], shorter, *episodes[3:]], 4)
    assert [[e.index for e in group] for group in groups] == [[0, 1], [2], [3, 4]]


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
        ({"ways": 3}, "^ways = 3: "), ({"shots": 100}, "shots"), ({"split": "tset"}, "tset: one of .*mean 'test'"),
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


@pytest.mark.parametrize("schedule", ["constant", "cosine"])
def test_the_pooled_baseline_is_a_run_of_multi_task(schedule, words_csv, one_rank, tmp_path):
    """Without clipping, which a run has and the baseline has not."""
    outer = {"steps": 6, "schedule": schedule, "warmup_steps": 2, "weight_decay": 0.1, "eps": 1e-2}
    setting = Setting(
        words_csv, algorithm="multi_task", outer=outer, run={"checkpoint_every": 6}, eval={"baselines": False},
        deepspeed={"zero_optimization": {"stage": 1}, "gradient_clipping": 0.0},
    )  # fmt: skip
    learn(setting.config, tmp_path, setting.store.path, [], 0, 1, CPU)
    run = checkpoint.load(tmp_path).meta
    fast, shared = train_pooled(setting.model, setting.store, setting.config, CPU)
    for name, value in {**fast, **shared}.items():
        assert float((run[name] - value).abs().max()) < 1e-5, name
    assert max(float((run[name] - value).abs().max()) for name, value in setting.meta.items()) > 1e-2


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
