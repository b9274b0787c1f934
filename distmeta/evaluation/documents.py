"""A text that a model has read in order: its weights after the last step, and where it has come to.

What is read later goes on from there, and gives the same weights as if all had been read at once.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from distmeta.algorithms.rates import inner_loop
from distmeta.config import Config
from distmeta.errors import InputError
from distmeta.evaluation.adaptable import Adaptable
from distmeta.inner import InnerLoop
from distmeta.inner.adapt import adapt
from distmeta.models.backbone import positions
from distmeta.models.generate import generate
from distmeta.models.language import LanguageModel
from distmeta.models.prefix import fixed_prefix
from distmeta.tasks import documents
from distmeta.tasks.episodes.collate import collate
from distmeta.tasks.prompts import plain_copy
from distmeta.tasks.rows import Rows
from distmeta.tasks.texts import fault
from distmeta.tasks.tokenizer import special_ids

if TYPE_CHECKING:
    from tokenizers import Tokenizer

Params = Mapping[str, Tensor]
AT_ONCE = 64  # steps of a book, whose chunks' states below the adapted layers are held together


@dataclass(frozen=True)
class Place:
    """Where reading has come to.

    tail: the last tokens that were read, of which `pending` are less than a chunk and wait for the rest of it. steps:
    done so far.
    """

    tail: list[int]
    pending: int
    steps: int


START = Place([], 0, 0)


def text_of(support: Sequence[Mapping[str, Any]] | str | Path, config: Config) -> str:
    """The text of rows with the run's text column, or of a file of any format that training reads, in order.

    Raises InputError.
    """
    column = config.data.text
    if isinstance(support, str | Path):
        from distmeta.tasks.readers import find_sources, read_examples
        from distmeta.tasks.sources import TEXT_KINDS

        data = config.data.model_copy(update={"splits": None, "split": "hash"})
        batches = read_examples(find_sources(str(support), TEXT_KINDS), data, "document", False, one_task=True)
        texts = [text for batch in batches for text in batch.column("text").to_pylist()]
    else:
        texts = []
        for number, row in enumerate(support):
            if column not in row:
                raise InputError(f"support, example {number}: no '{column}'; it has {', '.join(map(str, row))}")
            if reason := fault(row[column]):
                raise InputError(f"support, example {number}: '{column}' {reason}")
            texts.append(row[column])
        if not texts:
            raise InputError("support: no text in it; give the text to read")
    return "".join([*documents.lines_of(texts[:-1]), str(texts[-1])])


def tokens_of(tokenizer: Tokenizer, text: str) -> list[int]:
    """The tokens of a text, without special ones."""
    return list(_whole(tokenizer).encode(text, add_special_tokens=False).ids)


_whole = lru_cache(maxsize=4)(plain_copy)  # which cuts nothing


def read_on(start: Adaptable, tokens: Sequence[int], place: Place) -> tuple[dict[str, Tensor], Place, list[float]]:
    """Read `tokens` from `place` on: (the fast weights, the new place, the loss of each chunk before the step on it).

    What is less than a chunk at the end is kept for later. Raises Diverged, and InputError where an inner optimizer
    with a state would have to go on in the middle.
    """
    config, model, device = start.config, start.model, start.device
    assert isinstance(model, LanguageModel)
    task, inner = config.task, config.inner
    if place.steps and inner.optimizer != "sgd":
        raise InputError(
            f"inner.optimizer = {inner.optimizer} keeps a state: give the whole text at once, from its start"
        )
    text = [*place.tail, *tokens]
    begin = len(place.tail) - place.pending
    count = (len(text) - begin) // task.chunk_tokens
    rows = [_row(text, begin + k * task.chunk_tokens, config) for k in range(count)]
    params, losses = dict(start.fast), []
    size = AT_ONCE if inner.optimizer == "sgd" else max(1, count)
    for at in range(0, count, size):
        part = rows[at : at + size]
        chunks = [model.batches(collate([row], 1, start.pad_id), device) for row in part]
        chunks = [fixed_prefix(model, {**params, **start.shared}, chunk) for chunk in chunks]
        loop = _steps(inner_loop(inner, start.rates, place.steps + at + len(part)), place.steps + at)
        result = adapt(lambda p, b: model.loss(p, b).sum(), params, chunks, loop, shared=start.shared, by_step=True)
        params = result.params
        losses += result.inner_losses.tolist()
    end = begin + count * task.chunk_tokens
    pending = len(text) - end
    kept = max(0, end - task.context_tokens)
    return params, Place(text[kept:], pending, place.steps + count), losses


def _row(text: Sequence[int], begin: int, config: Config) -> Rows:
    """A chunk with what is read before it."""
    first = max(0, begin - config.task.context_tokens)
    tokens = np.array(text[first : begin + config.task.chunk_tokens], np.int32)
    return Rows(tokens, np.array([0, len(tokens)]), np.array([max(1, begin - first)]), np.zeros(1, np.int64))


def _steps(loop: InnerLoop, first: int) -> InnerLoop:
    """The loop from step `first` on, where rates are by step."""

    def later(rate: Any) -> Any:
        by_step = isinstance(rate, Tensor) and rate.ndim == 1 and loop.lr_per == "step"
        return rate[first:] if by_step else rate

    lr = {name: later(rate) for name, rate in loop.lr.items()} if isinstance(loop.lr, Mapping) else later(loop.lr)
    return replace(loop, steps=loop.steps - first, lr=lr)


def score(model: LanguageModel, params: Params, place: Place, text: Sequence[int], config: Config, pad_id: int) -> Any:
    """The loss per token, in nats, of a text that follows what was read: {loss, perplexity, tokens}.

    Both are None where nothing was read and the text is one token, which nothing predicts.
    """
    whole = [*place.tail, *text]
    begin = max(1, len(place.tail))
    size = config.task.chunk_tokens
    total, count = 0.0, 0
    device = next(iter(params.values())).device
    for at in range(begin, len(whole), size):
        (batch,) = model.batches(collate([_row(whole[: at + size], at, config)], 1, pad_id), device)
        with torch.no_grad():
            nll, _ = model.by_token(dict(params), batch)
        total, count = total + float(nll.sum()), count + nll.numel()
    if not count:
        return {"loss": None, "perplexity": None, "tokens": 0}
    loss = total / count
    return {"loss": round(loss, 6), "perplexity": round(math.exp(min(loss, 700)), 6), "tokens": count}


def continued(
    model: LanguageModel, params: Params, place: Place, text: Sequence[int], config: Config, most: int,
    tokenizer: Tokenizer,
) -> str:  # fmt: skip
    """What the model says next, after what was read and `text`: at most `most` tokens.

    Where they are more than the model has positions for, it goes on from the last `model.max_tokens` again.
    """
    special, limit = special_ids(tokenizer), positions(model.backbone)
    said: list[int] = []
    while len(said) < most:
        before = [*place.tail, *text, *said][-config.model.max_tokens :]
        if not before:
            raise InputError("there is nothing to continue: give a text")
        row = Rows(np.array([*before, special.end], np.int32), np.array([0, len(before) + 1]),
                   np.array([len(before)]), np.zeros(1, np.int64))  # fmt: skip
        (batch,) = model.batches(collate([row], 1, special.pad), next(iter(params.values())).device)
        room = most if limit is None else max(1, limit - len(before))
        tokens = generate(model, params, batch, special.ends, min(room, most - len(said)))[0][0].tolist()
        said += [token for token in tokens if token not in special.ends]
        if special.ends and tokens[-1] in special.ends:
            break
    return str(tokenizer.decode(said, skip_special_tokens=True))


def remarks(place: Place, before: Place, config: Config) -> list[str]:
    """What a reader should know of a text that was read, a line each."""
    chunk, trained = config.task.chunk_tokens, config.task.chunks - 1
    if place.steps == before.steps:
        return [f"the text is shorter than a chunk of {chunk} tokens: the model has made no step on it yet"]
    if before.steps <= trained < place.steps:
        return [
            f"the text has {place.steps} chunks, and training took {trained} steps: how the loss goes on after them is "
            "not what was trained for"
        ]
    return []


def place_of(state: Mapping[str, Any]) -> Place:
    """The place that an adapted model's state holds."""
    return Place(**state["reading"])


def as_state(place: Place) -> dict[str, Any]:
    return {"reading": asdict(place)}
