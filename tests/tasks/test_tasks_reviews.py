"""The built-in suite is honest: no shortcut, too little for pooled training, enough for a few examples."""

from __future__ import annotations

import subprocess
import sys
from collections import Counter
from typing import Any

import numpy as np
import pytest
from sklearn.feature_extraction.text import CountVectorizer
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import roc_auc_score

from distmeta.config import DataConfig, ModelConfig, TaskConfig
from distmeta.tasks import build_store, check_feasible, open_store, reviews

AXIS = {
    word: (number, 1 - 2 * pole)
    for number, poles in enumerate([*reviews.ATTRIBUTES.values(), reviews.COMMON])
    for pole, words in enumerate(poles)
    for word in words
}
COMMON = len(reviews.ATTRIBUTES)


@pytest.fixture(scope="module")
def suite() -> dict[str, np.ndarray[Any, Any]]:
    return {name: np.array(column.to_pylist()) for name, column in zip(*_columns(reviews.make_reviews(0)), strict=True)}


def _columns(table: Any) -> tuple[list[str], list[Any]]:
    return table.column_names, table.columns


def cues(text: str) -> list[str]:
    return [word for word in text.split() if word in AXIS]


def axis_features(texts: Any) -> np.ndarray[Any, Any]:
    """[texts, attributes + 1]: which pole of each attribute the text names (and of the common words)."""
    out = np.zeros((len(texts), COMMON + 1))
    for row, text in enumerate(texts):
        for word in cues(text):
            out[row, AXIS[word][0]] += AXIS[word][1]
    return out


def test_it_is_seeded(suite: dict[str, Any]) -> None:
    code = "from distmeta.tasks.reviews import make_reviews as m; print(hash(0) or m(0).to_pylist()[::997])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == str(reviews.make_reviews(0).to_pylist()[::997])
    assert not reviews.make_reviews(1).equals(reviews.make_reviews(0))


def test_every_label_has_the_same_words_and_as_many(suite: dict[str, Any]) -> None:
    texts, labels = suite["text"], suite["label"]
    assert {len(cues(text)) for text in texts} == {2}
    lengths = np.array([len(text.split()) for text in texts])
    assert lengths.min() >= 8 and lengths.max() <= 16
    letters = np.array([len(text) for text in texts])
    for label in reviews.LABELS:
        assert abs(roc_auc_score(labels == label, lengths) - 0.5) < 0.02
        assert abs(roc_auc_score(labels == label, letters) - 0.5) < 0.03
    # Words of no opinion, and each opinion word over all domains, are as frequent in each label.
    counts = {label: Counter(w for t in texts[labels == label] for w in t.split()) for label in reviews.LABELS}
    common = {word for words in reviews.COMMON for word in words}
    for word in set().union(*counts.values()) - common:
        each = np.array([counts[label][word] for label in reviews.LABELS], float)
        assert np.abs(each - each.mean()).max() <= 4.5 * np.sqrt(each.mean()), (word, each)


def test_polarities_are_balanced_in_every_split() -> None:
    polarities = reviews.make_polarities(0)
    for products in reviews.PRODUCTS.values():
        for attribute in reviews.ATTRIBUTES:
            poles = [polarities[p][attribute] for p in products if attribute in polarities[p]]
            assert len(poles) >= 6 and 2 * sum(poles) == len(poles)


def test_pooled_training_gets_something_but_not_much(suite: dict[str, Any]) -> None:
    train, test = suite["split"] == "train", suite["split"] == "test"
    for words in ((1, 1), (1, 2)):
        vectors = CountVectorizer(token_pattern=r"\S+", ngram_range=words).fit(suite["text"][train])
        model = LogisticRegression(C=0.1, max_iter=500)
        model.fit(vectors.transform(suite["text"][train]), suite["label"][train])
        assert 0.42 <= model.score(vectors.transform(suite["text"][test]), suite["label"][test]) <= 0.60


def test_a_few_examples_suffice_who_knows_which_words_belong_together(suite: dict[str, Any]) -> None:
    polarities = reviews.make_polarities(0)
    rng = np.random.default_rng(0)
    oracle: list[float] = []
    few: list[float] = []
    few_words: list[float] = []
    vectors = CountVectorizer(token_pattern=r"\S+").fit(suite["text"])
    for product in reviews.PRODUCTS["test"]:
        mine = suite["task"] == product
        features, labels = axis_features(suite["text"][mine]), suite["label"][mine]
        signs = [1 - 2 * polarities[product].get(a, 0.5) for a in reviews.ATTRIBUTES]
        total = features @ np.array([*signs, -1])
        oracle.append(np.mean(np.array(reviews.LABELS)[np.sign(total).astype(int) + 1] == labels))
        for _ in range(3):
            support = np.concatenate([rng.choice(np.flatnonzero(labels == n), 5, False) for n in reviews.LABELS])
            query = np.setdiff1d(np.arange(len(labels)), support)
            for results, x in ((few, features), (few_words, vectors.transform(suite["text"][mine]))):
                model = LogisticRegression(C=10, max_iter=500).fit(x[support], labels[support])
                results.append(model.score(x[query], labels[query]))
    assert np.mean(oracle) >= 0.95
    assert np.mean(few) >= 0.85
    assert np.mean(few_words) <= 0.5  # the words of 15 reviews alone: what carries over must be learnt


def test_it_passes_through_the_store_like_any_data(tmp_path: Any) -> None:
    task = TaskConfig()
    store = open_store(build_store(DataConfig(cache=str(tmp_path)), task, ModelConfig()))
    check_feasible(store, task)
    assert store.labels == ["negative", "neutral", "positive"] and len(store.tasks) == 112
    for split, products in reviews.PRODUCTS.items():
        assert {store.tasks[i] for i in store.groups[split].ids} == set(products)
