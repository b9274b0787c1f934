"""Successive halving: who waits, who goes on, and what a search costs; a simulated Tune, no process."""

import heapq
import json
import math
from types import SimpleNamespace

import numpy as np
import pytest
import small

from distmeta.search.asha import Asha, rungs_of
from distmeta.search.runs import read_record, trial_dir, update_record
from distmeta.search.search import Recorder
from distmeta.search.searcher import InOrder

LONGEST, GRACE, REDUCTION = 81, 9, 4


def simulate(values, at_once, mode="max", speeds=None):
    """Trials with these values at every meta-step. Their numbers of meta-steps, and which ran to their end."""
    searcher = InOrder(small.config(), [], [{"kind": "search", "params": {}} for _ in values], at_once)
    asha = Asha(rungs_of(GRACE, REDUCTION, LONGEST), REDUCTION, at_once, searcher)
    asha.set_search_properties("accuracy", mode)
    trials, steps, clock, events, ended = [], {}, 0.0, [], []

    def stop_trial(trial):
        assert trial.status == "PAUSED"
        trial.status = "TERMINATED"
        searcher.on_trial_complete(trial.trial_id)

    controller = SimpleNamespace(get_trials=lambda: trials, stop_trial=stop_trial)
    while True:
        while isinstance(given := searcher.suggest(str(len(trials))), dict):
            trials.append(SimpleNamespace(trial_id=str(len(trials)), status="PENDING"))
            steps[trials[-1].trial_id] = 0
        while (chosen := asha.choose_trial_to_run(controller)) is not None:
            chosen.status = "RUNNING"
            speed = speeds[int(chosen.trial_id)] if speeds is not None else 1.0
            heapq.heappush(events, (clock + GRACE * speed, chosen.trial_id))
        assert sum(t.status == "RUNNING" for t in trials) <= at_once
        if not events:
            assert given == "FINISHED"
            break
        clock, own = heapq.heappop(events)
        trial = trials[int(own)]
        steps[own] += GRACE
        result = {"step": steps[own], "accuracy": values[int(own)]}
        if steps[own] >= LONGEST:
            trial.status = "TERMINATED"
            asha.on_trial_complete(controller, trial, result)
            searcher.on_trial_complete(own, result)
            ended.append(int(own))
        elif asha.on_trial_result(controller, trial, result) == "PAUSE":
            trial.status = "PAUSED"
        else:
            heapq.heappush(events, (clock + GRACE * (speeds[int(own)] if speeds is not None else 1.0), own))
    assert {t.status for t in trials} == {"TERMINATED"}
    return [steps[str(i)] for i in range(len(values))], ended


def test_rungs():
    assert rungs_of(9, 4, 81) == [9, 36]
    assert rungs_of(9, 3, 81) == [9, 27]
    assert rungs_of(100, 3, 81) == []


@pytest.mark.parametrize("at_once", [1, 2, 5])
@pytest.mark.parametrize("order", range(20))
def test_the_best_runs_to_its_end_and_most_others_to_the_first_rung(order, at_once):
    values = np.random.default_rng(order).permutation(np.linspace(0, 1, 16))
    steps, ended = simulate(values, at_once, speeds=np.random.default_rng(1).uniform(0.5, 2, 16))
    assert int(np.argmax(values)) in ended and all(steps[i] == LONGEST for i in ended)
    # A quarter of those on a rung has gone on at any time; some of them before better ones came.
    assert min(steps) == GRACE and sum(n > GRACE for n in steps) <= 16 // REDUCTION + 3


def test_the_best_runs_to_its_end_though_it_comes_last():
    assert simulate(np.linspace(0, 1, 16), 2)[1][-1] == 15


def test_the_cost_over_orders():
    values = np.linspace(0, 1, 16)
    shares = [sum(simulate(np.random.default_rng(i).permutation(values), 2)[0]) / (16 * LONGEST) for i in range(100)]
    assert np.mean(shares) < 0.3 and np.quantile(shares, 0.9) <= 1 / 3


def test_a_loss_is_made_small_and_what_is_no_number_never_goes_on():
    steps, ended = simulate([3.0, 2.0, float("nan"), 1.0, 4.0, 5.0, 6.0, 7.0], 2, mode="min")
    assert ended == [3] and steps[2] == GRACE


@pytest.mark.parametrize("count", [1, 2, 3])
def test_with_too_few_trials_for_a_rung_the_best_still_runs_to_its_end(count):
    _, ended = simulate([0.1, 0.3, 0.2][:count], 2)
    assert ended == [int(np.argmax([0.1, 0.3, 0.2][:count]))]


def test_a_result_that_is_told_again_changes_nothing():
    searcher = InOrder(small.config(), [], [{"kind": "search", "params": {}} for _ in range(4)], 4)
    asha = Asha([9, 36], 4, 4, searcher)
    asha.set_search_properties("accuracy", "max")
    for i in range(4):
        searcher.suggest(str(i))
    trials = [SimpleNamespace(trial_id=str(i), status="RUNNING") for i in range(4)]
    assert asha.on_trial_result(None, trials[0], {"step": 9, "accuracy": 0.5}) == "PAUSE"
    assert asha.on_trial_result(None, trials[0], {"step": 9, "accuracy": 0.5}) == "CONTINUE"
    assert asha.scores == [{"0": 0.5}, {}]
    assert asha.on_trial_result(None, trials[1], {"step": 9}) == "CONTINUE"  # without a score


@pytest.mark.parametrize(
    ("told", "evaluated", "status"),
    [
        (8, True, "completed"),  # to its end, which may come before outer.steps (outer.until)
        (4, True, "stopped"),  # its learners came to the end while it was being stopped
        (8, False, "stopped"),
    ],
)
def test_a_trial_is_complete_if_its_end_was_heard(told, evaluated, status, tmp_path):
    run = trial_dir(tmp_path, 0)
    update_record(run, number=0, status="running")
    curve = {"mean": [0.5], "low": [0.4], "high": [0.6]}
    lines = [json.dumps({"step": step, "validation_curves": {"accuracy": curve}}) for step in (4, 8)]
    (run / "metrics.jsonl").write_text("\n".join(lines) + "\n")
    if evaluated:
        (run / "evaluation.json").write_text("{}")
    trial = SimpleNamespace(custom_trial_name="trial-0000", last_result={"step": told}, status="TERMINATED")
    Recorder(tmp_path, small.config(), lambda line: None, 1).on_trial_complete(0, [], trial)
    found = read_record(run)
    assert found["status"] == status and found["scored_at"] == told


@pytest.mark.parametrize(("metric", "best"), [("accuracy", [1, 1, 3]), ("loss", [1, 2, 2])])
def test_a_score_is_told_beside_the_best_so_far(metric, best, tmp_path):
    said: list[str] = []
    recorder = Recorder(tmp_path, small.config(tune={"metric": metric}), said.append, 4)
    for number, score in enumerate([math.nan, 0.5, 0.4, 0.6]):
        config = {"kind": "search", "params": {"inner.lr": 0.1}}
        trial = SimpleNamespace(custom_trial_name=f"trial-{number:04d}", config=config)
        recorder.on_trial_result(0, [], trial, {metric: score, "adapt_steps": 2, "step": 8})
    assert [int(line.split("best ")[1].split("trial ")[1].split(")")[0]) for line in said[1:]] == best
    assert "best" not in said[0]  # a score that is no number is none
    assert said[2].startswith("trial 2 of 4  step 8/") and f"{metric} 0.400 after 2 inner steps" in said[2]


def test_a_trial_that_failed_says_which_rank_and_why(tmp_path, monkeypatch):
    """Ray's own text of a failure leaves out the middle of what a rank says."""
    monkeypatch.setattr("distmeta.search.search.release", lambda path: None)
    update_record(trial_dir(tmp_path, 0), number=0, status="running")
    failure = RuntimeError("... (Output truncated.")
    failure.worker_failures = {1: OSError("[Errno 28] No space left on device")}
    trial = SimpleNamespace(custom_trial_name="trial-0000", last_result={}, status="ERROR", get_error=lambda: failure)
    Recorder(tmp_path, small.config(), lambda line: None, 1).on_trial_error(0, [], trial)
    found = read_record(trial_dir(tmp_path, 0))
    assert found["status"] == "failed" and found["reason"].startswith("the disk that rank 1 writes to is full")
