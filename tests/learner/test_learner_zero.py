"""Runs of a group with its frozen base in shards against the same runs in one process with the base whole."""

import json

import pytest
import ranks
import small
import torch
import zero_cases
from safetensors.torch import load_file

ZERO3 = {"zero_optimization": {"stage": 3, "stage3_param_persistence_threshold": 0}, "gradient_clipping": 0.5}
VARIANTS = {
    "exact llama": {"algorithm": "maml", "inner": {"learn_lr": "per_step"}},
    "first order gpt2": {"algorithm": "fomaml", "inner": {"buckets": 3, "memory": "walk"}, "eval": {"every": 2}},
    "bfloat16 qwen2": {"algorithm": "maml", "model": {"dtype": "bfloat16"}},
}


def config(data, name, folder, baselines=False):
    """The GPT-2 is read from bfloat16 files: mapped by one process, a part of each weight by each rank of two."""
    pretrained = {"pretrained": str(folder / "gpt2")} if name.endswith("gpt2") else {}
    base = {
        "model": pretrained,
        "inner": {"adapt": "lora", "task_batch": 2},
        # 5 episodes of 2 ranks: one has more work than the other
        "outer": {"base": "freeze", "steps": 3, "meta_batch_size": 5, "eps": 1e-2},
        "deepspeed": ZERO3, "run": {"checkpoint_every": 3},
        "eval": {"episodes": 3, "validation_episodes": 2, "baselines": baselines},
    }  # fmt: skip
    return small.config(data, name.split()[-1], **small.merge(base, VARIANTS[name])).model_dump(mode="json")


@pytest.fixture(scope="module")
def reports(tmp_path_factory, words_csv):
    """{(world, rank): report}, and the folder of the runs."""
    folder = tmp_path_factory.mktemp("zero")
    small.in_files(folder / "gpt2", "gpt2", tied=True)
    return run(folder, {name: config(words_csv, name, folder) for name in VARIANTS}), folder


def run(folder, configs):
    """What each rank of a group of one and a group of two tells."""
    cases = folder / "cases.json"
    cases.write_text(json.dumps(configs))
    told = ranks.run(zero_cases.__file__, [(world, (folder, cases)) for world in (1, 2)], folder)
    return {(group + 1, rank): json.loads(line) for (group, rank), line in told.items()}


@pytest.mark.slow
@pytest.mark.parametrize("name", VARIANTS)
def test_a_base_in_shards_gives_the_same_run(reports, name):
    found, folder = reports
    whole, parts = found[1, 0][name], found[2, 0][name]
    assert whole["shards"] == 0 and parts["shards"] > 8
    off = 2e-3 if name.startswith("bfloat16") else 1e-5  # ranks group other episodes, which rounds otherwise
    for a, b in zip(whole["records"], parts["records"], strict=True):
        assert b["outer_loss"] == pytest.approx(a["outer_loss"], abs=off)
        assert b["inner_loss"] == pytest.approx(a["inner_loss"], abs=off)
        assert b["grad_norm"] == pytest.approx(a["grad_norm"], rel=10 * off)
        assert b.get("validation", {}) == pytest.approx(a.get("validation", {}), abs=off)
    last = [folder / f"{name}-{world}" / "checkpoints" / "step-000003" / "meta.safetensors" for world in (1, 2)]
    one, two = map(load_file, last)
    assert max(float((two[k] - v).abs().max()) for k, v in one.items()) < off
    same_evaluation(folder, name, off)


def same_evaluation(folder, name, off):
    tests = [json.loads((folder / f"{name}-{world}" / "evaluation.json").read_text()) for world in (1, 2)]
    assert tests[0].keys() == tests[1].keys()
    for method, metrics in tests[0].items():
        assert tests[1][method]["loss"]["mean"] == pytest.approx(metrics["loss"]["mean"], abs=off), method


@pytest.mark.long
def test_baselines_over_a_base_in_shards(words_csv, tmp_path):
    run(tmp_path, {"exact llama": config(words_csv, "exact llama", tmp_path, baselines=True)})
    same_evaluation(tmp_path, "exact llama", 1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("name", VARIANTS)
@pytest.mark.parametrize("rank", [0, 1])
def test_one_gathered_weight_is_alive_at_a_time(reports, name, rank):
    report = reports[0][2, rank][name]
    assert report["peak"] == report["largest"]
    assert report["alive"] == 0


@pytest.mark.slow
def test_ranks_that_do_not_keep_step(reports):
    first, last = (reports[0][2, rank]["uneven"] for rank in (0, 1))
    assert first["right"] and last["right"] and last["kept"]
    assert first["peak"] == last["peak"] == 7 * 7 * torch.float32.itemsize
    assert last["error"] == "ArithmeticError: of its own"
    assert first["error"] == "RankFailed: rank 1 stopped with an error of its own"
