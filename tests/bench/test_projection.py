"""The paper model: closed forms, monotony, its formula of failures against a simulation, and the fit to timed runs."""

import dataclasses
import json
import math
import random
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from distmeta.errors import InputError

ROOT = Path(__file__).resolve().parents[2]
sys.path.append(str(ROOT / "benchmarks"))

import projection_model as projection  # noqa: E402
from projection_model import Given, all_reduce_s, compare, expected_max, fit, project  # noqa: E402

WORLDS = (1, 8, 64, 512)
REAL = Given(
    task_s=2.0, task_deviation=0.1, fixed_s=0.05, megabytes=100, gb_per_s=10, latency_s=1e-4, checkpoint_s=5,
    mtbf_h=10_000, restart_s=120, price=3,
)  # fmt: skip


# --- the slowest rank ---


def test_the_expected_maximum_is_that_of_the_textbook():
    assert expected_max([(1, 3.0, 2.0)]) == pytest.approx(3.0, abs=1e-9)
    assert expected_max([(2, 3.0, 2.0)]) == pytest.approx(3 + 2 / math.sqrt(math.pi), abs=1e-9)
    assert expected_max([(3, 3.0, 2.0)]) == pytest.approx(3 + 2 * 1.5 / math.sqrt(math.pi), abs=1e-9)
    assert expected_max([(1000, 0.0, 1.0)]) == pytest.approx(3.2414, abs=1e-4)


def test_ranks_that_are_certain_or_have_other_means_count():
    assert expected_max([(5, 2.0, 0.0), (0, 9.0, 1.0)]) == 2.0
    # E max(0, N(0, 1)) = 1 / sqrt(2 pi); a certain rank far above, or far below, decides alone or not at all
    assert expected_max([(1, 0.0, 1.0), (1, 0.0, 0.0)]) == pytest.approx(1 / math.sqrt(2 * math.pi), abs=1e-6)
    assert expected_max([(1, 0.0, 1.0), (1, 50.0, 0.0)]) == pytest.approx(50.0)
    assert expected_max([(2, 0.0, 1.0), (1, -50.0, 0.0)]) == pytest.approx(expected_max([(2, 0.0, 1.0)]))
    rng = np.random.default_rng(0)
    drawn = np.concatenate([rng.normal(2, 0.2, (100_000, 5)), rng.normal(2.5, 0.1, (100_000, 3))], 1).max(1).mean()
    assert expected_max([(5, 2.0, 0.2), (3, 2.5, 0.1)]) == pytest.approx(drawn, abs=2e-3)


def test_the_slowest_rank_has_the_most_tasks_and_sums_average_the_spread():
    certain = Given(task_s=2.0)
    assert projection.slowest_s(certain, 4, 8) == 4.0
    assert projection.slowest_s(certain, 4, 9) == 6.0  # one rank has three
    assert projection.slowest_s(certain, 8, 3) == 2.0
    spread = Given(task_s=2.0, task_deviation=0.1)
    late = [projection.slowest_s(spread, 16, 16 * m) / (2.0 * m) - 1 for m in (1, 4)]
    assert late[0] == pytest.approx(2 * late[1])  # four times the tasks, half the relative deviation


# --- communication ---


def test_one_rank_has_nobody_to_talk_to():
    assert all_reduce_s(REAL, 1) == 0
    (point,) = project(dataclasses.replace(REAL, mtbf_h=math.inf, checkpoint_s=0, fixed_s=0), [1], 4)
    assert point["step_s"] == pytest.approx(8.0) and point["tasks_per_s"] == pytest.approx(0.5)
    assert point["share"]["compute"] == pytest.approx(1.0)


def test_a_ring_sends_each_byte_twice_whatever_the_number_of_ranks():
    given = Given(task_s=1, megabytes=100, gb_per_s=10)
    once = 100 * 2**20 / 10e9
    assert all_reduce_s(given, 2) == pytest.approx(once)
    assert all_reduce_s(given, 4) == pytest.approx(1.5 * once)
    assert all_reduce_s(given, 100_000) == pytest.approx(2 * once, rel=1e-4)
    hops = Given(task_s=1, latency_s=1e-3)
    assert all_reduce_s(hops, 11) == pytest.approx(0.02)


# --- failures ---


def test_youngs_interval_and_dalys_tends_to_it():
    assert projection.young_interval_s(2.0, 100.0) == 20.0
    assert projection.daly_interval_s(2.0, 1e12) == pytest.approx(projection.young_interval_s(2.0, 1e12), rel=1e-5)
    assert projection.daly_interval_s(300.0, 100.0) == 100.0  # a checkpoint as long as two failures' distance


@pytest.mark.parametrize("mtbf_s", [500.0, 5000.0, 500_000.0])
def test_no_other_interval_leaves_more_than_dalys(mtbf_s):
    best = projection.daly_interval_s(10.0, mtbf_s)
    at_best = projection.useful_share(best, 10.0, 60.0, mtbf_s)
    others = [projection.useful_share(best * factor, 10.0, 60.0, mtbf_s) for factor in np.geomspace(0.1, 10, 201)]
    assert max(others) == pytest.approx(at_best, rel=1e-4)
    assert others[0] < at_best > others[-1]


def test_without_failures_only_the_checkpoints_are_lost():
    assert projection.useful_share(90.0, 10.0, 60.0, math.inf) == pytest.approx(0.9)
    assert projection.useful_share(90.0, 10.0, 60.0, 1e12) == pytest.approx(0.9)
    assert projection.useful_share(math.inf, 10.0, 60.0, math.inf) == 1.0
    assert projection.useful_share(90.0, 10.0, 60.0, 0.05) == 0.0  # never ends


def test_the_useful_share_is_that_of_simulated_failures():
    interval, checkpoint, restart, mtbf = 100.0, 10.0, 40.0, 400.0
    rng = random.Random(0)
    clock, done, segments = 0.0, 0, 20_000
    while done < segments:  # segment by segment: its work and checkpoint, begun again after each failure
        failure = rng.expovariate(1 / mtbf)
        if failure >= interval + checkpoint:
            clock, done = clock + interval + checkpoint, done + 1
            continue
        clock += failure
        while (failure := rng.expovariate(1 / mtbf)) < restart:  # restarts fail too
            clock += failure
        clock += restart
    simulated = segments * interval / clock
    assert projection.useful_share(interval, checkpoint, restart, mtbf) == pytest.approx(simulated, rel=0.02)


# --- the whole ---


def test_with_nothing_in_the_way_scaling_is_linear():
    points = project(Given(task_s=0.5), WORLDS, 4)
    assert [p["tasks_per_s"] for p in points] == pytest.approx([2.0 * n for n in WORLDS])
    assert [p["efficiency"] for p in points] == pytest.approx([1.0] * 4)
    assert not any(p["doubts"] for p in points)


def test_shares_add_up_and_efficiency_falls_with_the_ranks():
    for mode, tasks in (("weak", 4), ("strong", 1024)):
        points = project(REAL, WORLDS, tasks, mode)
        for p in points:
            assert sum(p["share"].values()) == pytest.approx(1.0)
            assert all(share >= 0 for share in p["share"].values())
            assert p["share"]["compute"] == pytest.approx(p["efficiency_of_one"])
        falling = [p["efficiency"] for p in points]
        assert falling[0] == 1.0 and falling == sorted(falling, reverse=True)
        prices = [p["price_per_1000_tasks"] for p in points]
        assert prices == sorted(prices)


@pytest.mark.parametrize(
    ("field", "worse"),
    [("task_deviation", 0.3), ("fixed_s", 0.5), ("megabytes", 1000), ("gb_per_s", 1), ("latency_s", 1e-2),
     ("checkpoint_s", 60), ("mtbf_h", 100), ("restart_s", 3000), ("interval_s", 40_000)],
)  # fmt: skip
def test_what_gets_worse_makes_it_slower_and_dearer(field, worse):
    before, after = (project(g, [64], 4)[0] for g in (REAL, dataclasses.replace(REAL, **{field: worse})))
    assert after["tasks_per_s"] < before["tasks_per_s"]
    assert after["price_per_1000_tasks"] > before["price_per_1000_tasks"]


def test_the_price_is_that_of_the_hours():
    (point,) = project(Given(task_s=3.6, price=2.0), [10], 1)
    assert point["price_per_1000_tasks"] == pytest.approx(1000 * 3.6 / 3600 * 2.0)


def test_points_say_which_assumption_they_are_beyond():
    assert project(Given(task_s=1, task_deviation=0.5), [2], 1)[0]["doubts"] == ["normal"]
    assert project(Given(task_s=1, task_deviation=0.5), [2], 4)[0]["doubts"] == []  # sums are closer together
    assert project(Given(task_s=0.1, megabytes=10_000, gb_per_s=1), [8], 1)[0]["doubts"] == ["ring"]
    assert project(Given(task_s=1), [8], 4, "strong")[0]["doubts"] == ["idle"]
    lost = Given(task_s=1, checkpoint_s=100, mtbf_h=1, interval_s=1000)
    assert project(lost, [64], 1)[0]["doubts"] == ["failures"]
    for name in ("normal", "ring", "failures", "idle"):
        assert any(line.startswith(f"{name}:") for line in projection.LIMITS)


@pytest.mark.parametrize(
    "make",
    [lambda: Given(task_s=0), lambda: Given(task_s=1, price=-1), lambda: Given(task_s=math.inf),
     lambda: Given(task_s=1, latency_s=math.nan), lambda: project(REAL, [], 4), lambda: project(REAL, [0], 4),
     lambda: project(REAL, [1], 0), lambda: project(REAL, [1], 4, "both")],
)  # fmt: skip
def test_numbers_that_mean_nothing_are_refused(make):
    with pytest.raises(InputError):
        make()


# --- the fit ---


def timed_result(step_s, workers=(1, 4, 8, 16, 32), batch=2):
    """As `bench_scaling` returns it; step_s(ranks, meta_batch)."""
    points = []
    for mode in ("weak", "strong"):
        base = None
        for ranks in workers:
            meta_batch = batch * ranks if mode == "weak" else 64
            seconds = step_s(ranks, meta_batch)
            rate = meta_batch / seconds
            base = base or rate / ranks
            e = rate / ranks / base
            points.append({
                "mode": mode, "workers": ranks, "samplers": 1, "meta_batch": meta_batch,
                "tasks_per_s": {"mean": rate, "low": rate, "high": rate},
                "efficiency": {"mean": e, "low": e - 0.01, "high": e + 0.01}, "step_s": seconds,
                "step_deviation": 0.05 / math.sqrt(meta_batch / ranks),
                "share": {"inner": meta_batch / ranks * 0.25 / seconds},
            })  # fmt: skip
    return {"timed_task_s": [0.25, 0.05], "points": points, "command": "distmeta bench scaling --timed 0.25,0.05"}


def simulated(ranks, meta_batch, steps=20_000):
    """Mean seconds of a step whose ranks really draw their tasks' seconds; 20 ms fixed, 0.5 ms a hop."""
    counts = np.array([(r + 1) * meta_batch // ranks - r * meta_batch // ranks for r in range(ranks)])
    drawn = np.random.default_rng(ranks).normal(0.25 * counts, 0.0125 * np.sqrt(counts), (steps, ranks))
    return float(drawn.max(1).mean()) + 0.02 + 2 * (ranks - 1) * 5e-4


def test_the_fit_of_few_ranks_finds_the_machine_and_predicts_many():
    compared = compare(timed_result(simulated), fit_up_to=8)
    assert compared["fit"]["task_s"] == pytest.approx(0.25) and compared["fit"]["gb_per_s"] is None
    assert compared["fit"]["fixed_s"] == pytest.approx(0.02, abs=2e-3)
    assert compared["fit"]["latency_s"] == pytest.approx(5e-4, abs=1e-4)
    assert compared["worst_unseen"] < 0.01 and compared["worst"] < 0.01
    assert {p["workers"] for p in compared["points"] if not p["fitted"]} == {16, 32}
    last = compared["points"][4]
    assert (last["mode"], last["workers"]) == ("weak", 32) and last["bare"] > last["predicted"]
    json.dumps(compared, allow_nan=False)


def test_a_machine_that_the_model_does_not_describe_shows_as_error():
    compared = compare(timed_result(lambda n, batch: simulated(n, batch) + 2e-3 * n**2), fit_up_to=8)
    assert compared["worst_unseen"] > 0.2


def test_the_fit_is_never_below_zero_and_needs_points():
    found = fit(timed_result(lambda n, batch: 0.25 * batch / n), 8)  # quicker than the slowest rank can be
    assert found.fixed_s == 0 and found.latency_s == 0
    alone = fit(timed_result(simulated), 1)
    assert alone.latency_s == 0 and alone.fixed_s == pytest.approx(0.02, abs=2e-3)
    with pytest.raises(InputError, match="at most 2 ranks"):
        fit(timed_result(simulated, workers=(4, 8)), 2)


def test_a_result_of_real_ranks_gives_the_seconds_of_a_task():
    result = timed_result(simulated) | {"timed_task_s": None}
    found = fit(result, 8)
    assert found.task_s == pytest.approx(0.25)
    assert found.task_deviation == pytest.approx(0.05)


def test_the_script_writes_numbers_and_a_plot(tmp_path):
    timed = tmp_path / "timed.json"
    timed.write_text(json.dumps(timed_result(simulated)))
    script = [sys.executable, str(ROOT / "benchmarks" / "projection.py"), "--out", str(tmp_path / "r.json")]
    done = subprocess.run([*script, "--timed", str(timed)], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr[-2000:]
    found = json.loads((tmp_path / "r.json").read_text())
    assert (tmp_path / "r.png").stat().st_size > 10_000
    assert len(found["scenarios"]) == 2 and found["compared"]["worst"] < 0.01 and found["limits"]
    for scenario in found["scenarios"].values():
        assert {p["workers"] for p in scenario["points"]} == {8, 16, 32, 64, 128, 256, 512, 1024}
    assert "stops being true" in done.stdout and "1024" in done.stdout


def test_own_numbers_take_the_scenarios_place_and_bad_ones_are_refused_in_one_line(tmp_path, monkeypatch, capsys):
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    import projection as script

    def run(*words):
        monkeypatch.setattr("sys.argv", ["projection.py", "--out", str(tmp_path / "own.json"), *words])
        script.main()

    run("--given", "task_s=1", "--given", "price=3.6", "--workers", "1,2", "--tasks", "1")
    found = json.loads((tmp_path / "own.json").read_text())["scenarios"]
    assert list(found) == ["given"] and found["given"]["given"]["mtbf_h"] is None
    assert found["given"]["points"][1]["price_per_1000_tasks"] == pytest.approx(1.0)
    capsys.readouterr()
    for words in (["--given", "price=3"], ["--given", "tasks=3"], ["--given", "task_s=x"], ["--timed", "absent.json"],
                  ["--workers", "8,x"], ["--given", "task_s=-1"]):  # fmt: skip
        with pytest.raises(SystemExit) as refused:
            run(*words)
        assert refused.value.code.startswith("error: ") and "\n" not in refused.value.code
