"""What a run that learns nothing is told, and that a run that learns is told nothing."""

import math

import pytest

from distmeta import health


def record(step, loss=0.5, accuracy=0.8, inner=(1.0, 0.5), norm=1.0):
    return {"step": step, "outer_loss": loss, "query_accuracy": accuracy, "inner_loss": list(inner), "grad_norm": norm}


def watched(records, classes=3):
    said = []
    watch = health.Watch(classes, said.append)
    for one in records:
        watch.see(one)
    assert len(said) == len(watch.warnings)
    return watch.warnings, said


@pytest.mark.parametrize(
    ("changes", "what", "key"),
    [
        ({"loss": math.log(3), "accuracy": 1 / 3}, "stands at chance", "outer.lr"),
        ({"inner": (0.9, 61.0)}, "raises the support loss: 0.9 to 61", "inner.lr (lower)"),
        ({"inner": (1.0, 1.0)}, "does nothing", "inner.lr (raise)"),
        ({"inner": (0.0, 0.0)}, "is 0 before any inner step", "model.distance"),
        ({"norm": 18792.0}, "norm 18792", "inner.lr"),
    ],
)
def test_each_sign_is_said_once_with_the_key_to_change(changes, what, key):
    warnings, said = watched([record(step, **changes) for step in range(1, 60)])
    assert len(warnings) == 1 and what in said[0] and what in warnings[0]["what"] and key in warnings[0]["key"]
    assert said[0].endswith(f"; change {warnings[0]['key']}")


def test_a_sign_that_a_run_has_got_over_is_not_among_its_last():
    late = [record(step, *((math.log(3), 1 / 3) if step < 40 else (0.1, 0.97))) for step in range(1, 80)]
    said = []
    watch = health.Watch(3, said.append)
    for one in late:
        watch.see(one)
    assert "stands at chance" in said[0] and watch.warnings == []


def test_a_loss_that_has_not_fallen_since_the_first_steps_is_said():
    rising = [record(step, loss=1 + step / 100, accuracy=0.0) for step in range(1, 60)]
    assert "has not fallen" in watched(rising, classes=None)[0][0]["what"]


def test_a_run_that_learns_is_told_nothing():
    falling = [record(step, loss=1.1 / step**0.5, accuracy=1 - 0.66 / step) for step in range(1, 60)]
    assert watched(falling)[0] == []
    assert watched([{**record(step), "inner_loss": []} for step in range(1, 60)])[0] == []  # no inner loop


def scores(mean, low, high, curve=(1.0, 0.5)):
    return {"accuracy": {"mean": mean, "low": low, "high": high}, "loss": {"mean": curve[-1], "curve": list(curve)}}


def test_an_evaluation_at_chance_or_of_one_class_is_said():
    even = {"confusion": {"labels": ["a", "b"], "rows_are_labels": [[5, 4], [4, 5]]}}
    one = {"confusion": {"labels": ["a", "b"], "rows_are_labels": [[9, 0], [9, 0]]}}
    assert health.of_evaluation(scores(0.9, 0.8, 1.0), even, 2) == []
    assert "not above chance" in health.of_evaluation(scores(0.55, 0.5, 0.6), even, 2)[0]["what"]
    assert [w["what"] for w in health.of_evaluation(scores(0.6, 0.55, 0.7), one, 2)] == [
        "one class is nearly always predicted: a, 100% of rows"
    ]
    assert "makes it worse" in health.of_evaluation(scores(0.9, 0.8, 1.0, (0.9, 61.0)), even, 2)[0]["what"]
    assert health.of_evaluation({"loss": {"mean": 1.0, "curve": [1.0]}}, {}, None) == []


def test_losses_below_zero_as_of_rewards_are_read_as_others_are():
    assert health.inner_signs(-10.0, -12.0) == []
    assert "raises the support loss" in health.inner_signs(-10.0, -9.0)[0]["what"]
    assert "does nothing" in health.inner_signs(-10.0, -10.0)[0]["what"]
    worse, better = ({"loss": {"mean": b, "curve": [a, b]}} for a, b in ((-10.0, -7.0), (-10.0, -13.0)))
    assert "makes it worse" in health.of_evaluation(worse, {}, None)[0]["what"]
    assert health.of_evaluation(better, {}, None) == []
