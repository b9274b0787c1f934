"""The model that is adapted is transformers' own: the same states and scores as its ordinary call."""

import architectures
import numpy as np
import pytest
import torch

from distmeta.config import make_config
from distmeta.errors import InputError
from distmeta.models import backbone as backbones
from distmeta.models.build import build_model
from distmeta.models.generate import generate
from distmeta.tasks.episodes.collate import collate
from distmeta.tasks.rows import Rows

VOCABULARY, PAD, END = 60, 1, 2
LENGTHS = (20, 7, 13, 4)  # beyond every window


def configured(kind, other=None, **sections):
    return make_config({
        "model": {"architecture": kind, "config": architectures.small_config(kind, other), "max_tokens": 24,
                  "answer_tokens": 6, **sections.pop("model", {})},
        "task": {"shots": 2, "queries": 2}, "outer": {"meta_batch_size": 2}, **sections,
    })  # fmt: skip


def shake(model):
    """In the place of trained weights: initial ones are so small that what a token sees hardly tells."""
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for p in model.parameters():
            if p.dim() > 1:
                p.add_(torch.randn(p.shape, generator=generator) * 0.15)


def batch_of(model, lengths=LENGTHS):
    rng = np.random.default_rng(0)
    tokens = rng.integers(5, VOCABULARY, sum(lengths)).astype(np.int32)
    rows = Rows(tokens, np.concatenate([[0], np.cumsum(lengths)]), np.arange(len(lengths)) % 2, np.arange(len(lengths)))
    return model.batches(collate([rows], 1, PAD), "cpu")[0]


def apart(found, expected):
    return float((found - expected).abs().max() / expected.abs().max())


@torch.no_grad()
def feature_difference(kind, other=None):
    """The model, and the largest relative difference of its features from the ordinary call's."""
    model = build_model(configured(kind, other), VOCABULARY, PAD, 2)
    plain = backbones.build_backbone(configured(kind, other).model, VOCABULARY, PAD, 0)
    shake(plain)
    model.backbone.load_state_dict(plain.state_dict())
    differences = []
    for lengths in (LENGTHS, (20, 20)):
        batch = batch_of(model, lengths)
        states = plain(input_ids=batch.input_ids, attention_mask=batch.keep.long()).last_hidden_state
        keep = batch.keep.unsqueeze(-1)
        mean, last = (states * keep).sum(1) / keep.sum(1), states[torch.arange(len(states)), batch.last]
        for kernel in ("exact", "first_order"):
            backbones.set_attention(model.backbone, kernel)
            features = model.features({}, batch).flatten(0, 1)
            differences.append(apart(features, last if model.pooling == "last" else mean))
    return model, max(differences)


@pytest.mark.parametrize("kind", architectures.KINDS)
def test_features_are_those_of_the_ordinary_call(kind):
    model, difference = feature_difference(kind)
    assert model.causal == (kind in architectures.DECODERS)
    assert difference < 1e-4


@torch.no_grad()
def score_difference(kind, other=None):
    """The largest relative difference of the answers' scores from the ordinary call's, and whether each generated
    token is the likeliest there."""
    config = configured(kind, other, task={"family": "text_to_text", "shots": 2, "queries": 2})
    model = build_model(config, VOCABULARY, PAD, 1)
    whole = backbones.build_language_model(config.model, VOCABULARY, PAD, config.run.seed)
    begin = np.array([length - 3 for length in (20, 9, 13, 5)])
    rng = np.random.default_rng(1)
    lengths = begin + 3
    tokens = rng.integers(5, VOCABULARY, lengths.sum()).astype(np.int32)
    rows = Rows(tokens, np.concatenate([[0], np.cumsum(lengths)]), begin, np.arange(4))
    part = collate([rows], 1, PAD)[0]
    batch = model.batches([part], "cpu")[0]
    scores = model.logits({}, batch)[0]
    answers, _ = generate(model, {}, batch, [END], 4)
    differences, greedy = [], True
    for place, row in enumerate(part["store_rows"].flatten().tolist()):
        text = torch.tensor(tokens[rows.offsets[row] : rows.offsets[row + 1]]).long()
        prompt, answer = text[None, : begin[row]], text[None, begin[row] :]
        if model.seq2seq:
            before = torch.cat([torch.full((1, 1), model.start_id), answer[:, :-1]], 1)
            expected = whole(input_ids=prompt, decoder_input_ids=before).logits[0]
        else:
            expected = whole(input_ids=text[None]).logits[0, begin[row] - 1 : -1]
        differences.append(apart(scores[place], expected))
        so_far = torch.full((1, 1), model.start_id) if model.seq2seq else prompt
        for token in answers[place].tolist():
            more = {"input_ids": prompt, "decoder_input_ids": so_far} if model.seq2seq else {"input_ids": so_far}
            of_next = whole(**more).logits[0, -1]
            greedy = greedy and bool(of_next[token] >= of_next.max() - 1e-5)
            so_far = torch.cat([so_far, torch.tensor([[token]])], 1)
            if token == END:
                break
    return max(differences), greedy


@pytest.mark.parametrize("kind", [*architectures.DECODERS, *architectures.BOTH])
def test_scores_and_greedy_answers_are_those_of_the_ordinary_call(kind):
    difference, greedy = score_difference(kind)
    assert difference < 1e-4
    assert greedy


def test_a_context_longer_than_the_window_is_refused():
    sections = {"algorithm": "in_context", "model": {"head": "context"}, "inner": {"steps": 0}}
    config = configured("mistral", **sections)
    sizes = {**config.model.config, "sliding_window": 12, "max_position_embeddings": 200}
    config = config.model_copy(update={"model": config.model.model_copy(update={"config": sizes})})
    with pytest.raises(InputError, match="sliding window is shorter than the 125 tokens"):
        build_model(config, VOCABULARY, PAD, 2)
    long = config.model.model_copy(update={"config": {**sizes, "sliding_window": 200}})
    build_model(config.model_copy(update={"model": long}), VOCABULARY, PAD, 2)


@pytest.mark.parametrize("kind", ["deberta-v2", "xlnet", "bloom"])
def test_auto_lora_takes_query_and_value_projections(kind):
    if kind == "xlnet":
        with pytest.raises(InputError, match=r"matches no linear layer.*layer\.\*\.ff\.layer_1"):
            build_model(configured(kind, inner={"adapt": "lora"}), VOCABULARY, PAD, 2)
        return
    model = build_model(configured(kind, inner={"adapt": "lora"}), VOCABULARY, PAD, 2)
    assert {name.split(".")[-2] for name in model.fast if "lora_" in name} <= {
        "query_proj", "value_proj", "query_key_value"
    }  # fmt: skip
