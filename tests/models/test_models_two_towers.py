"""Images and the words of their classes: transformers' CLIP before the first inner step, and what adapts from there."""

import json

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import CLIPConfig, CLIPModel, PreTrainedTokenizerFast

from distmeta.config import make_config
from distmeta.config.algorithms import load_algorithm
from distmeta.config.trees import merge
from distmeta.errors import InputError
from distmeta.evaluation.scoring import Scoring, load_group, row_features, score_episodes
from distmeta.inner import InnerLoop
from distmeta.learner.gradients import group_gradient
from distmeta.models.build import build_model
from distmeta.tasks.descriptions import check_words
from distmeta.tasks.rows import Episode, Rows

SIZE = (3, 8, 8)
TOWER = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 24}
SMALL = {"projection_dim": 12, "text_config": {**TOWER, "vocab_size": 64}, "vision_config": {**TOWER, "patch_size": 4}}
NAMES = ("a red ring", "a blue cross above a ring", "ring")
CPU = torch.device("cpu")


def config(**sections):
    base = {"model": {"image": list(SIZE), "head": "words", "config": SMALL}, "task": {"ways": 3, "shots": 1},
            "inner": {"lr": 0.05, "steps": 2}}  # fmt: skip
    return make_config(merge(base, sections))


def episode(seed, names=NAMES):
    rng = np.random.default_rng(seed)

    def rows(n):
        tokens = rng.integers(0, 256, n * 192).astype(np.int32)
        return Rows(tokens, np.arange(0, n * 192 + 1, 192), np.arange(n) % 3, np.arange(n))

    return Episode(seed, "task", names, rows(3), rows(6))


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A pretrained directory: a CLIP with random weights, whose tokenizer knows the words of NAMES."""
    folder = tmp_path_factory.mktemp("clip")
    words = ["<s>", "a", "red", "ring", "blue", "cross", "above", "photo", "of", "</s>"]
    tokenizer = Tokenizer(models.WordLevel({word: i for i, word in enumerate(words)}, unk_token="</s>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A </s>", special_tokens=[("<s>", 0), ("</s>", 9)]
    )
    ends = {"bos_token": "<s>", "eos_token": "</s>", "pad_token": "</s>"}
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, **ends).save_pretrained(folder)
    ids = {"bos_token_id": 0, "eos_token_id": 9, "pad_token_id": 9}
    torch.manual_seed(0)
    made = CLIPConfig(
        text_config={**SMALL["text_config"], "vocab_size": 10, "max_position_embeddings": 16, **ids},
        vision_config={**SMALL["vision_config"], "image_size": 8}, projection_dim=12,
    )  # fmt: skip
    CLIPModel(made).save_pretrained(folder)
    return folder


def test_before_a_step_scores_are_the_clip_s_own(folder):
    c = config(model={"pretrained": str(folder)}, data={"descriptions": "a photo of {label}"}, inner={"adapt": "head"})
    model = build_model(c, 257, 256, 3)
    one = episode(0)
    scoring = Scoring(model, model.fast, model.shared, InnerLoop(steps=0, lr=0.0), c, 256, CPU)
    support, query = scoring.load([one])
    params = {**model.fast, **model.shared}
    found = model.logits({**params, **model.start(params, support)}, query[0])[0]

    whole = CLIPModel.from_pretrained(folder).eval()
    tokenizer = PreTrainedTokenizerFast.from_pretrained(folder)
    asked = tokenizer([f"a photo of {name}" for name in NAMES], return_tensors="pt", padding=True)
    pixels = torch.tensor(one.query.tokens).view(-1, *SIZE) / 127.5 - 1
    inputs = {name: asked[name] for name in ("input_ids", "attention_mask")}
    torch.testing.assert_close(found, whole(pixel_values=pixels, **inputs).logits_per_image, rtol=1e-4, atol=1e-4)
    _, features = row_features(scoring, [one])
    assert features.shape == (6, 12)


def test_in_bfloat16_the_scores_are_about_those_of_float32(folder):
    scores = []
    for dtype in ("float32", "bfloat16"):
        c = config(model={"pretrained": str(folder), "dtype": dtype}, inner={"adapt": "head"})
        model = build_model(c, 257, 256, 3)
        scoring = Scoring(model, model.fast, model.shared, InnerLoop(steps=1, lr=0.01), c, 256, CPU)
        scores.append(score_episodes(scoring, [episode(0)])[0].confidence)
    np.testing.assert_allclose(scores[1], scores[0], atol=0.05)
    assert not np.array_equal(*scores)


@pytest.mark.parametrize("adapt", ["head", "vision_model.encoder", "lora", "all"])
def test_the_exact_meta_gradient_reaches_both_towers_through_where_the_head_begins(adapt, monkeypatch):
    monkeypatch.setattr(F, "softmax", lambda x, dim, dtype=None: torch.softmax(x, dim))  # CLIP's is of float32
    c = config(inner={"adapt": adapt}, model={"lora_targets": "all-linear"})
    model = build_model(c, 257, 256, 3).double()
    fast, shared = ({n: v.detach() + 0.01 for n, v in part.items()} for part in (model.fast, model.shared))
    parts = load_group([episode(1)], model, c, 256, CPU, training=True, exact=True)
    loop, algorithm = InnerLoop(steps=2, lr=0.05), load_algorithm("maml")

    def run(move):
        moved = ({n: v + move(n) for n, v in part.items()} for part in (fast, shared))
        return group_gradient(model, *moved, algorithm, loop, parts, ["task"])

    grads = run(lambda name: 0)[1]
    generator = torch.Generator().manual_seed(0)
    direction = {n: torch.randn(v.shape, generator=generator, dtype=v.dtype) for n, v in {**fast, **shared}.items()}
    for part in ("text_", "vision_", "projection", "head_log_scale"):
        named = [n for n in direction if part in n]
        ends = [run(lambda n, e=e, of=named: e * direction[n] if n in of else 0)[0].loss for e in (1e-6, -1e-6)]
        along = sum((grads[n] * direction[n]).sum() for n in named)
        assert named and abs(along) > 1e-9
        torch.testing.assert_close(along, (ends[0] - ends[1]).sum() / 2e-6, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("adapt", ["head", "vision_model.encoder", "text_|projection"])
def test_tasks_that_run_together_have_the_scores_that_they_have_alone(adapt):
    c = config(inner={"adapt": adapt})
    model = build_model(c, 257, 256, 3)
    assert model.takes_task_axis == ("text" not in adapt)
    scoring = Scoring(model, model.fast, model.shared, InnerLoop(steps=2, lr=0.1), c, 256, CPU)
    episodes = [episode(0), episode(1, ("a b c d", "e", "f g")), episode(2)]
    for one, alone in zip(score_episodes(scoring, episodes), episodes, strict=True):
        (expected,) = score_episodes(scoring, [alone])
        np.testing.assert_allclose(one.confidence, expected.confidence, rtol=1e-4)
        assert one.confidence.shape == (3, 6)


def test_episodes_may_have_any_number_of_classes():
    c = config(task={"least_ways": 2}, eval={"ways": 5})
    model = build_model(c, 257, 256, 3)
    scoring = Scoring(model, model.fast, model.shared, InnerLoop(steps=1, lr=0.1), c, 256, CPU)
    few, many = score_episodes(scoring, [episode(0), episode(0, (*NAMES, "cross", "photo"))])
    assert (few.predicted < 3).all() and many.confidence[0].sum() < few.confidence[0].sum()


def test_what_is_read_of_a_class_is_its_description_and_else_its_own_words(tmp_path):
    (tmp_path / "words.json").write_text(json.dumps({"r": "a red ring"}))
    by_table, plain = config(data={"descriptions": str(tmp_path / "words.json")}), config()
    assert by_table.data.descriptions == {"r": "a red ring"}  # kept in the run
    tokens, own = (build_model(c, 257, 256, 3).tokens for c in (by_table, plain))
    assert tokens.of(["r", "ring"]) == own.of(["A red-ring", "ring"]) and len(own.words("a red ring")) == 4
    for labels, why in ((["ring", "Ring!"], "have the same tokens"), (["x " * 20], "has 21 tokens, and may have 16")):
        with pytest.raises(InputError, match=why):
            check_words(labels, plain)


@pytest.mark.parametrize(("sections", "why"), [
    ({"model": {"image": None}}, "model.head = words"),
    ({"model": {"architecture": "vit"}}, "set clip"),
    ({"model": {"head": "linear"}, "data": {"descriptions": "a {label}"}}, "model.head=words reads"),
    ({"data": {"descriptions": "nowhere.json"}}, "neither a template"),
    ({"task": {"augment": {"rotations": True}}}, "upright"),
    ({"algorithm": "reptile"}, "the text tower is learnt where"),
    ({"algorithm": "multi_task"}, "the text tower is learnt where"),
])  # fmt: skip
def test_what_does_not_go_with_descriptions_is_refused(sections, why):
    with pytest.raises(InputError, match=why):
        config(**sections)


@pytest.mark.parametrize(("model", "why"), [
    ({"answer_tokens": 100}, "the text tower has 64 positions"),
    ({"head": "linear", "architecture": "clip"}, "set model.head=words"),
])  # fmt: skip
def test_a_model_that_cannot_read_words_is_refused(model, why):
    with pytest.raises(InputError, match=why):
        build_model(config(model=model), 257, 256, 3)
