"""Examples as flat files and arrays: what the task store is built from, without a Python object per row."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from distmeta.errors import InputError, nearest

BATCH = 4096
Progress = Callable[[str, int, int | None], None]  # what is done, how far, of how much (None: not known)


@dataclass(frozen=True)
class Spool:
    """The examples in file order: text flat on disk, everything else as codes."""

    text: NDArray[np.uint8]
    offsets: NDArray[np.int64]
    codes: dict[str, NDArray[np.int32]]  # role -> [rows]
    names: dict[str, list[str]]  # role -> name of each code


def spool_examples(batches: Iterator[Any], work: Path, progress: Progress | None) -> Spool:
    codes: dict[str, list[NDArray[np.int32]]] = {}
    known: dict[str, dict[str, int]] = {}
    lengths = []
    rows = 0
    with open(work / "text.spool", "wb") as file:
        for batch in batches:
            for role in batch.schema.names:
                if role == "text":
                    continue
                encoded = batch.column(role).dictionary_encode()
                seen = known.setdefault(role, {})
                number = [seen.setdefault(name, len(seen)) for name in encoded.dictionary.to_pylist()]
                codes.setdefault(role, []).append(np.array(number, np.int32)[encoded.indices.to_numpy()])
            text = batch.column("text").cast(pa.large_string())
            _, ends, content = text.buffers()
            offsets = np.frombuffer(ends, np.int64)[text.offset : text.offset + len(text) + 1]
            lengths.append(np.diff(offsets))
            file.write(content[offsets[0] : offsets[-1]])
            rows += len(text)
            if progress:
                progress("reading", rows, None)
    return Spool(
        text=np.memmap(work / "text.spool", np.uint8, "r"),
        offsets=ends_of(np.concatenate(lengths)),
        codes={role: np.concatenate(parts) for role, parts in codes.items()},
        names={role: list(seen) for role, seen in known.items()},
    )


def spooled_texts(spool: Spool, rows: NDArray[np.int64]) -> Iterator[list[str]]:
    for at in range(0, len(rows), BATCH):
        flat, ends = gather(spool.text, spool.offsets, rows[at : at + BATCH])
        yield pa.LargeStringArray.from_buffers(len(ends) - 1, pa.py_buffer(ends), pa.py_buffer(flat)).to_pylist()


def ordered_codes(spool: Spool, role: str, given: list[str] | None = None) -> tuple[list[str], NDArray[np.int32]]:
    """Names in an order that does not depend on the files' (numbers by value), and codes in that order."""
    names = spool.names[role]
    if given is None:
        given = sorted(names, key=lambda n: (not n.isdecimal(), int(n) if n.isdecimal() else 0, n))
    place = {name: i for i, name in enumerate(given)}
    for name in names:
        if name not in place:
            raise InputError(
                f"unknown {role} '{name}' in the data; known here: {', '.join(given)}.{nearest(name, given)}"
            )
    return given, np.array([place[name] for name in names], np.int32)[spool.codes[role]]


def gather(
    flat: NDArray[Any], offsets: NDArray[np.int64], rows: NDArray[np.int64]
) -> tuple[NDArray[Any], NDArray[np.int64]]:
    """Ragged rows, copied one after another, and their new offsets [n + 1]."""
    start = offsets[rows]
    lengths = offsets[rows + 1] - start
    out = np.zeros(len(rows) + 1, np.int64)
    np.cumsum(lengths, out=out[1:])
    return flat[np.repeat(start - out[:-1], lengths) + np.arange(out[-1])], out


def ends_of(lengths: NDArray[np.int64]) -> NDArray[np.int64]:
    return np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)
