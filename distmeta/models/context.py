"""A decoder that learns in context: its keys and values over the support set are what it knows of the task.

The support set is one sequence of texts in its own order, which is the episode's or the one that was given, each with
its label's embedding; a query's text reads it and itself, and no other query's. So the support set is run once, however
many queries there are, and what it leaves is a dictionary of tensors like any other adapted weights.

    direct    text, label, text, label, ... | text, ask      the state at `ask` is classified: p(label | text)
    channel   label, text, label, text, ... | label, text    each label is tried: p(text | label), by the model's own
                                                              token embeddings, and turned round by Bayes' rule

(Min et al. 2022, MetaICL, arXiv 2110.15943, section 3; the channel from Min et al. 2022, arXiv 2108.04106.)

Letters: T tasks, n rows of a task in a batch, N = T n, L tokens, S tokens of a support set, D width, C classes.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from distmeta.models.batch import TextBatch

Params = Mapping[str, Tensor]
Run = Callable[[Tensor, Tensor, Tensor, Any], Tensor]  # (embeddings, mask, positions, cache) -> last states
Embed = Callable[[Tensor], Tensor]

KEYS, VALUES, KEPT = "context_key", "context_value", "context_kept"


class Record:
    """Stands in for a cache of keys and values: keeps those of every layer."""

    def __init__(self) -> None:
        self.keys: list[Tensor] = []
        self.values: list[Tensor] = []

    def update(self, keys: Tensor, values: Tensor, *_: Any, **__: Any) -> tuple[Tensor, Tensor]:
        self.keys.append(keys)
        self.values.append(values)
        return keys, values

    def get_seq_length(self, *_: Any) -> int:
        return 0  # positions and masks are given


class Recall:
    """A cache that holds each layer's keys and values of the support set, for the n rows of each task."""

    def __init__(self, params: Params, rows: int) -> None:
        self._params, self._rows, self._layer = params, rows, 0

    def update(self, keys: Tensor, values: Tensor, *_: Any, **__: Any) -> tuple[Tensor, Tensor]:
        layer, self._layer = self._layer, self._layer + 1
        both = zip((KEYS, VALUES), (keys, values), strict=True)
        before = [self._params[f"{name}.{layer}"].repeat_interleave(self._rows, 0) for name, _ in both]
        return torch.cat([before[0], keys], 2), torch.cat([before[1], values], 2)

    def get_seq_length(self, *_: Any) -> int:
        return 0


def read(
    run: Run, embed: Embed, labels_embedded: Tensor, support: Sequence[TextBatch], channel: bool
) -> dict[str, Tensor]:
    """Keys and values of each layer, [T, heads, S, d], and which of the S positions hold a token, [T, S]."""
    embedded: list[Tensor] = []
    kept: list[Tensor] = []
    orders: list[Tensor] = []
    for batch in support:
        tasks, rows = batch.labels.shape
        text = embed(batch.input_ids).view(tasks, rows, batch.input_ids.shape[1], -1)
        label = of_labels(labels_embedded, batch.labels).unsqueeze(2)  # [T, n, 1, D]
        keep = batch.keep.view(tasks, rows, -1)
        one = torch.ones_like(keep[:, :, :1])
        embedded.append(torch.cat([label, text] if channel else [text, label], 2).flatten(1, 2))
        kept.append(torch.cat([one, keep] if channel else [keep, one], 2).flatten(1, 2))
        orders.append(token_order(batch, len(orders), keep.shape[2] + 1))
    return keep_states(run, *in_order(torch.cat(embedded, 1), torch.cat(kept, 1), torch.cat(orders, 1)))


def read_rows(run: Run, embed: Embed, support: Sequence[TextBatch]) -> dict[str, Tensor]:
    """As `read`, of rows that hold their own answers (family text_to_text)."""
    ids, kept = sequence_of(support)
    return keep_states(run, embed(ids), kept)


def sequence_of(support: Sequence[TextBatch]) -> tuple[Tensor, Tensor]:
    """The tokens of a support set's rows, one after another in their own order, and which hold one, [T, S]."""
    tasks = len(support[0].labels)
    ids, kept = (torch.cat([x.view(tasks, -1) for x in of], 1)
                 for of in ([b.input_ids for b in support], [b.keep for b in support]))  # fmt: skip
    orders = [token_order(batch, i, batch.input_ids.shape[1]) for i, batch in enumerate(support)]
    return in_order(ids, kept, torch.cat(orders, 1))


def token_order(batch: TextBatch, part: int, length: int) -> Tensor:
    """The place of each token's row in its set, [T, n length]; of rows without one, after the parts before."""
    order = batch.order
    if order is None:
        order = torch.arange(batch.labels.shape[1], device=batch.labels.device).expand_as(batch.labels) + (part << 32)
    return order.unsqueeze(2).expand(-1, -1, length).flatten(1)


def in_order(tokens: Tensor, kept: Tensor, order: Tensor) -> tuple[Tensor, Tensor]:
    """Tokens [T, S] or [T, S, D] and which are kept [T, S], by their rows' places [T, S]; padding goes to the end."""
    place = torch.where(kept > 0, order, torch.iinfo(order.dtype).max).argsort(stable=True, dim=1)
    place = place[:, : int(kept.sum(1).max())]
    index = place if tokens.dim() == 2 else place.unsqueeze(2).expand(-1, -1, tokens.shape[2])
    return tokens.gather(1, index), kept.gather(1, place)


def keep_states(run: Run, embedded: Tensor, keep: Tensor) -> dict[str, Tensor]:
    """What the decoder keeps of one sequence for each task: embedded [T, S, D], keep [T, S]: 1 where a token is."""
    length = keep.shape[1]
    positions = (keep.cumsum(1) - 1).clamp(min=0).long()
    causal = torch.ones(length, length, dtype=torch.bool, device=keep.device).tril()
    record = Record()
    run(embedded, additive(causal & (keep > 0).view(-1, 1, 1, length)), positions, record)
    out = {f"{KEYS}.{i}": keys for i, keys in enumerate(record.keys)}
    return out | {f"{VALUES}.{i}": values for i, values in enumerate(record.values)} | {KEPT: keep}


def states_after(
    run: Run, params: Params, embedded: Tensor, kept: Tensor, rows: int, seen: Tensor | None = None,
    place: Tensor | None = None,
) -> Tensor:  # fmt: skip
    """Last states [N, L, D] of rows that follow their task's support set, where one was read. embedded [N, L, D].

    kept [N, L]: 1 where a token is. seen [L, L]: which earlier tokens of its row a token sees; None: all. place [N, L]:
    positions in the row; None: 0, 1, ...
    """
    length = embedded.shape[1]
    before = params.get(KEPT, kept.new_zeros(len(kept) // rows, 0))  # [T, S]
    place = torch.arange(length, device=kept.device) if place is None else place
    positions = before.sum(1).long().repeat_interleave(rows).unsqueeze(1) + place
    causal = torch.ones(length, length, dtype=torch.bool, device=kept.device).tril()
    visible = (causal if seen is None else causal & seen) & (kept > 0).view(-1, 1, 1, length)
    earlier = (before > 0).repeat_interleave(rows, 0)[:, None, None].expand(-1, 1, length, -1)
    cache = Recall(params, rows) if KEPT in params else Record()
    return run(embedded, additive(torch.cat([earlier, visible], -1)), positions, cache)


def direct(run: Run, embed: Embed, ask: Tensor, params: Params, batch: TextBatch) -> Tensor:
    """States at `ask` [D] (or [T, D]), which follows each text, [T, n, D]."""
    tasks, rows = batch.labels.shape
    places = (batch.last + 1).unsqueeze(1)  # [N, 1]
    place = torch.arange(batch.input_ids.shape[1] + 1, device=places.device) == places  # [N, L + 1]
    question = ask.unsqueeze(0) if ask.dim() == 1 else ask.repeat_interleave(rows, 0).unsqueeze(1)
    embedded = torch.where(place.unsqueeze(-1), question, F.pad(embed(batch.input_ids), (0, 0, 0, 1)))
    states = states_after(run, params, embedded, F.pad(batch.keep, (0, 1)) + place, rows)
    return states[torch.arange(tasks * rows, device=places.device), places[:, 0]].view(tasks, rows, -1)


def channel(run: Run, embed: Embed, labels_embedded: Tensor, table: Tensor, params: Params, batch: TextBatch) -> Tensor:
    """log p(text | label, support set) for each label, [T, n, C]. table: the token embeddings, [V, D]."""
    tasks, rows = batch.labels.shape
    classes = labels_embedded.shape[-2]
    each = torch.arange(classes, device=batch.labels.device).expand(tasks, rows, classes).reshape(tasks, -1)
    label = of_labels(labels_embedded, each).view(tasks * rows * classes, 1, -1)
    text = embed(batch.input_ids).repeat_interleave(classes, 0)
    keep = batch.keep.repeat_interleave(classes, 0)
    kept = torch.cat([torch.ones_like(keep[:, :1]), keep], 1)
    states = states_after(run, params, torch.cat([label, text], 1), kept, rows * classes)
    before = states[:, :-1].reshape(tasks, -1, states.shape[-1])  # of the label, and of each token but the last
    scores = before @ table.mT
    ids = batch.input_ids.repeat_interleave(classes, 0)
    each_token = -F.cross_entropy(scores.view(-1, scores.shape[-1]), ids.flatten(), reduction="none").view(ids.shape)
    return (each_token * keep).sum(1).view(tasks, rows, classes)


def of_labels(embedded: Tensor, labels: Tensor) -> Tensor:
    """Rows of `embedded` [C, D] or [T, C, D] for labels [T, m], [T, m, D]."""
    if embedded.dim() == 2:
        return embedded[labels]
    return embedded[torch.arange(len(labels), device=labels.device).unsqueeze(1), labels]


def additive(seen: Tensor) -> Tensor:
    """0 where a token is seen, else the least float32; a row that sees nothing (padding) sees the first."""
    blind = ~seen.any(-1, keepdim=True)
    first = torch.zeros(seen.shape[-1], dtype=torch.bool, device=seen.device)
    first[0] = True
    hidden = ~(seen | (blind & first))
    return torch.zeros(seen.shape, device=seen.device).masked_fill(hidden, torch.finfo(torch.float32).min)


def in_two_halves(run: Any, embedded: Tensor, whole: Tensor, gap: int) -> tuple[Tensor, Tensor]:
    """States of the second half of a trial's first and last row (distmeta.models.calls.trial), which reads the kept
    keys and values of the first; and what they are in `whole` [3, L, D], where rows run at once.

    embedded: [3, L, D]. gap: tokens of padding in the last row, of whose first half fewer are kept.
    """
    length = embedded.shape[1]
    half, short = length // 2, length // 2 - min(gap, length // 2 - 1)
    kept = torch.ones(2, half, device=embedded.device)
    kept[1, short:] = 0
    support = keep_states(run, embedded[[0, 2], :half], kept)
    after = torch.stack([embedded[0, half:], embedded[2, short : short + length - half]])
    states = states_after(run, support, after, torch.ones_like(after[..., 0]), 1)
    seen = length - gap - short  # of the padded row
    expected = torch.cat([whole[0, half:], whole[2, short : short + seen]])
    return torch.cat([states[0], states[1, :seen]]), expected
