"""The whole group on one episode, its fast weights in shards: the same runs as one rank's that has them whole."""

import json

import pytest
import ranks
import small
import torch
import zero_cases
from safetensors.torch import load_file

from distmeta.errors import InputError
from distmeta.evaluation.evaluate import evaluate
from distmeta.export import export
from distmeta.models.fast_shards import FastShards
from distmeta.runs import checkpoint

STAGE = {"stage": 3, "stage3_param_persistence_threshold": 200}
ZERO3 = {"zero_optimization": STAGE, "gradient_clipping": 0.05}
OFFLOAD = {"zero_optimization": {**STAGE, "offload_optimizer": {"device": "cpu"}}, "gradient_clipping": 0.05}
VARIANTS = {
    "plain llama": {"inner": {"learn_lr": "per_layer", "buckets": 3}, "eval": {"every": 2}},
    "adam gpt2": {"inner": {"optimizer": "adam", "lr": 0.01, "learn_lr": "per_step"}, "deepspeed": OFFLOAD},
    "momentum t5": {"inner": {"optimizer": "momentum", "lr": 0.05, "learn_lr": "per_parameter"}},
    "few rows bert": {"algorithm": "reptile", "task": {"shots": 1, "queries": 1}},  # 2 rows for 3 ranks
    "bfloat16 qwen2": {"model": {"dtype": "bfloat16"}},
}
WORLDS = (1, 2, 3)


def config(data, name, episode):
    base = {
        "algorithm": "fomaml", "inner": {"task_batch": 1}, "deepspeed": ZERO3,
        "outer": {"steps": 3, "meta_batch_size": 3, "eps": 1e-2}, "cluster": {"workers": 1, "episode": episode},
        "run": {"checkpoint_every": 3}, "eval": {"episodes": 3, "validation_episodes": 2, "baselines": False},
    }  # fmt: skip
    return small.config(data, name.split()[-1], **small.merge(base, VARIANTS[name])).model_dump(mode="json")


@pytest.fixture(scope="module")
def reports(tmp_path_factory, words_csv):
    """{(world, rank): report}, and the folder of the runs; "NAME whole" are those of one rank that has all weights."""
    folder = tmp_path_factory.mktemp("group")
    groups = []
    for world in WORLDS:
        settings = {name: config(words_csv, name, "group") for name in VARIANTS}
        if world == 1:
            settings |= {f"{name} whole": config(words_csv, name, "rank") for name in VARIANTS}
        cases = folder / f"cases-{world}.json"
        cases.write_text(json.dumps(settings))
        groups.append((world, (folder, cases)))
    told = ranks.run(zero_cases.__file__, groups, folder)
    found = {(WORLDS[group], rank): json.loads(line) for (group, rank), line in told.items()}
    return found, folder


@pytest.mark.long
@pytest.mark.parametrize("world", WORLDS)
@pytest.mark.parametrize("name", VARIANTS)
def test_the_group_gives_the_run_of_one_rank(reports, name, world):
    found, folder = reports
    whole, parts = found[1, 0][f"{name} whole"], found[world, 0][name]
    narrow = name.startswith("bfloat16")  # whose rounding grows from step to step
    off = 2e-2 if narrow else 1e-5
    first = whole["records"][0], parts["records"][0]
    assert first[1]["inner_loss"] == pytest.approx(first[0]["inner_loss"], abs=1e-3 if narrow else 1e-6)
    assert first[1]["grad_norm"] == pytest.approx(first[0]["grad_norm"], rel=1e-2 if narrow else 1e-5)
    for a, b in zip(whole["records"], parts["records"], strict=True):
        assert b["outer_loss"] == pytest.approx(a["outer_loss"], abs=off)
        assert b["inner_loss"] == pytest.approx(a["inner_loss"], abs=off)
        assert b["query_accuracy"] == pytest.approx(a["query_accuracy"], abs=0.2 if narrow else 1e-6)
        assert b["inner_lr"] == pytest.approx(a["inner_lr"], rel=off)
        assert b["grad_norm"] == pytest.approx(a["grad_norm"], rel=10 * off)
        assert b.get("validation", {}) == pytest.approx(a.get("validation", {}), abs=off)
    runs = [folder / f"{name} whole-1", folder / f"{name}-{world}"]
    one, other = (load_file(run / "checkpoints" / "step-000003" / "meta.safetensors") for run in runs)
    assert {k: v.shape for k, v in one.items()} == {k: v.shape for k, v in other.items()}
    assert max(float((other[k] - v).abs().max()) for k, v in one.items()) < off
    states = [load_file(run / "checkpoints" / "step-000003" / "optimizer.safetensors") for run in runs]
    assert {k: v.shape for k, v in states[0].items()} == {k: v.shape for k, v in states[1].items()}
    tests = [json.loads((run / "evaluation.json").read_text()) for run in runs]
    assert tests[0].keys() - {"prototypes", "multi_task"} == tests[1].keys()
    for method, metrics in tests[1].items():
        assert metrics["loss"]["mean"] == pytest.approx(tests[0][method]["loss"]["mean"], abs=off), method
        assert metrics["loss"]["curve"] == pytest.approx(tests[0][method]["loss"]["curve"], abs=off), method


@pytest.mark.long
@pytest.mark.parametrize("name", VARIANTS)
def test_the_whole_is_never_there(reports, name):
    """One weight at a time, and perhaps the one before, which the thread of the communication is about to let go."""
    for world, rank in ((2, 0), (2, 1), (3, 2)):
        report = reports[0][world, rank][name]
        assert report["alive"] == 0
        assert report["peak"] <= 2 * report["largest"] + report["small"] < 0.6 * report["all"]


@pytest.mark.long
def test_such_a_run_is_evaluated_and_exported_as_any_other(reports, tmp_path):
    run = reports[1] / "plain llama-2"
    found = evaluate(run, episodes=3, baselines=False).methods["meta_trained"]
    own = json.loads((run / "evaluation.json").read_text())["meta_trained"]
    assert found["loss"]["mean"] == pytest.approx(own["loss"]["mean"], abs=1e-5)
    export.write(export.read(run), tmp_path / "export")
    from transformers import AutoModelForSequenceClassification

    model = AutoModelForSequenceClassification.from_pretrained(tmp_path / "export")
    weights, saved = dict(model.named_parameters()), checkpoint.load(run).meta
    name = "layers.0.self_attn.q_proj.weight"
    assert torch.equal(weights[f"model.{name}"], saved[f"backbone.{name}"])


@pytest.mark.parametrize(
    ("changes", "key"),
    [
        ({"inner": {"adapt": "lora"}}, "inner.adapt = lora"),
        ({"algorithm": "maml"}, "algorithm = maml"),
        ({"deepspeed": {"zero_optimization": {"stage": 2}}}, "deepspeed.zero_optimization.stage = 2"),
        ({"model": {"head": "prototype"}}, "model.head = prototype"),
        ({"model": {"dropout": 0.1}}, "model.dropout = 0.1"),
    ],
)
def test_what_a_group_cannot_do_is_one_line(changes, key):
    base = {"cluster": {"episode": "group"}, "algorithm": "fomaml", "deepspeed": ZERO3}
    small.config(**base)
    with pytest.raises(InputError, match=f"cluster.episode = group does not work with {key}: ") as refused:
        small.config(**small.merge(base, changes))
    assert "\n" not in str(refused.value)


def test_a_weight_counts_for_as_long_as_a_view_of_it_is_held():
    shards = FastShards(torch.device("cpu"))
    shards.shapes["w"] = torch.Size([4, 8])
    own = shards.cut(torch.randn(4, 8))
    row = shards.whole(["w"], [own])[0][1]
    assert shards.alive == shards.peak == 4 * 8 * 4
    del row
    assert shards.alive == 0
