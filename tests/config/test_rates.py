"""Learning rates that are left open: by what is trained, and from where."""

import json

import pytest
import small
import yaml

from distmeta.config import dump_config, load_config, make_config

PRETRAINED = "model.pretrained=/a/model"


def rates(*overrides, source="default"):
    config = load_config(source, list(overrides))
    return config.outer.lr, config.inner.lr


@pytest.mark.parametrize(
    ("overrides", "expected"),
    [
        ([], (2e-3, 0.2)),  # the recipe's, for random weights
        ([PRETRAINED], (3e-5, 0.02)),
        ([PRETRAINED, "inner.adapt=all"], (3e-5, 0.02)),
        ([PRETRAINED, "inner.adapt=lora"], (1e-3, 0.05)),
        ([PRETRAINED, "inner.adapt=lora", "outer.base=train"], (3e-5, 0.02)),
        ([PRETRAINED, "inner.adapt=head"], (1e-3, 0.1)),
        ([PRETRAINED, "algorithm=anil"], (3e-5, 0.02)),  # its body is meta-learnt
        ([PRETRAINED, "inner.optimizer=adam"], (3e-5, 1e-4)),
        ([PRETRAINED, "outer.lr=0.5"], (0.5, 0.02)),
        ([PRETRAINED, "inner.lr=0.5", "outer.lr=null"], (3e-5, 0.5)),
    ],
)
def test_rates_fit_what_is_trained(overrides, expected):
    assert rates(*overrides) == expected


@pytest.mark.parametrize("name", ["sentiment", "intents", "proto_maml", "instructions"])
def test_no_recipe_lays_its_rates_for_random_weights_on_a_pretrained_base(name):
    assert rates(PRETRAINED, "inner.adapt=all", source=name) == (3e-5, 0.02)


def test_a_file_of_the_user_s_keeps_its_rates(tmp_path):
    file = tmp_path / "mine.yaml"
    file.write_text("model: {pretrained: /a/model}\ninner: {lr: 0.3}\nouter: {lr: 0.4}\n")
    assert rates(source=str(file)) == rates(PRETRAINED, source=str(file)) == (0.4, 0.3)
    file.write_text("inner: {lr: 0.3}\n")
    assert rates(PRETRAINED, source=str(file)) == (3e-5, 0.3)


def test_a_written_configuration_holds_the_numbers(tmp_path):
    written = yaml.safe_load(dump_config(load_config("default", [PRETRAINED])))
    assert (written["outer"]["lr"], written["inner"]["lr"]) == (3e-5, 0.02)
    assert make_config({}).outer.lr == 1e-3 and make_config({}).inner.lr == 0.1
    changed = make_config({**written, "model": {}})
    assert changed.outer.lr == 3e-5  # what is written stays


def test_a_pretrained_decoder_that_classifies_has_features_of_one_length(tmp_path):
    """Its last states are long: a linear head on them begins far from ln C, and any rate is too high."""
    for name, architecture in (("decoder", "LlamaForCausalLM"), ("encoder", "BertForMaskedLM")):
        (tmp_path / name).mkdir()
        (tmp_path / name / "config.json").write_text(json.dumps({"architectures": [architecture]}))

    def distance(name, **sections):
        return small.config(**small.merge({"model": {"pretrained": str(tmp_path / name)}}, sections)).model.distance

    assert distance("decoder") == distance("decoder", model={"head": "prototype"}) == "cosine"
    assert (
        distance("encoder", model={"head": "prototype"}) == distance("encoder", inner={"adapt": "lora"}) == "euclidean"
    )
    assert distance("encoder") == "cosine" and distance("decoder", model={"distance": "euclidean"}) == "euclidean"
    words = {"task": {"family": "text_to_text"}, "model": {"answer_tokens": 4}}
    assert distance("decoder", **words) == small.config().model.distance == "euclidean"


def test_an_encoder_that_is_trained_whole_under_a_linear_head_has_rates_of_its_own(tmp_path):
    """They go with features of one length: without these its inner loop moves little, or diverges."""
    (tmp_path / "config.json").write_text(json.dumps({"architectures": ["BertModel"]}))
    encoder = f"model.pretrained={tmp_path}"
    assert rates(encoder) == rates(encoder, "inner.adapt=all") == (5e-4, 0.05)
    assert rates(encoder, "model.distance=euclidean") == rates(encoder, "model.head=prototype") == (3e-5, 0.02)
    assert rates(encoder, "inner.adapt=lora") == (1e-3, 0.05)
    (tmp_path / "config.json").write_text(json.dumps({"architectures": ["LlamaForCausalLM"]}))
    assert rates(encoder) == (3e-5, 0.02)  # a decoder
