"""The family regression: a task is a function, an example an input and its target, each a vector of numbers.

A row of I inputs and O targets is a row of I + O tokens: the bits of a float32 are those of an int32. So functions are
stored, sampled, batched and sent as texts are. As text a row is a line of JSON. Only here, and in
distmeta.models.regression, is a token a number.

Built in: sinusoids (Finn et al. 2017, arXiv 1703.03400, section 5.1), x -> A sin(x - p) with A from 0.1 to 5, p from 0
to pi and x from -5 to 5.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from tokenizers import Tokenizer, models

from distmeta.errors import InputError, cut
from distmeta.tasks.sources import Source

LABEL = "target"  # the one label of the family
VERSION = 1
TASKS = {"train": (2000, 40), "validation": (100, 110), "test": (600, 110)}  # and examples of each

Dimensions = tuple[int, int]  # of an input, of a target
Numbers = NDArray[np.float32]


def make_sinusoids(seed: int) -> pa.Table:
    """A table with columns text, label, task, split."""
    columns: dict[str, list[str]] = {"text": [], "label": [], "task": [], "split": []}
    for number, (split, (count, examples)) in enumerate(TASKS.items()):
        rng = np.random.default_rng([seed, VERSION, number])
        amplitude, phase = rng.uniform(0.1, 5, (count, 1)), rng.uniform(0, math.pi, (count, 1))
        x = rng.uniform(-5, 5, (count, examples))
        y = amplitude * np.sin(x - phase)
        columns["text"] += [line([a], [b]) for a, b in zip(x.ravel().tolist(), y.ravel().tolist(), strict=True)]
        columns["task"] += [f"{split} sinusoid {i:04d}" for i in range(count) for _ in range(examples)]
        columns["label"] += [LABEL] * (count * examples)
        columns["split"] += [split] * (count * examples)
    return pa.table({name: pa.array(values, pa.large_string()) for name, values in columns.items()})


def line(inputs: Sequence[float], targets: Sequence[float]) -> str:
    """An example as text."""
    return json.dumps({"input": inputs, "target": targets})


def parse(text: str) -> list[float]:
    """The inputs of an example's text, and after them its targets."""
    row = json.loads(text)
    return [*row["input"], *row["target"]]


def vector(value: Any, size: int, where: str, says: str = "model.dimensions says") -> list[float]:
    """A number or a list of numbers, or JSON of either, as a list of `size`. Raises InputError that begins with
    `where`; says: what wants it so."""
    try:
        values = json.loads(value) if isinstance(value, str) else value
        values = [float(x) for x in (values if isinstance(values, list | tuple | np.ndarray) else [values])]
        with np.errstate(over="ignore"):
            finite = bool(np.isfinite(np.array(values, np.float32)).all())
    except (TypeError, ValueError, OverflowError):
        raise InputError(f"{where} is {cut(str(value), 40)}; it must hold a number or a list of numbers") from None
    if not finite:
        raise InputError(f"{where} is {cut(str(value), 40)}; numbers must be finite as float32")
    if len(values) != size:
        raise InputError(f"{where} has {len(values)} numbers, and {says} {size}")
    return values


def example(row: Mapping[str, Any], columns: Mapping[str, str], dimensions: Dimensions) -> str:
    """The text of an example from values by role, input and target. Raises InputError, without the place."""
    sides = (
        vector(row.get(role), size, f"'{columns[role]}' (data.{role})")
        for role, size in zip(("input", "target"), dimensions, strict=True)
    )
    return line(*sides)


def from_columns(
    arrays: Mapping[str, Any], columns: Mapping[str, str], source: Source, numbers: NDArray[Any], dimensions: Dimensions
) -> pa.Array:
    """Texts of examples, large_string [rows], from columns by role. Raises InputError with the row's number."""
    sides = [a.to_pylist() if isinstance(a, pa.Array) else a for a in (arrays["input"], arrays["target"])]
    word = "line" if source.kind == "jsonl" else "row"
    out = []
    for number, *row in zip(numbers, *sides, strict=True):
        try:
            out.append(example(dict(zip(("input", "target"), row, strict=True)), columns, dimensions))
        except InputError as error:
            raise InputError(f"{source.name} {word} {number}: {error}") from None
    return pa.array(out, pa.large_string())


def encode(batches: Iterator[list[str]], dimensions: Dimensions) -> Iterator[tuple[NDArray[np.int32], Any]]:
    """As `distmeta.tasks.tokenizer.encode`, of examples."""
    for texts in batches:
        yield tokens([parse(text) for text in texts]), np.full(len(texts), sum(dimensions), np.int64)


def tokens(rows: Sequence[Sequence[float]]) -> NDArray[np.int32]:
    """The numbers of rows, one after another, as tokens."""
    return np.array(rows, np.float32).ravel().view(np.int32)


def make_tokenizer() -> Tokenizer:
    """A tokenizer without words: what a store and a checkpoint have in the place of one."""
    tokenizer = Tokenizer(models.WordLevel({"[PAD]": 0, "[UNK]": 1}, unk_token="[UNK]"))
    tokenizer.add_special_tokens(["[PAD]"])
    tokenizer.enable_padding(pad_id=0, pad_token="[PAD]")
    return tokenizer
