"""Exports load in transformers and peft, without distmeta, and give what distmeta's own model gives."""

import json
import os
import subprocess
import sys

import pytest
import small
import torch
import yaml
from safetensors.torch import load_file
from transformers import AutoModelForSeq2SeqLM

from distmeta.errors import InputError
from distmeta.evaluation.adapt import adapt
from distmeta.evaluation.evaluate import load_model
from distmeta.evaluation.scoring import split_meta
from distmeta.evaluation.support import tokenise
from distmeta.export.export import export, head_tensors, read
from distmeta.learner.state import initial_values
from distmeta.models.batch import to_batches
from distmeta.models.build import build_model
from distmeta.runs import checkpoint
from distmeta.tasks.build import build_store
from distmeta.tasks.episodes.collate import collate
from distmeta.tasks.store import open_store

TEXTS = ["the red thing", "so it is an unheard-of old thing", "blue", "it is a very slow, round and sharp thing " * 3]
SUPPORT = (["a red thing", "so red", "the blue thing", "it is blue"], [0, 0, 1, 1])
CASES = {
    "bert, all": ("bert", {"inner": {"learn_lr": "per_step"}}),
    "gpt2, all, character": ("gpt2", {"model": {"tokenizer": "character"}}),
    "t5, all": ("t5", {}),
    "bert, cosine": ("bert", {"model": {"head": "prototype", "distance": "cosine"}}),
    "llama, prototype, wordpiece": ("llama", {"model": {"head": "prototype", "tokenizer": "wordpiece"}}),
    "bert, lora": ("bert", {"inner": {"adapt": "lora", "learn_lr": "per_layer"}, "model": {"pooling": "first"}}),
    "gpt2, lora": ("gpt2", {"inner": {"adapt": "lora"}}),
    "t5, lora": ("t5", {"inner": {"adapt": "lora"}, "model": {"lora_targets": r"\.(q|o|wi)$"}}),
    "llama, cosine, linear": ("llama", {"model": {"distance": "cosine"}}),
    "qwen2, head": ("qwen2", {"inner": {"adapt": "head"}, "outer": {"base": "freeze"}}),
}


BART = {
    "d_model": 16, "encoder_layers": 1, "decoder_layers": 1, "encoder_attention_heads": 2, "decoder_attention_heads": 2,
    "encoder_ffn_dim": 32, "decoder_ffn_dim": 32, "max_position_embeddings": 32,
}  # fmt: skip


@pytest.fixture
def bart(monkeypatch):
    monkeypatch.setitem(small.BACKBONES, "bart", BART)


def make(run, path, architecture="bert", **sections):
    """A checkpoint of a configuration, its meta-parameters moved at random as training would."""
    config = small.config(path, architecture, **sections)
    store = open_store(build_store(config.data, config.task, config.model))
    model = build_model(config, store.vocab_size, store.pad_id, 2)
    generator = torch.Generator().manual_seed(1)
    meta = {
        name: value.detach() + 0.1 * torch.randn(value.shape, generator=generator)
        for name, value in initial_values(config, model).items()
    }
    state = {
        "step": 7, "tasks_seen": 28, "classes": 2, "labels": store.labels, "vocab_size": store.vocab_size,
        "pad_id": store.pad_id, "stopped": False, "record": {},
    }  # fmt: skip
    path = run / "checkpoints" / "step-000007"
    checkpoint.save(path, config, state, meta, {}, store.tokenizer_file)
    return path


def ours(path):
    """distmeta's own features and class scores of TEXTS."""
    saved = checkpoint.load(path)
    model = load_model(saved)
    fast, shared, _ = split_meta(model, saved.meta)
    values = {**fast, **shared}

    def batches(texts, labels):
        from tokenizers import Tokenizer

        tokenizer = Tokenizer.from_file(str(saved.tokenizer_file))
        rows = tokenise(tokenizer, texts, labels, saved.config)
        return to_batches(collate([rows], 1, saved.state["pad_id"]), "cpu", model.causal)

    with torch.no_grad():
        if model.prototype_head:
            values |= model.start(values, batches(*SUPPORT))
        (batch,) = batches(TEXTS, range(len(TEXTS)))
        order = batch.labels[0].argsort()
        return model.features(values, batch)[0][order], model.logits(values, batch)[0][order]


LOAD = """
import os, re, sys, warnings
import torch
torch.set_num_threads(1)
from safetensors.torch import save_file
from transformers.utils import logging
logging.disable_progress_bar()
texts, support, places = eval(sys.argv[1])
for place in places:
    os.chdir(place)
    code = re.search(r"```python\\n(.*?)```", open("README.md").read(), re.S)[1]
    space = {}
    exec(code, space)
    prototype = "support_texts" in code
    scores = space["logits"](texts, *support) if prototype else space["logits"](texts)
    save_file({"features": space["features"](texts).contiguous(), "logits": scores.contiguous()}, "found.safetensors")
assert "distmeta" not in sys.modules
"""


def load_elsewhere(places):
    """Runs the code of each export's model card in a process that knows nothing of distmeta; what it printed."""
    words = repr((TEXTS, SUPPORT, [str(p) for p in places]))
    done = subprocess.run(
        [sys.executable, "-c", LOAD, words], capture_output=True, text=True, timeout=200,
        env={**os.environ, "HF_HUB_OFFLINE": "1", "PYTHONPATH": ""},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stderr


@pytest.fixture(scope="module")
def exports(tmp_path_factory, words_csv):
    place = tmp_path_factory.mktemp("export")
    made = {}
    for number, (case, (architecture, sections)) in enumerate(CASES.items()):
        path = make(place / f"run{number}", words_csv, architecture, **sections)
        made[case] = path, export(path, place / f"out{number}")
    # A LoRA run on a published base (a directory here), which is not written again; and all parameters of it.
    base = made["bert, all"][1]
    for case, inner in (("published, lora", {"adapt": "lora"}), ("published, all", {"adapt": "all"})):
        model = {"pretrained": str(base)}
        path = make(place / case, words_csv, model=model, inner=inner, outer={"base": "auto"})
        made[case] = path, export(path, place / f"out {case}")
    return made, load_elsewhere([out for _, out in made.values()])


@pytest.mark.parametrize("case", [*CASES, "published, lora", "published, all"])
def test_the_model_card_s_code_gives_our_features_and_scores(exports, case):
    path, out = exports[0][case]
    found = load_file(out / "found.safetensors")
    features, logits = ours(path)
    assert features.std() > 0.01
    torch.testing.assert_close(found["features"], features, atol=1e-6, rtol=1e-5)
    torch.testing.assert_close(found["logits"], logits, atol=1e-6, rtol=1e-5)
    adapter = {"adapter_config.json", "adapter_model.safetensors"}
    there = {p.name for p in out.iterdir()}
    assert (adapter <= there) == ("lora" in case) and ("model.safetensors" in there) == ("lora" not in case)
    about = json.loads((out / "distmeta.json").read_text())
    assert (about["tokenizer_class"] == "AutoTokenizer") == ("qwen2" not in case)
    assert ("base" in there) == (case in CASES and "lora" in case)


def test_transformers_finds_nothing_amiss(exports):
    """No weight that is missing, left over or drawn anew, and no warning of it."""
    for word in ("newly initialized", "not initialized", "MISSING", "UNEXPECTED", "UserWarning"):
        assert word not in exports[1], exports[1]


def test_a_pooler_that_was_dropped_is_the_base_s_or_the_seed_s(exports):
    first = load_file(exports[0]["bert, all"][1] / "model.safetensors")
    later = load_file(exports[0]["published, all"][1] / "model.safetensors")
    assert torch.equal(first["pooler.dense.weight"], later["pooler.dense.weight"])
    name = "encoder.layer.0.attention.self.query.weight"
    assert not torch.equal(first[name], later[name])


def test_heads_and_rates(exports):
    rates = load_file(exports[0]["bert, all"][1] / "head.safetensors")
    assert {k: tuple(v.shape) for k, v in rates.items()} == {
        "head_weight": (2, 16), "head_bias": (2,), "inner_lr": (2,),
    }  # fmt: skip
    assert ((rates["inner_lr"] / 0.2).log().abs() < 0.5).all()
    lora = load_file(exports[0]["bert, lora"][1] / "head.safetensors")
    assert "inner_lr.encoder.layer.0.attention.self.query.lora_A" in lora and "inner_lr.head_bias" in lora
    about = json.loads((exports[0]["bert, lora"][1] / "distmeta.json").read_text())
    assert about["pooling"] == "first" and about["labels"] == ["no", "yes"]
    assert "head_bias" in about["adapts"] and about["inner"]["learn_lr"] == "per_layer"


def test_the_adapter_of_peft_s_own_loading(exports):
    from peft import AutoPeftModelForFeatureExtraction

    _, out = exports[0]["gpt2, lora"]
    model = AutoPeftModelForFeatureExtraction.from_pretrained(str(out))
    assert sum("lora_A" in name for name, _ in model.named_parameters()) == 2
    assert model.peft_config["default"].fan_in_fan_out is True


def test_an_adapted_model_is_exported_with_its_labels(tmp_path, words_csv):
    path = make(tmp_path / "run", words_csv, model={"head": "prototype"})
    rows = [{"text": text, "label": ("no", "yes")[number]} for text, number in zip(*SUPPORT)]
    fitted = adapt(path, rows)
    fitted.save(tmp_path / "fitted")
    out = export(tmp_path / "fitted", tmp_path / "out")
    load_elsewhere([out])
    found = load_file(out / "found.safetensors")["logits"].softmax(-1)
    for row, expected in zip(found, fitted.predict(TEXTS), strict=True):
        assert row.tolist() == pytest.approx(list(expected["probabilities"].values()), abs=2e-6)
    assert json.loads((out / "config.json").read_text())["id2label"] == {"0": "no", "1": "yes"}


def test_what_the_card_says(undisturbed):
    """Of a whole run: its own evaluation, with intervals, in words and in the hub's front matter."""
    out = undisturbed.run / "export"
    _, front, text = (out / "README.md").read_text().split("---\n", 2)
    about = yaml.safe_load(front)
    assert about["library_name"] == "transformers" and {"meta-learning", "maml"} <= set(about["tags"])
    evaluation = json.loads((undisturbed.run / "evaluation.json").read_text())
    results = {m["type"]: m["value"] for m in about["model-index"][0]["results"][0]["metrics"]}
    ours = evaluation["meta_trained"]["accuracy"]
    assert results["accuracy"] == round(ours["mean"], 4)
    assert f"{ours['mean']:.3f} [{ours['low']:.3f}, {ours['high']:.3f}]" in text
    for words in ("words.csv (tasks: ", "| algorithm | maml |", "| meta-steps | 20 |", "| episodes seen | 80 |",
                  "| seed | 0 |", "over 8 episodes", "fine_tuned"):  # fmt: skip
        assert words in text
    assert str(undisturbed.cwd) not in front + text
    older = read(undisturbed.run / "checkpoints" / "step-000015")
    assert "evaluation" not in older.about  # it was not this one that was evaluated


def test_a_taken_directory_and_a_damaged_checkpoint_are_refused(exports, tmp_path):
    path, out = exports[0]["t5, all"]
    with pytest.raises(InputError, match="exists already"):
        export(path, out)
    done = small.command("export", str(tmp_path / "none"), "--out", "there", cwd=tmp_path)
    assert done.returncode == 2 and "no such run" in done.stderr and not (tmp_path / "there").exists()


def test_heads_of_adapted_models_have_the_task_s_rows(exports):
    trained = read(exports[0]["qwen2, head"][0])
    assert head_tensors(trained)["head_weight"].shape == (2, 16)


@pytest.mark.usefixtures("bart")
@pytest.mark.parametrize("adapt", ["all", "lora"])
def test_a_classifier_that_transformers_has_no_class_for_is_refused_by_name(adapt, words_csv, tmp_path):
    path = make(tmp_path / "run", words_csv, "bart", inner={"adapt": adapt})
    with pytest.raises(
        InputError, match="export: bart: transformers has no model for its encoder alone; distmeta adapt"
    ):
        export(path, tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.usefixtures("bart")
@pytest.mark.parametrize("architecture", ["t5", "bart"])
def test_an_encoder_decoder_is_exported_with_every_trained_value_and_answers_greedily(architecture, tmp_path):
    task = {"family": "text_to_text", "shots": 2, "queries": 2}
    model = {"max_tokens": 24, "answer_tokens": 4}
    path = make(tmp_path / "run", None, architecture, task=task, model=model, inner={"adapt": "all"})
    trained = read(path)
    values = {n.removeprefix("backbone."): v for n, v in trained.values.items() if n.startswith("backbone.")}
    whole = AutoModelForSeq2SeqLM.from_pretrained(export(path, tmp_path / "out"))
    for name, value in whole.state_dict().items():
        if name in values:
            torch.testing.assert_close(value, values[name], rtol=0, atol=0)
    assert {"shared.weight", "model.shared.weight"} & values.keys()
    said = {name for name, value in whole.generation_config.to_diff_dict().items() if value is not None}
    ends = {"eos_token_id", "pad_token_id", "bos_token_id", "decoder_start_token_id"}
    assert said - {"transformers_version"} <= ends
    assert whole.generation_config.decoder_start_token_id == trained.model.start_id
