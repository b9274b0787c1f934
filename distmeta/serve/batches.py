"""The base and what it does for several tasks at once: adapting to support sets, predicting. No Ray and no HTTP.

One thread has the model. What arrives while it is busy, or within a few milliseconds of the first, goes through the
base as one batch with a task axis: predictions of any tasks, and adaptations whose support sets have equal numbers of
rows. One by one, in that thread too, go models whose fast weights cannot carry a task axis, those that read their
support set (algorithm in_context), and the family text_to_text.

Letters: T tasks of a batch, n rows of each.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tokenizers import Tokenizer

from distmeta.config import DataConfig
from distmeta.errors import InputError
from distmeta.evaluation import documents, influence, rejection
from distmeta.evaluation.adapt import AdaptedModel, likeliest
from distmeta.evaluation.adaptable import check_room_for, newest, on_device, without_pooled
from distmeta.evaluation.many import fit_each
from distmeta.evaluation.support import Support, read_support, tokenise
from distmeta.inner import Diverged
from distmeta.models.backbone import set_attention
from distmeta.runs import checkpoint as checkpoints
from distmeta.serve.tasks import Refused, Task
from distmeta.tasks.episodes.collate import collate
from distmeta.tasks.rows import Rows

MOST_LEFT_OUT = 1000  # tasks whose examples' scores are kept in memory
MOST_ROWS = 32  # of a task in a batch of several; a request with more goes in parts
PART_TOKENS = 4096  # of a micro-batch on a CPU; 16 times as many on a GPU
FORMAT = 1  # of handles and files: another one when tasks of the one before would predict otherwise


@dataclass(frozen=True)
class Asked:
    """A support set to adapt to. rows: checked dictionaries; steps: inner steps; after: the task that reads on."""

    handle: str
    rows: tuple[Mapping[str, Any], ...]
    steps: int
    after: Task | None = None


class Base:
    """A checkpoint's model. One thread at a time may call `adapt` and `predict`."""

    def __init__(self, source: str | Path, batch_tasks: int = 16) -> None:
        saved = checkpoints.load(source)
        start = on_device(saved)
        # Requests name their columns alike, whatever the files of the run called them.
        self.config = saved.config.model_copy(update={"data": DataConfig()})
        self.start = replace(start, config=self.config, shared=without_pooled(start.shared))
        self.checkpoint, self.step = str(start.state["from"]["digest"]), saved.step
        self.model, self.tokenizer, self.pad_id, self.device = start.model, start.tokenizer, start.pad_id, start.device
        self._cutting = Tokenizer.from_str(self.tokenizer.to_str())
        self._cutting.no_padding()
        self._cutting.enable_truncation(self.config.model.max_tokens)
        self.family = self.config.task.family
        axis = self.model.takes_task_axis and self.model.in_context is None
        self.batched = axis and self.config.task.has_classes and not self.model.reads_sets
        self.batch_tasks = batch_tasks if self.batched else 1
        self._left_out: dict[str, Any] = {}  # scores of examples that are left out, by the task's handle

    def asked(self, rows: Sequence[Mapping[str, Any]], steps: int | None = None) -> Asked:
        """A request with its handle: the same for the same rows, in the same order, and steps."""
        steps = self.start.steps if steps is None else steps
        named = checkpoints.digest_of([FORMAT, self.checkpoint, steps, [dict(row) for row in rows]])
        return Asked(named, tuple(rows), steps)

    def more(self, task: Task, rows: Sequence[Mapping[str, Any]]) -> Asked:
        """As `asked`, for a document that goes on after what `task` has read."""
        named = checkpoints.digest_of([FORMAT, task.handle, "more", [dict(row) for row in rows]])
        return Asked(named, tuple(rows), 0, task)

    def adapt(self, several: Sequence[Asked]) -> list[Task | Exception]:
        """A task for each support set, or why there is none."""
        if self.family == "document":
            return [self._read(asked) for asked in several]
        tasks: dict[int, Task | Exception] = {}
        supports: dict[int, Support] = {}
        for i, asked in enumerate(several):
            try:
                supports[i] = self._support(asked)
            except (InputError, Refused) as error:
                tasks[i] = error
        numbers, read = list(supports), list(supports.values())
        for place, fitted in fit_each(self.start, read, [several[i].steps for i in numbers], self.batch_tasks):
            i = numbers[place]
            tasks[i] = (
                Refused(422, str(fitted))
                if isinstance(fitted, Diverged)
                else self._task(several[i], read[place], *fitted)
            )
        return [tasks[i] for i in range(len(several))]

    def _read(self, asked: Asked) -> Task | Exception:
        """The task of a text that is read from its start, or from where another task has come to."""
        before, losses, start = documents.START, list[float](), self.start
        if asked.after is not None:
            before, losses = documents.place_of(asked.after.about), list(asked.after.about["support_loss"])
            start = replace(start, fast=asked.after.params)
        try:
            text = documents.text_of(asked.rows, self.config)
            params, place, later = documents.read_on(start, documents.tokens_of(self.tokenizer, text), before)
        except Diverged as error:
            return Refused(422, str(error))
        except InputError as error:
            return error
        about = {"labels": [], "support_loss": [*losses, *later], "steps": place.steps, "rows": len(asked.rows)}
        return Task(asked.handle, self.checkpoint, about | documents.as_state(place), params)

    def predict(self, several: Sequence[tuple[Task, Sequence[str]]]) -> list[list[dict[str, Any]] | Exception]:
        """For each (task, texts) what `AdaptedModel.predict` of that task gives, or why it gives nothing."""
        if not self.batched:
            return [self._alone(task, texts) for task, texts in several]
        out: list[list[dict[str, Any]] | Exception] = [[] for _ in several]
        parts: dict[tuple[Any, ...], list[tuple[int, int, Rows]]] = {}  # by shapes: (request, first text, rows)
        for i, (task, texts) in enumerate(several):
            try:
                whole = self._rows(texts)
            except Refused as error:
                out[i] = error
                continue
            out[i] = [{}] * len(texts)
            shapes = tuple(tuple(value.shape) for value in task.params.values())
            for start in range(0, len(texts), MOST_ROWS):
                rows = whole.part(start, min(start + MOST_ROWS, len(texts)))
                padded = 1 << (len(rows.labels) - 1).bit_length()
                parts.setdefault((padded, shapes), []).append((i, start, rows))
        for (padded, _), group in parts.items():
            for start in range(0, len(group), self.batch_tasks):
                self._predict_part(group[start : start + self.batch_tasks], padded, several, out)
        return out

    def explain(self, several: Sequence[tuple[Task, Sequence[str]]]) -> list[list[dict[str, Any]] | Exception]:
        """For each (task, texts) what `distmeta.explain` says, or why it says nothing."""
        return [self._explained(task, texts) for task, texts in several]

    def _explained(self, task: Task, texts: Sequence[str]) -> list[dict[str, Any]] | Exception:
        adapted = self._adapted(task)
        try:
            influence.check_explained(self.config, adapted.state)
            return influence.explained(adapted, influence.learner_with(self.start, adapted), texts)
        except InputError as error:
            return error
        finally:
            set_attention(self.model.backbone, "first_order")

    def reject(self, several: Sequence[tuple[Task, Sequence[str], float]]) -> list[list[dict[str, Any]] | Exception]:
        """For each (task, texts, rate) what `predict_or_reject` says, or why it says nothing."""
        return [self._judged(*one) for one in several]

    def _judged(self, task: Task, texts: Sequence[str], rate: float) -> list[dict[str, Any]] | Exception:
        adapted = self._adapted(task)
        try:
            rejection.check_rejects(self.config, adapted.state, rate)
            if task.handle not in self._left_out:
                if len(self._left_out) >= MOST_LEFT_OUT:
                    self._left_out.pop(next(iter(self._left_out)))
                self._left_out[task.handle] = rejection.scores_left_out(self.start, adapted)
            return rejection.judged(adapted, texts, self._left_out[task.handle], rate)
        except InputError as error:
            return error

    def refine(self, several: Sequence[tuple[Task, Sequence[str], int]]) -> list[list[dict[str, Any]] | Exception]:
        """For each (task, texts, rounds) predictions by class means that move to the texts, or why there are none."""
        return [self._refined(*one) for one in several]

    def _refined(self, task: Task, texts: Sequence[str], rounds: int) -> list[dict[str, Any]] | Exception:
        try:
            return self._adapted(task).predict(texts, rounds)
        except InputError as error:
            return error

    def tokens_of(self, texts: Sequence[str]) -> int:
        """How many tokens of the texts the model reads."""
        return len(tokenise(self.tokenizer, texts, [0] * len(texts), self.config).tokens)

    def _predict_part(
        self,
        group: Sequence[tuple[int, int, Rows]],
        padded: int,
        several: Sequence[tuple[Task, Sequence[str]]],
        out: list[Any],
    ) -> None:
        """Fill in the predictions of T parts of at most `padded` rows: a row is repeated and its result dropped."""
        tasks = [several[i][0] for i, _, _ in group]
        n = padded if len(group) > 1 else len(group[0][2].labels)
        most = PART_TOKENS * self.model.work_unit * (1 if self.device.type == "cpu" else 16)
        parts = collate([repeated(rows, n) for _, _, rows in group], 0, self.pad_id, part_tokens=most)
        params = {**self.start.shared, **self._stacked(tasks)}
        logits: list[torch.Tensor] = []
        with torch.no_grad():
            for batch in self.model.batches(parts, self.device):
                logits.append(self.model.logits(params, batch))
        order = np.concatenate([part["rows"] for part in parts], 1)  # [T, n]
        scores = np.empty((*order.shape, logits[0].shape[-1]))
        np.put_along_axis(scores, order[:, :, None], torch.cat(logits, 1).double().cpu().numpy(), 1)
        for t, (i, start, rows) in enumerate(group):
            labels = tasks[t].about["labels"]
            of_labels = np.exp(scores[t, :, : len(labels)] - scores[t, :, : len(labels)].max(1, keepdims=True))
            for row in range(len(rows.labels)):
                out[i][start + row] = likeliest(of_labels[row] / of_labels[row].sum(), labels)

    def _stacked(self, tasks: Sequence[Task]) -> dict[str, torch.Tensor]:
        if len(tasks) == 1:
            return dict(tasks[0].params)
        joins = {name: torch.stack if name in self.start.fast else torch.cat for name in tasks[0].params}
        return {name: join([task.params[name] for task in tasks]) for name, join in joins.items()}

    def _support(self, asked: Asked) -> Support:
        support = read_support(asked.rows, self.config, self.start.state, self.tokenizer)
        if len(support.rows.tokens) == 0 or (np.diff(support.rows.offsets) == 0).any():
            raise Refused(400, "support: an example has no token that the model knows")
        support = newest(support, self.start)
        check_room_for(support, self.start)
        return support

    def _rows(self, texts: Sequence[str]) -> Rows:
        if self.config.task.labels != "head" or self.config.model.image is not None:
            return tokenise(self.tokenizer, texts, [0] * len(texts), self.config)
        ids = [encoding.ids for encoding in self._cutting.encode_batch_fast(list(texts))]
        if not all(ids):
            raise Refused(400, f"inputs, text {ids.index([])}: no token in it that the model knows")
        offsets = np.concatenate([[0], np.cumsum([len(row) for row in ids])])
        flat = np.array([token for row in ids for token in row], np.int32)
        return Rows(flat, offsets, np.zeros(len(ids), np.int64), np.arange(len(ids)))

    def _task(self, asked: Asked, support: Support, params: Any, losses: list[float]) -> Task | Exception:
        if not all(map(math.isfinite, losses)):
            return Refused(422, f"the inner loop diverges on this support set: its losses are {losses}")
        about = {"labels": support.labels, "support_loss": losses, "steps": asked.steps, "rows": len(asked.rows)}
        return Task(asked.handle, self.checkpoint, about | support.about, params)

    def _adapted(self, task: Task) -> AdaptedModel:
        about = task.about
        state = self.start.kept_state | {key: about[key] for key in ("answers", "reading", "examples") if key in about}
        return AdaptedModel(
            self.config, about["labels"], self.model, {**self.start.shared, **task.params}, self.start.tokenizer_file,
            state, about["support_loss"],
        )  # fmt: skip

    def _alone(self, task: Task, texts: Sequence[str]) -> list[dict[str, Any]] | Exception:
        try:
            return self._adapted(task).predict(texts)
        except InputError as error:
            return error


def repeated(rows: Rows, n: int) -> Rows:
    """n rows: these, and the first one again as often as it takes."""
    more = n - len(rows.labels)
    if more == 0:
        return rows
    first = rows.part(0, 1)
    lengths = np.concatenate([np.diff(rows.offsets), np.repeat(len(first.tokens), more)])
    tokens = np.concatenate([rows.tokens, np.tile(first.tokens, more)])
    labels = np.concatenate([rows.labels, np.repeat(first.labels, more)])
    return Rows(tokens, np.concatenate([[0], np.cumsum(lengths)]), labels, np.arange(n))
