"""The quick form of the benchmarks: what it reads of a record is there, and a figure that is off is told."""

import copy
import json
import runpy
import sys
from pathlib import Path

import pytest

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"


@pytest.fixture(scope="module")
def quick():
    sys.path.insert(0, str(BENCHMARKS))
    try:
        return runpy.run_path(str(BENCHMARKS / "all.py"))
    finally:
        sys.path.remove(str(BENCHMARKS))


def record_of(one):
    return json.loads((BENCHMARKS / "results" / f"{one.record}.json").read_text())


def test_a_record_agrees_with_itself(quick):
    for one in quick["QUICK"]:
        for figure in one.figures:
            fits, words = quick["compared"](figure, record_of(one), record_of(one))
            assert fits, (one.record, figure.name, words)


def test_a_worse_figure_is_told(quick):
    (one,) = (one for one in quick["QUICK"] if one.record == "default")
    worse = copy.deepcopy(record_of(one))
    worse.pop("other_seeds", None)  # a quick run has one seed
    score = worse["evaluation"]["meta_trained"]["accuracy"]
    score |= {key: score[key] - 0.1 for key in ("mean", "low", "high")}
    assert [quick["compared"](figure, worse, record_of(one))[0] for figure in one.figures] == [False, True]
    (one,) = (one for one in quick["QUICK"] if one.record == "depth")
    worse = copy.deepcopy(record_of(one))
    worse["cases"]["30x1x512"]["layers"]["peak_mb"] *= 2
    assert [quick["compared"](figure, worse, record_of(one))[0] for figure in one.figures] == [False, True]


def test_what_was_not_given_is_named(quick):
    needs = {one.record: quick["missing"](one, {"work": "w", "data": None, "encoder": None}) for one in quick["QUICK"]}
    assert needs["intents"] == "--data" and needs["default"] is None


def test_every_record_is_listed(quick):
    lines = list(quick["listed"]())
    assert len(lines) == len(list((BENCHMARKS / "results").glob("*.json")))
