"""Building a task store: reading the files once, sorting, tokenising.

The key is made of the content of the files, the tokenizer and whatever else decides what is written. A store is built
in a directory of its own and moved into place whole. Memory grows with the tasks, not the rows: one pass over the files
spools text and codes to flat files, a counting sort of the codes gives the order, a second pass gathers, tokenises and
writes.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import asdict, replace
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from distmeta.config import DataConfig, ModelConfig, TaskConfig
from distmeta.errors import InputError, cut
from distmeta.tasks import mixture, prompts, questions, records, reviews, splits, tokenizer
from distmeta.tasks.counts import MOST_UNKNOWN, Counts, unknown_words
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
from distmeta.tasks.store import span

VOCABULARY_ROWS = 1_000_000
COLUMNS = ("text", "label", "task", "split")
TEXT_COLUMNS = ("input", "target", "options", "instruction", "layout")
SORTED = ("text", "text_ends", "tokens", "token_ends", "label", "task")
FORMAT = 3  # part of every key: a change of what is written makes new stores


def build_store(
    data: DataConfig,
    task: TaskConfig,
    model: ModelConfig,
    *,
    seed: int = 0,
    tokenizer_file: Path | None = None,
    labels: list[str] | None = None,
    only: str | None = None,
    progress: Progress | None = None,
) -> Path:
    """The directory of the task store for this data, built unless it is there.

    seed            of the built-in suite (data.path null); it changes nothing else
    tokenizer_file  used instead of model's: a checkpoint that is evaluated on new data brings its own
    labels          family domain: the label names in the order of the checkpoint's head
    only            without a split column and data.splits everything is of this split; the others may be empty
    Raises InputError for data that cannot be used; nothing is left behind then.
    """
    sources = _sources(data, only)
    ready = _given_tokenizer(model, tokenizer_file)
    key = _key(data, task, model, sources, seed, ready, labels, only)

    def fill(work: Path) -> None:
        spool = spool_examples(
            _batches(sources, data, task.family, seed, settable=tokenizer_file is None), work, progress
        )
        _write(spool, work, key, data, task, model, ready, labels, only, progress)

    return built(cache_directory(data) / key, fill)


def store_key(data: DataConfig, task: TaskConfig, model: ModelConfig) -> str:
    """What `build_store` would know the store by. Raises InputError for files that are not there."""
    return _key(data, task, model, _sources(data), 0, _given_tokenizer(model, None), None, None)


def built(path: Path, fill: Callable[[Path], None]) -> Path:
    """`path`, filled and moved into place whole unless it is there; several processes may build it at once."""
    if (path / "meta.json").is_file():
        return path
    path.parent.mkdir(parents=True, exist_ok=True)
    _remove_abandoned(path.parent)
    work = Path(tempfile.mkdtemp(prefix=f".{path.name}.", dir=path.parent))
    try:
        fill(work)
        try:
            os.replace(work, path)
        except OSError:
            if not (path / "meta.json").is_file():  # else another process was first, with the same content
                raise
    finally:
        shutil.rmtree(work, ignore_errors=True)
    return path


def cache_directory(data: DataConfig) -> Path:
    return Path(data.cache or os.environ.get("DISTMETA_CACHE") or "~/.cache/distmeta").expanduser()


Sources = dict[str, tuple[DataConfig, list[Source]]]  # by name; "" for data.path


def _sources(data: DataConfig, only: str | None = None) -> Sources:
    """The data files, and how each source's are read; none: the built-in reviews. Of files to come: the first.

    only: where files are of splits, those of this one. Raises InputError.
    """
    if data.sources is not None:
        each = {name: data.of(name) for name in sorted(data.sources)}
    else:
        each = {"": data} if data.path is not None else {}
    return {
        name: (own, _with_splits(find_sources(own.path, json_too=own.layout == "natural_instructions",
                                              first=own.follow is not None), own, only))
        for name, own in each.items()
        if own.path is not None
    }  # fmt: skip


def _with_splits(files: list[Source], data: DataConfig, only: str | None) -> list[Source]:
    """The files with the splits that their names give, if nothing else decides; `only` those of one split, if any."""
    if data.layout == "table":
        files = splits.split_in_files(files)
    if data.splits is not None or data.split == "hash":
        return [replace(file, split=None) for file in files]
    of_one = [file for file in files if splits.ALIASES.get((file.split or "").lower()) == SPLITS.index(only or "test")]
    return [replace(file, split=None) for file in of_one] if only is not None and of_one else files


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
        "tokenizer": tokenizer.fingerprint(ready, ends=text) if ready else [model.tokenizer, model.vocab_size],
        "max_tokens": model.max_tokens,
        "family": [task.family, task.ways, *([model.answer_tokens, task.instructions] if text else [])],
        **({"prompt": task.prompt} if task.labels == "letters" else {}),
        "labels": labels,
        "only": only,
    }
    return hashlib.blake2b(json.dumps(facts, sort_keys=True).encode(), digest_size=12).hexdigest()


def _batches(sources: Sources, data: DataConfig, family: str, seed: int, settable: bool) -> Iterator[Any]:
    if data.sources is not None:
        role = "task" if family == "domain" else "label"
        each = (
            mixture.named_batches(read_examples(files, own, family, settable), n, role)
            for n, (own, files) in sources.items()
        )
        return chain.from_iterable(each)
    if sources:
        own, files = sources[""]
        return read_examples(files, own, family, settable)
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
        lost = Counts()
        for flat, sizes, *begins in (
            records.encode(ready, lines_in_order, model, task.instructions, lost)
            if text
            else prompts.encode(ready, lines_in_order, task, model.max_tokens, lost)
            if task.labels == "letters"
            else tokenizer.encode(ready, lines_in_order, model.max_tokens, lost)
        ):
            rows = order[done : done + len(sizes)]
            content, text_ends = gather(spool.text, spool.offsets, rows)
            if not sizes.all():
                bad = content[text_ends[np.argmin(sizes)] :].tobytes().decode()
                raise InputError(f"the tokenizer makes no token of the text {cut(bad, 40)!r}; remove this example")
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

    if model.pretrained is not None and lost.unknown > MOST_UNKNOWN * lost.tokens:
        raise InputError(
            f"model.pretrained = {model.pretrained}: {unknown_words(asdict(lost))} of its tokenizer; "
            "give a model of the data's language, or check that the tokenizer is the model's own"
        )

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
    tokenizer.save_tokenizer(ready, work)
    meta = {
        "key": key, "family": task.family, "columns": width, "rows": len(order),
        "vocab_size": special.vocab_size, "pad_id": special.pad, "cls_id": special.cls, "sep_id": special.sep,
        "end_id": special.end,
        "max_tokens": model.max_tokens,
        "encoding": asdict(lost) | ({"answer_tokens": model.answer_tokens} if text else {}),
        "left_out": [n for n, s in zip(names, split, strict=True) if s < 0],
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
        mine, own = span(names, source), data.of(source) if source else data
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
