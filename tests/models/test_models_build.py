"""Which parameters adapt, LoRA against peft, initial values from the seed, and models that cannot be built."""

import subprocess
import sys

import pytest
import small
import torch
from safetensors.torch import load_file, save_file

from distmeta.config import make_config
from distmeta.errors import InputError
from distmeta.models.backbone import WIDTHS, build_backbone, model_config
from distmeta.models.batch import to_batches
from distmeta.models.build import build_model, check_format
from distmeta.tasks.episodes.collate import collate


def build(config):
    return build_model(config, 40, 0, 3)


def test_roles_of_parameters():
    names = dict(build(small.config()).named_parameters())
    heads = {"head_weight", "head_bias"}
    expected = {
        "all": set(names),
        "head": heads,
        r"layer\.0\.attention": {n for n in names if "layer.0.attention" in n},
    }
    for adapt, fast in expected.items():
        model = build(small.config(inner={"adapt": adapt}))
        assert set(model.fast) == fast
        assert set(model.shared) == set(names) - fast  # built from its configuration: the base is meta-learnt
        frozen = build(small.config(inner={"adapt": adapt}, outer={"base": "freeze"}))
        assert set(frozen.shared) == heads - fast
        assert not any(p.requires_grad for p in model.parameters())
    lora = build(small.config(inner={"adapt": "lora"}))
    assert {n for n in lora.fast if "lora_" not in n} == heads
    assert len(lora.fast) == 2 + 2 * 2  # A and B beside query and value of one layer


@pytest.mark.parametrize("kind", ["bert", "gpt2", "llama", "t5"])
def test_lora_starts_as_the_identity_and_is_peft_s(kind):
    from peft import LoraConfig, get_peft_model

    plain = build(small.config(architecture=kind))
    model = build(small.config(architecture=kind, inner={"adapt": "lora"}, model={"lora_rank": 3, "lora_alpha": 7.0}))
    parts = to_batches(collate(small.rows([6], 40, 3), 1, 0), "cpu", model.causal)
    before = plain.features({}, parts[0])[0]
    assert torch.equal(model.features({}, parts[0])[0], before)

    generator = torch.Generator().manual_seed(5)
    params = {n: torch.randn(v.shape, generator=generator) * 0.3 for n, v in model.fast.items()}
    found = model.features(params, parts[0])[0]
    assert (found - before).abs().max() > 1e-3

    targets = {"bert": ["query", "value"], "gpt2": ["c_attn"], "llama": ["q_proj", "v_proj"], "t5": ["q", "v"]}[kind]
    backbone = build_backbone(small.config(architecture=kind).model, 40, 0, 0)
    peer = get_peft_model(
        backbone,
        LoraConfig(r=3, lora_alpha=7, lora_dropout=0.0, target_modules=targets, fan_in_fan_out=kind == "gpt2"),
    ).eval()
    for name, value in peer.named_parameters():
        if "lora_" in name:
            ours = name.replace("base_model.model.", "backbone.").replace(".default.weight", "")
            value.data.copy_(params[ours])
    plain.backbone = peer  # the same pooling over peft's network
    plain.layers.can_prune = False  # which is not the one whose layers were looked up
    torch.testing.assert_close(plain.features({}, parts[0])[0], found, rtol=1e-5, atol=1e-6)


def test_initial_values_are_a_function_of_the_seed():
    state = torch.get_rng_state()
    first, again, other = (
        dict(build(small.config(inner={"adapt": "lora"}, run={"seed": s})).named_parameters()) for s in (3, 3, 4)
    )
    assert torch.equal(torch.get_rng_state(), state)  # no other random number is disturbed
    assert all(torch.equal(value, again[name]) for name, value in first.items())
    assert not torch.equal(first["head_weight"], other["head_weight"])
    assert not torch.equal(first["backbone.embeddings.word_embeddings.weight"],
                           other["backbone.embeddings.word_embeddings.weight"])  # fmt: skip
    a = next(name for name in first if name.endswith("lora_A"))
    assert not torch.equal(first[a], other[a])


def test_a_pretrained_directory_is_loaded_as_it_is(tmp_path):
    source = build_backbone(small.config().model, 40, 0, seed=9)
    source.save_pretrained(tmp_path)
    config = small.config(model={"pretrained": str(tmp_path)})
    loaded = build(config)
    for name, value in source.named_parameters():
        if not name.startswith("pooler"):
            assert torch.equal(loaded.backbone.get_parameter(name), value)
    assert set(build(small.config(model={"pretrained": str(tmp_path)}, inner={"adapt": "head"})).shared) == set()
    with pytest.raises(InputError, match="its tokenizer has 41 tokens, its embedding 40"):
        build_model(config, 41, 0, 3)


def test_roberta_counts_positions_from_its_pad_token():
    config = small.config(model={"architecture": "roberta", "max_tokens": 30})
    model = build_model(config, 40, 1, 3)
    (task,) = small.rows([1], 40, 3, longest=2)
    parts = to_batches(collate([task], 1, 1, multiple=30), "cpu", model.causal)
    ids = torch.as_tensor(parts[0].input_ids)
    ids[:, 2:] = 1
    expected = model.backbone(input_ids=ids, attention_mask=parts[0].keep.long()).last_hidden_state[:, :2].mean(1)
    torch.testing.assert_close(model.features({}, parts[0])[0], expected)
    with pytest.raises(InputError, match="the model has 30 positions"):
        build_model(small.config(model={"architecture": "roberta", "max_tokens": 31}), 40, 1, 3)


def unreadable(tmp_path):
    (tmp_path / "empty").mkdir()
    broken = tmp_path / "broken"
    build_backbone(small.config().model, 40, 0, 0).config.save_pretrained(broken)
    save_file({}, broken / "model.safetensors")
    (broken / "model.safetensors").write_bytes(b"not safetensors")
    build_backbone(small.config().model, 40, 0, 0).save_pretrained(tmp_path / "partial")
    tensors = load_file(tmp_path / "partial" / "model.safetensors")
    del tensors["encoder.layer.0.attention.self.query.weight"]
    save_file(tensors, tmp_path / "partial" / "model.safetensors", {"format": "pt"})
    pickled = tmp_path / "pickled"
    build_backbone(small.config().model, 40, 0, 0).config.save_pretrained(pickled)
    torch.save({}, pickled / "pytorch_model.bin")


@pytest.mark.parametrize(
    ("sections", "expected"),
    [
        ({"model": {"architecture": "brt"}}, "model.architecture = brt.*Did you mean"),
        ({"model": {"config": {"hidden_sise": 8}}}, "model.config.hidden_sise.*Did you mean 'hidden_size'"),
        ({"model": {"config": {"hidden_size": 15}}}, "model.config"),
        ({"model": {"config": {"hidden_size": "wide"}}}, "model.config"),
        ({"model": {"max_tokens": 33}}, "model.max_tokens = 33: the model has 32 positions"),
        ({"model": {"lora_targets": "nothing"}, "inner": {"adapt": "lora"}}, "model.lora_targets = nothing"),
        ({"inner": {"adapt": "nothing"}}, "inner.adapt = nothing: matches no parameter"),
        ({"inner": {"adapt": "("}}, "inner.adapt = (?s:.*)regular expression"),
        ({"model": {"pretrained": "{tmp}/empty"}}, "has no config.json"),
        ({"model": {"pretrained": "{tmp}/broken"}}, "model.pretrained"),
        ({"model": {"pretrained": "{tmp}/pickled"}}, "model.pretrained"),
        ({"model": {"pretrained": "{tmp}/partial"}}, "lack 1 tensors, such as encoder.layer.0.attention.self.query"),
    ],
)
def test_unusable_models_are_one_line(sections, expected, tmp_path):
    unreadable(tmp_path)
    if "pretrained" in sections.get("model", {}):
        sections = {"model": {"pretrained": sections["model"]["pretrained"].format(tmp=tmp_path)}}
    with pytest.raises(InputError, match=expected) as caught:
        build(small.config(**sections))
    assert "\n" not in str(caught.value)


def test_a_head_that_nothing_meta_learnt_adapts_is_refused():
    with pytest.raises(InputError, match="model.distance = cosine belongs to a head that reads features"):
        small.config(algorithm="in_context", inner={"steps": 0}, model={"distance": "cosine"})
    with pytest.raises(InputError, match="inner.adapt = head: a prototype head"):
        small.config(inner={"adapt": "head"}, model={"head": "prototype"})


def test_a_checkpoint_trained_with_another_call_of_its_model_is_refused_and_no_other(words_csv):
    """Format 1 gave positions from 0 to all but RoBERTa's kinds."""
    for kind, more, refused in (("bert", {}, False), ("roberta", {}, False), ("mpnet", {}, True)):
        sizes = {**small.BACKBONES["bert"], "max_position_embeddings": 40, **more}
        model = build_model(small.config(words_csv, model={"architecture": kind, "config": sizes}), 60, 1, 2)
        check_format("RUN", 2, model)
        if not refused:
            check_format("RUN", 1, model)
            continue
        with pytest.raises(InputError, match=f"RUN: an earlier distmeta trained it, which gave {kind} other positions"):
            check_format("RUN", 1, model)


@pytest.mark.parametrize("architecture", ["gpt2", "t5", "opt", "llama"])
def test_a_recipe_s_sizes_are_those_of_any_architecture(architecture):
    """One name for the width of the feed-forward layers, which each architecture calls otherwise."""
    sizes = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 24}
    made = model_config(make_config({"model": {"architecture": architecture, "config": sizes}}).model, 50, 0)
    assert 24 in [getattr(made, name) for name in WIDTHS if hasattr(made, name)] and made.hidden_size == 8


def test_the_configuration_of_one_of_transformers_models_imports_no_modelling_code(tmp_path):
    """What a driver reads before Ray starts; one of distmeta's own types is known all the same."""
    small.decoder(tmp_path / "m")
    code = (
        "import sys; from distmeta.config import ModelConfig; from distmeta.models.backbone import model_config; "
        "kind = model_config(ModelConfig(**{}), 40, 0).model_type; "
        "print(kind, 'transformers.modeling_utils' in sys.modules)"
    )
    for given, expected in (
        ({"pretrained": str(tmp_path / "m")}, "False"), ({"architecture": "lstm", "config": {}}, "lstm True"),
    ):  # fmt: skip
        done = subprocess.run([sys.executable, "-c", code.replace("{}", repr(given))], capture_output=True, text=True)
        assert done.stdout.strip().endswith(expected), done.stderr[-2000:]
