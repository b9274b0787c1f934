"""Which tasks (family domain) or classes (family classes) are for meta-train, -validation and -test.

From lists, from a column, from the names of the files, or by a stable hash of the name; never does a name end in two
splits.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import re
from collections.abc import Iterable, Sequence
from pathlib import PurePath

import numpy as np
import pyarrow as pa
import pyarrow.fs as pafs
from numpy.typing import NDArray

from distmeta.errors import InputError, nearest
from distmeta.tasks.sources import Source, filesystem_of

SPLITS = ("train", "validation", "test")
ALIASES = {"train": 0, "validation": 1, "valid": 1, "val": 1, "dev": 1, "test": 2}
LEFT_OUT = -1
WRITTEN = {**{word: SPLITS[i] for word, i in ALIASES.items()}, "training": "train", "testing": "test"}  # in file names


def split_number(word: str, where: str) -> int:
    """0, 1 or 2 for a split's name or alias. Raises InputError that begins with `where`."""
    number = ALIASES.get(word.strip().lower())
    if number is None:
        raise InputError(f"{where}: unknown split '{word}'; allowed: {', '.join(ALIASES)}.{nearest(word, ALIASES)}")
    return number


def split_in_files(sources: Sequence[Source]) -> list[Source]:
    """The sources with the splits that their names or folders give, as in data sets of the Hugging Face hub.

    `train-00000-of-00002.parquet`, `reviews_test.csv`, `data/validation/0.jsonl`. Names count where they give train and
    another split. A file whose name gives none then has none, and its rows need a column that does.
    """
    if len(sources) < 2 or any(source.split for source in sources):
        return list(sources)
    above = os.path.commonpath([PurePath(source.path).parent for source in sources])
    each = [_written_in(os.path.relpath(source.path, above)) for source in sources]
    if "train" not in each or len(set(each) - {None}) < 2:
        return list(sources)
    return [dataclasses.replace(source, split=split) for source, split in zip(sources, each, strict=True)]


def _written_in(path: str) -> str | None:
    """The one split that a file's name has among its words, else the one that the nearest folder is named by."""
    file, *folders = reversed(PurePath(path.lower()).parts)
    words = {WRITTEN[word] for word in re.split(r"[^a-z0-9]+", file) if word in WRITTEN}
    if words:
        return words.pop() if len(words) == 1 else None
    return next((WRITTEN[folder] for folder in folders if folder in WRITTEN), None)


def split_by_lists(names: Sequence[str], lists: dict[str, list[str]], what: str) -> NDArray[np.int8]:
    """Split numbers [names] from lists of names; LEFT_OUT for a name in no list. Raises InputError."""
    number_of = {name: i for i, name in enumerate(names)}
    out = np.full(len(names), LEFT_OUT, np.int8)
    for key, members in lists.items():
        split = split_number(key, "data.splits")
        for name in members:
            if name not in number_of:
                raise InputError(f"data.splits.{key}: no {what} '{name}' in the data.{nearest(name, names)}")
            before = out[number_of[name]]
            if before not in (LEFT_OUT, split):
                raise InputError(_twice(what, name, int(before), split, "name it in one list of data.splits only"))
            out[number_of[name]] = split
    return out


def split_by_column(names: Sequence[str], pairs: Iterable[tuple[int, str]], what: str, column: str) -> NDArray[np.int8]:
    """Split numbers [names] from the pairs (number of the name, split) that occur. Raises InputError."""
    out = np.full(len(names), LEFT_OUT, np.int8)
    for name, word in pairs:
        split = split_number(word, f"column '{column}' (data.split)")
        if out[name] not in (LEFT_OUT, split):
            mend = f"give lists in data.splits, or set data.split=hash, which divides the {_many(what)} of all rows"
            raise InputError(_twice(what, names[name], int(out[name]), split, mend))
        out[name] = split
    return out


def split_by_hash(names: Sequence[str], fractions: Sequence[float], least: int = 1) -> NDArray[np.int8]:
    """Split numbers [names]: the names in the order of their hashes, cut by `fractions`.

    Every split with a share gets at least `least` names where there are enough, test and train before
    validation. A new name moves only names beside the two cuts.
    """
    count = len(names)
    sizes = [round(count * share) for share in fractions]
    sizes[0] = count - sizes[1] - sizes[2]
    least = min(least, max(1, count // 2))
    minimum = [least if share > 0 else 0 for share in fractions]
    for needy in (2, 0, 1):  # test and train first: they must not be empty
        while sizes[needy] < minimum[needy]:
            giver = max((i for i in range(3) if i != needy), key=lambda i: sizes[i] - minimum[i])
            if sizes[giver] <= minimum[giver]:
                if needy == 1 or sizes[1] == 0:
                    break
                giver = 1
            sizes[giver] -= 1
            sizes[needy] += 1
    order = sorted(range(count), key=lambda i: (hashlib.blake2b(names[i].encode()).digest(), names[i]))
    out = np.empty(count, np.int8)
    out[order] = np.repeat(np.arange(3, dtype=np.int8), sizes)
    return out


def read_lists(splits: dict[str, list[str]] | str) -> dict[str, list[str]]:
    """`data.splits` as lists: a mapping itself, or that in JSON_FILE or JSON_FILE#KEY. Raises InputError."""
    if not isinstance(splits, str):
        return splits
    path, _, key = splits.partition("#")
    filesystem, inner = filesystem_of(path)
    if filesystem.get_file_info(inner).type != pafs.FileType.File:
        raise InputError(f"{path}: no such file (data.splits); give lists, JSON_FILE or JSON_FILE#KEY")
    try:
        with filesystem.open_input_stream(inner) as stream:
            content = json.loads(stream.read())
    except (ValueError, pa.ArrowException) as error:
        raise InputError(f"{path}: not readable JSON (data.splits): {error}") from None
    if key:
        if not isinstance(content, dict) or key not in content:
            keys = list(content) if isinstance(content, dict) else []
            raise InputError(f"{path}: no key '{key}' (data.splits); its keys: {', '.join(keys)}.{nearest(key, keys)}")
        content = content[key]
    if not isinstance(content, dict):
        raise InputError(f"{splits}: holds a {type(content).__name__}; data.splits needs lists for train and test")
    if content and not any(str(k).lower() in ALIASES for k in content):
        choices = ", ".join(f"{path}#{k}" for k in list(content)[:5])
        raise InputError(f"{splits}: has no list for train; did you mean one of its keys, such as {choices}?")
    for name, members in content.items():
        if not isinstance(members, list):
            raise InputError(f"{splits}: '{name}' is not a list of names (data.splits)")
    return {name: [str(member) for member in members] for name, members in content.items()}


def check_not_empty(splits: NDArray[np.int8], what: str, need: Sequence[int] = (0, 2)) -> None:
    """Raises InputError if a split in `need` has no task or class."""
    for split in need:
        if not np.any(splits == split):
            counts = ", ".join(f"{word} {int(np.sum(splits == i))}" for i, word in enumerate(SPLITS))
            raise InputError(
                f"no {what} in the split '{SPLITS[split]}' ({counts}); train and test each need one: "
                f"give lists in data.splits, set data.fractions, or use data with more {_many(what)}"
            )


def _many(what: str) -> str:
    return {"class": "classes"}.get(what, what + "s")


def _twice(what: str, name: str, first: int, second: int, mend: str) -> str:
    a, b = sorted((first, second))
    return (
        f"{what} '{name}' is in two splits, {SPLITS[a]} and {SPLITS[b]}; meta-train, meta-validation and "
        f"meta-test must not share a {what}: {mend}"
    )
