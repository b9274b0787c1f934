"""Class means that move to the texts: soft k-means against a loop by hand, in evaluations and predictions; refusals."""

import json

import numpy as np
import pytest
import small
import torch
from typer.testing import CliRunner

from distmeta.cli import app
from distmeta.config import load_config
from distmeta.errors import InputError
from distmeta.evaluation.adapt import adapt, load_adapted
from distmeta.evaluation.evaluate import evaluate
from distmeta.evaluation.scoring import score_means
from distmeta.evaluation.soft_means import soft_k_means
from distmeta.runs.progress import closing
from distmeta.tasks.rows import Episode, Rows

PROTOTYPES = {"model": {"head": "prototype"}, "algorithm": "prototypes", "inner": {"steps": 0}}
ROWS = [{"text": "the red thing", "label": "yes"}, {"text": "a small cold thing", "label": "no"},
        {"text": "it is blue", "label": "yes"}]  # fmt: skip
TEXTS = ["the red thing", "cold thing", "a round blue thing", "so so so so", "is is flat"]


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory, words_csv):
    return small.checkpoint_of(tmp_path_factory.mktemp("prototype") / "step-000001", words_csv, **PROTOTYPES)


def test_soft_k_means_is_the_published_loop():
    rng = np.random.default_rng(0)
    x, support, counts, scale = rng.normal(size=(7, 3)), rng.normal(size=(2, 3)), np.array([2.0, 1.0]), 0.7
    means, expected = support / counts[:, None], []
    for _ in range(4):
        scores = np.array([[-scale * sum((a - m) ** 2) for m in means] for a in x])
        expected.append(scores)
        share = np.exp(scores) / np.exp(scores).sum(1, keepdims=True)
        means = np.array([
            (support[c] + sum(share[i, c] * x[i] for i in range(7))) / (counts[c] + share[:, c].sum()) for c in (0, 1)
        ])  # fmt: skip
    found = soft_k_means(*(torch.from_numpy(a) for a in (x, support, counts)), scale, rounds=3)
    for one, other in zip(found, expected, strict=True):
        np.testing.assert_allclose(one.numpy(), other, rtol=1e-12)


def test_where_texts_lie_around_their_classes_means_of_one_example_gain_by_them():
    rng = np.random.default_rng(0)
    features, episodes = [], []
    for e in range(40):
        centres = rng.normal(size=(3, 20))
        labels = np.arange(3).repeat(11)
        features.append(centres[labels] + rng.normal(size=(33, 20)))
        rows, first = np.arange(33) + 33 * e, labels * 0 + (np.arange(33) % 11 == 0)
        sets = [Rows(np.zeros(0, np.int32), np.zeros(len(at) + 1, np.int64), labels[at], rows[at])
                for at in (np.flatnonzero(first), np.flatnonzero(first == 0))]  # fmt: skip
        episodes.append(Episode(e, "", ("a", "b", "c"), *sets))
    scored = score_means(np.arange(33 * 40), torch.from_numpy(np.concatenate(features)), episodes, 0.5, rounds=4)
    accuracy = np.mean([one.metrics()["accuracy"] for one in scored], 0)
    assert len(accuracy) == 5
    assert accuracy[4] > accuracy[0] + 0.05
    alone = score_means(np.arange(33 * 40), torch.from_numpy(np.concatenate(features)), episodes, 0.5)
    assert all((one.predicted[0] == other.predicted[0]).all() for one, other in zip(scored, alone, strict=True))


def test_an_evaluation_says_each_round_and_begins_without_one(checkpoint):
    plain = evaluate(checkpoint, episodes=6).details["meta_trained"]["curves"]
    told = evaluate(checkpoint, episodes=6, refine=3).details
    assert "together, in 3 rounds" in closing(told)[0]
    refined = told["meta_trained"]["curves"]
    for name, curve in plain.items():
        assert len(curve["mean"]) == 1 and len(refined[name]["mean"]) == 4
        assert refined[name]["mean"][0] == pytest.approx(curve["mean"][0], abs=1e-6)
    assert len(set(refined["loss"]["mean"])) == 4


def test_predictions_are_of_the_means_that_have_moved_and_no_order_changes_them(checkpoint):
    adapted = adapt(checkpoint, ROWS)
    scale = float(adapted.params["head_log_scale"].exp())
    x = torch.cat([adapted.model.features(adapted.params, batch)[0] for _, batch in adapted._batches(TEXTS)])
    order = [at for places, _ in adapted._batches(TEXTS) for at in places]
    x = x[np.argsort(order)].detach()
    head = adapted.params["head_weight"].view(-1, x.shape[1]) / (2 * scale)
    counts = torch.tensor([[row["label"] for row in ROWS].count(label) for label in adapted.labels]).float()
    *_, scores = soft_k_means(x, head * counts.unsqueeze(1), counts, scale, 4)
    said = adapted.predict(TEXTS, refine=4)
    for one, expected in zip(said, scores.softmax(-1).tolist(), strict=True):
        assert list(one["probabilities"].values()) == pytest.approx(expected, abs=2e-6)
    back = adapted.predict(TEXTS[::-1], refine=4)[::-1]
    for one, other in zip(said, back, strict=True):
        assert one["label"] == other["label"]
        assert one["confidence"] == pytest.approx(other["confidence"], abs=2e-6)
    plain = adapted.predict(TEXTS)
    assert any(abs(one["confidence"] - other["confidence"]) > 1e-4 for one, other in zip(said, plain, strict=True))
    assert adapted.predict([], refine=4) == []


def test_the_command_line_refines_a_saved_model(checkpoint, tmp_path):
    adapt(checkpoint, ROWS).save(tmp_path / "task")
    (tmp_path / "texts.txt").write_text("\n".join(TEXTS) + "\n")
    words = ["predict", str(tmp_path / "task"), "--input", str(tmp_path / "texts.txt")]
    shown = CliRunner().invoke(app, [*words, "--refine", "4"])
    assert shown.exit_code == 0, shown.output
    lines = [json.loads(line) for line in shown.output.splitlines() if line.startswith("{")]
    expected = load_adapted(tmp_path / "task").predict(TEXTS, refine=4)
    assert [one["label"] for one in lines] == [one["label"] for one in expected]
    both = CliRunner().invoke(app, [*words, "--refine", "4", "--reject", "0.5"])
    assert isinstance(both.exception, InputError) and "--refine 4" in str(both.exception)


def test_what_has_no_class_means_is_refused(words_csv, tmp_path):
    place = small.checkpoint_of(tmp_path / "step-000001", words_csv, inner={"adapt": "all", "lr": 0.3, "steps": 3})
    with pytest.raises(InputError, match="refine moves class means"):
        adapt(place, ROWS).predict(TEXTS, refine=1)
    with pytest.raises(InputError, match=r"eval.refine = 2 moves the class means .* model.head is linear"):
        evaluate(place, episodes=2, refine=2)
    with pytest.raises(InputError, match=r"eval.refine = 1 moves the class means .* inner steps are 3"):
        load_config("default", ["model.head=prototype", "eval.refine=1", "inner.steps=3"])
    assert load_config("default", ["algorithm=prototypes", "eval.refine=1"]).eval.refine == 1
