"""The task store: every example, tokenised once, as memory-mapped Arrow with the rows of each group side by side.

    <cache>/<key>/rows.arrow      one record batch: text, tokens, label, task; sorted by (split, task, label)
                  groups.arrow    for each split and task (family domain) or class: where its rows begin, how many
                  names.arrow     label and task names       tokenizer.json       meta.json

The key is made of the content of the files, the tokenizer and whatever else decides what is written. A store is
built in a directory of its own and moved into place whole, so that two processes may build the same one at once.
Nothing here keeps a Python object per row: one pass over the files spools text and codes to flat files, a sort
of the codes gives the order, a second pass gathers, tokenises and writes.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from distmeta.config import DataConfig, ModelConfig, TaskConfig
from distmeta.errors import InputError, nearest
from distmeta.tasks import reviews, splits, tokenizer
from distmeta.tasks.readers import Source, find_sources, read_examples
from distmeta.tasks.splits import SPLITS

FORMAT = 1  # part of every key: a change of what is written makes new stores
BATCH = 4096
Progress = Callable[[str, int, int | None], None]  # what is done, how far, of how much (None: not known)


@dataclass(frozen=True)
class Groups:
    """The tasks (family domain) or classes (family classes) of one split, and where their rows are.

    ids [G] index `tasks` or `labels`; start, count [G, C]: C labels in family domain, 1 in family classes.
    """

    ids: NDArray[np.int32]
    start: NDArray[np.int64]
    count: NDArray[np.int64]


@dataclass(frozen=True)
class TaskStore:
    """A built store, opened for reading. Arrays are memory-mapped: opening costs milliseconds and little memory."""

    path: Path
    key: str
    family: str
    labels: list[str]
    tasks: list[str]
    vocab_size: int
    pad_id: int
    cls_id: int | None
    sep_id: int | None
    max_tokens: int
    tokens: NDArray[np.int32]  # of all rows, one after another
    offsets: NDArray[np.int64]  # [rows + 1]: where each row's tokens begin
    label_ids: NDArray[np.int32]  # [rows]
    task_ids: NDArray[np.int32]  # [rows]; all 0 in family classes
    groups: dict[str, Groups]  # by split
    left_out: list[str]  # names that data.splits does not mention
    _texts: Any

    @property
    def rows(self) -> int:
        return len(self.label_ids)

    @property
    def tokenizer_file(self) -> Path:
        """tokenizer.json, with padding and truncation as the store used them."""
        return self.path / "tokenizer.json"

    def text(self, row: int) -> str:
        return str(self._texts[row].as_py())

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
    return TaskStore(
        path=path,
        key=meta["key"],
        family=meta["family"],
        labels=names.column("labels")[0].as_py(),
        tasks=names.column("tasks")[0].as_py(),
        vocab_size=meta["vocab_size"],
        pad_id=meta["pad_id"],
        cls_id=meta["cls_id"],
        sep_id=meta["sep_id"],
        max_tokens=meta["max_tokens"],
        tokens=tokens.values.to_numpy(),
        offsets=tokens.offsets.to_numpy(),
        label_ids=rows.column("label").to_numpy(),
        task_ids=rows.column("task").to_numpy(),
        groups=by_split,
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
    only_test: bool = False,
    progress: Progress | None = None,
) -> Path:
    """The directory of the task store for this data, built unless it is there.

    seed            of the built-in suite (data.path null); it changes nothing else
    tokenizer_file  used instead of model's tokenizer: a checkpoint that is evaluated on new data brings its own
    labels          family domain: the label names in the order of the checkpoint's head
    only_test       what has no split of its own (no split column, no data.splits) is meta-test; train may be empty
    Raises InputError for data that cannot be used; nothing is left behind then.
    """
    sources = find_sources(data.path) if data.path is not None else None
    ready = _given_tokenizer(model, tokenizer_file)
    key = _key(data, task, model, sources, seed, ready, labels, only_test)
    root = cache_directory(data)
    final = root / key
    if (final / "meta.json").is_file():
        return final
    root.mkdir(parents=True, exist_ok=True)
    _remove_abandoned(root)
    work = Path(tempfile.mkdtemp(prefix=f".{key}.", dir=root))
    try:
        spool = _spool(_batches(sources, data, task.family, seed), work, progress)
        _write(spool, work, key, data, task, model, ready, labels, only_test, progress)
        try:
            os.replace(work, final)
        except OSError:
            if not (final / "meta.json").is_file():  # else another process was first, with the same content
                raise
    finally:
        shutil.rmtree(work, ignore_errors=True)
    return final


def cache_directory(data: DataConfig) -> Path:
    return Path(data.cache or os.environ.get("DISTMETA_CACHE") or "~/.cache/distmeta").expanduser()


def gather(
    flat: NDArray[Any], offsets: NDArray[np.int64], rows: NDArray[np.int64]
) -> tuple[NDArray[Any], NDArray[np.int64]]:
    """Ragged rows, copied one after another, and their new offsets [n + 1]."""
    start = offsets[rows]
    lengths = offsets[rows + 1] - start
    out = np.zeros(len(rows) + 1, np.int64)
    np.cumsum(lengths, out=out[1:])
    return flat[np.repeat(start - out[:-1], lengths) + np.arange(out[-1])], out


# --- building ---


@dataclass(frozen=True)
class _Spool:
    """The examples in file order: text flat on disk, everything else as codes."""

    text: NDArray[np.uint8]
    offsets: NDArray[np.int64]
    codes: dict[str, NDArray[np.int32]]  # role -> [rows]
    names: dict[str, list[str]]  # role -> name of each code


def _given_tokenizer(model: ModelConfig, file: Path | None) -> Any:
    if file is not None:
        return tokenizer.load_tokenizer(file)
    return tokenizer.load_tokenizer(model.pretrained) if model.pretrained else None


def _key(
    data: DataConfig,
    task: TaskConfig,
    model: ModelConfig,
    sources: list[Source] | None,
    seed: int,
    ready: Any,
    labels: list[str] | None,
    only_test: bool,
) -> str:
    facts = {
        "format": FORMAT,
        "content": [source.digest() for source in sources] if sources else ["reviews", reviews.VERSION, seed],
        "columns": [data.text, data.label, data.task, data.split],
        "splits": splits.read_lists(data.splits) if data.splits is not None else list(data.fractions),
        "tokenizer": tokenizer.fingerprint(ready) if ready else [model.tokenizer, model.vocab_size],
        "max_tokens": model.max_tokens,
        "family": [task.family, task.ways],
        "labels": labels,
        "only_test": only_test,
    }
    return hashlib.blake2b(json.dumps(facts, sort_keys=True).encode(), digest_size=12).hexdigest()


def _batches(sources: list[Source] | None, data: DataConfig, family: str, seed: int) -> Iterator[Any]:
    if sources is not None:
        return read_examples(sources, data, family)
    columns = ["text", "label", *(["task"] if family == "domain" else []), *([] if data.splits else ["split"])]
    return iter(reviews.make_reviews(seed).select(columns).to_batches())


def _spool(batches: Iterator[Any], work: Path, progress: Progress | None) -> _Spool:
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
    return _Spool(
        text=np.memmap(work / "text.spool", np.uint8, "r"),
        offsets=_ends(np.concatenate(lengths)),
        codes={role: np.concatenate(parts) for role, parts in codes.items()},
        names={role: list(seen) for role, seen in known.items()},
    )


def _write(
    spool: _Spool,
    work: Path,
    key: str,
    data: DataConfig,
    task: TaskConfig,
    model: ModelConfig,
    ready: Any,
    labels: list[str] | None,
    only_test: bool,
    progress: Progress | None,
) -> None:
    domain = task.family == "domain"
    label_names, label = _ordered(spool, "label", labels if domain else None)
    task_names, tasks = _ordered(spool, "task") if domain else ([], np.zeros_like(label))
    names, name_of_row, what = (task_names, tasks, "task") if domain else (label_names, label, "class")
    split = _assign(names, name_of_row, what, spool, data, task, only_test)

    split_of_row = split[name_of_row]
    order = np.lexsort((label, tasks, split_of_row))
    order = order[np.searchsorted(split_of_row[order], 0) :]  # without the rows that are left out
    label, tasks, split_of_row = label[order], tasks[order], split_of_row[order]

    if ready is None:
        train = order[split_of_row == 0] if np.any(split == 0) else order
        # The vocabulary comes from meta-train text alone.
        texts = (text for batch in _texts(spool, train) for text in batch)
        ready = tokenizer.train_tokenizer(texts, model.tokenizer, model.vocab_size)
    special = tokenizer.special_ids(ready)

    lengths = []
    done = 0
    with open(work / "tokens.spool", "wb") as token_file, open(work / "sorted.spool", "wb") as text_file:
        for flat, sizes in tokenizer.encode(ready, _texts(spool, order), model.max_tokens):
            if not sizes.all():
                row = order[done + int(np.argmin(sizes))]
                text = gather(spool.text, spool.offsets, np.array([row]))[0].tobytes().decode()
                raise InputError(f"the tokenizer makes no token of the text {text[:40]!r}; remove this example")
            flat.tofile(token_file)
            gather(spool.text, spool.offsets, order[done : done + len(sizes)])[0].tofile(text_file)
            lengths.append(sizes)
            done += len(sizes)
            if progress:
                progress("tokenising", done, len(order))

    token_ends, text_ends = _ends(np.concatenate(lengths)), _ends(np.diff(spool.offsets)[order])
    flat_tokens = pa.Array.from_buffers(pa.int32(), int(token_ends[-1]), [None, _mapped(work / "tokens.spool")])
    columns = {
        "text": pa.LargeStringArray.from_buffers(
            len(order), pa.py_buffer(text_ends), _mapped(work / "sorted.spool")
        ),
        "tokens": pa.LargeListArray.from_arrays(pa.array(token_ends), flat_tokens),
        "label": pa.array(label),
        "task": pa.array(tasks),
    }
    _write_batch(work / "rows.arrow", columns)
    _write_batch(work / "groups.arrow", _groups(split, split_of_row, name_of_row[order], label, len(label_names), domain))
    _write_batch(work / "names.arrow", {"labels": pa.array([label_names]), "tasks": pa.array([task_names], pa.list_(pa.string()))})
    for spooled in ("text.spool", "tokens.spool", "sorted.spool"):
        (work / spooled).unlink()
    ready.enable_truncation(model.max_tokens)
    ready.save(str(work / "tokenizer.json"))
    meta = {
        "key": key, "family": task.family, "columns": len(label_names) if domain else 1, "rows": len(order),
        "vocab_size": special.vocab_size, "pad_id": special.pad, "cls_id": special.cls, "sep_id": special.sep,
        "max_tokens": model.max_tokens, "left_out": [n for n, s in zip(names, split, strict=True) if s < 0],
        "source": data.path or "built-in reviews",
    }  # fmt: skip
    (work / "meta.json").write_text(json.dumps(meta, ensure_ascii=False, indent=1), encoding="utf-8")


def _ordered(spool: _Spool, role: str, given: list[str] | None = None) -> tuple[list[str], NDArray[np.int32]]:
    """Names in an order that does not depend on the files' (numbers by value), and the codes in that order."""
    names = spool.names[role]
    if given is None:
        given = sorted(names, key=lambda n: (not n.isdecimal(), int(n) if n.isdecimal() else 0, n))
    place = {name: i for i, name in enumerate(given)}
    for name in names:
        if name not in place:
            raise InputError(f"unknown {role} '{name}' in the data; known here: {', '.join(given)}.{nearest(name, given)}")
    return given, np.array([place[name] for name in names], np.int32)[spool.codes[role]]


def _assign(
    names: list[str],
    name_of_row: NDArray[np.int32],
    what: str,
    spool: _Spool,
    data: DataConfig,
    task: TaskConfig,
    only_test: bool,
) -> NDArray[np.int8]:
    if data.splits is not None:
        out = splits.split_by_lists(names, splits.read_lists(data.splits), what)
    elif "split" in spool.codes:
        words = spool.names["split"]
        pairs = np.unique(name_of_row.astype(np.int64) * len(words) + spool.codes["split"])
        out = splits.split_by_column(names, ((p // len(words), words[p % len(words)]) for p in pairs.tolist()), what, data.split)
    elif only_test:
        out = np.full(len(names), 2, np.int8)
    else:
        out = splits.split_by_hash(names, data.fractions, 1 if what == "task" else task.ways or 5)
    splits.check_not_empty(out, what, (2,) if only_test else (0, 2))
    return out


def _groups(
    split: NDArray[np.int8],
    split_of_row: NDArray[np.int8],
    name_of_row: NDArray[np.int32],
    label: NDArray[np.int32],
    labels: int,
    domain: bool,
) -> dict[str, Any]:
    """One row for each (split, name, label) in family domain or (split, name) in family classes, empty ones too."""
    ids = np.argsort(split, kind="stable").astype(np.int32)  # as the rows are sorted: by split, then by name
    ids = ids[split[ids] >= 0]
    place = np.zeros(len(split), np.int64)
    place[ids] = np.arange(len(ids))
    width = labels if domain else 1
    cell = place[name_of_row] * width + (label if domain else 0)
    count = np.bincount(cell, minlength=len(ids) * width)
    start = np.cumsum(count) - count
    return {
        "split": pa.array(np.repeat(split[ids], width)),
        "id": pa.array(np.repeat(ids, width)),
        "start": pa.array(start),
        "count": pa.array(count),
    }


def _texts(spool: _Spool, rows: NDArray[np.int64]) -> Iterator[list[str]]:
    for at in range(0, len(rows), BATCH):
        flat, ends = gather(spool.text, spool.offsets, rows[at : at + BATCH])
        yield pa.LargeStringArray.from_buffers(len(ends) - 1, pa.py_buffer(ends), pa.py_buffer(flat)).to_pylist()


def _ends(lengths: NDArray[np.int64]) -> NDArray[np.int64]:
    return np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)


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
