"""What is read of a trial's run directory."""

import json

from distmeta.search.results import best_of, meta_tested


def test_the_test_interval_is_that_of_the_chosen_number_of_steps(tmp_path):
    assert meta_tested(tmp_path, 1) == {}
    score = {"mean": 0.9, "low": 0.88, "high": 0.92, "episodes": 40, "curve": [0.3, 0.7, 0.9]}
    (tmp_path / "evaluation.json").write_text(json.dumps({"meta_trained": {"accuracy": score}}))
    whole = {"test_accuracy": 0.9, "test_low": 0.88, "test_high": 0.92}
    assert meta_tested(tmp_path, 1) == whole  # a run of before curves were kept
    curve = {"mean": [0.3, 0.7, 0.9], "low": [0.1, 0.6, 0.88], "high": [0.5, 0.8, 0.92]}
    (tmp_path / "evaluation_details.json").write_text(json.dumps({"meta_trained": {"curves": {"accuracy": curve}}}))
    assert meta_tested(tmp_path, 1) == {"test_accuracy": 0.7, "test_low": 0.6, "test_high": 0.8}
    assert meta_tested(tmp_path, None) == whole


def test_the_best_is_a_trial_that_has_come_to_its_end():
    trials = [("stopped", 0.9), ("completed", 0.7), ("completed", 0.8), ("completed", 0.8), ("failed", None)]
    rows = [{"number": i, "status": status, "value": value} for i, (status, value) in enumerate(trials)]
    assert best_of(rows, "accuracy")["number"] == 2 and best_of(rows, "loss")["number"] == 1  # the first of equals
    assert best_of(rows[:1] + rows[4:], "accuracy")["number"] == 0 and best_of(rows[4:], "accuracy") is None
