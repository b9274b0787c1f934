"""Smaller checkpoints and exports: as small as asked, true to what was taken away, and usable like any other."""

import json
import os
import re
import subprocess
import sys

import pytest
import small
import torch
from safetensors.torch import load_file
from test_export import SUPPORT, TEXTS, make, ours

from distmeta.errors import InputError
from distmeta.evaluation.adapt import adapt, load_adapted
from distmeta.evaluation.evaluate import evaluate, load_model
from distmeta.export.compress import compress, compressed
from distmeta.export.export import export, read
from distmeta.models import compression
from distmeta.models.compression import Prune, parse_prune
from distmeta.runs import checkpoint

LORA = {"inner": {"adapt": "lora", "learn_lr": "per_layer"}}
ROWS = [{"text": text, "label": ("no", "yes")[number]} for text, number in zip(*SUPPORT)]


@pytest.fixture(scope="module")
def runs(tmp_path_factory, words_csv):
    """Checkpoints by name; made once each."""
    place = tmp_path_factory.mktemp("compress")
    cases = {
        "bert": ("bert", {"inner": {"learn_lr": "per_parameter"}}),
        "bert, lora": ("bert", {**LORA, "model": {"lora_targets": "query|dense"}, "outer": {"base": "freeze"}}),
        "gpt2": ("gpt2", {}),
        "llama": ("llama", {"inner": {"adapt": "lora"}, "model": {"config": {
            "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2,
            "intermediate_size": 32}}}),
        "llama, one pair": ("llama", {}),
        "t5": ("t5", {"model": {"config": {"num_heads": 4, "num_layers": 2}}}),
    }  # fmt: skip
    made = {}

    def of(name):
        if name not in made:
            architecture, sections = cases[name]
            made[name] = make(place / name, words_csv, architecture, **sections)
        return made[name]

    return of


def whole(saved):
    """All of the backbone's running values and its model."""
    model = load_model(saved)
    own = {f"backbone.{name}": value.detach() for name, value in model.backbone.named_parameters()}
    return model, {**own, **saved.meta}


def test_the_smallest_weights_of_all_linear_layers_become_zero(runs):
    saved = checkpoint.load(runs("bert"))
    model, before = whole(saved)
    _, after = whole(compressed(saved, [Prune("magnitude", 0.6)], None))
    names = [f"backbone.{path}.weight" for path in compression.linears(model.backbone)]
    old, new = (torch.cat([values[name].flatten() for name in names]) for values in (before, after))
    assert int((new == 0).sum()) == round(0.6 * len(new))
    assert old[new == 0].abs().max() <= old[new != 0].abs().min() and torch.equal(new[new != 0], old[new != 0])
    assert all(torch.equal(before[name], after[name]) for name in before if name not in names)


def masked(saved, smaller, form, kind):
    """The full checkpoint with the weights out of what was taken away set to zero."""
    model, values = whole(saved)
    layers = compression.linears(model.backbone)
    cuts = (compression.unit_cuts if kind == "units" else compression.head_cuts)(model.backbone, values, 0.5)[0]
    for one in cuts:
        if one.side == "in" and one.module.endswith(form):
            name = f"backbone.{one.module}.weight"
            dim = 0 if type(layers[one.module]).__name__ == "TaskConv1D" else 1
            gone = torch.ones(values[name].shape[dim], dtype=torch.bool)
            gone[one.kept] = False
            values[name] = values[name].masked_fill(gone if dim else gone.unsqueeze(1), 0.0)
            if f"backbone.{one.module}.lora_A" in values:
                values[f"backbone.{one.module}.lora_A"] = values[f"backbone.{one.module}.lora_A"].masked_fill(gone, 0.0)
    return model, values


@pytest.mark.parametrize(
    ("case", "kind", "out", "sizes"),
    [
        ("bert", "units", ".output.dense", {"intermediate_size": 16}),
        ("bert, lora", "units", ".output.dense", {"intermediate_size": 16}),
        ("gpt2", "units", ".mlp.c_proj", {"n_inner": 32}),
        ("llama", "units", ".down_proj", {"intermediate_size": 16}),
        ("t5", "units", ".wo", {"d_ff": 16}),
        ("llama", "heads", ".o_proj", {"num_attention_heads": 2, "num_key_value_heads": 1, "head_dim": 4}),
        ("llama, one pair", "heads", ".o_proj", {"num_attention_heads": 1, "num_key_value_heads": 1, "head_dim": 8}),
        ("t5", "heads", ".o", {"num_heads": 2, "d_kv": 8}),
    ],
)
def test_a_structured_model_is_the_masked_one(runs, tmp_path, case, kind, out, sizes):
    path = runs(case)
    smaller = compress(path, tmp_path / "small", [f"{kind}:0.5"])
    model, values = masked(checkpoint.load(path), smaller, out, kind)
    batch = batch_of(path, model)
    with torch.no_grad():
        expected = model.features(values, batch)[0][batch.labels[0].argsort()]
    torch.testing.assert_close(ours(smaller)[0], expected, atol=1e-5, rtol=1e-5)
    hf_config = load_model(checkpoint.load(smaller)).backbone.config
    assert {key: getattr(hf_config, key) for key in sizes} == sizes
    assert numbers(smaller) < numbers(path)
    exported = json.loads((export(smaller, tmp_path / "out") / ("base" if "lora" in case or case == "llama" else "") /
                           "config.json").read_text())  # fmt: skip
    assert {key: exported[key] for key in sizes} == sizes


def batch_of(path, model):
    from tokenizers import Tokenizer

    from distmeta.evaluation.support import tokenise
    from distmeta.models.batch import to_batches
    from distmeta.tasks.episodes.collate import collate

    saved = checkpoint.load(path)
    rows = tokenise(Tokenizer.from_file(str(saved.tokenizer_file)), TEXTS, range(len(TEXTS)), saved.config)
    return to_batches(collate([rows], 1, saved.state["pad_id"]), "cpu", model.causal)[0]


def numbers(path):
    return sum(p.numel() for p in load_model(checkpoint.load(path)).backbone.parameters())


def test_what_is_read_and_written_least_goes(runs):
    """Units and heads are chosen by what they read and write: those made strong by hand stay."""
    model, values = whole(checkpoint.load(runs("llama")))
    for layer, strong in enumerate(([1, 5, 31], [0, 2, 3])):
        values[f"backbone.layers.{layer}.mlp.up_proj.weight"][strong] *= 100
    cuts, sizes = compression.unit_cuts(model.backbone, values, 29 / 32)
    assert sizes == {"intermediate_size": 3}
    chosen = {one.module: one.kept.tolist() for one in cuts}
    assert chosen["layers.0.mlp.down_proj"] == [1, 5, 31] and chosen["layers.1.mlp.gate_proj"] == [0, 2, 3]
    values["backbone.layers.0.self_attn.v_proj.weight"][4:8] *= 100  # the second of two pairs, heads 2 and 3 of 4
    values["backbone.layers.1.self_attn.o_proj.weight"][:, :8] *= 100  # the first
    chosen = {one.module: one.kept.tolist() for one in compression.head_cuts(model.backbone, values, 0.5)[0]}
    assert chosen["layers.0.self_attn.q_proj"] == chosen["layers.0.self_attn.o_proj"] == list(range(8, 16))
    assert chosen["layers.0.self_attn.k_proj"] == [4, 5, 6, 7] and chosen["layers.1.self_attn.v_proj"] == [0, 1, 2, 3]
    values["backbone.layers.0.self_attn.v_proj.weight"][:4] *= 1e6
    chosen = {one.module: one.kept.tolist() for one in compression.head_cuts(model.backbone, values, 0.5)[0]}
    assert chosen["layers.0.self_attn.k_proj"] == [0, 1, 2, 3]


def test_int8_is_within_half_a_step_of_each_row():
    generator = torch.Generator().manual_seed(0)
    weights = {"a": torch.randn(7, 5, generator=generator) * 10, "b": torch.zeros(3, 4), "c": torch.randn(4)}
    weights["b"][1, 2] = 1e-30
    stored = compression.quantise(weights, ["a", "b"])
    assert stored["a"].dtype == stored["b"].dtype == torch.int8 and torch.equal(stored["c"], weights["c"])
    back = compression.restore(stored)
    assert back.keys() == weights.keys()
    for name in ("a", "b"):
        bound = weights[name].abs().amax(1, keepdim=True) / 254
        assert ((back[name] - weights[name]).abs() <= bound * (1 + 1e-5)).all()
    again = compression.quantise(back, ["a"])
    assert torch.equal(again["a"], stored["a"])  # rounding what is rounded changes nothing


@pytest.mark.parametrize("case", ["bert", "bert, lora"])
def test_a_smaller_checkpoint_adapts_is_scored_and_predicts(runs, tmp_path, case):
    path = compress(runs(case), tmp_path / "small", ["units:0.5", "magnitude:0.3"], "int8")
    file, name = ("base" if "lora" in case else "meta"), "backbone.encoder.layer.0.intermediate.dense.weight"
    assert load_file(path / f"{file}.safetensors")[name].dtype == torch.int8
    found = evaluate(path, episodes=4, baselines=False)
    assert found.methods["meta_trained"]["accuracy"]["episodes"] == 4
    fitted = adapt(path, ROWS)
    fitted.save(tmp_path / "fitted")
    expected = fitted.predict(TEXTS)
    assert load_adapted(tmp_path / "fitted").predict(TEXTS) == expected
    logits = {}
    for name, quantise in (("float", None), ("int8", "int8")):
        trained = read(tmp_path / "fitted", quantise=quantise)
        batch = batch_of(path, trained.model)
        with torch.no_grad():
            scores = trained.model.logits(dict(trained.values), batch)[0]
        logits[name] = scores[batch.labels[0].argsort()].softmax(-1)
    assert logits["float"][:, 0].tolist() == pytest.approx([p["probabilities"]["no"] for p in expected], abs=2e-6)
    assert (logits["float"] - logits["int8"]).abs().max() < 0.05


def test_an_adapter_on_a_pruned_base_leaves_its_zeros(runs, tmp_path):
    path = compress(runs("bert, lora"), tmp_path / "small", ["magnitude:0.5"])
    adapt(path, ROWS).save(tmp_path / "fitted")
    base = load_file(tmp_path / "fitted" / "base.safetensors")
    model = load_model(checkpoint.load(path))
    weights = torch.cat([base[f"backbone.{p}.weight"].flatten() for p in compression.linears(model.backbone)])
    assert int((weights == 0).sum()) == round(0.5 * len(weights))


ELSEWHERE = """
import os, re, sys
from safetensors.torch import save_file
texts, places = eval(sys.argv[1])
for place in places:
    os.chdir(place)
    space = {}
    exec(re.search(r"```python\\n(.*?)```", open("README.md").read(), re.S)[1], space)
    save_file({"features": space["features"](texts).contiguous()}, "found.safetensors")
    print("distmeta" in sys.modules)
"""


def test_exports_load_where_their_cards_say(runs, tmp_path):
    """transformers or peft alone but for int8; a merged adapter gives the adapter's features."""
    path = runs("bert, lora")
    places = {
        "units": export(path, tmp_path / "units", prune=["units:0.5"]),
        "merged": export(path, tmp_path / "merged", merge=True),
        "int8": export(path, tmp_path / "int8", merge=True, quantise="int8"),
        "adapter": export(path, tmp_path / "adapter", quantise="int8"),
    }
    words = repr((TEXTS, [str(place) for place in places.values()]))
    done = subprocess.run(
        [sys.executable, "-c", ELSEWHERE, words], capture_output=True, text=True, timeout=200,
        env={**os.environ, "HF_HUB_OFFLINE": "1"},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-2000:]
    assert done.stdout.split() == ["False", "False", "True", "True"]
    features = {name: load_file(place / "found.safetensors")["features"] for name, place in places.items()}
    expected = ours(path)[0]
    torch.testing.assert_close(features["merged"], expected, atol=1e-5, rtol=1e-5)
    for name in ("int8", "adapter"):
        assert 0 < (features[name] - expected).abs().max() < 0.05 * expected.abs().max()
    assert not (places["int8"] / "model.safetensors").exists() and (places["int8"] / "model_int8.safetensors").exists()
    assert json.loads((places["units"] / "distmeta.json").read_text())["compression"]["prune"] == ["units:0.5"]
    assert re.search(r"\| compression \| int8 \|", (places["int8"] / "README.md").read_text())


def test_int8_kernels_give_the_restored_weights_results(runs, tmp_path):
    out = export(runs("bert"), tmp_path / "out", quantise="int8")
    ids = torch.arange(12).view(2, 6)
    with torch.no_grad():
        slow = compression.load_int8(out)(ids).last_hidden_state
        fast = compression.load_int8(out, kernels=True)
        assert sum(isinstance(m, compression.Int8Linear) for m in fast.modules()) >= 6
        assert (fast(ids).last_hidden_state - slow).abs().max() < 0.1 * slow.abs().max()
    with pytest.raises(InputError, match=r"no model_int8\.safetensors"):
        compression.load_int8(tmp_path)


def test_a_published_base_is_brought_along(runs, tmp_path, words_csv):
    """A LoRA run on a frozen pretrained model: the smaller checkpoint needs that model no more."""
    base = export(runs("bert"), tmp_path / "base")
    path = make(tmp_path / "run", words_csv, model={"pretrained": str(base)}, inner={"adapt": "lora"})
    before = ours(path)[0]
    smaller = compress(path, tmp_path / "small", quantise="int8")
    (base / "model.safetensors").unlink()
    assert (ours(smaller)[0] - before).abs().max() < 0.05 * before.abs().max()
    assert checkpoint.load(smaller).config.model.pretrained is None
    stored = load_file(smaller / "base.safetensors")
    assert stored["backbone.encoder.layer.0.attention.self.query.weight"].dtype == torch.int8


def test_errors(runs, tmp_path):
    for text in ("units", "units:0", "units:1", "units:x", "rows:0.5", "units:nan"):
        with pytest.raises(InputError, match="KIND:SHARE"):
            parse_prune(text)
    for case, kind in (("bert", "heads"), ("gpt2", "heads")):
        with pytest.raises(InputError, match=f"{case}: its configuration ties the width of a head"):
            compress(runs(case), tmp_path / "out", [f"{kind}:0.5"])
    with pytest.raises(InputError, match="nothing to do"):
        compress(runs("bert"), tmp_path / "out")
    with pytest.raises(InputError, match="int4: only int8 is supported"):
        export(runs("bert"), tmp_path / "out", quantise="int4")
    with pytest.raises(InputError, match="no adapter"):
        export(runs("bert"), tmp_path / "out", merge=True)
    assert not (tmp_path / "out").exists()
    done = small.command("compress", str(runs("bert")), "--out", "out", "--prune", "units:2", cwd=tmp_path)
    assert done.returncode == 2 and done.stderr.count("\n") == 1


def test_pooled_lstm_has_no_units(tmp_path, words_csv):
    path = make(tmp_path / "run", words_csv, "lstm")
    with pytest.raises(InputError, match="no feed-forward layers"):
        compress(path, tmp_path / "out", ["units:0.5"])
    compress(path, tmp_path / "out", ["magnitude:0.5"], "int8")
    assert torch.isfinite(ours(tmp_path / "out")[0]).all()
