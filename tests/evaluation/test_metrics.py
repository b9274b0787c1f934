"""Scores against scikit-learn, intervals against their definition."""

import numpy as np
import pytest

from distmeta.evaluation import metrics


@pytest.mark.parametrize("classes", [2, 3, 7])
def test_scores_are_scikit_learn_s(classes):
    from sklearn.metrics import accuracy_score, confusion_matrix, precision_recall_fscore_support

    rng = np.random.default_rng(classes)
    for case in range(40):
        n = int(rng.integers(1, 20))
        labels = rng.integers(0, classes, n)
        predicted = np.where(rng.random(n) < 0.5, labels, rng.integers(0, max(1, classes - case % 2), n))
        matrix = metrics.confusion(labels, predicted, classes)
        assert (matrix == confusion_matrix(labels, predicted, labels=range(classes))).all()
        found = metrics.scores(matrix)
        expected = precision_recall_fscore_support(labels, predicted, average="macro", zero_division=0)[:3]
        assert found["accuracy"] == pytest.approx(accuracy_score(labels, predicted))
        for name, value in zip(("precision", "recall", "f1"), expected, strict=True):
            assert found[name] == pytest.approx(value, abs=1e-12), (name, labels, predicted)
        each = precision_recall_fscore_support(labels, predicted, labels=range(classes), average=None, zero_division=0)[
            :3
        ]
        of_class = metrics.class_scores(matrix)
        for name, value in zip(("precision", "recall", "f1"), each, strict=True):
            np.testing.assert_allclose(of_class[name], value, atol=1e-12)


def test_leading_axes_are_independent():
    rng = np.random.default_rng(0)
    labels, predicted = rng.integers(0, 3, (2, 4, 9))
    stacked = metrics.confusion(labels, predicted, 3)
    assert stacked.shape == (4, 3, 3)
    for i in range(4):
        assert (stacked[i] == metrics.confusion(labels[i], predicted[i], 3)).all()
        for name, value in metrics.scores(stacked).items():
            assert value[i] == pytest.approx(float(metrics.scores(stacked[i])[name]))


@pytest.mark.parametrize("count", [2, 3, 10, 11, 12, 50])
def test_an_interval_is_student_s(count):
    from scipy.stats import t

    values = np.random.default_rng(0).normal(5, 1, (count, 3))
    found = metrics.interval(values, (0, np.inf))
    half = t.ppf(0.975, count - 1) * values[:, -1].std(ddof=1) / np.sqrt(count)
    assert found["mean"] == pytest.approx(values[:, -1].mean())
    assert found["high"] - found["mean"] == pytest.approx(half, rel=2e-4)
    assert found["mean"] - found["low"] == pytest.approx(half, rel=2e-4)
    assert found["episodes"] == count
    assert found["curve"] == pytest.approx(values.mean(0).tolist())
    assert "curve" not in metrics.interval(values[:, 0])
    assert metrics.interval(np.array([0.5]))["low"] == 0.5


def test_no_bound_is_below_what_the_metric_can_be():
    spread = np.array([1.01, 1.02, 9.0])
    assert metrics.interval(spread, metrics.limits("perplexity"))["low"] == 1.0
    assert metrics.interval(spread, metrics.limits("loss"))["low"] == 0.0
    assert metrics.curve(np.stack([spread, spread], 1), metrics.limits("perplexity"))["low"] == [1.0, 1.0]


def test_the_bounds_of_a_share_stay_within_0_and_1():
    high, low = metrics.interval(np.array([1.0, 1.0, 0.8])), metrics.interval(np.array([0.0, 0.0, 0.2]))
    assert high["high"] == 1.0 and 0 < high["low"] < high["mean"]
    assert low["low"] == 0.0 and low["mean"] < low["high"] < 1
    assert metrics.interval(np.array([1.0, 1.0, 0.8]), metrics.limits("loss"))["high"] > 1
    assert metrics.curve(np.array([[1.0, 1.0], [1.0, 0.8]]))["high"] == [1.0, 1.0]


def test_an_interval_over_clusters_covers_new_clusters():
    """Of tasks that differ, where the interval over episodes of the same few tasks is far too narrow."""
    rng = np.random.default_rng(0)
    for groups in (3, 8):
        inside, narrow = [], []
        for _ in range(150):
            hits = rng.binomial(1000, rng.beta(6, 3, groups))  # tasks' own accuracies have mean 2/3
            found = metrics.over_clusters(hits, np.full(groups, 1000))
            inside.append(found["low"] <= 2 / 3 <= found["high"])
            narrow.append(abs(found["mean"] - 2 / 3) < 1.96 * np.sqrt(2 / 9 / 1000 / groups))
        assert np.mean(inside) > 0.9 and np.mean(narrow) < 0.3
    again = metrics.over_clusters(hits, np.full(groups, 1000))
    assert again == found and 0 <= again["low"] <= again["mean"] <= again["high"] <= 1


def test_calibration_error_is_the_gap_by_bins():
    """By its definition, bin by bin, with scikit-learn's means of bins where none is on an edge."""
    from sklearn.calibration import calibration_curve

    rng = np.random.default_rng(4)
    confidence, right = rng.random((3, 5, 60)), rng.random((3, 5, 60)) < 0.7
    found = metrics.calibration_error(confidence, right)
    assert found.shape == (3, 5)
    for place in np.ndindex(3, 5):
        share, mean = calibration_curve(right[place], confidence[place], n_bins=15)
        inside = np.histogram(confidence[place], np.linspace(0, 1, 16))[0]
        expected = (inside[inside > 0] / 60 * np.abs(share - mean)).sum()
        assert found[place] == pytest.approx(expected, abs=1e-12)
    assert metrics.calibration_error(np.array([1.0, 1.0]), np.array([True, False])) == pytest.approx(0.5)
    assert metrics.calibration_error(np.array([0.0, 1.0]), np.array([False, True])) == 0
    edge = np.array([0.5, 0.5 + 1e-9])  # of two bins, the first holds its upper end
    assert metrics.calibration_error(edge, np.array([True, False]), bins=2) == pytest.approx(0.5)
    assert metrics.calibration_error(edge, np.array([True, False]), bins=1) == pytest.approx(0, abs=1e-8)


def test_intervals_cover():
    """Nineteen times in twenty the interval of 100 draws holds the true mean."""
    draws = np.random.default_rng(1).binomial(20, 0.7, (2000, 100)) / 20
    inside = [found["low"] <= 0.7 <= found["high"] for found in map(metrics.interval, draws)]
    assert 0.93 < np.mean(inside) < 0.97


def test_a_loss_below_zero_has_an_interval_on_both_sides():
    """That of a policy is minus a return."""
    values = np.array([-3.0, -2.0, -4.0, -3.5])
    of_loss = metrics.interval(values, metrics.limits("loss"))
    of_return = metrics.interval(-values, metrics.limits("return"))
    assert of_loss["low"] < of_loss["mean"] < of_loss["high"]
    assert of_loss["low"] == pytest.approx(-of_return["high"]) and of_loss["high"] == pytest.approx(-of_return["low"])
    assert metrics.interval(np.array([0.0, 0.1]), metrics.limits("loss"))["low"] == 0.0
