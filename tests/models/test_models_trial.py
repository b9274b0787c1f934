"""What distmeta cannot run is refused in the driver, in one line that names the family and why."""

import ast
import json
from pathlib import Path

import architectures
import pytest
import small

import distmeta
from distmeta.config import make_config
from distmeta.errors import InputError
from distmeta.models import trial
from distmeta.models.backbone import build_backbone, model_config
from distmeta.pretraining import model as pretraining

SMALL = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32}
TEXT = {"task": {"family": "text_to_text"}}


def of(kind, sizes=None, **sections):
    model = {"architecture": kind, "config": sizes or {}} | sections.pop("model", {})
    return make_config({"model": model, **sections})


@pytest.mark.parametrize(("kind", "sections", "line"), [
    ("clip", {}, r"model\.architecture = clip: clip reads more than text \(vision_config\)"),
    ("gemma3", TEXT, r"gemma3 reads more than text \(vision_config\)"),
    ("vit", {}, "model.architecture = vit: vit takes no token ids"),
    ("fsmt", {}, "model.architecture = fsmt: fsmt cannot be run here"),
    ("t5", {**TEXT, "model": {"head": "context"}}, "head = context: t5, an encoder-decoder, does not read"),
    ("gpt2", {**TEXT, "model": {"head": "context"}},
     "a support set and a text after it may take 384 positions, the model has 128; lower task.shots"),
    ("bert", TEXT, "model.architecture = bert: task.family=text_to_text needs a decoder or an encoder-decoder"),
])  # fmt: skip
def test_what_cannot_be_run_is_refused_by_name(tmp_path, monkeypatch, kind, sections, line):
    monkeypatch.setattr(trial, "MOST", 2e7)
    sizes = {
        "fsmt": {"d_model": 32, "encoder_layers": 2, "decoder_layers": 2},
        "vit": SMALL,
        "gpt2": small.BACKBONES["gpt2"] | {"n_positions": 128},
        "t5": small.BACKBONES["t5"],
    }.get(kind, {})
    with pytest.raises(InputError, match=line) as refused:
        trial.check_model(of(kind, sizes, **sections), tmp_path)
    assert "\n" not in str(refused.value)
    assert not any(tmp_path.rglob("*"))


@pytest.mark.parametrize(("kind", "sizes"), [
    ("funnel", {"block_sizes": [1, 1], "d_model": 32, "n_head": 2, "d_head": 16, "d_inner": 32}),  # two models in one
    ("squeezebert", {**SMALL, "embedding_size": 32}),  # it calls its pooler, which is none of ours
])  # fmt: skip
def test_what_can_be_run_is_not_refused(kind, sizes):
    trial.try_model(of(kind, sizes))


def test_quantised_weights_are_refused_by_name(tmp_path):
    build_backbone(small.config().model, 40, 0, 0).config.save_pretrained(tmp_path)
    content = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({**content, "quantization_config": {"quant_method": "gptq"}}))
    with pytest.raises(InputError, match=r"its weights are quantised \(gptq\)"):
        trial.check_model(make_config({"model": {"pretrained": str(tmp_path)}}), tmp_path / "cache")


def test_weights_that_are_not_there_or_not_whole_are_refused_before_they_are_read(tmp_path):
    config = make_config({"model": {"pretrained": str(small.decoder(tmp_path / "m"))}, **TEXT})
    trial.check_model(config, tmp_path / "cache")
    whole = (tmp_path / "m" / "model.safetensors").read_bytes()
    (tmp_path / "m" / "model.safetensors").write_bytes(whole[:-100])
    with pytest.raises(InputError, match="model.safetensors is damaged"):
        trial.check_model(config, tmp_path / "cache")
    (tmp_path / "m" / "model.safetensors").unlink()
    with pytest.raises(InputError, match="no model.safetensors in it; give a directory with all weights"):
        trial.check_model(config, tmp_path / "cache")
    index = {"weight_map": {"a": "model-00001-of-00002.safetensors", "b": "model-00002-of-00002.safetensors"}}
    (tmp_path / "m" / "model.safetensors.index.json").write_text(json.dumps(index))
    (tmp_path / "m" / "model-00001-of-00002.safetensors").write_bytes(whole)
    with pytest.raises(InputError, match="no model-00002-of-00002.safetensors in it"):
        trial.check_model(config, tmp_path / "cache")


def test_a_prompt_that_leaves_no_room_for_a_text_is_refused(tmp_path):
    model = {"pretrained": str(small.decoder(tmp_path / "m")), "max_tokens": 20}  # bytes: Input: , and Label:
    config = make_config({"model": model, "task": {"labels": "letters"}})
    with pytest.raises(
        InputError, match=r"max_tokens = 20: what task.prompt writes around a text \(14 tokens\) leaves"
    ):
        trial.check_model(config, tmp_path / "cache")


def test_names_that_nothing_has_are_refused_with_the_nearest(tmp_path):
    with pytest.raises(InputError, match="matches no parameter. Did you mean 'encoder'"):
        trial.check_model(of("bert", inner={"adapt": "encodr"}), tmp_path)
    trial.check_model(of("bert", inner={"adapt": r"layer\.11"}), tmp_path)  # the copy has two layers
    model = {"architecture": "bert", "lora_targets": "nothing"}
    with pytest.raises(InputError, match=r"lora_targets = nothing: matches no linear layer.*encoder\.layer"):
        trial.check_model(make_config({"model": model, "inner": {"adapt": "lora"}}), tmp_path)


@pytest.mark.parametrize("kind", ["deberta-v2", "falcon", "ctrl"])
def test_automatic_lora_finds_layers_of_a_family_by_whatever_name(kind):
    config = of(kind, architectures.small_config(kind), inner={"adapt": "lora"})
    trial.check_names(config, model_config(config.model, trial.WORDS, trial.PAD))  # raises where none is found


def test_what_has_passed_is_not_tried_again_for_the_same_configuration_and_versions(tmp_path, monkeypatch):
    tried = []
    monkeypatch.setattr(trial, "try_model", lambda config: tried.append(config.model.architecture))
    for _ in range(2):
        trial.check_model(of("bert"), tmp_path)
    trial.check_model(of("bert", {"hidden_size": 48}), tmp_path)
    assert len(tried) == 2
    monkeypatch.setattr(trial, "version", lambda name: "another")
    trial.check_model(of("bert"), tmp_path)
    assert len(tried) == 3


def test_a_cache_that_cannot_be_written_is_no_error(tmp_path, monkeypatch):
    monkeypatch.setattr(trial, "try_model", lambda config: None)
    (tmp_path / "models").write_text("a file where a directory should be")
    trial.check_model(of("bert"), tmp_path)


def test_a_copy_has_two_layers_of_different_kinds_and_few_words():
    from transformers import AutoConfig

    full = AutoConfig.for_model("gemma3_text", pad_token_id=0, eos_token_id=[1, 106_000])
    copy = trial.small_copy(full, 2)
    assert copy.num_hidden_layers == 2
    assert copy.layer_types == ["sliding_attention", "full_attention"]
    assert copy.vocab_size == trial.WORDS
    assert copy.hidden_size == full.hidden_size
    assert full.num_hidden_layers > 2  # is as it was


def test_what_cannot_be_pretrained_is_refused_before_the_text_is_read(tmp_path, monkeypatch):
    def fails(*_, **__):
        raise ValueError("no such call")

    monkeypatch.setattr(pretraining.calls, "trial", fails)
    with pytest.raises(InputError, match="gpt2 cannot be run here"):
        pretraining.check_model(of("gpt2", {"n_embd": 32, "n_layer": 2, "n_head": 2}).model, "causal", tmp_path)


def test_training_refuses_before_ray_is_started(tmp_path, monkeypatch):
    import importlib

    train = importlib.import_module("distmeta.drive.train")
    monkeypatch.setattr(train, "ray_cluster", None)
    with pytest.raises(InputError, match="vit takes no token ids"):
        train.train({"model": {"architecture": "vit", "config": SMALL}, "run": {"dir": str(tmp_path / "run")}})
    assert not (tmp_path / "run").exists()


def test_no_call_that_reads_a_published_model_runs_code_of_its_repository():
    calls = [
        (path.name, call)
        for path in Path(distmeta.__file__).parent.rglob("*.py")
        for call in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(call, ast.Call)
        and getattr(call.func, "attr", "") in ("from_pretrained", "from_config")
        and getattr(getattr(call.func, "value", None), "id", "")
        != "PeftModel"  # which has no such argument, and no code
    ]
    assert len(calls) > 8
    for name, call in calls:
        values = {keyword.arg: getattr(keyword.value, "value", None) for keyword in call.keywords}
        assert values.get("trust_remote_code") is False, f"{name} line {call.lineno}"
