"""Paired differences between methods, and what is said of them."""

import dataclasses

import numpy as np
import pytest

from distmeta.evaluation import metrics
from distmeta.evaluation.paired import difference
from distmeta.evaluation.scoring import Scored, summarise
from distmeta.runs.progress import paired, verdict


def scored(right, names=None, tasks=3, episodes=60, rows=20, seed=0):
    """Episodes whose rows are right with the probability that `right` gives (the episode's number, the label)."""
    rng = np.random.default_rng(seed)
    out = []
    for i in range(episodes):
        labels, chance = rng.integers(0, 2, rows), rng.random(rows)
        share = np.array([right(i, label) for label in labels])
        predicted = np.where(chance < share, labels, 1 - labels)[None]
        loss = np.array([1 - share.mean()])
        of = names(i) if names else ("a", "b")
        out.append(Scored(f"t{i % tasks}", of, labels, predicted, loss, np.ones((1, rows))))
    return out


def test_what_makes_a_task_hard_for_both_methods_is_not_in_their_difference():
    """Tasks at 0.3, 0.6 and 0.9, and a method that is better by 0.1 in each."""
    level = [0.3, 0.6, 0.9]
    ours, theirs = scored(lambda i, label: level[i % 3] + 0.1), scored(lambda i, label: level[i % 3])
    found = difference(ours, theirs, by_class=False)
    assert set(found) == set(ours[0].metrics())
    for name, of in found.items():
        means = [summarise(method)[name]["mean"] for method in (ours, theirs)]
        assert of["mean"] == pytest.approx(means[0] - means[1]) and of["low"] <= of["mean"] <= of["high"]
        assert of["tasks"] == 3
    assert found["loss"]["high"] < 0 < found["accuracy"]["low"]  # a loss goes down
    apart = [metrics.interval(summarise_last(method)) for method in (ours, theirs)]
    assert apart[0]["low"] < apart[1]["high"]  # which the two intervals do not show


def summarise_last(method):
    return np.array([one.metrics()["accuracy"][-1] for one in method])


def test_a_difference_that_changes_with_the_task_is_unsure_however_many_episodes_there_are():
    better = [0.3, -0.1, 0.0]
    ours = scored(lambda i, label: 0.6 + better[i % 3], episodes=600)
    theirs = scored(lambda i, label: 0.6, episodes=600)
    found = difference(ours, theirs, by_class=False)["accuracy"]
    each = [summarise_last(ours)[t::3].mean() - summarise_last(theirs)[t::3].mean() for t in range(3)]
    expected = metrics.over_clusters(np.array(each) * 200, np.full(3, 200), (-1.0, 1.0))
    assert found == pytest.approx({**expected, "tasks": 3})
    assert found["low"] < 0 < found["mean"]
    one = difference(ours[::3], theirs[::3], by_class=False)["accuracy"]  # a single task
    assert one["episodes"] == 200 and one["low"] > 0.2


def test_classes_that_episodes_share_are_what_the_interval_is_over():
    pairs = [("p", "q"), ("q", "r"), ("r", "s")]
    names = lambda i: pairs[i % 3]  # noqa: E731
    better = {"p": 0.2, "q": 0.0, "r": 0.1, "s": -0.1}
    ours = scored(lambda i, label: 0.6 + better[names(i)[label]], names, tasks=1, seed=1)
    theirs = scored(lambda i, label: 0.6, names, tasks=1, seed=1)
    turned = [  # as a method has them that reads rows in another order
        dataclasses.replace(one, labels=one.labels[::-1], predicted=one.predicted[:, ::-1]) for one in theirs
    ]
    found = difference(ours, turned, by_class=True)
    hits = {name: [0, 0] for name in "pqrs"}
    for one, other in zip(ours, theirs):
        for label, mine, theirs_ in zip(one.labels, one.predicted[0] == one.labels, other.predicted[0] == one.labels):
            hits[one.label_names[label]][0] += int(mine) - int(theirs_)
            hits[one.label_names[label]][1] += 1
    totals, counts = np.array(list(hits.values())).T
    assert found["accuracy"] == pytest.approx({**metrics.over_clusters(totals, counts, (-1.0, 1.0)), "classes": 4})
    assert found["loss"]["episodes"] == 60


def test_the_closing_sentence_goes_by_paired_differences():
    level = [0.3, 0.6, 0.9]
    ours, theirs = scored(lambda i, label: level[i % 3] + 0.1), scored(lambda i, label: level[i % 3])
    methods = {"meta_trained": summarise(ours), "fine_tuned": summarise(theirs)}
    less = difference(ours, theirs, by_class=False)
    details = {"differences": {"fine_tuned": less}}
    means = (
        f"{summarise(ours)['accuracy']['mean']:.3f} against {summarise(theirs)['accuracy']['mean']:.3f} (fine_tuned)"
    )
    assert verdict(methods, details) == f"The meta-trained model adapts better than every baseline: {means}."
    of = less["accuracy"]
    assert paired(details) == (
        f"Meta-trained less each, paired, accuracy over 3 tasks: fine_tuned {of['mean']:+.3f} "
        f"[{of['low']:+.3f}, {of['high']:+.3f}]."
    )
    turned = {"differences": {"fine_tuned": difference(theirs, ours, by_class=False)}}
    worse = {"meta_trained": methods["fine_tuned"], "fine_tuned": methods["meta_trained"]}
    assert verdict(worse, turned).startswith("The meta-trained model adapts worse than fine_tuned: ")
    alike = {"differences": {"fine_tuned": difference(ours, ours, by_class=False)}}
    assert verdict({**methods, "fine_tuned": methods["meta_trained"]}, alike).startswith(
        "No clear difference from fine"
    )
    assert paired({}) == "" and verdict({"meta_trained": methods["meta_trained"]}, {}).startswith("meta-trained: 0.")
