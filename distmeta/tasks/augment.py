"""Augmentation of training episodes: pure functions of arrays and draws, without a loop over rows.

Each of task.augment has a stream of draws of its own, by (seed, index): turning one on changes neither the episodes'
own draws nor those of another. Only support rows change, but for `resplit`. Tokens that belong to the form of a text
([CLS], [SEP]) stay where they are; all others are called words here.

Letters: n rows, m tokens of all rows together; row i has tokens[offsets[i]:offsets[i + 1]].
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from distmeta.config import AugmentConfig
from distmeta.tasks.draws import Draws

# Of Draws; 0, 1 and 2 are those of the splits.
STREAMS = {"token_dropout": 8, "word_swap": 9, "mix": 10, "permute_labels": 11, "resplit": 12, "size": 13,
           "flips": 14}  # fmt: skip
ONE = 1 << 31  # draws are integers below this

Tokens = NDArray[np.int32]
Numbers = NDArray[np.int64]
Marks = NDArray[np.bool_]


def augment_tokens(
    tokens: Tokens, offsets: Numbers, labels: Numbers, words: Marks, augment: AugmentConfig, seed: int, index: int
) -> tuple[Tokens, Numbers]:
    """(tokens, offsets) of a support set after `mix`, `word_swap` and `token_dropout`, in this order.

    tokens [m], offsets [n + 1], labels [n]; words [m]: which of the tokens may change.
    """
    if augment.mix:
        draws = Draws(seed, STREAMS["mix"], index)
        tokens = mix(tokens, offsets, labels, words, augment.mix, draws)
    if augment.word_swap:
        tokens = word_swap(tokens, offsets, words, augment.word_swap, Draws(seed, STREAMS["word_swap"], index))
    if augment.token_dropout:
        draws = Draws(seed, STREAMS["token_dropout"], index)
        return token_dropout(tokens, offsets, words, augment.token_dropout, draws)
    return tokens, offsets


def token_dropout(tokens: Tokens, offsets: Numbers, words: Marks, share: float, draws: Draws) -> tuple[Tokens, Numbers]:
    """(tokens, offsets) without each word with probability `share`. A row of words keeps at least one of them."""
    row = rows_of(offsets)
    height = draws.below(np.full(len(tokens), ONE))
    keep = ~words | (height >= share * ONE)
    places = np.flatnonzero(words)
    # The word that would be the last to go: where several are assigned to a row, the last one stays.
    last = np.full(len(offsets) - 1, -1)
    by_height = places[np.argsort(height[places], kind="stable")]
    last[row[by_height]] = by_height
    keep[last[last >= 0]] = True
    kept = np.bincount(row[keep], minlength=len(offsets) - 1)
    return tokens[keep], np.concatenate([[0], np.cumsum(kept)])


def word_swap(tokens: Tokens, offsets: Numbers, words: Marks, share: float, draws: Draws) -> Tokens:
    """Tokens [m] after neighbouring words have changed places, with probability `share` for each pair.

    A row's words are paired two by two, from its first or from its second on, by a draw; so no word moves twice.
    """
    places = np.flatnonzero(words)
    row = rows_of(offsets)[places]
    place = np.arange(len(places)) - np.searchsorted(row, row)  # of a word in its row
    shift = draws.below(np.full(len(offsets) - 1, 2))
    first = np.flatnonzero((row[:-1] == row[1:]) & ((place + shift[row])[:-1] % 2 == 0))
    first = first[draws.below(np.full(len(first), ONE)) < share * ONE]
    left, right = places[first], places[first + 1]
    out: Tokens = tokens.copy()
    out[left], out[right] = tokens[right], tokens[left]
    return out


def mix(tokens: Tokens, offsets: Numbers, labels: Numbers, words: Marks, share: float, draws: Draws) -> Tokens:
    """Tokens [m] with each word, with probability `share`, replaced by one drawn from the other rows of its class.

    Unigram noising in the manner of Xie et al. 2017 (arXiv 1703.02573, section 3.3), which replaces tokens by draws
    from the unigram frequencies of the whole corpus. Adapted: the frequencies are those of the other support rows of
    the same class, so that the label stays true and nothing from outside of the episode comes in.
    """
    places = np.flatnonzero(words)
    row = rows_of(offsets)[places]
    places = places[
        np.argsort(labels[row], kind="stable")
    ]  # words of a class side by side, and those of a row within it
    row = rows_of(offsets)[places]
    of_row, of_class = np.bincount(row, minlength=len(labels)), np.bincount(labels[row], minlength=labels.max() + 1)
    class_start = (np.cumsum(of_class) - of_class)[labels[row]]
    change = np.arange(len(places))
    row_start = np.full(len(labels), len(places))
    np.minimum.at(row_start, row, change)
    others = of_class[labels[row]] - of_row[row]
    chosen = (draws.below(np.full(len(places), ONE)) < share * ONE) & (others > 0)
    donor = class_start + draws.below(np.maximum(others, 1))
    donor += np.where(donor >= row_start[row], of_row[row], 0)  # past the row's own words
    out: Tokens = tokens.copy()
    out[places[chosen]] = tokens[places[donor[chosen]]]
    return out


def permute_labels(names: tuple[str, ...], labels: Numbers, draws: Draws) -> tuple[tuple[str, ...], Numbers]:
    """(label names in a new order, labels as numbers of it)."""
    order = draws.permutation(len(names))
    return tuple(names[i] for i in order), np.argsort(order)[labels]


def resplit(rows: Numbers, draws: Draws) -> Numbers:
    """Each class's rows [ways, shots + queries] in a new order: which are support and which query is drawn again."""
    ways, each = rows.shape
    order = np.argsort(draws.below(np.full((ways, each), ONE)), 1, kind="stable")
    return np.take_along_axis(rows, order, 1)


def rows_of(offsets: Numbers) -> Numbers:
    """The row of each token, [m]."""
    return np.repeat(np.arange(len(offsets) - 1), np.diff(offsets))
