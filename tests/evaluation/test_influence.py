"""Which examples taught a prediction: against finite differences of the weights, and against leaving examples out."""

import json

import numpy as np
import pytest
import small
import torch
from scipy.stats import spearmanr
from typer.testing import CliRunner

from distmeta.algorithms.rates import inner_loop
from distmeta.cli import app
from distmeta.errors import InputError
from distmeta.evaluation.adapt import adapt, load_adapted
from distmeta.evaluation.influence import explain, influences, learner_of, left_out, loss_of, query_of, slopes_of
from distmeta.inner import adapt as adapt_weights

ROWS = [
    {"text": "the red thing", "label": "yes"}, {"text": "a small cold thing", "label": "no"},
    {"text": "it is blue", "label": "yes"}, {"text": "so hot and old", "label": "no"},
    {"text": "the red flat thing", "label": "yes"}, {"text": "cold", "label": "no"}, {"text": "red", "label": "no"},
]  # fmt: skip
TEXTS = ["the red thing", "cold thing", "a round blue thing"]


def checkpoint_of(folder, words_csv, **inner):
    return small.checkpoint_of(folder / "step-000001", words_csv, inner={"adapt": "all", "lr": 0.3, "steps": 3} | inner)


@pytest.fixture(scope="module")
def adapted(tmp_path_factory, words_csv):
    place = tmp_path_factory.mktemp("influence")
    model = adapt(checkpoint_of(place, words_csv), ROWS)
    model.save(place / "task")
    return place / "task"


def doubled(learner):
    """The same in float64."""
    for group in (learner.start.fast, learner.start.shared):
        for name in group:
            group[name] = group[name].double()
    for p in learner.start.model.parameters():
        p.data = p.data.double()
    return learner


def loss_after(learner, query, weights):
    """The query loss after adaptation with these weights: a second way, by `adapt` alone."""
    start = learner.start
    loss, loop = loss_of(start.model), inner_loop(start.config.inner, start.rates, learner.steps)
    shared = {**start.shared, "row_weights": weights}
    support = [("support", batch) for batch in learner.support]
    params = adapt_weights(loss, start.fast, support, loop, shared=shared).params
    with torch.no_grad():
        return sum(float(loss({**shared, **params}, ("query", batch))) for batch in query)


@pytest.mark.parametrize("buckets", [1, 3])
def test_slopes_are_those_of_finite_differences(tmp_path, words_csv, buckets):
    model = adapt(checkpoint_of(tmp_path, words_csv, buckets=buckets), ROWS)
    learner = doubled(learner_of(model))
    for text in TEXTS[:2]:
        label = model.predict([text])[0]["label"]
        query = query_of(model, learner, text, label)
        slopes = slopes_of(learner, query)
        even = torch.full((len(ROWS),), 1 / len(ROWS), dtype=torch.float64)
        for i in range(len(ROWS)):
            unit = torch.zeros_like(even)
            unit[i] = 1e-4
            near = loss_after(learner, query, even + unit) - loss_after(learner, query, even - unit)
            far = loss_after(learner, query, even + 2 * unit) - loss_after(learner, query, even - 2 * unit)
            assert slopes[i] == pytest.approx((8 * near - far) / 12e-4, rel=1e-7, abs=1e-10)


def test_leaving_an_example_out_changes_what_is_predicted(tmp_path, words_csv):
    """At small inner rates the prediction is the change; the loss is normalised over the rows that stay."""
    model = adapt(checkpoint_of(tmp_path, words_csv, lr=0.02), ROWS)
    learner = doubled(learner_of(model))
    even = torch.full((len(ROWS),), 1 / len(ROWS), dtype=torch.float64)
    for text in TEXTS:
        query = query_of(model, learner, text, model.predict([text])[0]["label"])
        predicted, whole = left_out(slopes_of(learner, query)), loss_after(learner, query, even)
        changes = []
        for i in range(len(ROWS)):
            weights = torch.full_like(even, 1 / (len(ROWS) - 1))
            weights[i] = 0.0
            changes.append(whole - loss_after(learner, query, weights))
        assert spearmanr(predicted, changes).statistic > 0.95
        np.testing.assert_allclose(predicted, changes, rtol=0.2, atol=1e-4)


def test_explanations_say_what_was_predicted_and_rank_the_examples(adapted):
    model = load_adapted(adapted)
    found = explain(model, TEXTS)
    assert [one["prediction"] for one in found] == model.predict(TEXTS)
    learner = learner_of(model)
    for one in found:
        assert sorted(each["row"] for each in one["influences"]) == list(range(len(ROWS)))
        values = [each["influence"] for each in one["influences"]]
        assert values == sorted(values, reverse=True)
        for each in one["influences"]:
            assert (each["text"], each["label"]) == (ROWS[each["row"]]["text"], ROWS[each["row"]]["label"])
        slopes = slopes_of(learner, query_of(model, learner, one["text"], one["prediction"]["label"]))
        by_row = {each["row"]: each["influence"] for each in one["influences"]}
        np.testing.assert_allclose([by_row[i] for i in range(len(ROWS))], influences(slopes), atol=2e-6)


def test_an_example_pushes_its_own_text_towards_its_label(adapted):
    model = load_adapted(adapted)
    learner = learner_of(model)
    for i, row in enumerate(ROWS[:6]):
        pushes = influences(slopes_of(learner, query_of(model, learner, row["text"], row["label"])))
        assert pushes[i] > 0


def test_the_verb_writes_tables_json_and_a_page(adapted, tmp_path):
    (tmp_path / "texts.txt").write_text("\n".join(TEXTS) + "\n\n")
    run = CliRunner().invoke
    words = ["explain", str(adapted), "--input", str(tmp_path / "texts.txt")]
    told = run(app, [*words, "--html", str(tmp_path / "page.html"), "--most", "3"])
    assert told.exit_code == 0, told.output
    assert "without it" in told.stdout
    page = (tmp_path / "page.html").read_text()
    assert "the red thing" in page and "<script" not in page
    found = json.loads(run(app, [*words, "--json"]).stdout)
    assert len(found["explanations"]) == 3
    assert set(found["explanations"][0]["influences"][0]) == {"row", "text", "label", "influence", "without"}


def test_what_cannot_be_explained_is_refused(adapted, tmp_path, words_csv):
    other = small.checkpoint_of(tmp_path / "step-000001", words_csv, inner={"adapt": "lora"})
    with pytest.raises(InputError, match="is not the checkpoint that the model was adapted from"):
        explain(load_adapted(adapted), TEXTS, other)
    prototypes = small.checkpoint_of(tmp_path / "step-000002", words_csv, model={"head": "prototype"})
    with pytest.raises(InputError, match="explain does not work with model.head = prototype"):
        explain(adapt(prototypes, ROWS), TEXTS)
