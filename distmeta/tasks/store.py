"""The task store: every example, tokenised once, as memory-mapped Arrow with the rows of each group side by
side.

    <cache>/<key>/rows.arrow      one record batch: text, tokens, label, task; sorted by (split, task, label)
                  groups.arrow    for each split and task (family domain) or class: its first row, how many (trusted)
                  names.arrow     label and task names       tokenizer.json       meta.json

Made by `tasks.build`. Opening one costs milliseconds, and nothing here keeps a Python object per row.
"""

from __future__ import annotations

import json
from bisect import bisect_left
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from distmeta.errors import InputError
from distmeta.tasks.images import to_uri
from distmeta.tasks.splits import SPLITS
from distmeta.tasks.spool import gather


@dataclass(frozen=True)
class Groups:
    """The tasks (family domain) or classes (family classes) of one split, and where their rows are.

    ids [G] index `tasks` or `labels`; start, count [G, C]: C labels in family domain, 1 in family classes.
    trusted [G, C]: how many of the count rows are trusted, which lie first; None without data.trusted, and in splits
    that are not learnt from.
    """

    ids: NDArray[np.int32]
    start: NDArray[np.int64]
    count: NDArray[np.int64]
    trusted: NDArray[np.int64] | None = None

    @cached_property
    def examples(self) -> int:
        return int(self.count.sum())

    def part(self, first: int, end: int) -> Groups:
        """The groups first..end-1 alone; no copy is made."""
        return self[slice(first, end)]

    def __getitem__(self, which: slice | NDArray[np.bool_]) -> Groups:
        trusted = None if self.trusted is None else self.trusted[which]
        return Groups(self.ids[which], self.start[which], self.count[which], trusted)


@dataclass(frozen=True)
class TaskStore:
    """A built store, opened for reading. Arrays are memory-mapped: opening costs milliseconds."""

    path: Path
    key: str
    family: str
    labels: list[str]
    tasks: list[str]
    vocab_size: int
    pad_id: int
    cls_id: int | None
    sep_id: int | None
    end_id: int  # of an answer
    max_tokens: int
    tokens: NDArray[np.int32] = field(repr=False)  # of all rows, one after another
    offsets: NDArray[np.int64] = field(repr=False)  # [rows + 1]: where each row's tokens begin
    label_ids: NDArray[np.int32] = field(repr=False)  # [rows]
    task_ids: NDArray[np.int32] = field(repr=False)  # [rows]; all 0 in family classes
    groups: dict[str, Groups] = field(repr=False)  # by split
    sources: dict[str, dict[str, Groups]] = field(repr=False)  # by split and data source; {} without data.sources
    left_out: list[str] = field(repr=False)  # names that data.splits does not mention
    # [rows], family text_to_text unless task.prompt=bare: how many tokens stand before an input, and the tokens that do
    # where it follows another example
    heads: NDArray[np.int32] | None = field(repr=False)
    later: NDArray[np.int32] | None = field(repr=False)
    authors: list[str] = field(repr=False)  # of each task, where the data names them (family document); else []
    subgroups: list[str] = field(repr=False)  # names of data.subgroup, "" that of rows without one; [] without it
    subgroup_ids: NDArray[np.int32] | None = field(repr=False)  # [rows]; None without data.subgroup
    image: tuple[int, int, int] | None  # channels, height, width, where rows are images
    encoding: dict[str, int] = field(repr=False)  # tasks.counts.Counts, answer_tokens; {} in stores of before
    _texts: Any = field(repr=False)

    @property
    def rows(self) -> int:
        return len(self.label_ids)

    @property
    def tokenizer_file(self) -> Path:
        """tokenizer.json, with padding and truncation as the store used them."""
        return self.path / "tokenizer.json"

    @cached_property
    def subgroup_shares(self) -> dict[str, float]:
        """The share of each subgroup of meta-train rows in the query sets that are drawn of them, by name."""
        groups, of = self.groups["train"], self.subgroup_ids
        assert of is not None
        drawn = groups.count if groups.trusted is None else groups.trusted
        total = np.zeros(len(self.subgroups))
        for first, rows in zip(groups.start.ravel().tolist(), drawn.ravel().tolist(), strict=True):
            total += np.bincount(of[first : first + rows], minlength=len(total)) / max(1, rows)
        shares = (total / total.sum()).tolist()
        return {name: share for name, share in zip(self.subgroups, shares, strict=True) if share}

    def read(self, rows: NDArray[np.int64]) -> tuple[NDArray[np.int32], NDArray[np.int64]]:
        """The tokens of these rows one after another, and where each row's begin [n + 1]."""
        return gather(self.tokens, self.offsets, rows)

    def span(self, begin: int, end: int) -> NDArray[np.int32]:
        """Tokens begin..end-1 of all that `offsets` count, where they lie: of one task."""
        return self.tokens[begin:end]

    def text(self, row: int) -> str:
        return str(self._texts[row].as_py())

    def shown(self, row: int) -> str:
        """What a person is shown of an example: its text, or a data URI of its image."""
        return self.text(row) if self.image is None else to_uri(self.text(row), self.image)

    def texts_of(self, split: str) -> Any:
        """The texts of a split's rows, which lie side by side, as a memory-mapped Arrow array."""
        groups = self.groups[split]
        return self._texts.slice(int(groups.start.min()) if len(groups.ids) else 0, groups.examples)

    def __reduce__(self) -> tuple[Any, ...]:
        return open_store, (self.path,)


def open_store(path: str | Path) -> TaskStore:
    """Opens a store that `build_store` made. Raises InputError."""
    path = Path(path)
    try:
        meta = json.loads((path / "meta.json").read_text(encoding="utf-8"))
        rows, groups, names = (_open_batch(path / f"{part}.arrow") for part in ("rows", "groups", "names"))
    except (OSError, ValueError, pa.ArrowException) as error:
        reason = " ".join(str(error).split())
        raise InputError(f"{path}: not a whole task store ({reason}); delete it, and it is built again") from None
    tokens = rows.column("tokens")
    split = groups.column("split").to_numpy()
    by_split = {}
    for number, word in enumerate(SPLITS):
        in_split = split == number
        columns = (groups.column(name).to_numpy()[in_split] for name in groups.schema.names if name != "split")
        ids, start, count, *trusted = (column.reshape(-1, meta["columns"]) for column in columns)
        by_split[word] = Groups(ids[:, 0], start, count, *(trusted if word == "train" else ()))
    labels, tasks = (names.column(role)[0].as_py() for role in ("labels", "tasks"))
    named = labels if meta["family"] == "classes" else tasks
    return TaskStore(
        path=path,
        key=meta["key"],
        family=meta["family"],
        labels=labels,
        tasks=tasks,
        vocab_size=meta["vocab_size"],
        pad_id=meta["pad_id"],
        cls_id=meta["cls_id"],
        sep_id=meta["sep_id"],
        end_id=meta["end_id"],
        max_tokens=meta["max_tokens"],
        tokens=tokens.values.to_numpy(),
        offsets=tokens.offsets.to_numpy(),
        label_ids=rows.column("label").to_numpy(),
        task_ids=rows.column("task").to_numpy(),
        groups=by_split,
        sources={word: _by_source(groups, named, meta.get("sources", [])) for word, groups in by_split.items()},
        left_out=meta["left_out"],
        heads=rows.column("head").to_numpy() if meta.get("later") is not None else None,
        later=np.array(meta["later"], np.int32) if meta.get("later") is not None else None,
        authors=names.column("authors")[0].as_py() if "authors" in names.schema.names else [],
        subgroups=names.column("subgroups")[0].as_py() if "subgroups" in names.schema.names else [],
        subgroup_ids=rows.column("subgroup").to_numpy() if "subgroup" in rows.schema.names else None,
        image=tuple(meta["image"]) if meta.get("image") else None,
        encoding=meta.get("encoding", {}),
        _texts=rows.column("text"),
    )


def _open_batch(path: Path) -> Any:
    return pa.ipc.open_file(pa.memory_map(str(path))).get_batch(0)


def _by_source(groups: Groups, names: list[str], sources: list[str]) -> dict[str, Groups]:
    """Those of each source that has any: names begin with the source's, groups are sorted by name."""
    out = {}
    for source in sources:
        names_of_it = span(names, source)
        first, last = np.searchsorted(groups.ids, [names_of_it.start, names_of_it.stop])
        if first < last:
            out[source] = groups.part(int(first), int(last))
    return out


def span(names: list[str], source: str) -> slice:
    """Where the names of a data source are; all of them for ""."""
    if not source:
        return slice(0, len(names))
    return slice(*(bisect_left(names, f"{source}{sign}") for sign in "/0"))  # 0 comes after /
