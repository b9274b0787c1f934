"""`distmeta adapt` and `predict` of documents: read in one go or in pieces, saved, scored and continued."""

import json
import math
from dataclasses import replace

import numpy as np
import pytest
import small
import torch

from distmeta.errors import InputError
from distmeta.evaluation import documents
from distmeta.evaluation.adapt import adapt, load_adapted, read_further
from distmeta.evaluation.evaluate import evaluate
from distmeta.export.export import export

TASK = {"family": "document", "chunks": 4, "chunk_tokens": 6, "context_tokens": 5}
TEXT = "anna kesu lends vo .\n" * 9


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    """Of a model with learnt rates by layer and step, as a run would leave it."""
    return small.checkpoint_of(
        tmp_path_factory.mktemp("run") / "step-000001", None, architecture="gpt2",
        task=TASK | {"shots": 5, "queries": 10}, model={"max_tokens": 11}, outer={"base": "freeze"},
        inner={"steps": 3, "lr": 0.3, "adapt": "mlp", "clip": 1.0, "learn_lr": "per_layer_step"},
    )  # fmt: skip


@pytest.fixture(scope="module")
def read(checkpoint):
    return adapt(checkpoint, [{"text": TEXT}])


def test_a_text_is_read_in_order_and_in_steps(read):
    count = len(documents.tokens_of(documents_tokenizer(read), TEXT))
    place = documents.place_of(read.state)
    assert place.steps == len(read.inner_losses) == count // 6
    assert place.pending == count % 6
    assert len(place.tail) == 5 + place.pending
    assert read.inner_losses[-1] < read.inner_losses[0]


def documents_tokenizer(adapted):
    from distmeta.tasks.tokenizer import load_tokenizer

    return load_tokenizer(adapted.tokenizer_file)


def test_pieces_give_what_the_whole_gives(checkpoint, read, tmp_path):
    lines = TEXT.splitlines(keepends=True)
    (tmp_path / "first.txt").write_text("".join(lines[:2]))
    adapt(checkpoint, tmp_path / "first.txt").save(tmp_path / "one")
    pieces = adapt(tmp_path / "one", [{"text": "".join(lines[2:5])}])
    pieces.save(tmp_path / "two")
    (tmp_path / "rest.jsonl").write_text("".join(json.dumps({"text": line}) + "\n" for line in lines[5:]))
    whole = adapt(tmp_path / "two", tmp_path / "rest.jsonl")
    assert documents.place_of(whole.state) == documents.place_of(read.state)
    np.testing.assert_allclose(whole.inner_losses, read.inner_losses, rtol=1e-6)
    for name, value in read.params.items():
        assert torch.equal(whole.params[name], value), name


def test_rates_of_single_numbers_are_not_taken_for_rates_of_steps(tmp_path):
    """Of biases, which have as many numbers as the text has chunks."""
    made = small.checkpoint_of(
        tmp_path / "step-000001", None, architecture="gpt2", task=TASK, model={"max_tokens": 11},
        outer={"base": "freeze"}, inner={"steps": 3, "lr": 0.3, "adapt": "mlp", "learn_lr": "per_parameter"},
    )  # fmt: skip
    lines = TEXT.splitlines(keepends=True)
    whole = adapt(made, [{"text": "".join(lines * 2)}])
    adapt(made, [{"text": "".join(lines)}]).save(tmp_path / "read")
    pieces = adapt(tmp_path / "read", [{"text": "".join(lines)}])
    assert len(whole.inner_losses) == small.BACKBONES["gpt2"]["n_embd"] - 1
    for name, value in whole.params.items():
        assert torch.equal(pieces.params[name], value), name


def test_many_chunks_are_read_in_groups(checkpoint, read, monkeypatch):
    monkeypatch.setattr(documents, "AT_ONCE", 2)
    again = adapt(checkpoint, [{"text": TEXT}])
    assert all(torch.equal(again.params[name], value) for name, value in read.params.items())


def test_what_was_read_is_predicted_better_and_comes_back_from_disk(checkpoint, read, tmp_path):
    read.save(tmp_path / "read")
    loaded = load_adapted(tmp_path / "read")
    texts = ["anna kesu lends vo .\nanna kesu", "boris"]
    scores = loaded.predict(texts)
    assert scores == read.predict(texts)
    assert scores[0]["tokens"] == len(documents.tokens_of(documents_tokenizer(read), texts[0]))
    assert scores[0]["perplexity"] == pytest.approx(math.exp(scores[0]["loss"]), rel=1e-4)
    unread = adapt(checkpoint, [{"text": "anna"}])
    assert "shorter than a chunk" in unread.warnings[0]
    assert scores[0]["loss"] < unread.predict(texts)[0]["loss"]
    assert len(documents.tokens_of(documents_tokenizer(read), loaded.continue_text("anna kesu", 4))) <= 4


def test_scores_follow_what_was_read(read):
    """The loss of a text after another one is the sum's rest: scored one after another, or as one."""
    first, second = "anna kesu lends", "vo . anna"
    place = documents.place_of(read.state)
    tokenizer = documents_tokenizer(read)
    ids = [documents.tokens_of(tokenizer, text) for text in (first, second)]
    model, params, pad = read.model, read.params, read.state["pad_id"]
    one = documents.score(model, params, place, ids[0], read.config, pad)
    both = documents.score(model, params, place, ids[0] + ids[1], read.config, pad)
    assert both["tokens"] == len(ids[0]) + len(ids[1])
    assert both["loss"] * both["tokens"] > one["loss"] * one["tokens"]


def test_what_nothing_predicts_has_no_loss(checkpoint, read):
    start = documents.score(read.model, read.params, documents.START, [5], read.config, read.state["pad_id"])
    assert json.loads(json.dumps(start, allow_nan=False)) == {"loss": None, "perplexity": None, "tokens": 0}


def test_a_document_goes_on_beyond_the_models_positions(read):
    limit = small.BACKBONES["gpt2"]["n_positions"]
    said = read.continue_text("anna kesu", 2 * limit)
    assert len(documents.tokens_of(documents_tokenizer(read), said)) > limit


def test_a_run_s_settings_are_refused_where_reading_goes_on(read, tmp_path):
    read.save(tmp_path / "read")
    for asked in ({"steps": 2}, {"checkpoint": 1}):
        with pytest.raises(InputError, match="are of a run"):
            adapt(tmp_path / "read", [{"text": TEXT}], **asked)


def test_other_documents_need_no_names_of_the_run_s(tmp_path):
    rows = [{"text": TEXT, "writer": f"a{i % 5}", "book": f"b{i}"} for i in range(15)]
    for name, keep in (("own", ("text", "writer", "book")), ("other", ("text",))):
        lines = [json.dumps({key: row[key] for key in keep}) + "\n" for row in rows]
        (tmp_path / f"{name}.jsonl").write_text("".join(lines))
    (tmp_path / "other.txt").write_text(TEXT)
    made = small.checkpoint_of(
        tmp_path / "step-000001", tmp_path / "own.jsonl", architecture="gpt2", task=TASK, model={"max_tokens": 11},
        data={"author": "writer", "task": "book", "fractions": [0.4, 0.2, 0.4]}, inner={"steps": 3},
        eval={"baselines": False},
    )  # fmt: skip
    for name in ("other.jsonl", "other.txt"):
        result = evaluate(made, data=str(tmp_path / name), episodes=2)
        assert result.details["meta_trained"]["documents"] == (2 if name == "other.jsonl" else 1)
    assert evaluate(made, episodes=6).details["meta_trained"]["over_tasks"]["authors"] > 1
    for asked, message in (({"steps": 1}, "eval.steps = 1"), ({"shots": 3}, "eval.shots = 3")):
        with pytest.raises(InputError, match=f"document does not work with {message}"):
            evaluate(made, **asked)


def test_names_do_not_matter_in_a_text_to_read(checkpoint, read, tmp_path):
    row = {"text": TEXT.removesuffix("\n"), "task": None, "author": None}
    (tmp_path / "rows.jsonl").write_text(json.dumps(row))
    assert adapt(checkpoint, tmp_path / "rows.jsonl").inner_losses == read.inner_losses


def test_long_reading_is_remarked(read):
    assert "training took 3 steps" in read.warnings[0]


def test_it_exports_as_a_language_model(checkpoint, read, tmp_path):
    from transformers import AutoModelForCausalLM

    read.save(tmp_path / "read")
    export(tmp_path / "read", tmp_path / "out")
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    ids = documents.tokens_of(documents_tokenizer(read), "anna kesu lends vo")
    with torch.no_grad():
        nll = float(model(torch.tensor([ids]), labels=torch.tensor([ids])).loss)
    still = documents.score(read.model, read.params, documents.Place([], 0, 0), ids, read.config, read.state["pad_id"])
    assert nll == pytest.approx(still["loss"], rel=1e-4)


@pytest.mark.parametrize(
    ("support", "steps", "message"),
    [
        ([{"text": TEXT}], 4, "steps = 4: a text is read in as many steps as it has chunks"),
        ([], None, "no text in it"),
        ([{"words": TEXT}], None, "no 'text'; it has words"),
        ([{"text": " "}], None, "'text'"),
    ],
)
def test_what_cannot_be_read_is_refused(checkpoint, support, steps, message):
    with pytest.raises(InputError, match=message):
        adapt(checkpoint, support, steps=steps)


def test_a_state_cannot_go_on_in_the_middle(read):
    momentum = read.config.model_copy(update={"inner": read.config.inner.model_copy(update={"optimizer": "momentum"})})
    with pytest.raises(InputError, match="keeps a state: give the whole text at once"):
        read_further(replace(read, config=momentum), [{"text": "more"}])
