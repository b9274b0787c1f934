"""The sharded engine against plain torch: ZeRO 0 to 3 at 1, 2 and 3 ranks; its state at another world size."""

import json
import os
import sys
import threading

import engine_cases
import pytest
import ranks
import small
import torch

from distmeta.algorithms.schedule import outer_lr
from distmeta.errors import InputError
from distmeta.learner import engine
from distmeta.learner.engine import MetaEngine, make_optimizer, wait_for_build
from distmeta.learner.ranks import share

RANKS = [(world, rank) for world in engine_cases.WORLDS for rank in range(world)]


@pytest.fixture(scope="module")
def reports(tmp_path_factory):
    """{(world, rank): report} of the processes of three groups, and what they left behind."""
    folder = tmp_path_factory.mktemp("engine")
    extensions = tmp_path_factory.mktemp("extensions")
    before = set(os.listdir("/dev/shm"))
    groups = [(world, (folder,)) for world in engine_cases.WORLDS]
    places = {"TORCH_EXTENSIONS_DIR": str(extensions)}
    told = ranks.run(engine_cases.__file__, groups, folder, together=True, seconds=500, **places)
    found = {(engine_cases.WORLDS[group], rank): json.loads(line) for (group, rank), line in told.items()}
    left = [name for name in set(os.listdir("/dev/shm")) - before if "deepspeed" in name or "torch" in name]
    return found, left, list(extensions.rglob("*"))


@pytest.mark.parametrize("stage", [0, 1, 2, 3])
@pytest.mark.parametrize("rank", RANKS)
def test_steps_are_plain_torch_s(reports, rank, stage):
    cases = {name: r for name, r in reports[0][rank].items() if name.startswith(f"{stage}-")}
    assert len(cases) == (3, 4, 3, 4)[stage]  # AdamW clipped, and unclipped or with its state on the CPU; SGD
    for name, report in cases.items():
        assert report["apart"] < 1e-6, name
        assert report["undisturbed"] < 1e-6, name
        assert report["norm"] < 1e-6, name  # before clipping, at every stage
        kinds = {"adamw": {"exp_avg", "exp_avg_sq"}, "momentum": {"momentum_buffer"}, "sgd": set()}
        kinds["rates"] = kinds["momentum"]
        assert {key.split("/")[0] for key in report["keys"]} == kinds[name.split("-")[1]]


@pytest.mark.parametrize("rank", RANKS)
def test_state_is_read_at_any_world_size(reports, rank):
    for name, report in reports[0][rank].items():
        for source, continued in report["continued"].items():
            assert continued["apart"] < 1e-6, (name, source)
            if int(source) == rank[0]:
                assert continued["identical"], name


def test_nothing_is_compiled_and_nothing_left(reports):
    _, left, compiled = reports
    assert left == []
    assert compiled == []


def lion(steps, settings):
    """Parameters after the steps: Chen et al. 2023, algorithm 2, clipped by the norm of all."""
    params = engine_cases.values()
    momenta = {name: torch.zeros_like(p) for name, p in params.items()}
    first, second = settings.outer.betas
    for step in steps:
        grads = engine_cases.gradients(step, range(engine_cases.PARTS))
        norm = torch.stack([g.square().sum() for g in grads.values()]).sum().sqrt()
        lr = engine_cases.LR[step]
        for name, g in grads.items():
            g = g * min(1.0, 0.5 / (norm + 1e-6))
            update = torch.sign(first * momenta[name] + (1 - first) * g)
            params[name] = params[name] * (1 - lr * settings.outer.weight_decay) - lr * update
            momenta[name] = second * momenta[name] + (1 - second) * g
    return params


@pytest.mark.long
@pytest.mark.parametrize("stage", [0, 1, 2, 3])
@pytest.mark.parametrize("optimizer", ["cpu_adam", "cpu_lion"])
def test_deepspeeds_own_optimizers(optimizer, stage, one_rank):
    """They are compiled, once on a machine."""
    outer = {"lr": 0.05, "optimizer": optimizer, "eps": 1e-2, "weight_decay": 0.1}
    settings = small.config(
        outer=outer, deepspeed={"zero_optimization": {"stage": stage}, "gradient_clipping": 0.5}
    )  # fmt: skip
    engine = MetaEngine(engine_cases.values(), settings, torch.device("cpu"))

    def step(engine, number):
        engine.step(engine_cases.of_rank(number, 1, 0), engine_cases.LR[number])

    for number in (1, 2, 3):
        step(engine, number)
    adam = engine_cases.reference((stage, "adamw", 0.5))[0]
    after = (
        {3: adam[2], 5: adam[4]} if optimizer == "cpu_adam" else {n: lion(range(1, n + 1), settings) for n in (3, 5)}
    )
    saved, meta = engine.optimizer_state(), engine.snapshot()
    assert engine_cases.apart(meta, after[3]) < 5e-6
    again = MetaEngine(meta, settings, torch.device("cpu"))
    again.load_optimizer_state(saved, 3)
    for number in (4, 5):
        step(engine, number)
        step(again, number)
    assert engine_cases.apart(engine.snapshot(), after[5]) < 5e-6
    assert all(torch.equal(value, again.snapshot()[name]) for name, value in engine.snapshot().items())


@pytest.mark.parametrize("zero", [{"stage": 0}, {"stage": 1, "offload_optimizer": {"device": "none"}}])
def test_an_optimizer_of_the_host_is_refused_on_a_gpu(zero):
    settings = small.config(outer={"optimizer": "cpu_adam"}, deepspeed={"zero_optimization": zero})
    on_gpu = torch.nn.Parameter(torch.empty(3, device="meta"))
    with pytest.raises(InputError, match="outer.optimizer = cpu_adam: .*offload_optimizer"):
        make_optimizer({"weight": on_gpu}, settings)


def test_an_optimizer_that_deepspeed_has_not_got_here_is_refused(monkeypatch):
    from deepspeed.ops import lion

    monkeypatch.setattr(lion, "DeepSpeedCPULion", lambda *given, **more: int("not implemented on CPU backend"))
    settings = small.config(outer={"optimizer": "cpu_lion"})
    with pytest.raises(InputError, match=r"^outer.optimizer = cpu_lion: DeepSpeed 0\.\d.* has none .*, or take adamw$"):
        make_optimizer({"weight": torch.nn.Parameter(torch.zeros(3))}, settings)


def test_muon_which_no_optimizer_here_uses_is_imported_without_a_compiler(monkeypatch):
    monkeypatch.setitem(os.environ, "TORCHDYNAMO_DISABLE", "0")
    engine.import_muon()
    muon = sys.modules["deepspeed.runtime.zero.muon.original_muon"]
    assert muon.zeropower_via_newtonschulz5.__module__ == muon.__name__ and os.environ["TORCHDYNAMO_DISABLE"] == "0"
    if hasattr(sys.modules["deepspeed.runtime.zero.stage3"], "muon_update"):
        pytest.skip("this release imports it with DeepSpeed itself")
    assert not hasattr(muon.zeropower_via_newtonschulz5, "_torchdynamo_orig_callable")


def test_the_reference_can_tell():
    """Clipping, weight decay, momentum and the rate of each step all show in the reference's numbers."""
    plain = engine_cases.reference((0, "adamw", 0.0))[0][2]
    for other in [(0, "adamw", 0.5), (0, "momentum", 0.0)]:
        assert engine_cases.apart(engine_cases.reference(other)[0][2], plain) > 1e-3
    sgd = engine_cases.reference((0, "sgd", 0.0))[0][2]
    assert engine_cases.apart(engine_cases.reference((0, "momentum", 0.0))[0][2], sgd) > 1e-3


def test_learnt_rates_have_an_outer_rate_of_their_own():
    """Steps of SGD with momentum are linear in the rate: ten times the rate is ten times the way, of these alone."""
    start = engine_cases.values()
    plain, own = (engine_cases.reference((0, name, 0.0))[0][4] for name in ("momentum", "rates"))
    for name, value in start.items():
        times = 10 if name == "log_lr.wide" else 1
        torch.testing.assert_close(own[name] - value, times * (plain[name] - value), rtol=1e-5, atol=1e-6)


def test_outer_lr_is_warm_up_then_schedule():
    def rates(**outer):
        made = small.config(outer={"lr": 1.0, "steps": 10, **outer})
        return torch.tensor([outer_lr(made, step) for step in range(1, 11)])

    assert torch.equal(rates(), torch.ones(10))
    assert rates(warmup_steps=4)[:5].tolist() == [0.25, 0.5, 0.75, 1.0, 1.0]
    linear = rates(schedule="linear")
    assert linear[0] == 1 and torch.allclose(linear.diff(), torch.tensor(-0.1)) and linear[-1] > 0
    cosine = rates(schedule="cosine", warmup_steps=2)
    assert cosine[2] == 1 and (cosine[2:].diff() < 0).all() and cosine[-1] > 0


def test_shares_are_consecutive_and_even():
    for total in (4, 7, 8):
        for world in (1, 2, 3):
            parts = [share(total, rank, world) for rank in range(world)]
            assert [i for part in parts for i in part] == list(range(total))
            assert max(map(len, parts)) - min(map(len, parts)) <= 1


def test_the_lock_of_a_killed_build_is_named_and_that_of_a_living_one_is_waited_for(tmp_path):
    lock = tmp_path / "lock"
    wait_for_build(lock, "x")  # none
    lock.touch()
    os.utime(lock, (0, 0))
    with pytest.raises(InputError, match=f"x: {lock} is left of a build that was killed; remove this file"):
        wait_for_build(lock, "x")
    held = lock.open()  # as the builder holds it
    threading.Timer(0.3, lock.unlink).start()
    wait_for_build(lock, "x")
    held.close()
    lock.touch()  # of a moment ago: perhaps of another machine's build
    threading.Timer(0.3, lock.unlink).start()
    wait_for_build(lock, "x")
