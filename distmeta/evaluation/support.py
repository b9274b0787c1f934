"""Support sets as people give them: rows, or a file of them, as the model reads them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from distmeta.config import Config, DataConfig
from distmeta.config.modules import check_trusted
from distmeta.errors import InputError
from distmeta.evaluation.texts import support_rows
from distmeta.tasks import environments, images, prompts, regression
from distmeta.tasks.descriptions import check_words
from distmeta.tasks.prompts import LETTERS
from distmeta.tasks.records import Record, make, parse
from distmeta.tasks.rows import Rows
from distmeta.tasks.texts import fault, read_inputs

if TYPE_CHECKING:
    from tokenizers import Tokenizer


@dataclass(frozen=True)
class Support:
    """A support set as the model reads it."""

    rows: Rows
    labels: list[str]  # of the task, in the order of the head's classes; where there are no classes: none
    about: dict[str, Any]  # what the predictions need to know of it, beside the labels


def read_support(
    support: Sequence[Mapping[str, Any]] | str | Path,
    config: Config,
    state: Mapping[str, Any],
    tokenizer: Tokenizer,
    where: str = "support",
) -> Support:
    """Rows, or a file of them, for the model of a checkpoint's `state`. Raises InputError."""
    if config.task.family == "text_to_text":
        records = list(_records(support, config))
        return Support(support_rows(records, tokenizer, config), [], {"answers": common(records)})
    if config.task.family == "policy":
        return Support(_rollouts(support, config), [], {})
    if config.model.dimensions is not None:
        texts = _examples(support, config)
        return Support(tokenise(tokenizer, texts, [0] * len(texts), config), [], {})
    pairs = list(_pairs(support, config, where))
    labels = task_labels([label for _, label in pairs], config, state, where)
    numbers = [labels.index(label) for _, label in pairs]
    examples = [{"text": text, "label": label} for text, label in pairs]  # distmeta.evaluation.influence asks for them
    rows = tokenise(tokenizer, [text for text, _ in pairs], numbers, config)
    return Support(rows, labels, {"examples": examples})


def of_words(support: Sequence[Any] | str | Path, config: Config) -> list[dict[str, Any]] | None:
    """Rows for classes that are given by their words alone, as a list or a text file with one on each line: each has a
    blank image, which no inner step may see. None where examples are given. Raises InputError."""
    if config.model.head != "words" or config.model.image is None:
        return None
    if isinstance(support, str | Path):
        if Path(support).suffix != ".txt":
            return None
        try:
            support = Path(support).read_text(encoding="utf-8").splitlines()
        except OSError as error:
            raise InputError(f"{support}: {error.strerror or error}") from None
        except UnicodeDecodeError as error:
            raise InputError(f"{support}: not UTF-8 ({error.reason}); save the descriptions in UTF-8") from None
    if not all(isinstance(name, str) for name in support):
        return None
    blank = images.letters(np.zeros(config.model.image, np.uint8))
    return [{config.data.text: blank, config.data.label: name.strip()} for name in support if name.strip()]


def task_labels(labels: Sequence[str], config: Config, state: Mapping[str, Any], where: str) -> list[str]:
    """The label names of the new task, in the order of the head's classes. Raises InputError."""
    names = list(dict.fromkeys(labels))
    if len(names) < 2:
        raise InputError(f"{where}: one label only ('{names[0]}'); a task needs examples of at least two")
    in_words = config.task.labels != "head" or config.model.head == "words"
    if config.task.family == "domain" and not config.task.permute_labels and not in_words:
        unknown = [label for label in names if label not in state["labels"]]
        if unknown:
            raise InputError(f"{where}: label '{unknown[0]}' is not one the model knows: {', '.join(state['labels'])}")
        return list(state["labels"])
    if config.task.labels == "letters" and len(names) > len(LETTERS):
        raise InputError(f"{where}: {len(names)} labels, and there are {len(LETTERS)} letters to name them by")
    if in_words:
        check_words(names, config)
        return names
    if len(names) > state["classes"] and config.model.head != "prototype":
        raise InputError(
            f"{where}: {len(names)} labels, but the model was meta-trained for {state['classes']}; "
            "give fewer, or meta-train with model.head=prototype, which takes any number"
        )
    return names


def tokenise(tokenizer: Tokenizer, texts: Sequence[str], labels: Sequence[int], config: Config) -> Rows:
    """Texts and label numbers as rows of an episode."""
    from distmeta.tasks.tokenizer import encode

    most, size, dimensions = config.model.max_tokens, config.model.image, config.model.dimensions
    if dimensions is not None:
        tokens, lengths = next(regression.encode(iter([list(texts)]), dimensions))
    elif size is not None:
        written = [images.as_text(text, size, f"image {number}") for number, text in enumerate(texts)]
        tokens, lengths = next(images.encode(iter([written]), size))
    elif config.task.labels != "head":
        tokens, lengths = next(prompts.encode(tokenizer, [list(texts)], config.task, most))
    else:
        tokens, lengths = next(encode(tokenizer, [list(texts)], most))
    offsets = np.concatenate([[0], np.cumsum(lengths)])
    return Rows(tokens, offsets, np.asarray(labels, np.int64), np.arange(len(lengths)))


def _pairs(support: Sequence[Mapping[str, Any]] | str | Path, config: Config, where: str) -> Iterator[tuple[str, str]]:
    text, label, size = config.data.text, config.data.label, config.model.image
    if isinstance(support, str | Path):
        from distmeta.tasks.readers import find_sources, read_examples

        sources = find_sources(str(support), images.kinds(size))
        columns_of = DataConfig(text=text, label=label)
        for batch in read_examples(sources, columns_of, "classes", settable=False, image=size):
            columns = batch.to_pydict()
            yield from zip(columns["text"], columns["label"], strict=True)
        return
    if not support:
        raise InputError("support: no example in it; give some of each label")
    for number, row in enumerate(support):
        for column in (text, label):
            if column not in row:
                raise InputError(f"support, example {number}: no '{column}'; it has {', '.join(map(str, row))}")
        if size is not None:
            yield images.as_text(row[text], size, f"support, example {number}"), str(row[label])
            continue
        if reason := fault(row[text]):
            raise InputError(f"support, example {number}: '{text}' {reason}")
        yield row[text], str(row[label])


def _records(support: Sequence[Mapping[str, Any]] | str | Path, config: Config) -> Iterator[Record]:
    """As `_pairs`, of family text_to_text."""
    data = config.data
    if isinstance(support, str | Path):
        from distmeta.tasks.readers import find_sources, read_examples

        for batch in read_examples(find_sources(str(support)), data, "text_to_text", settable=False, one_task=True):
            yield from map(parse, batch.column("text").to_pylist())
        return
    if not support:
        raise InputError("support: no example in it; give some, with their answers")
    columns = {role: getattr(data, role) for role in ("input", "target", "options", "instruction")}
    for number, row in enumerate(support):
        try:
            yield make({role: row.get(column) for role, column in columns.items()}, columns)
        except InputError as error:
            raise InputError(f"support, example {number}: {error}") from None


def _examples(support: Sequence[Mapping[str, Any]] | str | Path, config: Config) -> list[str]:
    """Texts of examples (distmeta.tasks.regression), of family regression."""
    data, dimensions = config.data, config.model.dimensions
    assert dimensions is not None
    if isinstance(support, str | Path):
        from distmeta.tasks.readers import find_sources, read_examples

        batches = read_examples(
            find_sources(str(support)), data, "regression", settable=False, one_task=True, dimensions=dimensions
        )
        return [text for batch in batches for text in batch.column("text").to_pylist()]
    if not support:
        raise InputError("support: no example in it; give some, with their targets")
    columns = {role: getattr(data, role) for role in ("input", "target")}
    out = []
    for number, row in enumerate(support):
        try:
            out.append(regression.example({role: row.get(name) for role, name in columns.items()}, columns, dimensions))
        except InputError as error:
            raise InputError(f"support, example {number}: {error}") from None
    return out


def _rollouts(support: Sequence[Mapping[str, Any]] | str | Path, config: Config) -> Rows:
    """Of the one task {"task": numbers}, or a file of it: as many rollouts as an episode has, with seeds 0, 1, ..."""
    if isinstance(support, str | Path):
        values: list[Any] = list(read_inputs(str(support), "task", numbers=True))
    else:
        values = [row.get("task") for row in support]
    if len(values) != 1:
        raise InputError(f'support: {len(values)} rows; a policy adapts to one, {{"task": numbers}}, by acting')
    check_trusted(config, "the checkpoint")
    size = environments.drawn_tasks(environments.load_environment(config.task.environment), 0, 0, 1).shape[1]
    task = environments.line(regression.vector(values[0], size, "support: 'task'", "a task of the environment has"))
    tokens, lengths = next(environments.encode(iter([[task] * config.of_evaluation().task.shots])))
    offsets, number = np.concatenate([[0], np.cumsum(lengths)]), np.arange(len(lengths))
    tokens[offsets[1:] - 1] = number
    return Rows(tokens, offsets, 0 * number, number)


def common(records: Sequence[Record]) -> dict[str, Any]:
    """What all examples of a task share, which its predictions then have too: the instruction, the options."""
    first = records[0]
    return {
        "instruction": first.instruction if all(r.instruction == first.instruction for r in records) else "",
        "options": list(first.options) if all(r.options == first.options for r in records) else [],
    }
