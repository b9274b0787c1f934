"""Documents as tasks: how they are read from files, and how they become tokens.

A document is the rows of one name, in their order, or a row of its own, or a .txt file. Its tokens lie side by side in
the task store, without special tokens, and an episode is a passage of them (distmeta.tasks.passages).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from itertools import chain
from pathlib import PurePath
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from distmeta.errors import InputError
from distmeta.tasks.counts import Counts, unknown_id
from distmeta.tasks.sources import Source, not_utf8
from distmeta.tasks.spool import Spool, parts_of

if TYPE_CHECKING:
    from tokenizers import Tokenizer

LABEL = "text"  # the one label of the family


def read_text_file(source: Source) -> str:
    """All of a .txt file. Raises InputError."""
    with source.open() as stream:
        content = stream.read()
    try:
        return str(content.decode("utf-8-sig"))
    except UnicodeDecodeError as error:
        raise InputError(f"{source.name}: {not_utf8(error.reason)}") from None


def row_names(source: Source, numbers: NDArray[Any]) -> pa.Array:
    """Names of documents that are a row each, or a file."""
    path = PurePath(source.path)
    stem = f"{path.parent.name}/{path.name.split('.')[0]}"  # wherever the directory lies
    names = [stem] if source.kind == "txt" else [f"{stem}/{number:06d}" for number in numbers.tolist()]
    return pa.array(names, pa.large_string())


def authors(spool: Spool, task_of: NDArray[np.int32], tasks: int) -> list[str]:
    """The author of each task [tasks], the task itself where it has none; [] where the data names no authors.

    task_of: numbers of the spool's codes. Raises InputError for a document of two authors.
    """
    if not any(spool.names.get("author", [])):
        return []
    names = spool.names["author"]
    found = np.full(tasks, -1, np.int32)
    for part in parts_of(spool.rows):
        task, author = task_of[spool.codes["task"][part]], spool.codes["author"][part]
        found[task] = author
        two = np.flatnonzero(found[task] != author)
        if len(two):
            row = part.start + int(two[0])
            both = sorted({names[author[two[0]]], names[found[task[two[0]]]]})
            raise InputError(
                f"data.author: row {row + 1} names '{both[0]}' for a document that another row says is by '{both[1]}'; "
                "give each document one author, or leave data.author out"
            )
    tasks_of = {int(n): name for name, n in zip(spool.names["task"], task_of, strict=True)}
    return [names[code] or tasks_of[i] for i, code in enumerate(found.tolist())]


def lines_of(texts: Iterable[str]) -> list[str]:
    """Each text with a line's end, so that rows of one document do not run into each other."""
    return [text if text.endswith("\n") else f"{text}\n" for text in texts]


def encode(
    tokenizer: Tokenizer, batches: Iterable[list[str]], counts: Counts | None = None
) -> Iterator[tuple[NDArray[np.int32], NDArray[np.int64]]]:
    """For each batch of texts: all its token ids in one array, whole and without special tokens, and how many of each.

    counts: the unknown words are added to it.
    """
    plain = type(tokenizer).from_str(tokenizer.to_str())
    plain.no_padding()
    plain.no_truncation()
    unknown = unknown_id(tokenizer)
    for texts in batches:
        encodings = plain.encode_batch_fast(lines_of(texts), add_special_tokens=False)
        if counts is not None:
            counts.add(encodings, unknown)
        ids = [encoding.ids for encoding in encodings]
        lengths = np.fromiter(map(len, ids), np.int64, len(ids))
        yield np.fromiter(chain.from_iterable(ids), np.int32, int(lengths.sum())), lengths
