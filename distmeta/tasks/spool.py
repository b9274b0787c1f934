"""Examples as flat files: what the task store is built from, without a Python object per row, nor memory for each."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from distmeta.errors import InputError, nearest

BATCH = 4096
CHUNK = 1 << 18
Progress = Callable[[str, int, int | None], None]  # what is done, how far, of how much (None: not known)


@dataclass(frozen=True)
class Spool:
    """The examples in file order, memory-mapped: text flat, everything else as codes."""

    text: NDArray[np.uint8]
    offsets: NDArray[np.int64]
    codes: dict[str, NDArray[np.int32]]  # role -> [rows]
    names: dict[str, list[str]]  # role -> name of each code

    @property
    def rows(self) -> int:
        return len(self.offsets) - 1


def spool_examples(batches: Iterator[Any], work: Path, progress: Progress | None) -> Spool:
    known: dict[str, dict[str, int]] = {}
    rows = size = 0
    with ExitStack() as files:

        def append(name: str, values: NDArray[Any]) -> None:
            if name not in opened:
                opened[name] = files.enter_context(open(work / f"{name}.spool", "wb"))
            values.tofile(opened[name])

        opened: dict[str, IO[bytes]] = {}
        append("offsets", np.zeros(1, np.int64))
        for batch in batches:
            for role in batch.schema.names:
                if role == "text":
                    continue
                encoded = batch.column(role).dictionary_encode()
                seen = known.setdefault(role, {})
                number = [seen.setdefault(name, len(seen)) for name in encoded.dictionary.to_pylist()]
                append(role, np.array(number, np.int32)[encoded.indices.to_numpy()])
            text = batch.column("text").cast(pa.large_string())
            _, ends, content = text.buffers()
            offsets = np.frombuffer(ends, np.int64)[text.offset : text.offset + len(text) + 1]
            append("text", np.frombuffer(content, np.uint8)[offsets[0] : offsets[-1]])
            append("offsets", offsets[1:] - offsets[0] + size)
            size += int(offsets[-1] - offsets[0])
            rows += len(text)
            if progress:
                progress("reading", rows, None)
    return Spool(
        text=np.memmap(work / "text.spool", np.uint8, "r"),
        offsets=np.memmap(work / "offsets.spool", np.int64, "r"),
        codes={role: np.memmap(work / f"{role}.spool", np.int32, "r") for role in known},
        names={role: list(seen) for role, seen in known.items()},
    )


def spooled_texts(spool: Spool, rows: NDArray[np.int64]) -> Iterator[list[str]]:
    for begin in range(0, len(rows), BATCH):
        flat, ends = gather(spool.text, spool.offsets, rows[begin : begin + BATCH])
        yield pa.LargeStringArray.from_buffers(len(ends) - 1, pa.py_buffer(ends), pa.py_buffer(flat)).to_pylist()


def ordered_names(spool: Spool, role: str, fixed: list[str] | None = None) -> tuple[list[str], NDArray[np.int32]]:
    """Names in an order that does not depend on the files' (numbers by value), and each code's place in it."""
    names = spool.names[role]
    if fixed is None:
        fixed = sorted(names, key=lambda n: (not n.isdecimal(), int(n) if n.isdecimal() else 0, n))
    place = {name: i for i, name in enumerate(fixed)}
    for name in names:
        if name not in place:
            raise InputError(
                f"unknown {role} '{name}' in the data; known here: {', '.join(fixed)}.{nearest(name, fixed)}"
            )
    return fixed, np.array([place[name] for name in names], np.int32)


def sort_by_cell(cells: NDArray[np.int32], count: NDArray[np.int64], out: NDArray[np.int64]) -> None:
    """Fills `out` with the row numbers in the order of their cells, those of one cell in the order of the rows.

    cells [rows]: -1 leaves a row out; count: rows of each cell. A counting sort, chunk by chunk, so that memory does
    not grow with the rows: `cells` and `out` may be files.
    """
    free = np.cumsum(count) - count  # where the next row of each cell goes
    for part in parts_of(len(cells)):
        order = np.argsort(cells[part], kind="stable")
        cell = cells[part][order]
        kept = np.searchsorted(cell, 0)
        order, cell = order[kept:], cell[kept:]
        begins = np.flatnonzero(np.diff(cell, prepend=-1))
        lengths = np.diff(begins, append=len(cell))
        out[free[cell] + np.arange(len(cell)) - np.repeat(begins, lengths)] = order + part.start
        free[cell[begins]] += lengths


def parts_of(rows: int) -> Iterator[slice]:
    """Consecutive pieces of `rows` rows, to work on what is too much for the memory."""
    for begin in range(0, rows, CHUNK):
        yield slice(begin, min(begin + CHUNK, rows))


def gather(
    flat: NDArray[Any], offsets: NDArray[np.int64], rows: NDArray[np.int64]
) -> tuple[NDArray[Any], NDArray[np.int64]]:
    """Ragged rows, copied one after another, and their new offsets [n + 1]."""
    start = offsets[rows]
    lengths = offsets[rows + 1] - start
    out = np.zeros(len(rows) + 1, np.int64)
    np.cumsum(lengths, out=out[1:])
    return flat[np.repeat(start - out[:-1], lengths) + np.arange(out[-1])], out
