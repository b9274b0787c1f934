"""Text-to-text examples: an input, the answers that are accepted, and where there are any, options and an instruction.

A record is kept in the task store as one line of JSON, and as tokens: the prompt, then the first answer and the end
token. What the loss is on, and what an answer is compared with, both come from it.

    Natural Instructions   a JSON file a task (Mishra et al. 2022, arXiv 2104.08773; Wang et al. 2022, arXiv 2204.07705)
    CrossFit               TASK_SHOTS_SEED_train.tsv, input TAB answer, no header (Ye et al. 2021, arXiv 2104.08835)
    MetaICL                JSONL with task, input, output, options (Min et al. 2022, arXiv 2110.15943)
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import PurePath
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from distmeta.config import ModelConfig
from distmeta.errors import InputError, cut
from distmeta.tasks import tokenizer as tokenizers
from distmeta.tasks.counts import Counts, unknown_id
from distmeta.tasks.prompts import without_middle
from distmeta.tasks.sources import Source, not_utf8

if TYPE_CHECKING:
    from tokenizers import Tokenizer

ANSWER = "answer"  # the one label of the family
LISTS = ("target", "options")  # columns that may hold a list
Arrays = Iterator[tuple[dict[str, Any], NDArray[Any]]]


@dataclass(frozen=True)
class Record:
    input: str
    answers: tuple[str, ...]  # any of them is right; the first is learnt
    options: tuple[str, ...] = ()
    instruction: str = ""

    def line(self) -> str:
        """As one line of JSON, which `parse` reads."""
        fields = {
            "input": self.input,
            "answers": self.answers,
            "options": self.options,
            "instruction": self.instruction,
        }
        return json.dumps({key: value for key, value in fields.items() if value}, ensure_ascii=False)

    def prompt(self, instructions: bool = True) -> str:
        """What the model is given, without the boundary before the answer."""
        return f"{self.instruction}\n{self.input}" if instructions and self.instruction else self.input


def parse(line: str) -> Record:
    content = json.loads(line)
    return Record(
        content["input"], tuple(content["answers"]), tuple(content.get("options", ())), content.get("instruction", "")
    )


def words_of(line: str) -> list[str]:
    """All text of a record, for a tokenizer's vocabulary."""
    record = parse(line)
    return [record.prompt(), *record.answers, *record.options]


def from_columns(
    arrays: Mapping[str, Any], columns: Mapping[str, str], source: Source, numbers: NDArray[Any]
) -> pa.Array:
    """Lines of records, large_string [rows], from columns by role. Raises InputError with the row's number."""
    values = {role: a.to_pylist() if isinstance(a, pa.Array) else a for role, a in arrays.items()}
    word = "line" if source.kind == "jsonl" else "row"
    lines = []
    for i, number in enumerate(numbers):
        row = {role: column[i] for role, column in values.items() if role not in ("task", "split")}
        try:
            lines.append(make(row, columns).line())
        except InputError as error:
            raise InputError(f"{source.name} {word} {number}: {error}") from None
    return pa.array(lines, pa.large_string())


def make(row: Mapping[str, Any], columns: Mapping[str, str]) -> Record:
    """A record from values by role. Raises InputError, without the place."""
    values: dict[str, Any] = {}
    for role in ("input", "instruction"):
        value = row.get(role)
        if value is not None and not isinstance(value, str):
            raise InputError(f"'{columns[role]}' (data.{role}) is {cut(json.dumps(value), 40)}; it must hold text")
        values[role] = value or ""
    if not values["input"].strip():
        raise InputError(f"'{columns.get('input', 'input')}' (data.input) is empty")
    for role in LISTS:
        value = row.get(role)
        several = list(value) if isinstance(value, list | tuple | np.ndarray) else [] if value is None else [value]
        if not all(isinstance(one, str | int) for one in several):
            raise InputError(
                f"'{columns[role]}' (data.{role}) is {cut(json.dumps(value), 40)}; it must hold text, or a list of "
                "texts"
            )
        values[role] = tuple(str(one) for one in several)
        if role == "target" and not (values[role] and all(one.strip() for one in values[role])):
            raise InputError(f"'{columns.get(role, role)}' (data.target) is empty")
    options, targets = ({one.strip().casefold() for one in values[role]} for role in ("options", "target"))
    if options and not options & targets:
        name, first = columns.get("target", "target"), cut(json.dumps(values["target"][0]), 40)
        listed = cut(json.dumps(values["options"]), 60)
        raise InputError(f"'{name}' (data.target) is {first}, which is none of the options {listed}")
    record = Record(values["input"], values["target"], values["options"], values["instruction"])
    try:
        record.line().encode()
    except UnicodeEncodeError:
        raise InputError("the example has half of a surrogate pair, which is no character") from None
    return record


# --- tokens ---


class Encoder:
    """Prompts and answers as token ids, within the model's lengths. Ready-made: what one tokenizer needs."""

    def __init__(self, tokenizer: Tokenizer, model: ModelConfig) -> None:
        self._prompts, self._answers = (type(tokenizer).from_str(tokenizer.to_str()) for _ in range(2))
        special = tokenizers.special_ids(tokenizer)
        self.end, self.ends = special.end, special.ends
        self._unknown = unknown_id(tokenizer)
        self._prompts.no_padding()
        self._answers.no_padding()
        self._prompts.no_truncation()
        # A tokenizer that ends a text by a token of its own needs no other boundary before the answer.
        ends = self._prompts.encode("a").ids[-1:] != self._prompts.encode("a", add_special_tokens=False).ids[-1:]
        self.boundary = [] if ends else self._prompts.encode("\n", add_special_tokens=False).ids
        self.room = room = model.max_tokens - model.answer_tokens - len(self.boundary)  # tokens of a prompt
        if room <= self._prompts.num_special_tokens_to_add(False):
            raise InputError(
                f"model.max_tokens = {model.max_tokens}: model.answer_tokens = {model.answer_tokens} and the boundary "
                "before the answer leave no token for the prompt; raise model.max_tokens, or lower model.answer_tokens"
            )
        self._longest = model.answer_tokens
        self._answers.enable_truncation(self._longest)
        self.gap = ""  # before an answer
        self.later: tuple[int, ...] | None = None  # the head of a prompt that follows another example; None: its own

    def prompts(
        self, texts: Sequence[str], counts: Counts | None = None, instructions: Sequence[str] = (), later: bool = False
    ) -> list[list[int]]:
        """Of inputs, each after its instruction if there are any, up to its answer; cut where it is too long.

        later: as they stand in a context, behind an example. counts: what is lost is added to it.
        """
        heads, bodies = self.split(texts, counts, instructions)
        return [[*(head if self.later is None or not later else self.later), *body]
                for head, body in zip(heads, bodies, strict=True)]  # fmt: skip

    def split(
        self, texts: Sequence[str], counts: Counts | None = None, instructions: Sequence[str] = ()
    ) -> tuple[list[list[int]], list[list[int]]]:
        """As `prompts`, in two: what stands before the input where it is the first of a context, and the input with
        what asks for its answer. A bare prompt has no head, and loses its middle, so that a question stays."""
        if instructions:
            texts = [f"{about}\n{text}" if about else text for about, text in zip(instructions, texts, strict=True)]
        encodings = self._prompts.encode_batch_fast(list(texts))
        if counts is not None:
            counts.add(encodings, self._unknown)
            counts.cut += sum(len(e.ids) > self.room for e in encodings)
        return [[] for _ in encodings], [without_middle(e.ids, self.room) + self.boundary for e in encodings]

    def answers(self, texts: Sequence[str], counts: Counts | None = None) -> list[list[int]]:
        """Each with the end token; what is too long for that is cut, and does not end. counts: as in `prompts`."""
        encodings = self._answers.encode_batch_fast([self.gap + text for text in texts], add_special_tokens=False)
        ended = [len(e.ids) < self._longest for e in encodings]
        if counts is not None:
            counts.cut_answers += ended.count(False)
        return [[*e.ids, self.end] if whole else list(e.ids) for e, whole in zip(encodings, ended, strict=True)]


@dataclass(frozen=True)
class Encoded:
    """n examples as tokens: one after another, how many each has, how many before its answer, and how many of these are
    the head of its prompt (`Encoder.split`), [n] each."""

    tokens: NDArray[np.int32]
    lengths: NDArray[np.int64]
    begins: NDArray[np.int32]
    heads: NDArray[np.int32]


def encode_records(
    encoder: Encoder, made: Sequence[Record], instructions: bool, counts: Counts | None = None
) -> Encoded:
    """Records with their first answers. instructions: whether prompts have them. counts: as of `Encoder.prompts`."""
    about = [record.instruction if instructions else "" for record in made]
    heads, bodies = encoder.split([record.input for record in made], counts, about)
    answers = encoder.answers([record.answers[0] for record in made], counts)
    head, body, answer = (np.fromiter(map(len, part), np.int32, len(made)) for part in (heads, bodies, answers))
    flat = [token for parts in zip(heads, bodies, answers, strict=True) for ids in parts for token in ids]
    return Encoded(np.array(flat, np.int32), (head + body + answer).astype(np.int64), head + body, head)


# --- layouts of other collections: (source) -> (role -> values, numbers from 1) ---


def _natural_instructions(source: Source) -> Arrays:
    with source.open() as stream:
        try:
            content = json.loads(stream.read())
        except UnicodeDecodeError as error:
            raise InputError(f"{source.name}: {not_utf8(error.reason)}") from None
        except ValueError as error:
            raise InputError(f"{source.name}: does not parse as JSON: {error}") from None
    if not isinstance(content, dict) or "Instances" not in content or "Definition" not in content:
        raise InputError(f"{source.name}: no task of Natural Instructions; it needs Definition and Instances")
    definition = content["Definition"]
    instruction = " ".join(definition) if isinstance(definition, list) else str(definition)
    instances = content["Instances"]
    for number, instance in enumerate(instances, 1):
        if not isinstance(instance, dict) or not {"input", "output"} <= set(instance):
            raise InputError(f"{source.name} instance {number}: needs input and output")
    yield (
        {
            "input": [instance["input"] for instance in instances],
            "target": [instance["output"] for instance in instances],
            "instruction": [instruction] * len(instances),
            "task": pa.array([_stem(source)] * len(instances), pa.large_string()),
        },
        np.arange(1, len(instances) + 1),
    )


def _crossfit(source: Source) -> Arrays:
    inputs, answers, numbers = [], [], []
    for number, line in source.lines():
        if not line.strip():
            continue
        left, tab, right = line.rpartition("\t")
        if not tab:
            raise InputError(f"{source.name} line {number}: no tab between input and answer")
        inputs.append(left)
        answers.append(right)
        numbers.append(number)
    task = re.sub(r"(_\d+_\d+)?_(train|dev|test)$", "", _stem(source))
    names = pa.array([task] * len(inputs), pa.large_string())
    if inputs:
        yield {"input": inputs, "target": answers, "task": names}, np.array(numbers)


def _stem(source: Source) -> str:
    return PurePath(source.path).name.split(".")[0]


LAYOUTS: dict[str, Callable[[Source], Arrays]] = {"natural_instructions": _natural_instructions, "crossfit": _crossfit}
