"""Batches and the loss: which rows a step takes, what of them is predicted, and how well it is.

Both are functions of (corpus, seed, step) alone, so that any number of ranks, each on its share of a batch's rows,
takes the same step, and a run that is continued goes the same way. Letters: n rows, L tokens of the longest.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from distmeta.pretraining.corpus import Corpus

NOT_PREDICTED = -100  # as transformers marks it


@dataclass(frozen=True)
class Batch:
    """ids, mask (1: a token, 0: padding) and labels (NOT_PREDICTED, or the token to be predicted there), all [n, L]."""

    ids: Tensor
    mask: Tensor
    labels: Tensor

    @property
    def targets(self) -> int:
        """Tokens to be predicted."""
        return int((self.labels != NOT_PREDICTED).sum())

    def part(self, rows: range, device: torch.device | str = "cpu") -> Batch:
        """Consecutive rows alone, without columns that are padding in all of them."""
        mask = self.mask[rows.start : rows.stop]
        width = int(mask.sum(1).max()) if len(rows) else 0
        cut = (x[rows.start : rows.stop, :width].to(device) for x in (self.ids, self.mask, self.labels))
        return Batch(*cut)


class Batches:
    """The batches of a corpus for an objective.

    tokenizer: transformers', with a mask token if the objective is masked (`mask_probability` of BERT's: of the tokens
    chosen 80% become the mask, 10% a random token, 10% stay: Devlin et al. 2019).
    """

    def __init__(self, corpus: Corpus, tokenizer: Any, mask_probability: float, seed: int) -> None:
        self.corpus, self.tokenizer, self.seed = corpus, tokenizer, seed
        self._masker: Any = None
        if corpus.objective == "masked":
            from transformers import DataCollatorForLanguageModeling

            self._masker = DataCollatorForLanguageModeling(tokenizer, mlm=True, mlm_probability=mask_probability)

    def of_step(self, step: int, size: int) -> Batch:
        """Rows (step-1)*size ... of the passes over the corpus, each in an order of its own; step from 1."""
        rows = self.corpus.rows["train"]
        places = range((step - 1) * size, step * size)
        chosen = [order(len(rows), self.seed, place // len(rows))[place % len(rows)] for place in places]
        return self.of_rows(chosen, key=(self.seed, 0, step))

    def of_validation(self, split: str, number: int, size: int, most: int) -> Batch:
        """Batch `number` of at most `most` rows of a split, evenly spaced; masked alike whenever it is asked for."""
        rows = self.corpus.rows[split]
        chosen = np.linspace(0, len(rows) - 1, min(most, len(rows))).astype(int)[number * size : (number + 1) * size]
        return self.of_rows([rows[i] for i in chosen], key=(self.seed, 1, number))

    def of_rows(self, rows: list[int], key: tuple[int, ...]) -> Batch:
        """Rows by number. key: of the draws of the mask."""
        texts = [self.corpus.row(int(row)) for row in rows]
        width = max(map(len, texts))
        ids = torch.full((len(texts), width), self.tokenizer.pad_token_id, dtype=torch.long)
        mask = torch.zeros_like(ids)
        for i, row in enumerate(texts):
            ids[i, : len(row)] = torch.from_numpy(row.astype(np.int64))
            mask[i, : len(row)] = 1
        if self._masker is None:
            return Batch(ids, mask, ids.masked_fill(mask == 0, NOT_PREDICTED))
        special = torch.isin(ids, torch.tensor(self.tokenizer.all_special_ids)) | (mask == 0)
        self._masker.generator = torch.Generator().manual_seed(seed_of(*key))
        ids, labels = self._masker.torch_mask_tokens(ids, special)
        return Batch(ids, mask, labels)


@lru_cache(maxsize=2)
def order(rows: int, seed: int, epoch: int) -> NDArray[np.int64]:
    """The order in which pass `epoch` over `rows` rows takes them."""
    return np.random.default_rng([seed, epoch]).permutation(rows)


def seed_of(*key: int) -> int:
    return int(np.random.SeedSequence(list(key)).generate_state(1, np.uint64)[0] >> 1)


def summed_loss(model: Any, batch: Batch, causal: bool) -> Tensor:
    """The sum of -log p over what is predicted, in nats, float32; a decoder predicts a token from those before it."""
    logits = model(input_ids=batch.ids, attention_mask=batch.mask).logits
    labels = batch.labels
    if causal:
        logits, labels = logits[:, :-1], labels[:, 1:]
    chosen = labels != NOT_PREDICTED
    return F.cross_entropy(logits[chosen].float(), labels[chosen], reduction="sum")


def predicted(batch: Batch, causal: bool) -> int:
    """How many terms `summed_loss` has."""
    labels = batch.labels[:, 1:] if causal else batch.labels
    return int((labels != NOT_PREDICTED).sum())
