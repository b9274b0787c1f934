"""Scores of text against their libraries, worked examples, and in scripts without spaces."""

import re
import string
import sys
from collections import Counter

import numpy as np
import pytest

from distmeta.evaluation import text_metrics
from distmeta.evaluation.text_metrics import METRICS, corpus_scores, text_scores

ENGLISH = [
    ("The cat sat on the mat.", ["a cat sat on a mat", "the dog"]),
    ("Paris", ["Paris", "the city of Paris"]),
    ("In 1998, it was $5-10!", ["it was 5 dollars in 1998"]),
    ("", ["nothing"]),
    ("completely wrong", ["an answer", "other words entirely"]),
    ("'tis well-known", ["tis well known"]),
]  # fmt: skip


def squad_v1(prediction, answer):
    """(exact match, F1) as the published evaluation script computes them."""

    def normal(text):
        text = "".join(c for c in text.lower() if c not in set(string.punctuation))
        return " ".join(re.sub(r"\b(a|an|the)\b", " ", text).split())

    p, a = normal(prediction).split(), normal(answer).split()
    same = sum((Counter(p) & Counter(a)).values())
    if same == 0:
        return float(p == a), 0.0
    precision, recall = same / len(p), same / len(a)
    return float(p == a), 2 * precision * recall / (precision + recall)


def test_english_is_as_the_published_scripts_score_it():
    from rouge_score.rouge_scorer import RougeScorer
    from sacrebleu import sentence_bleu, sentence_chrf

    found = text_scores([p for p, _ in ENGLISH], [a for _, a in ENGLISH])
    assert set(found) == set(METRICS)
    rouge = RougeScorer(["rougeL"])
    for i, (prediction, answers) in enumerate(ENGLISH):
        both = [squad_v1(prediction, a) for a in answers]
        expected = {
            "exact_match": max(b[0] for b in both), "token_f1": max(b[1] for b in both),
            "rouge_l": max(rouge.score(a, prediction)["rougeL"].fmeasure for a in answers),
            "bleu": max(sentence_bleu(prediction, [a]).score / 100 for a in answers),
            "chrf": max(sentence_chrf(prediction, [a]).score / 100 for a in answers),
        }  # fmt: skip
        for name, value in expected.items():
            assert found[name][i] == pytest.approx(value, abs=1e-12), (name, prediction)


def test_best_of_the_answers_and_only_of_the_row_s():
    found = text_scores(["red", "red"], [["blue", "red"], ["blue"]])
    for name, values in found.items():
        assert values.dtype == np.float64 and values[0] == pytest.approx(1.0) and values[1] < 0.5, name


def test_chinese_characters_are_tokens():
    prediction, answer = "今天天气好。", "今天天气很好"
    found = {name: values[0] for name, values in text_scores([prediction], [[answer]]).items()}
    assert found["exact_match"] == 0 and found["token_f1"] == pytest.approx(2 * 5 / 11)
    assert found["rouge_l"] == pytest.approx(2 * 5 / 11)  # the full stop is no token
    assert 0.3 < found["bleu"] < 1 and 0.3 < found["chrf"] < 1
    assert text_metrics.exact_match("《北京》！", "北京") == 1
    assert text_metrics.token_f1("iPhone手机", "手机 iphone") == 1
    assert text_metrics.rouge_l("ПРИВЕТ мир", "привет") == pytest.approx(2 / 3)
    assert corpus_scores([prediction], [[answer]])["bleu"] > 0.3


def test_a_corpus_has_rows_with_more_answers_than_others():
    from sacrebleu import corpus_bleu

    predictions, answers = (
        ["the cat sat on the mat", "a dog ran far away"],
        [["a cat sat on the mat"], ["x", "a dog ran away"]],
    )
    found = corpus_scores(predictions, answers)
    expected = corpus_bleu(predictions, [["a cat sat on the mat", "x"], [None, "a dog ran away"]])
    assert found["bleu"] == pytest.approx(expected.score / 100)
    same = corpus_scores(["one two three four five"], [["one two three four five"]])
    assert same == {"bleu": pytest.approx(1), "chrf": pytest.approx(1)}


def test_empty_texts_and_no_rows():
    for name, values in text_scores(["", "x", ""], [["x"], [""], [""]]).items():
        assert np.isfinite(values).all(), name
        assert values[0] == values[1] == 0, name
    assert text_metrics.token_f1("the", "a") == 1
    assert all(values.shape == (0,) for values in text_scores([], []).values())


@pytest.mark.parametrize(
    ("predictions", "answers", "names"),
    [(["a"], [], "1 predictions"), (["a"], [[]], r"answers\[0\]"), (["a", "b"], [["a"], "b"], r"answers\[1\] = 'b'")],
)
def test_what_is_no_list_of_answers_is_refused(predictions, answers, names):
    with pytest.raises(ValueError, match=names):
        text_scores(predictions, answers)
    with pytest.raises(ValueError):
        corpus_scores([], [])


def test_libraries_are_loaded_when_they_are_asked_for():
    import subprocess

    code = "import sys, distmeta.evaluation.text_metrics; print({'sacrebleu', 'rouge_score'} & set(sys.modules))"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout.strip() == "set()"
