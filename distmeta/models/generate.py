"""Answers in words: greedy decoding with keys and values kept, under parameters that may be each task's own.

Letters: T tasks, n rows of a task, N = T n, P tokens of the longest prompt, S of a support set that is read in context.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from distmeta.models import context
from distmeta.models.batch import TextBatch, to_batch
from distmeta.models.language import LanguageModel

Params = Mapping[str, Tensor]


class Growing:
    """A cache of keys and values that grows by what each call brings: first of the support set, if one was read."""

    def __init__(self, params: Params, rows: int) -> None:
        self._held: list[list[Tensor]] = []
        self._layer = 0
        while f"{context.KEYS}.{len(self._held)}" in params:
            both = (params[f"{name}.{len(self._held)}"] for name in (context.KEYS, context.VALUES))
            self._held.append([tensor.repeat_interleave(rows, 0) for tensor in both])

    def again(self) -> Growing:
        """From the first layer on."""
        self._layer = 0
        return self

    def update(self, keys: Tensor, values: Tensor, *_: Any, **__: Any) -> tuple[Tensor, Tensor]:
        layer, self._layer = self._layer, self._layer + 1
        if layer == len(self._held):
            self._held.append([keys, values])
        else:
            self._held[layer] = [torch.cat(pair, 2) for pair in zip(self._held[layer], (keys, values), strict=True)]
        return self._held[layer][0], self._held[layer][1]

    def get_seq_length(self, *_: Any) -> int:
        return 0  # positions and masks are given


@torch.no_grad()
def generate(
    model: LanguageModel, params: Params, batch: TextBatch, ends: Sequence[int], most: int
) -> tuple[Tensor, Tensor]:
    """The likeliest next token, again and again, until any of `ends` or `most` tokens: int64 [N, <= most].

    params: running values by name, a task axis where the model takes one, a support set read in context or not. The
    batch is one of `LanguageModel.batches`; its answers are not looked at. Also the mean log-probability of the tokens
    of each answer, its end included, [N]. What follows an answer's end is the first of `ends`.
    """
    steps = _encoder_decoder if model.seq2seq else _decoder if model.keeps_keys or context.KEPT in params else _again
    step = steps(model, params, batch)
    rows = batch.labels.numel()
    running = torch.ones(rows, dtype=torch.bool, device=batch.labels.device)
    total, count = torch.zeros(2, rows, device=batch.labels.device).unbind(0)
    tokens: list[Tensor] = []
    stops = torch.tensor(ends, device=batch.labels.device)
    for _ in range(most):
        scores = step(tokens[-1] if tokens else None).log_softmax(-1)
        best, token = scores.max(-1)
        total, count = total + best * running, count + running
        tokens.append(torch.where(running, token, ends[0]))
        running = running & ~torch.isin(token, stops)
        if not running.any():
            break
    return torch.stack(tokens, 1), total / count


def _decoder(model: LanguageModel, params: Params, batch: TextBatch) -> Any:
    """step(the token before [N], or None) -> scores of the next, [N, V]."""
    tasks, rows = batch.labels.shape
    begin = batch.labels.flatten()  # [N]: the length of the prompt
    length = int(begin.max())
    place = torch.arange(length, device=begin.device)
    prompt = (place < begin.unsqueeze(1)).float()  # [N, P]
    before = torch.zeros(tasks, 0, device=begin.device)
    if context.KEPT in params:
        before = params[context.KEPT]
    earlier = before.repeat_interleave(rows, 0)  # [N, S]
    cache = Growing(params, rows)
    offset = earlier.sum(1).long()
    seen = torch.cat([earlier, prompt], 1)
    at = begin.clone()

    def run(ids: Tensor, mask: Tensor, positions: Tensor) -> Tensor:
        states: Tensor = model.under(
            params,
            lambda: model._run(model.embeddings()(ids), context.additive(mask), positions, cache.again()),
        )
        return states

    def step(token: Tensor | None) -> Tensor:
        nonlocal seen, at
        if token is None:
            causal = torch.ones(length, length, dtype=torch.bool, device=begin.device).tril()
            own = causal & (prompt > 0).view(-1, 1, 1, length)
            mask = torch.cat([(earlier > 0)[:, None, None].expand(-1, 1, length, -1), own], -1)
            states = run(batch.input_ids[:, :length], mask, offset.unsqueeze(1) + place)
            last = states.gather(1, (begin - 1).view(-1, 1, 1).expand(-1, 1, states.shape[-1]))
        else:
            seen = torch.cat([seen, torch.ones_like(seen[:, :1])], 1)
            last = run(token.unsqueeze(1), (seen > 0)[:, None, None], (offset + at).unsqueeze(1))
            at = at + 1
        return model.scores(params, last.view(tasks, rows, 1, -1)).flatten(0, 2)

    return step


def _again(model: LanguageModel, params: Params, batch: TextBatch) -> Any:
    """As `_decoder`, where keys and values cannot be kept as they are (a sliding window): rows are run anew."""
    tasks, rows = batch.labels.shape
    begin = batch.labels.flatten()
    ids = batch.input_ids.masked_fill(batch.keep == 0, 0)[:, : int(begin.max())].clone()
    size = begin.clone()

    def step(token: Tensor | None) -> Tensor:
        nonlocal ids, size
        if token is not None:
            ids = torch.nn.functional.pad(ids, (0, 1)).scatter(1, size.unsqueeze(1), token.unsqueeze(1))
            size = size + 1
        keep = (torch.arange(ids.shape[1], device=ids.device) < size.unsqueeze(1)).long()
        part = {
            "input_ids": ids.view(tasks, rows, -1).cpu().numpy(),
            "attention_mask": keep.view(tasks, rows, -1).cpu().numpy(),
            "labels": batch.labels.cpu(), "store_rows": batch.store_rows, "total": batch.total,
        }  # fmt: skip
        whole = to_batch(part, ids.device, causal=True)
        states = model.under(params, lambda: model._last_states(whole))
        last = states.gather(1, (size - 1).view(-1, 1, 1).expand(-1, 1, states.shape[-1]))
        return model.scores(params, last.view(tasks, rows, 1, -1)).flatten(0, 2)

    return step


def _encoder_decoder(model: LanguageModel, params: Params, batch: TextBatch) -> Any:
    """As `_decoder`. The encoder runs once; the decoder runs the answer so far again, which is short."""
    tasks, rows = batch.labels.shape
    mask = model.attention_mask(batch)
    encoder = model.backbone.get_encoder()  # type: ignore[operator]
    encoded = model.under(params, lambda: encoder(input_ids=batch.input_ids, attention_mask=mask))
    so_far = torch.full((tasks * rows, 1), model.start_id, device=batch.labels.device)

    def step(token: Tensor | None) -> Tensor:
        nonlocal so_far
        if token is not None:
            so_far = torch.cat([so_far, token.unsqueeze(1)], 1)
        states = model.under(
            params,
            lambda: model._states_of(
                encoder_outputs=encoded, attention_mask=mask, decoder_input_ids=so_far, use_cache=False
            ),
        )
        return model.scores(params, states[:, -1:].reshape(tasks, rows, 1, -1)).flatten(0, 2)

    return step
