"""Texts that fit none of a task's labels: the typicality against adapting again by hand, its rate, and its refusals."""

import json
from itertools import pairwise

import numpy as np
import pytest
import small
from typer.testing import CliRunner

from distmeta import predict_or_reject
from distmeta.cli import app
from distmeta.errors import InputError
from distmeta.evaluation.adapt import adapt, load_adapted

ROWS = [
    {"text": "the red thing", "label": "yes"}, {"text": "a small cold thing", "label": "no"},
    {"text": "it is blue", "label": "yes"}, {"text": "so hot and old", "label": "no"},
    {"text": "the red flat thing", "label": "yes"}, {"text": "cold", "label": "no"}, {"text": "red", "label": "no"},
]  # fmt: skip
TEXTS = ["the red thing", "cold thing", "a round blue thing", "so so so so", "is is flat"]
HEADS = {
    "linear": {"inner": {"adapt": "all", "lr": 0.3, "steps": 3}},
    "prototype": {"model": {"head": "prototype"}, "algorithm": "prototypes", "inner": {"steps": 0}},
}


@pytest.fixture(scope="module", params=list(HEADS))
def checkpoint(request, tmp_path_factory, words_csv):
    place = tmp_path_factory.mktemp(request.param) / "step-000001"
    return small.checkpoint_of(place, words_csv, **HEADS[request.param])


def test_a_text_is_as_typical_as_its_place_among_the_examples_left_out(checkpoint):
    left_out = []
    for i, row in enumerate(ROWS):
        others = adapt(checkpoint, [*ROWS[:i], *ROWS[i + 1 :]])
        left_out.append(others.scores([row["text"]])[1][0])
    adapted = adapt(checkpoint, ROWS)
    said = predict_or_reject(adapted, TEXTS, rate=0.8)
    plain = adapted.predict(TEXTS)
    for one, expected, highest in zip(said, plain, adapted.scores(TEXTS)[1], strict=True):
        below = sum(score <= highest + 1e-6 for score in left_out)
        assert one["typicality"] == pytest.approx((1 + below) / (len(ROWS) + 1), abs=1e-6)
        assert one["label"] == (None if one["typicality"] <= 0.8 else expected["label"])
        assert one["probabilities"] == expected["probabilities"]
    assert adapted.model.prototype_head <= (len({one["typicality"] for one in said}) > 1)  # a linear one hardly differs


def test_a_higher_rate_rejects_what_a_lower_one_does_and_more(checkpoint):
    adapted = adapt(checkpoint, ROWS)
    counts = [
        {i for i, one in enumerate(predict_or_reject(adapted, TEXTS, rate)) if one["label"] is None}
        for rate in (0.125, 0.4, 0.7, 0.99)
    ]
    assert all(less <= more for less, more in pairwise(counts))


@pytest.mark.parametrize("checkpoint", ["prototype"], indirect=True)
def test_of_texts_like_the_examples_about_the_rate_is_rejected(checkpoint):
    rng = np.random.default_rng(0)
    words, lost = ["red", "blue", "cold", "hot", "thing", "flat", "old", "small"], []
    for _ in range(12):
        texts = [" ".join(rng.choice(words, 3)) for _ in range(30)]
        rows = [{"text": text, "label": ["yes", "no"][i % 2]} for i, text in enumerate(texts[:10])]
        said = predict_or_reject(adapt(checkpoint, rows), texts[10:], rate=0.2)
        lost.append(np.mean([one["label"] is None for one in said]))
    assert 0.05 < np.mean(lost) < 0.35  # 0.2 of exchangeable texts, 240 of them in twelve dependent groups


def test_what_cannot_be_told_is_refused(checkpoint, tmp_path):
    adapted = adapt(checkpoint, ROWS)
    for rate, match in ((0.0, "give a share"), (1.0, "give a share"), (0.1, "give a higher rate")):
        with pytest.raises(InputError, match=match):
            predict_or_reject(adapted, TEXTS, rate)
    with pytest.raises(InputError, match="label 'yes' has 1"):
        predict_or_reject(adapt(checkpoint, ROWS[:2] + ROWS[3:4]), TEXTS, 0.5)


def test_predict_reject_prints_null_for_a_text_that_fits_none(checkpoint, tmp_path):
    adapt(checkpoint, ROWS).save(tmp_path / "task")
    (tmp_path / "texts.txt").write_text("\n".join(TEXTS))
    done = CliRunner().invoke(
        app, ["predict", str(tmp_path / "task"), "--input", str(tmp_path / "texts.txt"), "--reject", "0.4"]
    )
    assert done.exit_code == 0, done.output
    lines = [json.loads(line) for line in done.stdout.splitlines()]
    assert lines == predict_or_reject(load_adapted(tmp_path / "task"), TEXTS, 0.4)
