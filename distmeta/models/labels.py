"""A language model that classifies with its own words: the class of a text is the name that is likeliest after it.

No head: what is scored are the output layer's tokens of each class's name, a letter that the episode gave it or its
label's own words (distmeta.tasks.prompts). Adapted by gradients (model.head=linear) each example is a row. A model that
reads its support set (model.head=context) has all examples of a task in one sequence, which scores every number of
shots at once: the loss is on the name of each class that was seen before in the sequence (MetaICL, Min et al. 2022,
arXiv 2110.15943, with the loss of a growing context, Garg et al. 2022, arXiv 2208.01066, section 2).

The loss is the mean cross entropy of the tokens of the right names. A class's score is the log-likelihood of its tokens
by eval.normalise: their sum (none), their mean (length), or their sum less that after an example without a text, and
without a support set (unconditional: PMI_DC, Holtzman et al. 2021, arXiv 2104.08315).

Letters: T tasks, n rows of a task in a batch, N = T n, L tokens of a row, S tokens of a sequence, m tokens of names in
it, C classes, W tokens of the longest name.
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
from distmeta.errors import InputError
from distmeta.models import context
from distmeta.models.batch import TextBatch, to_batch
from distmeta.models.language import LanguageModel
from distmeta.models.output import NO_TOKEN
from distmeta.models.task_model import Params
from distmeta.tasks.prompts import LabelTokens

Part = Mapping[str, Any]
Names = Sequence[Sequence[str]]  # of each task's classes
BEHIND = np.iinfo(np.int64).max  # the place of padding
WORDS, PRIOR = "label_words", "label_prior"  # among a task's parameters: [T, C, W], [T, C]
BLOCK = 1 << 24  # scores of tokens that are held at once


class LabelModel(LanguageModel):
    """As `LanguageModel`, with class scores [T, n, C]: log-likelihoods of the names of classes."""

    def __init__(self, model: Any, config: Config, classes: int, tokens: LabelTokens, pad_id: int) -> None:
        self.tokens, self._pad_id = tokens, pad_id
        self._most_classes = classes
        self.normalise = config.eval.normalise or "none"
        super().__init__(model, config)
        self.classes = classes
        self.take(tokens)

    def take(self, tokens: LabelTokens) -> None:
        """Read contexts that are written in another way."""
        self.tokens = tokens
        self.register_buffer("letters", torch.tensor(tokens.labels, dtype=torch.int64), persistent=False)

    def _trial_row(self, length: int) -> TextBatch:
        device = next(self.backbone.parameters()).device
        return self._answered(self._trial_part(length, rows=1), np.zeros((1, 1, 1), np.int64), device)

    def _trial_label(self, length: int) -> int:
        return 0

    @property
    def starts(self) -> bool:
        return False

    @property
    def leaves_one_out(self) -> bool:
        return False  # the loss of a growing context has no example in its own

    def longest_support(self, config: Config) -> int:
        return longest_support(config, self.tokens, self._most_classes)

    def sets(
        self, support: Sequence[Part], query: Sequence[Part], device: torch.device | str, training: bool,
        names: Names = (),
    ) -> tuple[list[TextBatch], list[TextBatch]]:  # fmt: skip
        words = name_tokens(names, self.tokens)
        kept = torch.as_tensor(words, device=device) if self.tokens.words is not None else None
        if self.reads_support:
            read = [self._sequence([support], [True], words, device)]
            asked = [support, query], [not self.adapts, True], words, device
            queries = [self._sequence(*asked)] if training else self.batches(query, device)
        else:
            read = [self._answered(part, words, device) for part in support]
            queries = (
                [self._answered(part, words, device) for part in query] if training else self.batches(query, device)
            )
        return [replace(batch, words=kept) for batch in read], queries

    def _batch(self, part: Part, device: torch.device | str) -> TextBatch:
        """Texts, each up to its class."""
        batch = to_batch(part, device, causal=True)
        return replace(batch, answer_at=batch.last.unsqueeze(1))

    def _answered(self, part: Part, words: NDArray[np.int64], device: torch.device | str) -> TextBatch:
        """Examples one by one, each with the name of its class as its answer: words [T, C, W]."""
        part, answer, place = answered(part, words, self._pad_id)
        return with_answer(to_batch(part, device, causal=True), answer, place)

    def _sequence(
        self, sets: Sequence[Sequence[Part]], asked: Sequence[bool], words: NDArray[np.int64], device: Any
    ) -> TextBatch:
        part, answer, place = sequence(sets, asked, words, self.tokens, self._pad_id)
        return with_answer(to_batch(part, device, causal=True), answer, place)

    def settle(self, params: Params, support: Sequence[TextBatch]) -> Params:
        kept = self.read_support(params, support) if self.reads_support else {}
        words = support[0].words
        if words is None:
            return kept
        if self.normalise == "unconditional":
            kept[PRIOR] = self.likelihoods(params, self._blank(words), words)[:, 0]
        return {**kept, WORDS: words}

    def _blank(self, words: Tensor) -> TextBatch:
        """An example without a text for each task, up to its class."""
        ids = np.tile(np.array(self.tokens.blank, np.int64), (len(words), 1, 1))
        none = np.zeros((len(words), 1), np.int64)
        part = {"input_ids": ids, "attention_mask": np.ones_like(ids), "labels": none, "store_rows": none, "total": 1}
        return to_batch(part, words.device, causal=True)

    def logits(self, params: Params, batch: TextBatch) -> Tensor:
        """Scores of the names, [T, n, C]: of letters their log-likelihoods up to a constant."""
        words = params.get(WORDS)
        if words is None:
            scores = self.scores(params, self.features(params, batch))[:, :, 0]
            letters: Any = self.letters
            return scores[..., letters[: self.classes]]
        likelihood = self.likelihoods(params, batch, words)
        if self.normalise == "length":
            return likelihood / (words >= 0).sum(2).unsqueeze(1)
        return likelihood - params[PRIOR].unsqueeze(1) if self.normalise == "unconditional" else likelihood

    def likelihoods(self, params: Params, batch: TextBatch, words: Tensor) -> Tensor:
        """The sum of the log-likelihoods of each name's tokens after each text, [T, n, C].

        All names stand behind a text in one row, each seeing the text and itself, so that the text runs once.
        """
        tasks, rows = batch.labels.shape
        number, place = (words[:, :, 1:] >= 0).any(0).nonzero().unbind(1)  # of tokens that others follow, [E]
        target = words[:, number, place + 1]  # [T, E]
        more = words[:, number, place].clamp(min=0).repeat_interleave(rows, 0)  # [N, E]
        real = (target >= 0).repeat_interleave(rows, 0)
        branch = torch.cat([number.new_full((batch.input_ids.shape[1],), -1), number])  # [L + E]
        seen = (branch == -1) | (branch.unsqueeze(1) == branch)
        positions = torch.cat([batch.positions, batch.last.unsqueeze(1) + 1 + place], 1)
        keep = torch.cat([batch.keep, real], 1)
        states = self.under(params, lambda: context.states_after(
            self._run, params, self.embeddings()(torch.cat([batch.input_ids, more], 1)), keep, rows, seen, positions
        ))  # fmt: skip
        first = states.gather(1, batch.last.view(-1, 1, 1).expand(-1, 1, states.shape[-1]))
        begun = words[:, None, None, :, 0].expand(-1, rows, 1, -1)  # [T, n, 1, C]
        total = self._chosen(params, first.view(tasks, rows, 1, -1), begun)[:, :, 0]
        later = states[:, batch.input_ids.shape[1] :].view(tasks, rows, len(number), -1)
        step = max(1, BLOCK // (tasks * rows * self.output_rows(params)))
        for i in range(0, len(number), step):
            chosen = target[:, None, i : i + step, None].expand(-1, rows, -1, 1)
            part = self._chosen(params, later[:, :, i : i + step], chosen.clamp(min=0))[..., 0]
            total = total.index_add(2, number[i : i + step], torch.where(chosen[..., 0] >= 0, part, 0.0))
        return total

    def _chosen(self, params: Params, states: Tensor, tokens: Tensor) -> Tensor:
        """Log-likelihoods of `tokens` [T, n, M, k] after states [T, n, M, D]: [T, n, M, k]."""
        scores = self.scores(params, states)
        return scores.gather(3, tokens) - scores.logsumexp(3, keepdim=True)


def with_answer(batch: TextBatch, answer: NDArray[np.int64], place: NDArray[np.int64]) -> TextBatch:
    device = batch.input_ids.device
    return replace(
        batch, answer=torch.as_tensor(answer, device=device), answer_at=torch.as_tensor(place, device=device)
    )


def name_tokens(names: Names, tokens: LabelTokens) -> NDArray[np.int64]:
    """The tokens of each task's classes, NO_TOKEN beyond their ends, [T, C, W]."""
    each = [tokens.of(of_task) for of_task in names]
    shape = len(each), max(map(len, each)), max(len(name) for of_task in each for name in of_task)
    out = np.full(shape, NO_TOKEN, np.int64)
    for t, of_task in enumerate(each):
        for i, name in enumerate(of_task):
            out[t, i, : len(name)] = name
    return out


def longest_support(config: Config, tokens: LabelTokens, classes: int) -> int:
    """Tokens of the longest support set and a text after it; of `classes` classes, or of more in an evaluation."""
    rows = max(classes, config.eval.ways or 0) * config.most_shots
    return len(tokens.start) + (rows + 1) * (config.model.max_tokens + tokens.longest + len(tokens.after))


def check_room(config: Config, tokens: LabelTokens, classes: int, limit: int | None) -> None:
    """Raises InputError where a support set that is read is longer than the model's `limit` of positions, or a text has
    no room within model.max_tokens."""
    frame = len(tokens.blank) - len(tokens.start)
    if config.model.max_tokens < 2 * frame:
        raise InputError(
            f"model.max_tokens = {config.model.max_tokens}: what task.prompt writes around a text ({frame} tokens) "
            "leaves too little room for it; raise model.max_tokens"
        )
    need = longest_support(config, tokens, classes)
    if config.model.head == "context" and limit is not None and need > limit:
        more = " or model.answer_tokens" if tokens.words is not None else ""
        raise InputError(
            f"model.head = context: a support set and a text after it may take {need} positions, the model has "
            f"{limit}; lower task.shots, task.ways{',' if more else ' or'} model.max_tokens{more}"
        )


def answered(
    part: Part, words: NDArray[np.int64], pad_id: int
) -> tuple[dict[str, Any], NDArray[np.int64], NDArray[np.int64]]:
    """A part of `distmeta.tasks.episodes.collate` whose rows go on with the names of their classes, less a last token:
    (part, the names' tokens [N, W], the place before each [N, W])."""
    names = np.take_along_axis(words, part["labels"][:, :, None], 1)  # [T, n, W]
    ids = np.concatenate([part["input_ids"], names[:, :, :-1]], 2)
    kept = np.concatenate([part["attention_mask"] > 0, names[:, :, 1:] >= 0], 2)
    order = np.argsort(~kept, 2, kind="stable")[:, :, : int(kept.sum(2).max())]
    ids, kept = (np.take_along_axis(values, order, 2) for values in (ids, kept))
    place = part["attention_mask"].sum(2)[:, :, None] - 1 + np.arange(words.shape[2])
    part = {**part, "input_ids": np.where(kept, ids, pad_id), "attention_mask": kept.astype(np.int64)}
    shape = -1, words.shape[2]
    return part, names.reshape(shape), place.clip(max=ids.shape[2] - 1).reshape(shape)


def sequence(
    sets: Sequence[Sequence[Part]], asked: Sequence[bool], words: NDArray[np.int64], tokens: LabelTokens, pad_id: int
) -> tuple[dict[str, Any], NDArray[np.int64], NDArray[np.int64]]:
    """The examples of T tasks, each task's as one sequence in its own order: (part, answer [T, m], place [T, m]).

    sets: of parts as `distmeta.tasks.episodes.collate` makes them, one set after another. words [T, C, W]: the names of
    classes. part: as one of these, a row of S tokens a task. answer: the tokens of each name, if its set is `asked` for
    and an earlier example has the class, else NO_TOKEN; place: the position before each.
    """
    after, columns = np.array(tokens.after, np.int64), []
    for number, (parts, ask) in enumerate(zip(sets, asked, strict=True)):
        for part in parts:
            labels, shape = part["labels"][:, :, None], part["labels"].shape
            names = np.take_along_axis(words, labels, 1)
            ids = np.concatenate([part["input_ids"], names, np.broadcast_to(after, (*shape, len(after)))], 2)
            kept = np.concatenate([part["attention_mask"] > 0, names >= 0, np.ones((*shape, len(after)), bool)], 2)
            place = np.arange(ids.shape[2]) - part["input_ids"].shape[2]
            is_name = kept & (place >= 0) & (place < words.shape[2])
            order = np.where(kept, (part["rows"] + (number << 32))[:, :, None], BEHIND)
            column = (ids, order, np.where(is_name, labels, -1), np.broadcast_to(np.array(ask), ids.shape))
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
    at = np.argsort(label < 0, 1, kind="stable")[
        :, : int((label >= 0).sum(1).max())
    ]  # tasks have names of other lengths
    ids, example, label, wanted = (np.take_along_axis(values, at, 1) for values in (ids, order, label, wanted))
    earlier = example[:, None, :] < example[:, :, None]
    seen = ((label[:, :, None] == label[:, None, :]) & earlier).any(2) & (label >= 0)
    return part, np.where(seen & wanted, ids, NO_TOKEN), (at + len(first) - 1).clip(min=0)
