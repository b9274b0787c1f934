"""A language model that classifies with its own words: the class of a text is the letter that is likeliest after it.

No head: what is scored is the output layer's token for each letter that the episode gave a class
(distmeta.tasks.prompts). Adapted by gradients (model.head=linear) each example is a row. A model that reads its support
set (model.head=context) has all examples of a task in one sequence, which scores every number of shots at once: the
loss is on each class that was seen before in the sequence (MetaICL, Min et al. 2022, arXiv 2110.15943, with the loss of
a growing context, Garg et al. 2022, arXiv 2208.01066, section 2).

Letters: T tasks, n rows of a task in a batch, S tokens of a sequence, m classes that are asked for in it, C classes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from distmeta.config import Config
from distmeta.models.batch import TextBatch, to_batch
from distmeta.models.language import NO_TOKEN, LanguageModel
from distmeta.models.task_model import Params
from distmeta.tasks.prompts import LabelTokens

Part = Mapping[str, Any]
BEHIND = np.iinfo(np.int64).max  # the place of padding


class LabelModel(LanguageModel):
    """As `LanguageModel`, with class scores [T, n, C]: log-likelihoods of the letters."""

    def __init__(self, model: Any, config: Config, classes: int, tokens: LabelTokens, pad_id: int) -> None:
        self.tokens, self._pad_id = tokens, pad_id
        self.adapts, self._most_classes = config.inner.steps > 0, classes
        super().__init__(model, config)
        self.classes = classes
        self.register_buffer("letters", torch.tensor(tokens.labels), persistent=False)

    @property
    def starts(self) -> bool:
        return False  # the support set is read once there is nothing more to adapt

    def _longest_support(self, config: Config) -> int:
        return longest_support(config, self.tokens, self._most_classes)

    def sets(
        self, support: Sequence[Part], query: Sequence[Part], device: torch.device | str, training: bool
    ) -> tuple[list[TextBatch], list[TextBatch]]:
        if not self.reads_support:
            return super().sets(support, query, device, training)
        read = [self._sequence([support], [True], device)]
        if not training:
            return read, self.batches(query, device)
        return read, [self._sequence([support, query], [not self.adapts, True], device)]

    def _batch(self, part: Part, device: torch.device | str) -> TextBatch:
        """Examples one by one, each with the letter of its class as its answer."""
        batch = to_batch(part, device, causal=True)
        answer = torch.tensor(self.tokens.labels)[torch.as_tensor(part["labels"]).flatten()]
        return replace(batch, answer=answer.unsqueeze(1).to(device), answer_at=batch.last.unsqueeze(1))

    def _sequence(self, sets: Sequence[Sequence[Part]], asked: Sequence[bool], device: Any) -> TextBatch:
        part, answer, place = sequence(sets, asked, self.tokens, self._pad_id)
        batch = to_batch(part, device, causal=True)
        return replace(
            batch, answer=torch.as_tensor(answer, device=device), answer_at=torch.as_tensor(place, device=device)
        )

    def settle(self, params: Params, support: Sequence[TextBatch]) -> Params:
        return self.read_support(params, support) if self.reads_support else {}

    def logits(self, params: Params, batch: TextBatch) -> Tensor:
        """Log-likelihoods of the letters, up to a constant, [T, n, C]."""
        scores = self.scores(params, self.features(params, batch))[:, :, 0]
        letters: Any = self.letters
        return scores[..., letters[: self.classes]]


def longest_support(config: Config, tokens: LabelTokens, classes: int) -> int:
    """Tokens of the longest support set and a text after it; of `classes` classes, or of more in an evaluation."""
    rows = max(classes, config.eval.ways or 0) * config.most_shots
    return len(tokens.start) + (rows + 1) * (config.model.max_tokens + 1 + len(tokens.after))


def sequence(
    sets: Sequence[Sequence[Part]], asked: Sequence[bool], tokens: LabelTokens, pad_id: int
) -> tuple[dict[str, Any], NDArray[np.int64], NDArray[np.int64]]:
    """The examples of T tasks, each task's as one sequence in its own order: (part, answer [T, m], place [T, m]).

    sets: of parts as `distmeta.tasks.episodes.collate` makes them, one set after another. part: as one of these, a row
    of S tokens a task. answer: the letter of each class, if its set is `asked` for and an earlier example has the
    class, else NO_TOKEN; place: the position before it.
    """
    names, after, columns = np.array(tokens.labels), np.array(tokens.after, np.int64), []
    for number, (parts, ask) in enumerate(zip(sets, asked, strict=True)):
        for part in parts:
            labels, shape = part["labels"][:, :, None], part["labels"].shape
            ends = np.broadcast_to(after, (*shape, len(after)))
            ids = np.concatenate([part["input_ids"], names[labels], ends], 2)
            kept = np.concatenate([part["attention_mask"] > 0, np.ones((*shape, 1 + len(after)), bool)], 2)
            is_label = np.arange(ids.shape[2]) == part["input_ids"].shape[2]
            order = np.where(kept, (part["rows"] + (number << 32))[:, :, None], BEHIND)
            column = (ids, order, np.where(is_label, labels, -1), np.broadcast_to(np.array(ask), ids.shape))
            columns.append([values.reshape(shape[0], -1) for values in column])
    ids, order, label, wanted = (np.concatenate(of, 1) for of in zip(*columns, strict=True))
    length = int((order < BEHIND).sum(1).max())
    place = np.argsort(order, 1, kind="stable")[:, :length]
    ids, order, label, wanted = (np.take_along_axis(values, place, 1) for values in (ids, order, label, wanted))

    tasks, first = len(ids), np.array(tokens.start, np.int64)
    begin = np.broadcast_to(first, (tasks, len(first)))
    kept = np.concatenate([np.ones_like(begin), (order < BEHIND).astype(np.int64)], 1)
    part = {
        "input_ids": np.concatenate([begin, np.where(order < BEHIND, ids, pad_id)], 1)[:, None],
        "attention_mask": kept[:, None], "labels": np.zeros((tasks, 1), np.int64),
        "store_rows": np.zeros((tasks, 1), np.int64), "total": 1,
    }  # fmt: skip
    at = np.nonzero(label >= 0)[1].reshape(tasks, -1)
    classes, wanted = (np.take_along_axis(values, at, 1) for values in (label, wanted))
    seen = np.tril(classes[:, :, None] == classes[:, None, :], -1).any(2)
    return part, np.where(seen & wanted, names[classes], NO_TOKEN), at + len(first) - 1
