"""Texts that a model is to answer, from files, lines or a request: read, and refused, in one way."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from typing import Any

from distmeta.errors import InputError, cut
from distmeta.tasks import images
from distmeta.tasks.readers import READ, read_texts
from distmeta.tasks.sources import TEXT_KINDS, find_sources, lines


def fault(value: Any) -> str:
    """Why no model can answer this, as the end of a sentence; empty where one can."""
    if not isinstance(value, str) or not value.strip():
        return f"is {shown(value)}, not a text"
    if any("\ud800" <= letter <= "\udfff" for letter in value):
        return "has half of a surrogate pair, which is no character"
    return ""


def shown(value: Any) -> str:
    """A value within a line; of a list or an object, which may be deep, its kind."""
    if isinstance(value, list | dict):
        return f"a list of {len(value)}" if isinstance(value, list) else "an object"
    return "missing" if value is None else cut(json.dumps(value), 60)


def read_inputs(
    path: str, column: str, image: images.Size | None = None, numbers: bool = False
) -> Iterator[str | None]:
    """The texts to answer, one a line or row; None where it is blank, so that answers pair with lines and rows.

    path: a data file, a .txt with a text a line, or "-" for lines of standard input. A line that is a JSON object gives
    its `column`; where the file is no .jsonl, any other line is a text. numbers: inputs are numbers or lists of them,
    given as JSON. Raises InputError.
    """
    if image is not None:
        yield from _of_images(path, column, image)
        return
    if path == "-":
        stream = getattr(sys.stdin, "buffer", sys.stdin)
        yield from _of_lines(lines(stream, "standard input"), "standard input", column, numbers, json_alone=False)
        return
    for source in find_sources(path, TEXT_KINDS):
        if source.kind in ("txt", "jsonl"):
            yield from _of_lines(source.lines(), source.name, column, numbers, source.kind == "jsonl")
            continue
        if numbers:
            for arrays, _ in READ[source.kind](source, lambda columns: {"input": column}):
                yield from map(json.dumps, arrays["input"].to_pylist())
            continue
        texts = (text for part in read_texts([source], column) for text in part.to_pylist())
        for number, text in enumerate(texts, 1):
            yield _checked(text, f"{source.name} row {number}")


def _of_images(path: str, column: str, size: images.Size) -> Iterator[str]:
    """The texts of image files in the order of their names, or of a table's column."""
    if path == "-":
        raise InputError("--input -: lines of standard input are no images; give a file or a directory")
    for source in find_sources(path, images.kinds(size)):
        if source.kind == "image":
            with source.open() as stream:
                yield images.read_image(stream.read(), size, source.name)
            continue
        for arrays, numbers in READ[source.kind](source, lambda columns: {"text": column}):
            yield from images.from_column(arrays["text"], size, f"'{column}'", source, numbers).to_pylist()


def _of_lines(
    numbered: Iterator[tuple[int, str]], name: str, column: str, numbers: bool, json_alone: bool
) -> Iterator[str | None]:
    for number, line in numbered:
        where, text = f"{name} line {number}", line
        if line.strip() and (json_alone or line.lstrip().startswith("{")):
            try:
                row = json.loads(line)
            except ValueError as error:
                raise InputError(f"{where}: does not parse as JSON: {error}") from None
            if not isinstance(row, dict) or column not in row:
                has = f"it has {', '.join(row)}" if isinstance(row, dict) else f"it is {shown(row)}"
                raise InputError(f"{where}: no '{column}'; {has}")
            text = json.dumps(row[column]) if numbers else row[column]
        yield _checked(text, where)


def _checked(text: Any, where: str) -> str | None:
    if text is None or (isinstance(text, str) and not text.strip()):
        return None
    if reason := fault(text):
        raise InputError(f"{where}: the text {reason}")
    return str(text)
