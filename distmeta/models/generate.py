"""Answers in words: tokens one by one with keys and values kept, under parameters that may be each task's own.

Letters: T tasks, n rows of a task, N = T n, P tokens of the longest prompt, S of a support set that is read in context.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from distmeta.models import context
from distmeta.models.batch import TextBatch, to_batch
from distmeta.models.language import LanguageModel

Params = Mapping[str, Tensor]
Pick = Callable[[Tensor], Tensor]  # log-probabilities [N, V] -> a token of each row [N]
GREEDY = 1e-5  # a temperature below it is 0


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


def likeliest(scores: Tensor) -> Tensor:
    """A `Pick`: the likeliest token."""
    return scores.max(-1).indices


def sampler(temperature: float, top_p: float, seed: int, device: torch.device) -> Pick:
    """A `Pick` that draws, the same for the same seed; at temperature 0 `likeliest`.

    top_p: of the tokens in the order of their probability, the first that reach it together are drawn from
    (nucleus sampling, Holtzman et al. 2020, arXiv 1904.09751).
    """
    if temperature < GREEDY:
        return likeliest
    generator = torch.Generator(device).manual_seed(seed)

    def pick(scores: Tensor) -> Tensor:
        chances = ((scores - scores.max(-1, keepdim=True).values) / temperature).softmax(-1)
        if top_p < 1:
            ordered, tokens = chances.sort(dim=-1, descending=True, stable=True)
            before = ordered.cumsum(-1) - ordered
            chances = torch.zeros_like(chances).scatter(-1, tokens, ordered.masked_fill(before >= top_p, 0))
        return torch.multinomial(chances, 1, generator=generator).squeeze(-1)

    return pick


class Generation:
    """Answers that grow by a token a step, until any of `ends`.

    params: running values by name, a task axis where the model takes one, a support set read in context or not. The
    batch is one of `LanguageModel.batches`; its answers are not looked at. running: bool [N], the rows that go on;
    whoever makes the steps may end a row.
    """

    def __init__(
        self, model: LanguageModel, params: Params, batch: TextBatch, ends: Sequence[int], pick: Pick = likeliest
    ) -> None:
        keeps = model.keeps_keys or context.KEPT in params
        steps = _encoder_decoder if model.seq2seq else _decoder if keeps else _again
        with torch.no_grad():
            self._step = steps(model, params, batch)
        self._pick = pick
        self._ends = torch.tensor(ends, device=batch.labels.device)
        self._token: Tensor | None = None
        self.running = torch.ones(batch.labels.numel(), dtype=torch.bool, device=batch.labels.device)

    @torch.no_grad()
    def step(self) -> tuple[Tensor, Tensor]:
        """The next token of each row, [N], and the log-probabilities that it was picked from, [N, V].

        What follows an answer's end is the first of `ends`.
        """
        scores = self._step(self._token).log_softmax(-1)
        self._token = token = torch.where(self.running, self._pick(scores), self._ends[0])
        self.running = self.running & ~torch.isin(token, self._ends)
        return token, scores


def generate(
    model: LanguageModel, params: Params, batch: TextBatch, ends: Sequence[int], most: int
) -> tuple[Tensor, Tensor]:
    """The likeliest next token, again and again, until any of `ends` or `most` tokens: int64 [N, <= most].

    The arguments are those of `Generation`. Also the mean log-probability of the tokens of each answer, its end
    included, [N].
    """
    answers = Generation(model, params, batch, ends)
    total, count = torch.zeros(2, len(answers.running), device=answers.running.device).unbind(0)
    tokens: list[Tensor] = []
    while len(tokens) < most and answers.running.any():
        running = answers.running
        token, scores = answers.step()
        best = scores.gather(-1, token.unsqueeze(-1)).squeeze(-1)
        total, count = total + torch.where(running, best, 0), count + running
        tokens.append(token)
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
    position = begin.clone()

    def run(ids: Tensor, mask: Tensor, positions: Tensor) -> Tensor:
        states: Tensor = model.under(
            params,
            lambda: model._run(model.embeddings()(ids), context.additive(mask), positions, cache.again()),
        )
        return states

    def step(token: Tensor | None) -> Tensor:
        nonlocal seen, position
        if token is None:
            causal = torch.ones(length, length, dtype=torch.bool, device=begin.device).tril()
            within = causal & (prompt > 0).view(-1, 1, 1, length)
            mask = torch.cat([(earlier > 0)[:, None, None].expand(-1, 1, length, -1), within], -1)
            states = run(batch.input_ids[:, :length], mask, offset.unsqueeze(1) + place)
            last = states.gather(1, (begin - 1).view(-1, 1, 1).expand(-1, 1, states.shape[-1]))
        else:
            seen = torch.cat([seen, torch.ones_like(seen[:, :1])], 1)
            last = run(token.unsqueeze(1), (seen > 0)[:, None, None], (offset + position).unsqueeze(1))
            position = position + 1
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
