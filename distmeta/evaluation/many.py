"""Several new tasks at once: their support sets go through the base as batches with a task axis."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Sequence
from pathlib import Path, PurePath
from typing import Any

from distmeta.config import Config, DataConfig
from distmeta.errors import InputError
from distmeta.evaluation.adapt import AdaptedModel, adapted_model, check_steps
from distmeta.evaluation.adaptable import Adaptable, Fitted, fit, newest, on_device
from distmeta.evaluation.scoring import tasks_at_once
from distmeta.evaluation.support import Support, read_support
from distmeta.inner import Diverged
from distmeta.runs import checkpoint as checkpoints
from distmeta.tasks import images
from distmeta.tasks.records import parse
from distmeta.tasks.rows import Episode
from distmeta.tasks.tokenizer import load_tokenizer

FILE = "file"  # of --each: a task for each file
LONGEST_NAME = 200  # bytes


def fit_each(
    start: Adaptable, supports: Sequence[Support], steps: Sequence[int], most: int
) -> Iterator[tuple[int, Fitted | Diverged]]:
    """(number, what `fit` gives, or why it gives nothing) of each support set, `steps` of each, in any order.

    Those of equal numbers of rows and steps, and of labels where the model needs it, go as one batch, `most` at most.
    """
    model, config = start.model, start.config
    groups: dict[tuple[int, ...], list[int]] = {}
    for i, support in enumerate(supports):
        ways = len(support.labels) if model.starts or config.task.labels == "words" else 0
        groups.setdefault((len(support.rows.labels), steps[i], ways), []).append(i)
    for (_, count, _), group in groups.items():
        episodes = [Episode(0, "", tuple(supports[i].labels), supports[i].rows, supports[i].rows) for i in group]
        together = min(most, tasks_at_once(model, config, episodes, start.device))
        for first in range(0, len(group), together):
            part = group[first : first + together]
            try:
                fitted = fit(start, [supports[i] for i in part], count)
            except Diverged as error:  # one task alone
                yield part[0], error
                continue
            yield from zip(part, fitted, strict=True)


def adapt_each(
    source: str | Path, support: str, each: str, *, steps: int | None = None, checkpoint: str | int = "best"
) -> Iterator[tuple[str, AdaptedModel | str]]:
    """`distmeta.adapt` to each task of `support`: (its name, the adapted model, or why there is none), as they come.

    each: the column of `support` that names the tasks; or "file", where each file of it is a task by its name. Raises
    InputError for a support set that cannot be used, before any is adapted to. All are one model, in turn: save or use
    each before the next.
    """
    check_steps(steps)
    saved = checkpoints.load(source, which=checkpoint)
    if saved.config.task.family == "document":
        raise InputError("--each is for tasks with examples; a document is read with `distmeta adapt` for each")
    if saved.config.task.family == "policy":
        raise InputError("--each is for tasks with examples; a policy adapts to one task with each `distmeta adapt`")
    tokenizer = load_tokenizer(saved.tokenizer_file)
    sets = support_sets(support, each, saved.config)
    for name in sets:
        folder_name(name)
    supports = {
        name: read_support(rows, saved.config, saved.state, tokenizer, f"{support}, task {name}")
        for name, rows in sets.items()
    }
    start = on_device(saved)
    names, several = list(supports), [newest(support, start) for support in supports.values()]
    most = len(names) if start.model.in_context is None else 1
    counts = [start.steps if steps is None else steps] * len(names)
    for i, fitted in fit_each(start, several, counts, most):
        if isinstance(fitted, Diverged) or not all(map(math.isfinite, fitted[1])):
            reason = str(fitted) if isinstance(fitted, Diverged) else f"the inner loop diverges: losses {fitted[1]}"
            yield names[i], reason
        else:
            yield names[i], adapted_model(start, several[i], *fitted)


def support_sets(support: str, each: str, config: Config) -> dict[str, list[dict[str, Any]]]:
    """The rows of each task, with the run's column names. Raises InputError."""
    from distmeta.tasks.readers import find_sources, read_examples

    data, size, dimensions = config.data, config.model.image, config.model.dimensions
    pairs = config.task.family in ("text_to_text", "regression")  # columns input and target, not text and label
    by_task: dict[str, list[dict[str, Any]]] = {}
    for source in find_sources(support, images.kinds(size)):
        if each == FILE:
            family = config.task.family if pairs else "classes"
            columns = data if pairs else DataConfig(text=data.text, label=data.label)
            name = PurePath(source.path).name.split(".")[0]
            if name in by_task:
                raise InputError(
                    f"{source.name}: another file has the name '{name}' too; rename one, or use --each COLUMN"
                )
        else:
            family = config.task.family if pairs else "domain"
            chosen = data if pairs else DataConfig(text=data.text, label=data.label)
            columns, name = chosen.model_copy(update={"task": each}), ""
        batches = read_examples(
            [source], columns, family, settable=False, one_task=each == FILE, image=size, dimensions=dimensions
        )
        for batch in batches:
            rows = batch.to_pydict()
            for i, text in enumerate(rows["text"]):
                row = of_pair(text, config) if pairs else {data.text: text, data.label: rows["label"][i]}
                by_task.setdefault(name or rows["task"][i], []).append(row)
    return by_task


def of_pair(line: str, config: Config) -> dict[str, Any]:
    """The line of a record, or of an example of regression, as a row of a support set."""
    data = config.data
    if config.model.dimensions is not None:
        example = json.loads(line)
        return {data.input: example["input"], data.target: example["target"]}
    record = parse(line)
    return {
        data.input: record.input, data.target: list(record.answers), data.options: list(record.options) or None,
        data.instruction: record.instruction or None,
    }  # fmt: skip


def folder_name(task: str) -> str:
    """The directory of a task. Raises InputError for a name that can be none."""
    name = task.replace("%", "%25").replace("/", "%2F")
    if not name.strip() or name.startswith(".") or "\0" in name or len(name.encode()) > LONGEST_NAME:
        raise InputError(f"task {task[:80]!r} cannot name a directory; rename it")
    return name
