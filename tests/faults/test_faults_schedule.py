"""A schedule of faults over one short run: each fired once, and the run ends as if nothing had happened."""

from collections import Counter

import outside
import pytest
import schedule
import small

from distmeta.errors import InputError
from distmeta.evaluation.evaluate import evaluate
from distmeta.runs import checkpoint


def test_a_schedule_is_seeded_and_holds_every_kind():
    first = schedule.make_schedule(0, 28, 20, 5, 2)
    assert first == schedule.make_schedule(0, 28, 20, 5, 2) != schedule.make_schedule(1, 28, 20, 5, 2)
    assert set(Counter(fault.kind for fault in first).values()) == {2} and len(set(first)) == 28
    assert all(fault.step % 5 == 0 for fault in first if fault.kind in schedule.AT_CHECKPOINTS)
    assert all(1 <= fault.step <= 20 and fault.target in (0, 1) for fault in first)
    with pytest.raises(ValueError, match="has room for 56"):
        schedule.make_schedule(0, 57, 20, 5, 2)


@pytest.mark.long
def test_one_fault_of_each_kind_leaves_no_trace(undisturbed, words_csv, tmp_path):
    faults = schedule.make_schedule(3, len(schedule.KINDS), 20, 5, 2)
    config = small.config(
        words_csv, cluster={"workers": 2, "max_failures": 100}, sampling={"actors": 2}, run={"name": "tiny"}
    )
    found = schedule.run_to_end(tmp_path, config, faults)
    assert [line.split(", rank")[0] for line in found.fired] == [f"{f.kind}, step {f.step}" for f in faults]
    assert found.drivers <= 1 + len(schedule.AT_DRIVER)
    assert small.weights(found.run) == undisturbed.weights
    assert small.records(found.run) == undisturbed.records  # no episode lost, none used twice
    assert (found.run / "evaluation.json").read_bytes() == (undisturbed.run / "evaluation.json").read_bytes()
    assert found.most_checkpoints <= config.run.keep + 1
    log = (found.run / "log.txt").read_text()
    assert "is passed over: optimizer.safetensors has" in log and "is passed over: meta.safetensors was changed" in log


@pytest.mark.long
def test_signals_double_starts_and_refusals_leave_no_trace_and_delete_nothing(words_csv, tmp_path):
    config = small.config(
        words_csv, outer={"steps": 300}, run={"checkpoint_every": 20}, sampling={"actors": 0}, eval={"baselines": False}
    )
    quiet = outside.run_to_end(tmp_path / "undisturbed", config, words_csv, 0, 0)
    found = outside.run_to_end(tmp_path / "disturbed", config, words_csv, 0, 4)
    assert quiet.wrong == found.wrong == [] and sum(found.fired.values()) > 12
    last = "checkpoints/step-000300/meta.safetensors"
    assert (found.run / last).read_bytes() == (quiet.run / last).read_bytes()
    assert small.records(found.run) == small.records(quiet.run)
    assert (found.run / "evaluation.json").read_bytes() == (quiet.run / "evaluation.json").read_bytes()


def test_with_no_whole_checkpoint_left_the_error_says_so_and_names_each(undisturbed, tmp_path):
    import shutil

    run = tmp_path / "run"
    shutil.copytree(undisturbed.run, run)
    newest, before = checkpoint.checkpoints_of(run)
    schedule.truncate(newest)
    schedule.flip(before)
    with pytest.raises(InputError, match="no whole checkpoint in it") as caught:
        evaluate(run, episodes=4)
    message = str(caught.value)
    assert f"{newest} is passed over: optimizer.safetensors has" in message
    assert f"{before} is passed over: meta.safetensors was changed" in message and "\n" not in message
