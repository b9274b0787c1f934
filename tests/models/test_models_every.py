"""Every architecture of transformers for text that builds from a small configuration; writes docs/models.md."""

import importlib
import json
import os
import re
import sys
from pathlib import Path

import architectures
import pytest
import torch

from distmeta.errors import InputError
from distmeta.models import backbone as backbones
from distmeta.models import trial

sys.path.insert(0, str(Path(__file__).parent))
PAGE = Path(__file__).parents[2] / "docs" / "models.md"
parity = importlib.import_module("test_models_parity")
BUILT = 192  # with transformers 5.24
LARGE = 3e7  # parameters: not small
REQUIRED = {
    "BERT": "bert", "RoBERTa": "roberta", "MPNet": "mpnet", "DeBERTa-v2": "deberta-v2", "ELECTRA": "electra",
    "ModernBERT": "modernbert", "Llama": "llama", "Mistral": "mistral", "Qwen2": "qwen2", "Qwen3": "qwen3",
    "Gemma 2": "gemma2", "Gemma 3": "gemma3_text", "Phi-3": "phi3", "GPT-2": "gpt2", "GPT-NeoX": "gpt_neox",
    "OPT": "opt", "BLOOM": "bloom", "T5": "t5", "BART": "bart",
}  # fmt: skip
HEAD = """# Models

Which families of transformers distmeta runs: `model_type` of a model's config.json, or model.architecture. A test
writes this table: it builds every architecture for text that transformers {version} knows and that builds from a small
configuration, and compares its states (family classes or domain) and its scores (family text_to_text) with those of
transformers' own call, in float32, over padded rows that are longer than any window: a relative difference of at most
1e-4, or the family is refused, in one line and before anything is started (some since transformers' own call fails at
the sizes tried here; a published model of theirs is tried at its own). Of {built} families, {works} work.

| model_type | kind | classes | text_to_text | why not |
|---|---|---|---|---|
"""


@torch.no_grad()
def buildable(kind):
    """Sizes with which it builds and transformers' own call works; None where it never builds."""
    from transformers import AutoModel

    built = None
    for other in architectures.OTHER:
        try:
            config = parity.configured(kind, other).model
            hf_config = backbones.model_config(config, parity.VOCABULARY, parity.PAD)
            with torch.device("meta"):
                if sum(p.numel() for p in AutoModel.from_config(hf_config).parameters()) > LARGE:
                    continue
            model = AutoModel.from_config(backbones.model_config(config, parity.VOCABULARY, parity.PAD)).eval()
        except Exception:  # as a family validates
            continue
        built = other if built is None else built
        try:
            ids = torch.randint(5, parity.VOCABULARY, (2, 20))
            encoder = model.get_encoder() if model.config.is_encoder_decoder else model
            encoder(input_ids=ids, attention_mask=torch.ones_like(ids))
        except Exception:
            continue
        return other
    return built


def verdict(measure, kind, other):
    """The largest difference, or why it is refused. Anything but an InputError is a fault."""
    try:
        if measure is parity.score_difference:
            trial.try_model(parity.configured(kind, other, task={"family": "text_to_text", "shots": 2, "queries": 2}))
        else:
            trial.try_model(parity.configured(kind, other))
        found = measure(kind, other)
    except InputError as error:
        return None, plain(re.sub(r"^model[^:]*: ", "", str(error)))
    return found, ""


OWN = "transformers' own call fails at the sizes tried here"
PLAIN = {  # by what is said of it
    r"`get_seq_length` can only": f"{OWN}, at which all layers are of linear attention",
    r"with transformers' own call: .*(size of tensor|wrong shape)": OWN,
    r"language unknown": "transformers' own call needs a language, which has to be set in code",
    r"has no attribute 'last_hidden_state'": "its states cannot be had without its scores",
    r"has no attribute 'config'": "transformers' own call of its encoder alone fails",
    r"by more than a linear layer": "its scores are made by more than a linear layer of its last states",
}


def plain(line):
    """The first sentence of a refusal, or its meaning where a family's own code says it."""
    for pattern, words in PLAIN.items():
        if re.search(pattern, line):
            return words
    return re.split(r";|\. ", line)[0].replace("|", "/")


def row(kind):
    """{kind, sort, classes, words, why}, or None where it does not build."""
    other = buildable(kind)
    if other is None:
        return None
    found, why = verdict(parity.feature_difference, kind, other)
    scores, why_words = (None, "")
    if architectures.has_words(kind):
        scores, why_words = verdict(parity.score_difference, kind, other)
    both = bool(getattr(backbones.model_config(parity.configured(kind, other).model, 60, 1), "is_encoder_decoder", 0))
    decoder = scores or (found and found[0].causal)
    sort = "encoder-decoder" if both else "decoder" if decoder else "encoder" if found else "-"
    return {
        "kind": kind, "sort": sort, "classes": found and found[1], "words": scores and scores[0],
        "greedy": scores is None or scores[1], "why": why or (why_words if sort != "encoder" else ""),
    }  # fmt: skip


def page(rows):
    import transformers

    works = sum(r["classes"] is not None or r["words"] is not None for r in rows)
    lines = [f"| {r['kind']} | {r['sort']} | {mark(r['classes'])} | {mark(r['words'])} | {r['why']} |\n" for r in rows]
    return HEAD.format(version=transformers.__version__, built=len(rows), works=works) + "".join(lines)


def mark(difference):
    return "-" if difference is None else "yes"


@pytest.mark.long
@pytest.mark.timeout(3600)
def test_every_architecture_gives_its_ordinary_states_and_scores_or_is_refused():
    rows = []
    for kind in architectures.text_kinds():
        if (made := row(kind)) is not None:
            rows.append(made)
    check(rows)
    PAGE.write_text(page(rows), encoding="utf-8")


def check(rows):
    assert len(rows) == BUILT
    assert [r for r in rows if max(r["classes"] or 0, r["words"] or 0) > 1e-4 or not r["greedy"]] == []
    assert [r["why"] for r in rows if re.search(r"Error\b", r["why"])] == []
    assert sum(r["classes"] is None and r["words"] is None for r in rows) <= 0.15 * len(rows)


@pytest.mark.parametrize("name", REQUIRED)
def test_the_page_names_the_best_known_families_as_accepted(name):
    line = next(line for line in PAGE.read_text(encoding="utf-8").splitlines() if f"| {REQUIRED[name]} |" in line)
    _, _, sort, classes, words, why, _ = (cell.strip() for cell in line.split("|"))
    assert classes == "yes"
    assert words == "yes" or sort == "encoder"
    assert why == ""


def test_the_page_gives_a_plain_reason_for_each_refusal():
    lines = [line for line in PAGE.read_text(encoding="utf-8").splitlines() if line.startswith("| ")][1:]
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]
    assert len(cells) == BUILT
    assert [kind for kind, _, classes, words, why in cells if classes == words == "-" and not why] == []
    assert [why for *_, why in cells if re.search(r"Error\b", why)] == []


if __name__ == "__main__":  # a part of the table, as JSON: PART OF [KIND ...]
    part, of = map(int, sys.argv[1:3])
    for kind in sys.argv[3:] or architectures.text_kinds()[part::of]:
        try:
            print(json.dumps(row(kind)), flush=True)
        except Exception as error:
            print(json.dumps({"kind": kind, "raised": f"{type(error).__name__}: {error}"[:300]}), flush=True)
    os._exit(0)
