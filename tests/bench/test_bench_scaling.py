"""`distmeta bench scaling`: what it refuses, its sums and intervals, the timed algorithm, and one small run."""

import io
import json

import pytest
import small
import torch

from distmeta.algorithms.rates import initial_log_rates, inner_loop
from distmeta.bench import scaling
from distmeta.config import load_config
from distmeta.config.algorithms import load_algorithm
from distmeta.errors import InputError
from distmeta.evaluation.scoring import load_group, split_meta
from distmeta.learner.gradients import group_gradient
from distmeta.models.build import build_model
from distmeta.tasks.build import build_store
from distmeta.tasks.episodes.episode import sample_episode
from distmeta.tasks.store import open_store

GOOD = {"workers": [1, 2], "samplers": [1], "modes": ["weak"], "steps": 6, "repeats": 1}


@pytest.mark.parametrize(
    ("given", "told"),
    [
        ({"workers": []}, "--workers"), ({"workers": [2, 0]}, "--workers 2,0"), ({"samplers": []}, "--samplers"),
        ({"samplers": [-1]}, "--samplers -1"), ({"modes": ["weak", "fast"]}, "--mode fast: give weak"),
        ({"modes": []}, "--mode"), ({"steps": 4}, "--steps 4: give more than 4"), ({"repeats": 0}, "--repeats 0"),
        ({"timed": (0.0, 0.1)}, "--timed 0,0.1"), ({"timed": (0.1, -1.0)}, "--timed 0.1,-1"),
    ],
)  # fmt: skip
def test_arguments_that_cannot_be_measured_are_refused_before_anything_runs(given, told):
    with pytest.raises(InputError) as refused:
        scaling.bench_scaling(None, [], **{**GOOD, **given})
    assert str(refused.value).startswith(told) and "\n" not in str(refused.value)


@pytest.mark.parametrize(
    ("words", "told"),
    [(["--workers", "1,x"], "--workers 1,x"), (["--timed", "0.1"], "--timed 0.1: 2 numbers"), (["a=1"], "'a'"),
     (["--samplers", ""], "--samplers")],
)  # fmt: skip
def test_the_command_line_refuses_in_one_line(words, told, tmp_path):
    done = small.command("bench", "scaling", *words, cwd=tmp_path)
    assert done.returncode == 2
    assert told in done.stderr and len(done.stderr.strip().splitlines()) == 1
    assert not list(tmp_path.iterdir())


def record(wait=0.0, inner=0.0, peers=0.0, aggregate=0.0, checkpoint=0.0):
    return {
        "wait_s": wait, "inner_s": inner, "peers_s": peers, "aggregate_s": aggregate, "checkpoint_s": checkpoint,
        "comm_s": 99.0, "outer_loss": 1.0,
    }  # fmt: skip


def test_a_summary_is_of_the_phases_seconds():
    found = scaling.summary([record(0.1, 0.5, 0.1, 0.3), record(0.1, 0.7, 0.1, 0.1, 2.0)], meta_batch=8)
    assert found["step_s"] == pytest.approx(2.0) and found["tasks_per_s"] == pytest.approx(4.0)
    shares = {"wait": 0.05, "inner": 0.3, "peers": 0.05, "aggregate": 0.1, "checkpoint": 0.5, "other": 0.0}
    assert {name: found[name] for name in shares} == pytest.approx(shares, abs=1e-12)
    assert found["step_deviation"] == pytest.approx(0.1 / 0.6) and found["meta_batch"] == 8


def test_an_interval_is_students():
    assert scaling.interval([3.0]) == {"mean": 3.0, "low": 3.0, "high": 3.0}
    assert "±" not in scaling.spread(scaling.interval([3.0]), ".3g", ".2g", 1)  # nothing is known of how it varies
    assert scaling.spread(scaling.interval([2.0, 4.0]), ".3g", ".2g", 2) == "3 ± 13"
    found = scaling.interval([1.0, 2.0, 3.0])
    half = 4.30265 / 3**0.5  # two degrees of freedom, deviation 1
    assert found == pytest.approx({"mean": 2.0, "low": 2.0 - half, "high": 2.0 + half})
    many = scaling.interval([float(i % 2) for i in range(40)])
    assert 0.3 < many["low"] < many["mean"] < many["high"] < 0.7


@pytest.fixture
def measured(monkeypatch):
    """bench_scaling on runs that are made up: with n ranks a step is longer by 10% of one rank's."""
    asked = []

    def measure(source, overrides):
        given = dict(word.split("=", 1) for word in overrides)
        asked.append(given)
        ranks, batch = int(given["cluster.workers"]), int(given["outer.meta_batch_size"])
        step = batch / ranks * 0.1 * (1 + 0.1 * (ranks - 1)) * (1 + 0.01 * len(asked))
        return scaling.summary([record(inner=0.8 * step, peers=0.2 * step)] * 3, batch)

    monkeypatch.setattr(scaling, "_measure", measure)
    return asked


def test_points_are_whole_runs_whose_work_is_the_modes(measured):
    said = []
    result = scaling.bench_scaling(
        None, [], workers=[2, 4], samplers=[0, 1], modes=["weak", "strong"], steps=10, repeats=2, say=said.append
    )
    assert len(measured) == len(said) == 16 and len(result["points"]) == 8
    for given in measured:
        assert given["outer.steps"] == "10" and "algorithm" not in given
    rounds = [(g["cluster.workers"], g["sampling.actors"], g["outer.meta_batch_size"]) for g in measured]
    assert rounds[:8] == rounds[8:]  # interleaved
    points = {(p["mode"], p["workers"], p["samplers"]): p for p in result["points"]}
    assert points["weak", 2, 0]["meta_batch"] == 8 and points["weak", 4, 0]["meta_batch"] == 16
    assert points["strong", 2, 1]["meta_batch"] == points["strong", 4, 1]["meta_batch"] == 8
    for (_, ranks, _), p in points.items():
        assert p["share"]["inner"] == pytest.approx(0.8)
        if ranks == 2:
            assert p["efficiency"]["mean"] == pytest.approx(1.0)
        else:  # 1.1 / 1.3, and the runs' slow drift
            assert p["efficiency"]["mean"] == pytest.approx(0.846, abs=0.03)
        assert p["efficiency"]["low"] <= p["efficiency"]["mean"] <= p["efficiency"]["high"]
    assert json.loads(json.dumps(result))["recipe"] == "default"


def test_timed_runs_wait_instead_of_computing_and_need_no_core(measured):
    result = scaling.bench_scaling(None, [], **{**GOOD, "timed": (0.25, 0.05)})
    assert result["timed_task_s"] == (0.25, 0.05)
    for given in measured:
        assert given["algorithm"] == "distmeta.bench.timed"
        assert float(given["cluster.cpus_per_worker"]) < 0.05


def test_the_table_and_the_plot_show_every_point(measured, tmp_path):
    from rich.console import Console

    result = scaling.bench_scaling(None, [], **{**GOOD, "modes": ["weak", "strong"], "repeats": 2})
    out = io.StringIO()
    Console(file=out, width=140).print(scaling.table(result))
    lines = out.getvalue().splitlines()
    assert sum(line.split()[:1] in (["weak"], ["strong"]) for line in lines) == 4
    assert "2 repeats" in out.getvalue() and "80.0%" in out.getvalue()
    scaling.plot(result, tmp_path / "new" / "scaling.png")
    assert (tmp_path / "new" / "scaling.png").read_bytes().startswith(b"\x89PNG")


# --- the timed algorithm ---


def shapes(result, sums):
    def of(value):
        if isinstance(value, dict):
            return {name: tuple(t.shape) for name, t in value.items()}
        return None if value is None else tuple(value.shape)

    return {
        "grads": of(result.grads), "lr_grads": of(result.lr_grads), "shared_grads": of(result.shared_grads),
        "loss": of(result.loss), "inner_losses": of(result.inner_losses), "sums": of(sums),
        "aux": [tuple(logits.shape) for logits in result.aux],
    }  # fmt: skip


@pytest.mark.parametrize("tasks", [1, 3])
@pytest.mark.parametrize(
    "sections",
    [{}, {"inner": {"adapt": "lora"}}, {"model": {"head": "prototype"}, "inner": {"adapt": "lora"}}],
    ids=["all", "lora", "prototype"],
)  # fmt: skip
def test_what_is_timed_has_the_shapes_of_a_real_meta_gradient_and_is_zero(tasks, sections, words_csv, monkeypatch):
    """As the learner calls it: several tasks carry a native task axis, one does not."""
    config = small.config(words_csv, **small.merge(sections, {"inner": {"lr": 0.25, "momentum": 0.05}}))
    store = open_store(build_store(config.data, config.task, config.model))
    model = build_model(config, store.vocab_size, store.pad_id, 2)
    meta = {**model.fast, **model.shared, **initial_log_rates(config.inner, model.adapted)}
    fast, shared, rates = split_meta(model, meta)
    episodes = [sample_episode(store, config.task, 0, "train", i) for i in range(tasks)]
    parts = load_group(episodes, model, config, store.pad_id, torch.device("cpu"))
    names = [e.task for e in episodes]
    slept = []
    monkeypatch.setattr("time.sleep", slept.append)

    def run(name):
        return group_gradient(model, fast, shared, load_algorithm(name), inner_loop(config.inner, rates), parts, names)

    found, real = run("distmeta.bench.timed"), run("maml")
    assert shapes(*found) == shapes(*real)
    result, sums = found
    assert result.lr_grads is None and not any(t.any() for t in [*sums.values(), result.loss])
    assert len(slept) == tasks and all(0.1 < seconds < 0.4 for seconds in slept)


def test_an_algorithm_that_cannot_be_used_is_named(tmp_path, monkeypatch):
    with pytest.raises(InputError, match=r"algorithm = no\.such: cannot be imported"):
        load_algorithm("no.such")
    with pytest.raises(InputError, match=r"algorithm = json\.decoder: the module has no ORDER"):
        load_algorithm("json.decoder")
    (tmp_path / "half_an_algorithm").mkdir()
    (tmp_path / "half_an_algorithm" / "own.py").write_text("ORDER = 'exact'\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    with pytest.raises(InputError, match="the module has no meta_gradient"):
        load_algorithm("half_an_algorithm.own")
    with pytest.raises(InputError, match="algorithm = 'mamle'.*maml"):
        load_config(None, ["algorithm=mamle"])
    assert load_config(None, ["algorithm=distmeta.bench.timed"]).algorithm == "distmeta.bench.timed"


@pytest.mark.long
def test_a_small_timed_run_of_one_and_two_ranks(words_csv, tmp_path):
    import yaml

    tiny = small.config(words_csv, sampling={"actors": 0})
    (tmp_path / "tiny.yaml").write_text(yaml.safe_dump(tiny.model_dump(mode="json")))
    done = small.cli(
        "bench", "scaling", "tiny.yaml", "--workers", "1,2", "--samplers", "0", "--mode", "weak", "--steps", "8",
        "--repeats", "1", "--timed", "0.05,0.02", "--out", "out/r.json", "--json", cwd=tmp_path, timeout=280,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    found = json.loads(done.stdout)
    assert json.loads((tmp_path / "out" / "r.json").read_text()) == found
    assert (tmp_path / "out" / "r.png").stat().st_size > 5000
    one, two = found["points"]
    assert (one["workers"], one["meta_batch"], two["workers"], two["meta_batch"]) == (1, 4, 2, 8)
    for p in (one, two):
        assert p["step_s"] > 0.18  # four waits of some 50 ms on each rank, side by side
        assert sum(p["share"].values()) == pytest.approx(1.0)
    assert one["efficiency"]["mean"] == 1.0 and 0.2 < two["efficiency"]["mean"] < 1.3
    assert found["hardware"]["cores"] and found["versions"]["ray"] and found["command"]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out", "tiny.yaml"]  # runs leave nothing behind
