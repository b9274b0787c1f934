"""Scores of episodes: in groups, of loops that diverge, and their tables."""

import dataclasses
import io

import numpy as np
import pytest
import torch
from evaluated import Setting

from distmeta.evaluation import metrics
from distmeta.evaluation.details import details
from distmeta.evaluation.examples import examples
from distmeta.evaluation.scoring import (
    Scored,
    Scoring,
    confidences,
    group_episodes,
    predictions,
    score_episodes,
    summarise,
)
from distmeta.inner import InnerLoop
from distmeta.runs.progress import closing

CPU = torch.device("cpu")


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


def test_examples_are_the_most_certain_mistakes_and_some_that_are_right():
    labels, predicted = np.zeros(12, np.int64), np.array([[1] * 7 + [0] * 5])
    sure = np.arange(12)[None] / 20
    episode = Scored("t", ("a", "b"), labels, predicted, np.array([0.1]), sure, rows=np.arange(12))
    shown = examples([episode, episode], lambda row: f"text {row}")
    assert [one["text"] for one in shown] == [f"text {row}" for row in (6, 5, 4, 3, 2, 7, 8, 9, 10, 11)]
    assert shown[0] == {"task": "t", "text": "text 6", "label": "a", "predicted": "b", "confidence": 0.3}


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
