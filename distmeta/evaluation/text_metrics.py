"""Scores of generated text against accepted answers, each in 0..1. A metric is a function of two texts and a line in
METRICS.

exact_match, token_f1: of SQuAD (Rajpurkar et al. 2016, arXiv 1606.05250, section 6.1). rouge_l: Lin 2004. bleu:
Papineni et al. 2002, by sacrebleu (Post 2018). chrf: Popović 2015, by sacrebleu. Where a script has no spaces between
words, such as Chinese, a character is a token.
"""

from __future__ import annotations

import re
import string
import unicodedata
from collections import Counter
from collections.abc import Callable, Sequence
from functools import cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

# Scripts without spaces between words: Thai, Lao, Burmese, Khmer, kana, ideographs.
UNSPACED = (
    "\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U0003ffff"
)
_IDEOGRAPH = re.compile("[\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff]")
_TOKEN = re.compile(rf"[{UNSPACED}]|[^\s{UNSPACED}]+")
_WORD = re.compile(rf"[{UNSPACED}]|[^\W_{UNSPACED}]+")  # of ASCII text: rouge-score's own runs of a-z and 0-9
_ARTICLE = re.compile(r"\b(a|an|the)\b")


def normalise(text: str) -> str:
    """SQuAD's: lower case, no punctuation (here of every script), no English articles, single spaces."""
    kept = (c for c in text.lower() if c not in string.punctuation and not unicodedata.category(c).startswith("P"))
    return " ".join(_ARTICLE.sub(" ", "".join(kept)).split())


def exact_match(prediction: str, answer: str) -> float:
    """Whether the two are the same text once normalised."""
    return float(normalise(prediction) == normalise(answer))


def token_f1(prediction: str, answer: str) -> float:
    """F1 of the bags of tokens; where one has none, whether the other has none either (as SQuAD 2.0's script)."""
    words, right = (_TOKEN.findall(normalise(text)) for text in (prediction, answer))
    if not words or not right:
        return float(words == right)
    common = sum((Counter(words) & Counter(right)).values())
    return 2 * common / (len(words) + len(right))


def rouge_l(prediction: str, answer: str) -> float:
    """F-measure of the longest common subsequence of words, unstemmed."""
    return float(_rouge().score(answer, prediction)["rougeL"].fmeasure)


def bleu(prediction: str, answer: str) -> float:
    """Sentence BLEU with effective order: no n-gram longer than the prediction is asked for."""
    return float(_bleu(_tokenizer(answer), True).sentence_score(prediction, [answer]).score) / 100


def chrf(prediction: str, answer: str) -> float:
    """F-score (beta 2) of character n-grams up to 6."""
    return float(_chrf().sentence_score(prediction, [answer]).score) / 100


METRICS: dict[str, Callable[[str, str], float]] = {
    "exact_match": exact_match,
    "token_f1": token_f1,
    "rouge_l": rouge_l,
    "bleu": bleu,
    "chrf": chrf,
}


def text_scores(predictions: Sequence[str], answers: Sequence[Sequence[str]]) -> dict[str, NDArray[np.float64]]:
    """Each metric of METRICS for each row, [n]: the best over the answers that are accepted for the row.

    predictions [n]; answers: for each row one or more. Raises ValueError.
    """
    _check(predictions, answers)
    return {
        name: np.array([max(metric(p, a) for a in right) for p, right in zip(predictions, answers)], np.float64)
        for name, metric in METRICS.items()
    }


def corpus_scores(predictions: Sequence[str], answers: Sequence[Sequence[str]]) -> dict[str, float]:
    """BLEU and chrF of all rows together. BLEU is 0 where no row has four tokens: there is no effective order.

    Arguments as `text_scores`, at least one row. A row may have more answers than another. Raises ValueError.
    """
    _check(predictions, answers)
    if not predictions:
        raise ValueError("there are no predictions: a corpus has at least one row")
    most = max(len(right) for right in answers)
    references = [[right[i] if i < len(right) else None for right in answers] for i in range(most)]
    tokenizer = _tokenizer("".join(text for right in answers for text in right))
    return {
        "bleu": float(_bleu(tokenizer, False).corpus_score(list(predictions), references).score) / 100,
        "chrf": float(_chrf().corpus_score(list(predictions), references).score) / 100,
    }


def _check(predictions: Sequence[str], answers: Sequence[Sequence[str]]) -> None:
    if len(predictions) != len(answers):
        raise ValueError(f"{len(predictions)} predictions, but answers for {len(answers)} rows")
    for row, right in enumerate(answers):
        if isinstance(right, str) or not right:
            raise ValueError(f"answers[{row}] = {right!r}: a sequence of at least one accepted answer")


def _tokenizer(text: str) -> str:
    """sacrebleu's tokenizer: of ideographs one by one where there are any, else the one of WMT's 13a."""
    return "zh" if _IDEOGRAPH.search(text) else "13a"


@cache
def _bleu(tokenizer: str, effective_order: bool) -> Any:
    from sacrebleu.metrics import BLEU

    return BLEU(tokenize=tokenizer, effective_order=effective_order)


@cache
def _chrf() -> Any:
    from sacrebleu.metrics import CHRF

    return CHRF()


class _Words:
    """rouge-score's interface of a tokenizer; its own drops every letter but a to z."""

    def tokenize(self, text: str) -> list[str]:
        return _WORD.findall(text.lower())


@cache
def _rouge() -> Any:
    from rouge_score.rouge_scorer import RougeScorer

    return RougeScorer(["rougeL"], tokenizer=_Words())
