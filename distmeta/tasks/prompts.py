"""How a decoder reads a classification: each example is a text and the name of its class, in words that it knows.

    plain   Input: TEXT          chat   the model's own template: TEXT is the user's turn, the class the assistant's
            Label: B             or a template of the user's (distmeta.config.templates)

A class is named by a letter that its episode draws (task.labels=letters), so that a letter means nothing outside it; or
by its label's own words (task.labels=words). Text to text: distmeta.tasks.written.
"""

from __future__ import annotations

import string
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import chain
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from distmeta.config.templates import INPUT, TARGET, take_apart
from distmeta.errors import InputError, cut
from distmeta.tasks.counts import Counts, unknown_id

if TYPE_CHECKING:
    from tokenizers import Tokenizer

    from distmeta.config import Config, TaskConfig

LETTERS = string.ascii_uppercase
MARKS = (INPUT, TARGET, "⟦3⟧", "⟦4⟧")  # stand for two texts and two classes, where a template is taken apart


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
    """Token ids of what stands around the examples of a context, and of the names of classes.

    labels: one token for each letter; none where classes have their own words. blank: `start`, and an example without a
    text, up to its class. words: the tokens of a label; raises InputError. longest: tokens that a class may have.
    """

    start: tuple[int, ...]
    labels: tuple[int, ...]
    after: tuple[int, ...]
    blank: tuple[int, ...] = ()
    words: Callable[[str], tuple[int, ...]] | None = None
    longest: int = 1

    def of(self, names: Sequence[str]) -> list[tuple[int, ...]]:
        """The tokens of an episode's classes, by their labels. Raises InputError."""
        if self.words is None:
            return [(self.labels[i],) for i in range(len(names))]
        tokens = [self.words(name) for name in names]
        if len(set(tokens)) < len(tokens):
            twice = next(name for i, name in enumerate(names) if tokens[i] in tokens[:i])
            other = names[tokens.index(self.words(twice))]
            raise InputError(f"the labels '{other}' and '{twice}' have the same tokens; rename one")
        return tokens


def prompt_of(style: str, tokenizer: Tokenizer) -> Prompt:
    """The prompt of task.prompt, for a tokenizer of `distmeta.tasks.tokenizer`. Raises InputError."""
    if style == "auto":
        raise InputError(
            "task.prompt = auto is chosen by `distmeta train`, before it starts; set task.prompt=plain or chat"
        )
    return PLAIN if style == "plain" else chat_prompt(tokenizer) if style == "chat" else template_prompt(style)


def template_prompt(text: str) -> Prompt:
    """A template of the user's; spaces before the target belong to it. Raises ValueError."""
    before, between, after = take_apart(text)
    asked = between.rstrip(" ")
    return Prompt("", before, asked, between[len(asked) :], after or "\n")


def chat_prompt(tokenizer: Tokenizer) -> Prompt:
    """The model's own chat template, taken apart at the texts and classes of two examples. Raises InputError."""
    from distmeta.tasks.tokenizer import named_tokens

    if "chat_template" not in named_tokens(tokenizer):
        raise InputError("task.prompt = chat: the model's directory has no chat template; set task.prompt=plain")
    roles = ("user", "assistant", "user", "assistant")
    turns = [{"role": role, "content": mark} for role, mark in zip(roles, MARKS, strict=True)]
    try:
        stock = templated(tokenizer)
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


def check_chat(config: Config) -> None:
    """Raises InputError where the model of `config` has no template that examples can be written in."""
    if config.task.family != "text_to_text":
        label_tokens_of(config)
        return
    from distmeta.tasks.tokenizer import load_tokenizer

    if config.model.pretrained is None:
        raise InputError("task.prompt = chat: a model that is not pretrained has no chat template; set plain")
    chat_prompt(load_tokenizer(config.model.pretrained))


def templated(tokenizer: Tokenizer) -> Any:
    """The tokenizer as transformers', whose apply_chat_template writes turns as the model's authors do."""
    from distmeta.tasks.tokenizer import as_transformers, named_tokens

    copy = type(tokenizer).from_str(tokenizer.to_str())
    copy.__dict__["named"] = named_tokens(tokenizer)
    return as_transformers(copy, 1 << 20, takes_types=False)


def split_at(text: str, marks: Sequence[str]) -> list[str]:
    """What stands around the marks, of which each is there once, in their order. Raises ValueError."""
    out = []
    for mark in marks:
        before, separator, text = text.partition(mark)
        if not separator:
            raise ValueError("it leaves a turn out")
        out.append(before)
    return [*out, text]


def label_tokens(config: Config, tokenizer: Tokenizer) -> LabelTokens:
    """The tokens of task.prompt and task.labels. Raises InputError where a letter is not one token of its own."""
    return _tokens(config.task.labels, config.task.prompt, tokenizer, config.model.answer_tokens, _sources(config))


def _sources(config: Config) -> tuple[str, ...]:
    """Names of data sources that a class's label begins with."""
    return tuple(config.data.sources or ()) if config.task.family == "classes" else ()


def _tokens(labels: str, style: str, tokenizer: Tokenizer, most: int, sources: Sequence[str]) -> LabelTokens:
    prompt = prompt_of(style, tokenizer)
    plain = plain_copy(tokenizer)

    def ids(text: str) -> tuple[int, ...]:
        return tuple(plain.encode(text, add_special_tokens=False).ids)

    first = (beginning(plain) if not prompt.start else ()) + ids(prompt.start)
    after, blank = ids(prompt.after), first + ids(prompt.example(""))
    if labels == "words":

        @lru_cache(maxsize=1 << 16)
        def words(name: str) -> tuple[int, ...]:
            source, _, bare = name.partition("/")
            tokens = ids(prompt.gap + (bare if source in sources else name))
            if not tokens or len(tokens) > most:
                raise InputError(
                    f"task.labels = words: the label '{cut(name, 60)}' has {len(tokens)} tokens, and may have 1 to "
                    f"{most}; raise model.answer_tokens, rename it, or set task.labels=letters"
                )
            return tokens

        return LabelTokens(first, (), after, blank, words, most)
    return LabelTokens(first, letter_tokens(prompt, ids), after, blank)


def letter_tokens(prompt: Prompt, ids: Callable[[str], tuple[int, ...]]) -> tuple[int, ...]:
    """The token of each letter. Raises InputError."""
    labels = [ids(prompt.gap + letter) for letter in LETTERS]
    if any(len(of) != 1 for of in labels) or len(set(labels)) < len(labels):
        raise InputError(
            "task.labels = letters: the model's tokenizer has not one token for each of the letters A to Z; "
            "choose another model, or set task.labels=head"
        )
    return tuple(i for of in labels for i in of)


def label_tokens_of(config: Config) -> LabelTokens:
    """`label_tokens` for the tokenizer of model.pretrained. Raises InputError."""
    task, model = config.task, config.model
    return _of_source(task.labels, task.prompt, str(model.pretrained), model.answer_tokens, _sources(config))


@lru_cache(maxsize=4)
def _of_source(labels: str, style: str, source: str, most: int, sources: tuple[str, ...]) -> LabelTokens:
    from distmeta.tasks.tokenizer import load_tokenizer

    return _tokens(labels, style, load_tokenizer(source), most, sources)


def check_labels(labels: Sequence[str], config: Config) -> None:
    """Raises InputError for a label of the data that the model cannot say; at the start of a run."""
    if config.task.labels == "words":
        tokens, sources = label_tokens_of(config), _sources(config)
        of_source = {name: name.partition("/")[0] if name.partition("/")[0] in sources else "" for name in labels}
        for source in set(of_source.values()):
            tokens.of([name for name in labels if of_source[name] == source])


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


def without_middle(ids: list[int], most: int, least: int = 0) -> list[int]:
    """At most `most` of the ids, the last `least` among them."""
    if len(ids) <= most:
        return ids
    end = max(most - most // 2, least)
    return ids[: most - end] + ids[len(ids) - end :]
