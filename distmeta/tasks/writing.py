"""Writing a task store from what was spooled: which rows lie where, their order, the vocabulary, tokens, files."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from distmeta.config import DataConfig, ModelConfig, TaskConfig
from distmeta.errors import InputError, cut
from distmeta.tasks import documents, environments, images, prompts, records, regression, splits, tokenizer, written
from distmeta.tasks.counts import MOST_UNKNOWN, Counts, unknown_words
from distmeta.tasks.splits import SPLITS
from distmeta.tasks.spool import Progress, Spool, gather, ordered_names, parts_of, sort_by_cell, spooled_texts
from distmeta.tasks.store import span

VOCABULARY_ROWS = 1_000_000
SORTED = ("text", "text_ends", "tokens", "token_ends", "label", "task")
HEAD = "head"  # beside them where task.prompt writes one: how many tokens stand before an input
SUBGROUP = "subgroup"  # and this with data.subgroup


@dataclass(frozen=True)
class Plan:
    """Which rows lie where: a cell is a group of rows side by side, (split, task, label), or in family classes
    (split, class).

    names: what is divided among the splits, tasks or classes. split: of each name; below 0 where it is left out. ids:
    numbers of names as they lie in the store, by split, then by name, without those left out. width: cells of a name.
    label_of, task_of: numbers of the spool's codes.
    """

    spool: Spool
    work: Path
    data: DataConfig
    task: TaskConfig
    model: ModelConfig
    labels: list[str]
    tasks: list[str]
    split: NDArray[np.int8]
    ids: NDArray[np.int32]
    width: int
    label_of: NDArray[np.int32]
    task_of: NDArray[np.int32]
    authors: list[str]
    subgroups: list[str]
    subgroup_of: NDArray[np.int32] | None

    @property
    def of_domain(self) -> bool:
        """Whether a task is the data's own, with labels that all tasks share; else it is made of classes."""
        return self.task.family != "classes"

    @property
    def has_answers(self) -> bool:
        return self.task.family == "text_to_text"

    @property
    def has_heads(self) -> bool:
        """Whether an example is written another way where it is not the first of a context."""
        return self.has_answers and self.task.prompt != "bare"

    @property
    def of_documents(self) -> bool:
        return self.task.family == "document"

    @property
    def names(self) -> list[str]:
        return self.tasks if self.of_domain else self.labels


@dataclass(frozen=True)
class Order:
    """cell: of each row of the spool, below 0 where it is left out. count, trusted: rows of each cell. rows: sorted by
    cell, in each the trusted first; without data.trusted none is.
    """

    cell: NDArray[np.int32]
    count: NDArray[np.int64]
    trusted: NDArray[np.int64] | None
    rows: NDArray[np.int64]


def write_store(
    spool: Spool, work: Path, key: str, data: DataConfig, task: TaskConfig, model: ModelConfig, ready: Any,
    labels: list[str] | None, only: str | None, progress: Progress | None,
) -> None:  # fmt: skip
    """Write a store into the directory `work`, with the tokenizer `ready` or one of its own. Raises InputError.

    key, labels, only, progress: as of `distmeta.tasks.build.build_store`.
    """
    plan = make_plan(spool, work, data, task, model, labels, only)
    order = order_rows(plan)
    if ready is None:
        ready = train_vocabulary(plan, order)
    lost = encode_rows(plan, order, ready, progress)
    if model.pretrained is not None and lost.unknown > MOST_UNKNOWN * lost.tokens:
        raise InputError(
            f"model.pretrained = {model.pretrained}: {unknown_words(asdict(lost))} of its tokenizer; "
            "give a model of the data's language, or check that the tokenizer is the model's own"
        )
    write_files(plan, order, ready, lost, key)


def make_plan(
    spool: Spool, work: Path, data: DataConfig, task: TaskConfig, model: ModelConfig, labels: list[str] | None,
    only: str | None,
) -> Plan:  # fmt: skip
    """Numbers of labels and tasks, and the split of each name. Raises InputError."""
    domain = task.family != "classes"
    label_names, label_of = ordered_names(spool, "label", labels if domain else None)
    task_names, task_of = ordered_names(spool, "task") if domain else ([], label_of)
    names, role, what = (task_names, "task", "task") if domain else (label_names, "label", "class")
    authors = documents.authors(spool, task_of, len(task_names))
    split = _assign(names, task_of, role, what, spool, data, task, only, authors)
    ids = np.argsort(split, kind="stable").astype(np.int32)
    ids = ids[split[ids] >= 0]
    width = len(label_names) if domain else 1
    subgroups, subgroup_of = ordered_names(spool, "subgroup") if "subgroup" in spool.codes else ([], None)
    return Plan(
        spool, work, data, task, model, label_names, task_names, split, ids, width, label_of, task_of, authors,
        subgroups, subgroup_of,
    )  # fmt: skip


def order_rows(plan: Plan) -> Order:
    """A counting sort of the spool's rows by their cells."""
    spool, role = plan.spool, "task" if plan.of_domain else "label"
    place = np.full(len(plan.split), -1, np.int32)
    place[plan.ids] = np.arange(len(plan.ids), dtype=np.int32)
    cells = np.memmap(plan.work / "cells.spool", np.int32, "w+", shape=spool.rows)
    halves = 2 if "trusted" in spool.codes else 1  # of a cell, while rows are sorted
    count = np.zeros(len(plan.ids) * plan.width * halves, np.int64)
    for part in parts_of(spool.rows):
        name = place[plan.task_of[spool.codes[role][part]]]
        cell = name * plan.width + plan.label_of[spool.codes["label"][part]] if plan.of_domain else name
        if halves == 2:
            cell = 2 * cell + (np.array(spool.names["trusted"]) == "")[spool.codes["trusted"][part]]
        cells[part] = np.where(name < 0, -1, cell)
        count += np.bincount(cells[part][name >= 0], minlength=len(count))
    rows = np.memmap(plan.work / "order.spool", np.int64, "w+", shape=int(count.sum()))
    sort_by_cell(cells, count, rows)
    cells //= halves
    return Order(cells, count.reshape(-1, halves).sum(1), count[::2] if halves == 2 else None, rows)


def train_vocabulary(plan: Plan, order: Order) -> Any:
    """A tokenizer of meta-train text alone, evenly spaced if there is very much of it."""
    in_train = int(order.count[: np.sum(plan.split[plan.ids] == 0) * plan.width].sum())
    train = order.rows[: in_train or len(order.rows)]
    train = train[:: -(-len(train) // VOCABULARY_ROWS)]
    lines: Iterator[str] = (line for batch in spooled_texts(plan.spool, train) for line in batch)
    if plan.has_answers:
        lines = chain.from_iterable(records.words_of(line) for line in lines)
    return tokenizer.train_tokenizer(lines, plan.model.tokenizer, plan.model.vocab_size)


def encoded(plan: Plan, order: Order, ready: Any, lost: Counts) -> Iterator[tuple[Any, ...]]:
    """(tokens one after another, how many of each row, and of answers, if there are any, where they begin and how many
    tokens the heads have) of batches of rows."""
    lines, task, model = spooled_texts(plan.spool, order.rows), plan.task, plan.model
    if model.image is not None:
        return images.encode(lines, model.image)
    if task.family == "policy":
        return environments.encode(lines)
    if model.dimensions is not None:
        return regression.encode(lines, model.dimensions)
    if plan.of_documents:
        return documents.encode(ready, lines, lost)
    if plan.has_answers:
        encoder = written.encoder_of(ready, model, task.prompt)
        made = (records.encode_records(encoder, list(map(records.parse, of)), task.instructions, lost) for of in lines)
        return ((one.tokens, one.lengths, one.begins, one.heads) for one in made)
    if task.labels != "head":
        return prompts.encode(ready, lines, task, model.max_tokens, lost)
    return tokenizer.encode(ready, lines, model.max_tokens, lost)


def extra(plan: Plan) -> list[str]:
    """The columns of numbers that only some stores have."""
    return [name for name, has in ((HEAD, plan.has_heads), (SUBGROUP, plan.subgroup_of is not None)) if has]


def encode_rows(plan: Plan, order: Order, ready: Any, progress: Progress | None) -> Counts:
    """Write text, tokens, labels and tasks of all rows in order to flat files, and count what is lost of them."""
    spool, ids, lost = plan.spool, plan.ids, Counts()
    with ExitStack() as stack:
        names = (*SORTED, *extra(plan))
        files = {n: stack.enter_context(open(plan.work / f"{n}.sorted", "wb")) for n in names}
        for name in ("token_ends", "text_ends"):
            np.zeros(1, np.int64).tofile(files[name])
        done = tokens = characters = 0
        begins: Any = None  # of the answers, and the lengths of heads
        for flat, sizes, *begins in encoded(plan, order, ready, lost):
            rows = order.rows[done : done + len(sizes)]
            content, text_ends = gather(spool.text, spool.offsets, rows)
            if not sizes.all():
                bad = content[text_ends[np.argmin(sizes)] :].tobytes().decode()
                raise InputError(f"the tokenizer makes no token of the text {cut(bad, 40)!r}; remove this example")
            cell = order.cell[rows]
            of_class = cell % plan.width if plan.of_domain else ids[cell]
            for name, values in (
                ("tokens", flat), ("token_ends", tokens + np.cumsum(sizes)),
                ("text", content), ("text_ends", characters + text_ends[1:]),
                ("label", begins[0] if plan.has_answers else of_class),
                ("task", ids[cell // plan.width] if plan.of_domain else np.zeros(len(rows), np.int32)),
                *([(HEAD, begins[1])] if plan.has_heads else []),
                *([] if plan.subgroup_of is None else [(SUBGROUP, plan.subgroup_of[spool.codes[SUBGROUP][rows]])]),
            ):  # fmt: skip
                values.tofile(files[name])
            tokens, characters, done = tokens + len(flat), characters + len(content), done + len(rows)
            if progress:
                progress("tokenising", done, len(order.rows))
    return lost


def write_files(plan: Plan, order: Order, ready: Any, lost: Counts, key: str) -> None:
    """The store's own files, from the flat ones, which are removed."""
    work, model, rows = plan.work, plan.model, len(order.rows)
    numbers = ("label", "task", *extra(plan))
    flat = {name: _mapped(work / f"{name}.sorted") for name in (*SORTED[:4], *numbers)}
    ends = pa.Array.from_buffers(pa.int64(), rows + 1, [None, flat["token_ends"]])
    tokens = pa.Array.from_buffers(pa.int32(), flat["tokens"].size // 4, [None, flat["tokens"]])
    columns = {
        "text": pa.LargeStringArray.from_buffers(rows, flat["text_ends"], flat["text"]),
        "tokens": pa.LargeListArray.from_arrays(ends, tokens),
        **{n: pa.Array.from_buffers(pa.int32(), rows, [None, flat[n]]) for n in numbers},
    }
    _write_batch(work / "rows.arrow", columns)
    groups = {"split": np.repeat(plan.split[plan.ids], plan.width), "id": np.repeat(plan.ids, plan.width)}
    groups |= {"start": np.cumsum(order.count) - order.count, "count": order.count}
    groups |= {} if order.trusted is None else {"trusted": order.trusted}
    _write_batch(work / "groups.arrow", {name: pa.array(values) for name, values in groups.items()})
    _write_batch(
        work / "names.arrow",
        {
            name: pa.array([values], pa.list_(pa.string()))
            for name, values in (
                ("labels", plan.labels),
                ("tasks", plan.tasks),
                ("authors", plan.authors),
                ("subgroups", plan.subgroups),
            )
        },
    )
    for left in [*work.glob("*.spool"), *work.glob("*.sorted")]:
        left.unlink()
    special, later = tokenizer.special_ids(ready), None
    if plan.has_heads:
        later = written.encoder_of(ready, model, plan.task.prompt).later
    ready.enable_truncation(model.max_tokens)
    tokenizer.save_tokenizer(ready, work)
    meta = {
        "key": key, "family": plan.task.family, "columns": plan.width, "rows": rows,
        "vocab_size": special.vocab_size, "pad_id": special.pad, "cls_id": special.cls, "sep_id": special.sep,
        "end_id": special.end, "later": later,
        "max_tokens": model.max_tokens, "image": model.image,
        "encoding": asdict(lost) | ({"answer_tokens": model.answer_tokens} if plan.has_answers else {}),
        "left_out": [n for n, s in zip(plan.names, plan.split, strict=True) if s < 0],
        "source": plan.data.path or "built-in reviews", "sources": sorted(plan.data.sources or []),
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
    authors: list[str],
) -> NDArray[np.int8]:
    words = spool.names.get("split", [])
    met = np.zeros((len(names), len(words)), bool)
    for part in parts_of(spool.rows if words else 0):
        met[name_of[spool.codes[role][part]], spool.codes["split"][part]] = True
    out = np.empty(len(names), np.int8)
    for source in sorted(data.sources) if data.sources is not None else [""]:
        of_source, source_data = span(names, source), data.of(source) if source else data
        short = [name[len(source) + 1 :] for name in names[of_source]] if source else names
        pairs = [(name, words[word]) for name, word in np.argwhere(met[of_source]).tolist() if words[word]]
        if source_data.splits is not None:
            out[of_source] = splits.split_by_lists(short, splits.read_lists(source_data.splits), what)
        elif pairs:
            out[of_source] = splits.split_by_column(short, pairs, what, source_data.split)
        elif only is not None:
            out[of_source] = SPLITS.index(only)
        else:
            hashed = authors[of_source] if authors else short
            out[of_source] = splits.split_by_hash(
                hashed, source_data.fractions, 1 if what == "task" else task.ways or 5
            )
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
