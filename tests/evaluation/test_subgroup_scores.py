"""Scores by subgroup: what they are of, their intervals, and where they are shown."""

from types import SimpleNamespace

import numpy as np
import pytest

from distmeta.evaluation.scoring import Scored
from distmeta.evaluation.subgroups import of_subgroups
from distmeta.runs.progress import closing


def scored(episodes, rate_a, rate_b, seed=0, rows=(6, 2)):
    """Episodes of rows of the subgroups a and b, right with these probabilities; the store that they are of."""
    rng = np.random.default_rng(seed)
    out = []
    for _ in range(episodes):
        of = np.repeat([0, 1], rows)
        right = rng.random(len(of)) < np.where(of == 0, rate_a, rate_b)
        labels = rng.integers(0, 2, len(of))
        predicted = np.where(right, labels, 1 - labels)[None]
        ends = np.zeros((1, len(of)))
        out.append(Scored("t", ("no", "yes"), labels, predicted, np.zeros(1), ends, rows=of))
    return out, SimpleNamespace(subgroups=["a", "", "b"], subgroup_ids=np.array([0, 2], np.int32))


def test_each_subgroup_the_worst_and_the_gap():
    episodes, store = scored(50, 0.9, 0.5)
    found = of_subgroups(episodes, store)
    right = np.concatenate([s.predicted[0] == s.labels for s in episodes])
    of = np.concatenate([s.rows for s in episodes])
    a, b = right[of == 0].mean(), right[of == 1].mean()
    assert found["accuracy:a"]["mean"] == pytest.approx(a) and found["accuracy:b"]["mean"] == pytest.approx(b)
    assert found["worst_subgroup"] == {**found["accuracy:b"], "subgroup": "b"}
    gap = found["subgroup_gap"]
    assert gap["mean"] == pytest.approx(a - b) and (gap["best"], gap["worst"]) == ("a", "b")
    assert set(found) == {"accuracy:a", "accuracy:b", "worst_subgroup", "subgroup_gap"}  # no row has none


def test_intervals_hold_the_truth_as_often_as_they_say():
    inside = {"accuracy:b": 0, "subgroup_gap": 0}
    for seed in range(300):
        found = of_subgroups(*scored(40, 0.9, 0.6, seed))
        for name, truth in (("accuracy:b", 0.6), ("subgroup_gap", 0.3)):
            inside[name] += found[name]["low"] <= truth <= found[name]["high"]
    assert all(0.92 <= n / 300 <= 0.98 for n in inside.values()), inside


def test_one_subgroup_alone_has_no_gap():
    episodes, store = scored(5, 0.9, 0.5, rows=(6, 0))
    assert of_subgroups(episodes, store) == {}
    assert of_subgroups(episodes, SimpleNamespace(subgroups=[], subgroup_ids=None)) == {}


def test_the_gap_is_said_below_the_table():
    found = of_subgroups(*scored(50, 0.9, 0.5))
    (line,) = closing({"settings": {"method": "meta_trained"}, "meta_trained": found})
    assert line.startswith("Worst subgroup: b, accuracy 0.") and line.endswith(", to a.")
