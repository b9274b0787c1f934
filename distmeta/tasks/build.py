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
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from itertools import chain
from pathlib import Path
from typing import Any

from distmeta.config import DataConfig, ModelConfig, TaskConfig
from distmeta.config.paths import age_s
from distmeta.errors import InputError
from distmeta.tasks import (
    captions,
    documents,
    environments,
    glyphs,
    images,
    ledgers,
    mixture,
    questions,
    regression,
    reviews,
    splits,
    tokenizer,
)
from distmeta.tasks.readers import ROW_ROLES, read_examples
from distmeta.tasks.sources import TEXT_KINDS, Source, find_sources
from distmeta.tasks.splits import SPLITS
from distmeta.tasks.spool import Progress, spool_examples
from distmeta.tasks.writing import write_store

COLUMNS = ("text", "label", "task", "split")
TEXT_COLUMNS = ("input", "target", "options", "instruction", "layout")
FORMAT = 4  # part of every key: a change of what is written makes new stores


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
    sources = _sources(data, task.family, only, model.image)
    ready = _given_tokenizer(model, tokenizer_file)
    key = _key(data, task, model, sources, seed, ready, labels, only)

    def fill(work: Path) -> None:
        spool = spool_examples(
            _batches(sources, data, task, seed, model, settable=tokenizer_file is None), work, progress
        )
        write_store(spool, work, key, data, task, model, ready, labels, only, progress)

    return built(cache_directory(data) / key, fill)


def check_data(data: DataConfig, task: TaskConfig, model: ModelConfig) -> None:
    """Raises InputError where the family has no built-in data, and none is given."""
    if task.family == "classes" and model.image is None and data.path is None and data.sources is None:
        raise InputError("task.family = classes needs data.path: files with a column text and a column label")


def store_key(data: DataConfig, task: TaskConfig, model: ModelConfig) -> str:
    """What `build_store` would know the store by. Raises InputError for files that are not there."""
    return _key(
        data,
        task,
        model,
        _sources(data, task.family, None, model.image),
        0,
        _given_tokenizer(model, None),
        None,
        None,
    )


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


def _sources(data: DataConfig, family: str, only: str | None, image: images.Size | None) -> Sources:
    """The data files, and how each source's are read; none: the built-in reviews. Of files to come: the first.

    only: where files are of splits, those of this one. Raises InputError.
    """
    if data.sources is not None:
        each = {name: data.of(name) for name in sorted(data.sources)}
    else:
        each = {"": data} if data.path is not None else {}
    kinds = TEXT_KINDS if family == "document" else images.kinds(image)
    return {
        name: (section, _with_splits(find_sources(section.path, kinds,
                                              json_too=section.layout == "natural_instructions",
                                              first=section.follow is not None, key="data.path"), section, only))
        for name, section in each.items()
        if section.path is not None
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
    if model.image is not None:
        return images.make_tokenizer()
    if model.dimensions is not None:
        return regression.make_tokenizer()
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
    name, module, make = suite(task, model)
    made = [name, module.VERSION, seed]
    if task.family == "policy":  # whose environment may be other code the next time
        made.append(hashlib.blake2b("".join(make(seed).column("text").to_pylist()).encode()).hexdigest())
    document = task.family == "document"

    def of(data: DataConfig, files: list[Source]) -> dict[str, Any]:
        return {
            "content": [file.digest() for file in files] if sources else made,
            "columns": [getattr(data, name) for name in (*COLUMNS, *(TEXT_COLUMNS if text else ()))],
            "splits": splits.read_lists(data.splits) if data.splits is not None else list(data.fractions),
            **({"author": data.author, "names": documents.file_names(files)} if document else {}),
            **{role: column for role in ROW_ROLES if (column := getattr(data, role)) is not None},
        }

    facts = {
        "format": FORMAT,
        **({"sources": {n: of(*s) for n, s in sources.items()}} if data.sources else of(*sources.get("", (data, [])))),
        "tokenizer": tokenizer.fingerprint(ready, ends=text) if ready else [model.tokenizer, model.vocab_size],
        **({} if document else {"max_tokens": model.max_tokens}),
        "family": [task.family, task.ways, *([model.answer_tokens, task.instructions] if text else [])],
        **({"prompt": task.prompt} if task.labels != "head" or (text and task.prompt != "bare") else {}),
        **({"cut": "middle"} if text and task.prompt == "bare" else {}),  # once it was the end
        **({"image": list(model.image)} if model.image is not None else {}),
        **({"dimensions": [*model.dimensions, data.input, data.target]} if model.dimensions is not None else {}),
        "labels": labels,
        "only": only,
    }
    return hashlib.blake2b(json.dumps(facts, sort_keys=True).encode(), digest_size=12).hexdigest()


def _batches(
    sources: Sources, data: DataConfig, task: TaskConfig, seed: int, model: ModelConfig, settable: bool
) -> Iterator[Any]:
    family = task.family
    if data.sources is not None:
        role = "label" if family == "classes" else "task"
        each = (
            mixture.named_batches(read_examples(files, section, family, settable, dimensions=model.dimensions), n, role)
            for n, (section, files) in sources.items()
        )
        return chain.from_iterable(each)
    if sources:
        section, files = sources[""]
        return read_examples(files, section, family, settable, image=model.image, dimensions=model.dimensions)
    columns = ["text", "label", *(["task"] if family != "classes" else []), *([] if data.splits else ["split"])]
    _, _, make = suite(task, model)
    return iter(make(seed).select(columns).to_batches())


def suite(task: TaskConfig, model: ModelConfig) -> tuple[str, Any, Callable[[int], Any]]:
    """The built-in tasks: their name, and the module and function (seed) -> table that make them."""
    if model.head == "words" and model.image is not None:
        return "captions", captions, partial(captions.make_captions, size=model.image)
    if model.image is not None:
        return "glyphs", glyphs, partial(glyphs.make_glyphs, size=model.image)
    if task.family == "policy":
        environment = environments.load_environment(task.environment)
        return "environment", environments, partial(environments.make_tasks, environment=environment)
    suites: dict[str, tuple[str, Any, Callable[[int], Any]]] = {
        "text_to_text": ("questions", questions, questions.make_questions),
        "document": ("ledgers", ledgers, ledgers.make_ledgers),
        "regression": ("sinusoids", regression, regression.make_sinusoids),
    }
    return suites.get(task.family, ("reviews", reviews, reviews.make_reviews))


def _remove_abandoned(root: Path, after_s: float = 86400) -> None:
    """What builds that were killed have left, after a day."""
    for path in root.glob(".*.*"):
        try:
            if path.is_dir() and age_s(path) > after_s:
                shutil.rmtree(path, ignore_errors=True)
        except OSError:
            continue
