"""Benchmarks: the measuring measures, the FLOP floor is one, every row of the peers benchmark runs and agrees."""

import json
import subprocess
import sys
import time
from pathlib import Path

import pytest
import small
import torch

from distmeta.bench import measure

ROOT = Path(__file__).resolve().parents[2]


def allocate(mb):
    """For a fresh process: the peak of an allocation that is given back before the end."""

    def run():
        torch.ones(mb * 2**18).sum()

    return measure.peak_mb(run)


def test_interleaving_takes_turns_and_times_each():
    order = []

    def system(name, busy_s):
        def run(number):
            order.append((name, number))
            end = time.process_time() + busy_s
            while time.process_time() < end:
                pass

        return run

    timings = measure.interleave({"quick": system("quick", 0.01), "slow": system("slow", 0.03)}, 3)
    assert order == [(name, number) for number in range(3) for name in ("quick", "slow")]
    found = measure.ratio(timings["slow"], timings["quick"])
    assert 2 < found.median < 4 and found.low <= found.median <= found.high


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="the kernel has no resettable peak")
def test_peak_memory_is_that_of_one_run_in_a_process_of_its_own():
    found = measure.in_fresh_process("test_bench", "allocate", mb=64)
    assert 60 < found < 75


def test_a_fresh_process_that_fails_says_why():
    with pytest.raises(RuntimeError, match=r"test_bench\.absent.*absent"):
        measure.in_fresh_process("test_bench", "absent")


def test_the_floor_is_at_most_what_a_plain_loop_computes_and_a_hand_count_agrees(monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    import floor

    # The head alone, one step, first order: one pass of the body over all rows, and the head's few products.
    layers, d, f, length, classes, rows = 2, 16, 32, 7, 3, 4
    shape = floor.Shape(layers, d, 2, f, classes, "head", lowest=layers)
    first = 2 * length * (4 * d * d + 2 * d * f) + 4 * length * length * d
    last = 2 * (2 * length * d * d + 2 * d * d + 2 * d * f) + 4 * length * d
    head = 2 * d * classes
    expected = 2 * rows * (first + last) + 2 * rows * 2 * head  # support and query, forward and the weight's gradient
    assert floor.lean_flops(shape, [length] * rows, [length] * rows, 1, True) == pytest.approx(expected, rel=1e-9)

    lengths = [3, 4, 9]
    one, five = (floor.lean_flops(floor.Shape(layers, d, 2, f, classes), lengths, lengths, k, False) for k in (1, 5))
    assert 3 * one < five < 5 * one  # the query is there once
    for adapt in ("all", "lora"):
        exact, first_order = (
            floor.lean_flops(floor.Shape(layers, d, 2, f, classes, adapt), lengths, lengths, 5, order)
            for order in (False, True)
        )
        assert 1.3 * first_order < exact < 3 * first_order


@pytest.mark.long
def test_every_row_of_the_peers_benchmark_runs(tmp_path):
    pytest.importorskip("higher")
    pytest.importorskip("torchopt")
    out = tmp_path / "peers.json"
    command = [sys.executable, str(ROOT / "benchmarks" / "peers.py"), "--quick", "--out", str(out)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=280)
    assert done.returncode == 0, done.stderr[-2000:]
    found = json.loads(out.read_text())
    assert found["hardware"]["threads"] == 1 and found["versions"]["torch"] and found["seeds"]
    rows = {row["row"]: row for row in found["rows"]}
    assert len(rows) == 13
    for name, row in rows.items():
        if "skipped" in row:
            assert name.startswith("text-") and "--data" in row["skipped"]
        elif name != "exact-lora-50":
            assert row["agreement"]["worst"] < 1e-3
            assert all(system["over_floor"] > 1 for system in row["systems"].values())
    assert all(isinstance(mb, float) for mb in rows["exact-all"]["memory_mb"].values())


@pytest.mark.long
def test_bench_inner_measures_each_variant_and_says_what_auto_chooses(words_csv, tmp_path):
    import yaml

    config = small.config(
        words_csv, model={"pooling": "first", "lora_rank": 2}, inner={"adapt": "lora"}, outer={"base": "freeze"}
    )
    (tmp_path / "mine.yaml").write_text(yaml.safe_dump(config.model_dump(mode="json")))
    done = small.cli(
        "bench", "inner", "mine.yaml", "--rounds", "1", "--no-memory", "--json", "--out", "r.json", cwd=tmp_path
    )
    assert done.returncode == 0, done.stderr[-2000:]
    found = json.loads(done.stdout)
    assert json.loads((tmp_path / "r.json").read_text()) == found
    names = {"exact, unroll", "exact, walk", "exact, auto", "first order", "exact, layers"}
    names |= {"exact, walk, transformers' attention"}
    assert names | {"exact, auto, tasks one by one", "exact, auto, tasks at once"} == set(found["variants"])
    for result in found["variants"].values():
        assert result["over_floor"] > 1 and result["seconds"]["median"] > 0
    auto = found["auto_chooses"]
    assert auto["steps_kept"] == auto["steps"] == 2 and auto["tasks_at_once"] == 4
    assert auto["attention"] == {"exact": "distmeta_128", "first_order": "sdpa"}
    assert auto["padded_over_real_tokens"] >= 1


@pytest.mark.long
def test_the_walk_needs_less_memory_than_all_graphs(words_csv):
    from distmeta.bench import inner

    sizes = {"hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 128}
    config = small.config(words_csv, model={"config": sizes}, inner={"steps": 6}, task={"shots": 6, "queries": 4})
    walk, unroll = (inner.peak_in_fresh_process(config, f"exact, {name}") for name in ("walk", "unroll"))
    assert walk is not None and unroll is not None
    assert 0 < walk < 0.7 * unroll


@pytest.mark.long
def test_auto_within_a_tiny_budget_keeps_no_step(words_csv):
    from distmeta.bench import inner

    config = small.config(words_csv, inner={"budget_mb": 0.001})
    found = inner.bench_inner(config, rounds=1, memory=False)
    assert found["auto_chooses"]["steps_kept"] == 0
    assert all(result["peak_mb"] is None for result in found["variants"].values())
