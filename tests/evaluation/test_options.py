"""Options are weighed by the likelihoods that transformers gives them, over the text as one writes it."""

import numpy as np
import pytest
import small
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from distmeta.evaluation.texts import choose, support_rows
from distmeta.models.build import build_model
from distmeta.tasks.episodes.collate import collate
from distmeta.tasks.records import Record
from distmeta.tasks.tokenizer import load_tokenizer

PAD = 1


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return small.decoder(tmp_path_factory.mktemp("options"))


@pytest.mark.parametrize("how", [None, "none", "length", "unconditional"])
@pytest.mark.parametrize("head", ["linear", "context"])
def test_an_option_has_the_probability_that_transformers_gives_its_words(folder, how, head):
    config = small.config(
        algorithm="in_context" if head == "context" else "fomaml", eval={"normalise": how},
        model={"pretrained": str(folder), "max_tokens": 60}, task={"family": "text_to_text", "shots": 2, "queries": 2},
        inner={"adapt": "lora", "steps": 0 if head == "context" else 2},
    )  # fmt: skip
    whole, stock = AutoModelForCausalLM.from_pretrained(folder).eval(), AutoTokenizer.from_pretrained(folder)
    tokenizer = load_tokenizer(folder / "tokenizer.json")
    model = build_model(config, len(stock), PAD, 1)
    support = [Record("a saw", ("no",), instruction="is it fruit"), Record("a big fig", ("yes",))]
    params, before = dict(model.fast), ""
    if head == "context":
        rows = collate([support_rows(support, tokenizer, config)], 1, PAD)
        params |= model.read_support(params, model.batches(rows, "cpu"))
        before = "".join(f"{record.prompt()}\n{record.answers[0]}</s>" for record in support)

    def likelihoods(prompt, option):
        ids, more = (stock(t, add_special_tokens=False).input_ids for t in (prompt + "\n", option + "</s>"))
        with torch.no_grad():
            scores = whole(torch.tensor([ids + more])).logits[0].log_softmax(-1)
        return scores[range(len(ids) - 1, len(ids) + len(more) - 1), more].double().numpy()

    records = [Record("a pear", ("yes",), ("yes", "no", "who knows it"), "is it fruit"),
               Record("an axe", ("no",), ("no", "yes"))]  # fmt: skip
    found = choose(model, params, records, tokenizer, config)
    for record, (option, probability) in zip(records, found, strict=True):
        each = [likelihoods(before + record.prompt(), option) for option in record.options]
        scores = np.array([x.mean() if how in (None, "length") else x.sum() for x in each])
        if how == "unconditional":
            bare = f"{record.instruction}\n" if record.instruction else ""
            scores -= [likelihoods(bare, option).sum() for option in record.options]
        expected = np.exp(scores) / np.exp(scores).sum()
        assert option == record.options[int(expected.argmax())]
        assert probability == pytest.approx(expected.max(), abs=1e-5)
