"""The task store: every example, tokenised once, as memory-mapped Arrow with the rows of each group side by
side.

    <cache>/<key>/rows.arrow      one record batch: text, tokens, label, task; sorted by (split, task, label)
                  groups.arrow    for each split and task (family domain) or class: its first row, how many
                  names.arrow     label and task names       tokenizer.json       meta.json

The key is made of the content of the files, the tokenizer and whatever else decides what is written. A
store is built in a directory of its own and moved into place whole, so that two processes may build the
same one at once. Nothing here keeps a Python object per row, and memory grows with the tasks, not the rows: one
pass over the files spools text and codes to flat files, a counting sort of the codes gives the order, a second pass
gathers, tokenises and writes.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import tempfile
import time
from bisect import bisect_left
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field
from functools import cached_property
from itertools import chain
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from distmeta.config import DataConfig, ModelConfig, TaskConfig
from distmeta.errors import InputError
from distmeta.tasks import mixture, questions, records, reviews, splits, tokenizer
from distmeta.tasks.readers import read_examples
from distmeta.tasks.sources import Source, find_sources
from distmeta.tasks.splits import SPLITS
from distmeta.tasks.spool import (
    Progress,
    Spool,
    gather,
    ordered_names,
    parts_of,
    sort_by_cell,
    spool_examples,
    spooled_texts,
)

VOCABULARY_ROWS = 1_000_000
COLUMNS = ("text", "label", "task", "split")
TEXT_COLUMNS = ("input", "target", "options", "instruction", "layout")
SORTED = ("text", "text_ends", "tokens", "token_ends", "label", "task")
FORMAT = 3  # part of every key: a change of what is written makes new stores


@dataclass(frozen=True)
class Groups:
    """The tasks (family domain) or classes (family classes) of one split, and where their rows are.

    ids [G] index `tasks` or `labels`; start, count [G, C]: C labels in family domain, 1 in family classes.
    """

    ids: NDArray[np.int32]
    start: NDArray[np.int64]
    count: NDArray[np.int64]

    @cached_property
    def examples(self) -> int:
        return int(self.count.sum())

    def part(self, first: int, end: int) -> Groups:
        """The groups first..end-1 alone; no copy is made."""
        return Groups(self.ids[first:end], self.start[first:end], self.count[first:end])


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
    _texts: Any = field(repr=False)

    @property
    def rows(self) -> int:
        return len(self.label_ids)

    @property
    def tokenizer_file(self) -> Path:
        """tokenizer.json, with padding and truncation as the store used them."""
        return self.path / "tokenizer.json"

    def read(self, rows: NDArray[np.int64]) -> tuple[NDArray[np.int32], NDArray[np.int64]]:
        """The tokens of these rows one after another, and where each row's begin [n + 1]."""
        return gather(self.tokens, self.offsets, rows)

    def text(self, row: int) -> str:
        return str(self._texts[row].as_py())

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
        mine = split == number
        columns = (groups.column(name).to_numpy()[mine] for name in ("id", "start", "count"))
        ids, start, count = (column.reshape(-1, meta["columns"]) for column in columns)
        by_split[word] = Groups(ids[:, 0], start, count)
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
        _texts=rows.column("text"),
    )


def build_store(
    data: DataConfig,
    task: TaskConfig,
    model: ModelConfig,
    *,
    seed: int = 0,
    tokenizer_file: Path | None = None,
    labels: list[str] | None = None,
    only: Literal["train", "test"] | None = None,
    progress: Progress | None = None,
) -> Path:
    """The directory of the task store for this data, built unless it is there.

    seed            of the built-in suite (data.path null); it changes nothing else
    tokenizer_file  used instead of model's: a checkpoint that is evaluated on new data brings its own
    labels          family domain: the label names in the order of the checkpoint's head
    only            without a split column and data.splits everything is of this split; the others may be empty
    Raises InputError for data that cannot be used; nothing is left behind then.
    """
    sources = _sources(data)
    ready = _given_tokenizer(model, tokenizer_file)
    key = _key(data, task, model, sources, seed, ready, labels, only)
    root = cache_directory(data)
    final = root / key
    if (final / "meta.json").is_file():
        return final
    root.mkdir(parents=True, exist_ok=True)
    _remove_abandoned(root)
    work = Path(tempfile.mkdtemp(prefix=f".{key}.", dir=root))
    try:
        spool = spool_examples(_batches(sources, data, task.family, seed), work, progress)
        _write(spool, work, key, data, task, model, ready, labels, only, progress)
        try:
            os.replace(work, final)
        except OSError:
            if not (final / "meta.json").is_file():  # else another process was first, with the same content
                raise
    finally:
        shutil.rmtree(work, ignore_errors=True)
    return final


def store_key(data: DataConfig, task: TaskConfig, model: ModelConfig) -> str:
    """What `build_store` would know the store by. Raises InputError for files that are not there."""
    return _key(data, task, model, _sources(data), 0, _given_tokenizer(model, None), None, None)


def cache_directory(data: DataConfig) -> Path:
    return Path(data.cache or os.environ.get("DISTMETA_CACHE") or "~/.cache/distmeta").expanduser()


def _by_source(groups: Groups, names: list[str], sources: list[str]) -> dict[str, Groups]:
    """Those of each source that has any: names begin with the source's, groups are sorted by name."""
    out = {}
    for source in sources:
        names_of_it = _span(names, source)
        first, last = np.searchsorted(groups.ids, [names_of_it.start, names_of_it.stop])
        if first < last:
            out[source] = Groups(groups.ids[first:last], groups.start[first:last], groups.count[first:last])
    return out


def _span(names: list[str], source: str) -> slice:
    """Where the names of a data source are; all of them for ""."""
    if not source:
        return slice(0, len(names))
    return slice(*(bisect_left(names, f"{source}{sign}") for sign in "/0"))  # 0 comes after /


# --- building ---


Sources = dict[str, tuple[DataConfig, list[Source]]]  # by name; "" for data.path


def _sources(data: DataConfig) -> Sources:
    """The data files, and how each source's are read; none: the built-in reviews. Of files to come: the first."""
    if data.sources is not None:
        each = {name: data.of(name) for name in sorted(data.sources)}
    else:
        each = {"": data} if data.path is not None else {}
    return {
        name: (own, find_sources(own.path, json_too=own.layout == "natural_instructions", first=own.follow is not None))
        for name, own in each.items()
        if own.path is not None
    }


def _given_tokenizer(model: ModelConfig, file: Path | None) -> Any:
    if file is not None:
        return tokenizer.load_tokenizer(file)
    return tokenizer.load_tokenizer(model.pretrained) if model.pretrained else None


def _key(
    data: DataConfig,
    task: TaskConfig,
    model: ModelConfig,
    sources: Sources,
    seed: int,
    ready: Any,
    labels: list[str] | None,
    only: str | None,
) -> str:
    text = task.family == "text_to_text"
    made = ["questions", questions.VERSION, seed] if text else ["reviews", reviews.VERSION, seed]

    def of(own: DataConfig, files: list[Source]) -> dict[str, Any]:
        return {
            "content": [file.digest() for file in files] if sources else made,
            "columns": [getattr(own, name) for name in (*COLUMNS, *(TEXT_COLUMNS if text else ()))],
            "splits": splits.read_lists(own.splits) if own.splits is not None else list(own.fractions),
        }

    facts = {
        "format": FORMAT,
        **({"sources": {n: of(*s) for n, s in sources.items()}} if data.sources else of(*sources.get("", (data, [])))),
        "tokenizer": tokenizer.fingerprint(ready) if ready else [model.tokenizer, model.vocab_size],
        "max_tokens": model.max_tokens,
        "family": [task.family, task.ways, *([model.answer_tokens, task.instructions] if text else [])],
        "labels": labels,
        "only": only,
    }
    return hashlib.blake2b(json.dumps(facts, sort_keys=True).encode(), digest_size=12).hexdigest()


def _batches(sources: Sources, data: DataConfig, family: str, seed: int) -> Iterator[Any]:
    if data.sources is not None:
        role = "task" if family == "domain" else "label"
        each = (
            mixture.named_batches(read_examples(files, own, family), n, role) for n, (own, files) in sources.items()
        )
        return chain.from_iterable(each)
    if sources:
        own, files = sources[""]
        return read_examples(files, own, family)
    columns = ["text", "label", *(["task"] if family != "classes" else []), *([] if data.splits else ["split"])]
    table = questions.make_questions(seed) if family == "text_to_text" else reviews.make_reviews(seed)
    return iter(table.select(columns).to_batches())


def _write(
    spool: Spool,
    work: Path,
    key: str,
    data: DataConfig,
    task: TaskConfig,
    model: ModelConfig,
    ready: Any,
    labels: list[str] | None,
    only: str | None,
    progress: Progress | None,
) -> None:
    domain, text = task.family != "classes", task.family == "text_to_text"
    label_names, label_of = ordered_names(spool, "label", labels if domain else None)
    task_names, task_of = ordered_names(spool, "task") if domain else ([], label_of)
    names, role, what = (task_names, "task", "task") if domain else (label_names, "label", "class")
    split = _assign(names, task_of, role, what, spool, data, task, only)
    width = len(label_names) if domain else 1
    ids = np.argsort(split, kind="stable").astype(np.int32)  # by split, then by name; without those left out
    ids = ids[split[ids] >= 0]
    place = np.full(len(split), -1, np.int32)
    place[ids] = np.arange(len(ids), dtype=np.int32)

    # A cell is a group of rows that lie side by side: (split, task, label) in family domain, (split, class) in classes.
    cells = np.memmap(work / "cells.spool", np.int32, "w+", shape=spool.rows)
    count = np.zeros(len(ids) * width, np.int64)
    for part in parts_of(spool.rows):
        at = place[task_of[spool.codes[role][part]]]
        cell = at * width + label_of[spool.codes["label"][part]] if domain else at
        cells[part] = np.where(at < 0, -1, cell)
        count += np.bincount(cells[part][at >= 0], minlength=len(count))
    order = np.memmap(work / "order.spool", np.int64, "w+", shape=int(count.sum()))
    sort_by_cell(cells, count, order)

    if ready is None:
        in_train = int(count[: np.sum(split[ids] == 0) * width].sum())
        train = order[: in_train or len(order)]
        # The vocabulary comes from meta-train text alone, evenly spaced if there is very much of it.
        train = train[:: -(-len(train) // VOCABULARY_ROWS)]
        lines: Iterator[str] = (line for batch in spooled_texts(spool, train) for line in batch)
        if text:
            lines = chain.from_iterable(records.words_of(line) for line in lines)
        ready = tokenizer.train_tokenizer(lines, model.tokenizer, model.vocab_size)
    special = tokenizer.special_ids(ready)

    with ExitStack() as stack:
        files = {n: stack.enter_context(open(work / f"{n}.sorted", "wb")) for n in SORTED}
        for name in ("token_ends", "text_ends"):
            np.zeros(1, np.int64).tofile(files[name])
        done = tokens = characters = 0
        lines_in_order = spooled_texts(spool, order)
        begins: Any = None  # of the answers
        for flat, sizes, *begins in (
            records.encode(ready, lines_in_order, model, task.instructions)
            if text
            else tokenizer.encode(ready, lines_in_order, model.max_tokens)
        ):
            rows = order[done : done + len(sizes)]
            content, text_ends = gather(spool.text, spool.offsets, rows)
            if not sizes.all():
                bad = content[text_ends[np.argmin(sizes)] :].tobytes().decode()
                raise InputError(f"the tokenizer makes no token of the text {bad[:40]!r}; remove this example")
            cell = cells[rows]
            for name, values in (
                ("tokens", flat), ("token_ends", tokens + np.cumsum(sizes)),
                ("text", content), ("text_ends", characters + text_ends[1:]),
                ("label", begins[0] if text else cell % width if domain else ids[cell]),
                ("task", ids[cell // width] if domain else np.zeros(len(rows), np.int32)),
            ):  # fmt: skip
                values.tofile(files[name])
            tokens, characters, done = tokens + len(flat), characters + len(content), done + len(rows)
            if progress:
                progress("tokenising", done, len(order))

    ready_made = {name: _mapped(work / f"{name}.sorted") for name in SORTED}
    ends = pa.Array.from_buffers(pa.int64(), len(order) + 1, [None, ready_made["token_ends"]])
    flat_tokens = pa.Array.from_buffers(pa.int32(), tokens, [None, ready_made["tokens"]])
    columns = {
        "text": pa.LargeStringArray.from_buffers(len(order), ready_made["text_ends"], ready_made["text"]),
        "tokens": pa.LargeListArray.from_arrays(ends, flat_tokens),
        **{n: pa.Array.from_buffers(pa.int32(), len(order), [None, ready_made[n]]) for n in ("label", "task")},
    }
    _write_batch(work / "rows.arrow", columns)
    groups = {"split": np.repeat(split[ids], width), "id": np.repeat(ids, width)}
    groups |= {"start": np.cumsum(count) - count, "count": count}
    _write_batch(work / "groups.arrow", {name: pa.array(values) for name, values in groups.items()})
    _write_batch(
        work / "names.arrow",
        {"labels": pa.array([label_names]), "tasks": pa.array([task_names], pa.list_(pa.string()))},
    )
    for left in [*work.glob("*.spool"), *work.glob("*.sorted")]:
        left.unlink()
    ready.enable_truncation(model.max_tokens)
    ready.save(str(work / "tokenizer.json"))
    meta = {
        "key": key, "family": task.family, "columns": width, "rows": len(order),
        "vocab_size": special.vocab_size, "pad_id": special.pad, "cls_id": special.cls, "sep_id": special.sep,
        "end_id": special.end,
        "max_tokens": model.max_tokens, "left_out": [n for n, s in zip(names, split, strict=True) if s < 0],
        "source": data.path or "built-in reviews", "sources": sorted(data.sources or []),
    }  # fmt: skip
    (work / "meta.json").write_text(json.dumps(meta, ensure_ascii=False, indent=1), encoding="utf-8")


def _assign(
    names: list[str],
    name_of: NDArray[np.int32],
    role: str,
    what: str,
    spool: Spool,
    data: DataConfig,
    task: TaskConfig,
    only: str | None,
) -> NDArray[np.int8]:
    words = spool.names.get("split", [])
    met = np.zeros((len(names), len(words)), bool)
    for part in parts_of(spool.rows if words else 0):
        met[name_of[spool.codes[role][part]], spool.codes["split"][part]] = True
    out = np.empty(len(names), np.int8)
    for source in sorted(data.sources) if data.sources is not None else [""]:
        mine, own = _span(names, source), data.of(source) if source else data
        short = [name[len(source) + 1 :] for name in names[mine]] if source else names
        pairs = [(name, words[word]) for name, word in np.argwhere(met[mine]).tolist() if words[word]]
        if own.splits is not None:
            out[mine] = splits.split_by_lists(short, splits.read_lists(own.splits), what)
        elif pairs:
            out[mine] = splits.split_by_column(short, pairs, what, own.split)
        elif only is not None:
            out[mine] = SPLITS.index(only)
        else:
            out[mine] = splits.split_by_hash(short, own.fractions, 1 if what == "task" else task.ways or 5)
    splits.check_not_empty(out, what, (0, 2) if only is None else (SPLITS.index(only),))
    return out


def _mapped(path: Path) -> Any:
    with pa.memory_map(str(path)) as file:
        return file.read_buffer()


def _open_batch(path: Path) -> Any:
    return pa.ipc.open_file(pa.memory_map(str(path))).get_batch(0)


def _write_batch(path: Path, columns: dict[str, Any]) -> None:
    batch = pa.RecordBatch.from_pydict(columns)
    with open(path, "wb") as sink:
        with pa.ipc.new_file(sink, batch.schema) as writer:
            writer.write_batch(batch)
        sink.flush()
        os.fsync(sink.fileno())


def _remove_abandoned(root: Path, after_s: float = 86400) -> None:
    """What builds that were killed have left, after a day."""
    for path in root.glob(".*.*"):
        try:
            if path.is_dir() and time.time() - path.stat().st_mtime > after_s:
                shutil.rmtree(path, ignore_errors=True)
        except OSError:
            continue
