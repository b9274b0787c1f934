"""Documents as tasks: how they are read from files, and how they become tokens.

A document is the rows of one name, in their order, or a row of its own, or a .txt file. Its tokens lie side by side in
the task store, without special tokens, and an episode is a passage of them (distmeta.tasks.passages).
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from itertools import chain
from pathlib import PurePath
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from distmeta.errors import InputError
from distmeta.tasks.counts import Counts, unknown_id
from distmeta.tasks.sources import COMPRESSED, TEXT_KINDS, Source, broken_off, not_utf8, utf_16
from distmeta.tasks.spool import Spool, parts_of

if TYPE_CHECKING:
    from tokenizers import Tokenizer

LABEL = "text"  # the one label of the family
SUFFIX = re.compile(rf"({'|'.join(map(re.escape, TEXT_KINDS))})?({'|'.join(map(re.escape, COMPRESSED))})?$", re.I)


def read_text_file(source: Source) -> str:
    """All of a .txt file. Raises InputError."""
    try:
        with source.open() as stream:
            content = stream.read()
    except (OSError, EOFError, pa.ArrowException) as error:
        raise InputError(f"{source.name}: {broken_off(error)}") from None
    if encoding := utf_16(content):
        raise InputError(f"{source.name}: {not_utf8('its first characters are of UTF-16', encoding)}")
    try:
        return str(content.decode("utf-8-sig"))
    except UnicodeDecodeError as error:
        raise InputError(f"{source.name}: {not_utf8(error.reason)}") from None


def file_names(sources: Sequence[Source]) -> list[str]:
    """What each file's documents are called: by its folder and its own name, without the suffix of its kind.

    They do not depend on where the data lies. Files that would share a name keep their suffix, where that tells them
    apart, or have as many folders before it as do.
    """
    short = [SUFFIX.sub("", source.path) for source in sources]
    same = Counter(short)
    paths = [PurePath(source.path if same[name] > 1 else name) for source, name in zip(sources, short, strict=True)]
    names = ["/".join(path.parts[-2:]) for path in paths]
    for depth in range(3, 1 + max((len(path.parts) for path in paths), default=0)):
        same = Counter(names)
        names = [
            "/".join(path.parts[-depth:]) if same[name] > 1 else name for name, path in zip(names, paths, strict=True)
        ]
    return names


def row_names(file: str, source: Source, numbers: NDArray[Any]) -> pa.Array:
    """Names of documents that are a row each, or a file. file: of `file_names`."""
    names = [file] if source.kind == "txt" else [f"{file}/{number:06d}" for number in numbers.tolist()]
    return pa.array(names, pa.large_string())


def authors(spool: Spool, task_of: NDArray[np.int32], tasks: int) -> list[str]:
    """The author of each task [tasks], the task itself where it has none; [] where the data names no authors.

    task_of: numbers of the spool's codes. Raises InputError for a document of two authors.
    """
    if not any(spool.names.get("author", [])):
        return []
    names = spool.names["author"]
    is_name = np.array([name != "" for name in names])
    tasks_of = {int(n): name for name, n in zip(spool.names["task"], task_of, strict=True)}
    author_of = np.full(tasks, -1, np.int32)
    for part in parts_of(spool.rows):
        task, author = task_of[spool.codes["task"][part]], np.asarray(spool.codes["author"][part])
        task, author = task[is_name[author]], author[is_name[author]]
        author_of[task] = np.where(author_of[task] < 0, author, author_of[task])
        two = np.flatnonzero(author_of[task] != author)
        if len(two):
            one, other = sorted((names[author_of[task[two[0]]]], names[author[two[0]]]))
            raise InputError(
                f"data.author: the document '{tasks_of[int(task[two[0]])]}' is by '{one}' in one row and by '{other}' "
                "in another; give each document one author, or set data.author to another column"
            )
    return [names[code] if code >= 0 else tasks_of[i] for i, code in enumerate(author_of.tolist())]


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
