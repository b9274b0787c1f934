"""How a decoder reads a classification: each example is a text and the name of its class, in words that it knows.

    plain   Input: TEXT          chat   the model's own template: TEXT is the user's turn, the class the assistant's
            Label: B

A class is named by a letter that its episode draws (task.labels=letters), so that a letter means nothing outside it.
"""

from __future__ import annotations

import string
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import chain
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from distmeta.errors import InputError
from distmeta.tasks.counts import Counts, unknown_id

if TYPE_CHECKING:
    from tokenizers import Tokenizer

    from distmeta.config import TaskConfig

LETTERS = string.ascii_uppercase
MARKS = ("⟦1⟧", "⟦2⟧", "⟦3⟧", "⟦4⟧")  # stand for two texts and two classes, where a template is taken apart


@dataclass(frozen=True)
class Prompt:
    """A context is `start`, then for each example: before TEXT between gap CLASS after."""

    start: str
    before: str
    between: str
    gap: str  # belongs to the class: " B" is a token, where a tokenizer joins a space to the word after it
    after: str

    def example(self, text: str) -> str:
        """An example without its class."""
        return f"{self.before}{text}{self.between}"


PLAIN = Prompt("", "Input: ", "\nLabel:", " ", "\n\n")


@dataclass(frozen=True)
class LabelTokens:
    """Token ids of what stands around the examples of a context. labels [C]: one token for each class."""

    start: tuple[int, ...]
    labels: tuple[int, ...]
    after: tuple[int, ...]


def prompt_of(style: str, tokenizer: Tokenizer) -> Prompt:
    """The prompt of task.prompt, for a tokenizer of `distmeta.tasks.tokenizer`. Raises InputError."""
    return PLAIN if style == "plain" else chat_prompt(tokenizer)


def chat_prompt(tokenizer: Tokenizer) -> Prompt:
    """The model's own chat template, taken apart at the texts and classes of two examples. Raises InputError."""
    from distmeta.tasks.tokenizer import as_transformers, named_tokens

    if "chat_template" not in named_tokens(tokenizer):
        raise InputError("task.prompt = chat: the model's directory has no chat template; set task.prompt=plain")
    copy = type(tokenizer).from_str(tokenizer.to_str())
    copy.__dict__["named"] = named_tokens(tokenizer)
    roles = ("user", "assistant", "user", "assistant")
    turns = [{"role": role, "content": mark} for role, mark in zip(roles, MARKS, strict=True)]
    try:
        stock = as_transformers(copy, 1 << 20, takes_types=False)
        whole, asked = (
            stock.apply_chat_template(part, tokenize=False, add_generation_prompt=part is not turns)
            for part in (turns, turns[:1])
        )
        start, between, middle, again, after = split_at(whole, MARKS)
    except Exception as error:  # a template is a program of the model's authors
        raise InputError(f"task.prompt = chat: the model's template fails ({error}); set task.prompt=plain") from None
    before = middle.removeprefix(after)
    if between != again or not middle.startswith(after) or not start.endswith(before) or not asked.endswith(between):
        raise InputError(
            "task.prompt = chat: the model's template writes later turns in another way than the first one, so that an "
            "example would not look alike at each place of a context; set task.prompt=plain"
        )
    return Prompt(start.removesuffix(before), before, between, "", after)


def split_at(text: str, marks: Sequence[str]) -> list[str]:
    """What stands around the marks, of which each is there once, in their order. Raises ValueError."""
    out = []
    for mark in marks:
        before, found, text = text.partition(mark)
        if not found:
            raise ValueError("it leaves a turn out")
        out.append(before)
    return [*out, text]


def label_tokens(task: TaskConfig, tokenizer: Tokenizer) -> LabelTokens:
    """The tokens of task.prompt and task.labels. Raises InputError where a letter is not one token of its own."""
    prompt = prompt_of(task.prompt, tokenizer)
    plain = plain_copy(tokenizer)

    def ids(text: str) -> tuple[int, ...]:
        return tuple(plain.encode(text, add_special_tokens=False).ids)

    labels = [ids(prompt.gap + letter) for letter in LETTERS]
    if any(len(of) != 1 for of in labels) or len(set(labels)) < len(labels):
        raise InputError(
            "task.labels = letters: the model's tokenizer has not one token for each of the letters A to Z; "
            "choose another model, or set task.labels=head"
        )
    first = beginning(plain) if not prompt.start else ()
    return LabelTokens(first + ids(prompt.start), tuple(i for of in labels for i in of), ids(prompt.after))


@lru_cache(maxsize=4)
def label_tokens_of(task: TaskConfig, source: str) -> LabelTokens:
    """`label_tokens` for the tokenizer of a pretrained directory or hub id."""
    from distmeta.tasks.tokenizer import load_tokenizer

    return label_tokens(task, load_tokenizer(source))


def beginning(plain: Tokenizer) -> tuple[int, ...]:
    """What the tokenizer puts before every text, such as <s>."""
    whole, bare = plain.encode("a").ids, plain.encode("a", add_special_tokens=False).ids
    return tuple(whole[: next(i for i in range(len(whole)) if whole[i : i + len(bare)] == bare)])


def plain_copy(tokenizer: Tokenizer) -> Tokenizer:
    """The tokenizer without padding and truncation."""
    plain = type(tokenizer).from_str(tokenizer.to_str())
    plain.no_padding()
    plain.no_truncation()
    return plain


def encode(
    tokenizer: Tokenizer, batches: Iterable[list[str]], task: TaskConfig, max_tokens: int, counts: Counts | None = None
) -> Iterator[tuple[NDArray[np.int32], NDArray[np.int64]]]:
    """For each batch of texts: the token ids of their examples in one array, and how many each has.

    One that is longer than `max_tokens` loses its middle, so that what asks for the class stays. counts: what that
    loses is added to it.
    """
    prompt, plain, unknown = prompt_of(task.prompt, tokenizer), plain_copy(tokenizer), unknown_id(tokenizer)
    for texts in batches:
        rows = plain.encode_batch_fast([prompt.example(text) for text in texts], add_special_tokens=False)
        ids = [without_middle(row.ids, max_tokens) for row in rows]
        if counts is not None:
            counts.rows += len(rows)
            counts.cut += sum(len(row.ids) > max_tokens for row in rows)
            counts.tokens += sum(map(len, ids))
            counts.unknown += sum(row.count(unknown) for row in ids) if unknown is not None else 0
        lengths = np.fromiter(map(len, ids), np.int64, len(ids))
        yield np.fromiter(chain.from_iterable(ids), np.int32, int(lengths.sum())), lengths


def without_middle(ids: list[int], most: int) -> list[int]:
    if len(ids) <= most:
        return ids
    return ids[: most // 2] + ids[len(ids) - (most - most // 2) :]
