"""outer.keep_base: a term of the outer loss that holds a language model to what its pretrained base says of other text.

    weight * mean over episodes of  KL( p_base(next token) || p_theta(next token) ),  a mean over the tokens of its text

theta: the initial weights, before any adaptation and without a support set, so that the term is the same for every
algorithm. The text is an episode's own query rows, or TEXTS lines of outer.keep_base.path that its index draws. The
base is the model before the first meta-step (a LoRA adapter is zero there), run beside it; no copy of it is kept.
Learning without forgetting by distillation: Li and Hoiem 2016, arXiv 1606.09282.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from distmeta.config import Config
from distmeta.config.rates import architectures, is_decoder
from distmeta.errors import InputError
from distmeta.evaluation.scoring import split_meta
from distmeta.models.batch import TextBatch
from distmeta.models.language import LanguageModel
from distmeta.models.sharding import all_together
from distmeta.models.task_model import TaskModel
from distmeta.tasks.draws import Draws
from distmeta.tasks.episodes.collate import collate
from distmeta.tasks.rows import Episode, Rows
from distmeta.tasks.spool import gather
from distmeta.tasks.texts import read_inputs
from distmeta.tasks.tokenizer import encode, load_tokenizer

Params = dict[str, Tensor]
TEXTS = 4  # of a file, for an episode
STREAM = 0x4B454550  # of their draws
BLOCK = 1 << 24  # scores of tokens that are held at once


class KeptBase:
    """The term's gradient for a rank's episodes. Raises InputError, as `check`."""

    def __init__(self, model: TaskModel, config: Config, pad_id: int, device: torch.device) -> None:
        assert isinstance(model, LanguageModel) and config.outer.keep_base is not None
        self.model, self._config, self._pad_id, self._device = model, config, pad_id, device
        self._weight, self._text = config.outer.keep_base.weight, read_text(config)
        vocabulary = int(model.backbone.config.vocab_size)  # type: ignore[union-attr, arg-type]
        self._part_tokens = max(1, BLOCK // vocabulary)
        if self._text is not None and model.seq2seq:
            raise InputError(NO_DECODER)

    @all_together
    def add(self, grads: Params, meta: Params, episodes: Sequence[Episode]) -> float:
        """Add the term's gradient, summed over `episodes`, to `grads`; the sum of their divergences, unweighted."""
        fast, shared, _ = split_meta(self.model, meta)
        leaves = {n: v.detach().requires_grad_() for n, v in {**fast, **shared}.items() if v.is_floating_point()}
        total = 0.0
        for episode in episodes:
            parts = collate([self.rows_of(episode)], 0, self._pad_id, part_tokens=self._part_tokens)
            batches = [self.model.batches([part], self._device)[0] for part in parts]
            tokens = sum(int(self.model.foretold(batch).sum()) for batch in batches)
            for batch in batches:
                divergence = self._divergence(leaves, batch) / max(1, tokens)
                found = torch.autograd.grad(divergence * self._weight, list(leaves.values()), allow_unused=True)
                for name, gradient in zip(leaves, found, strict=True):
                    if gradient is not None:
                        grads[name] += gradient
                total += float(divergence.detach())
        return total

    def _divergence(self, params: Params, batch: TextBatch) -> Tensor:
        with torch.no_grad():
            base = self.model.next_scores({**self.model.fast, **self.model.shared}, batch).log_softmax(-1)
        ours = self.model.next_scores(params, batch).log_softmax(-1)
        return F.kl_div(ours, base, reduction="sum", log_target=True)

    def rows_of(self, episode: Episode) -> Rows:
        """The texts that an episode's part of the term is of."""
        if self._text is None:
            return episode.query
        count = len(self._text.labels)
        chosen = Draws(self._config.run.seed, STREAM, episode.index).distinct(np.array([count]), min(TEXTS, count))[0]
        tokens, offsets = gather(self._text.tokens, self._text.offsets, chosen)
        return Rows(tokens, offsets, self._text.labels[chosen], chosen)


NO_DECODER = (
    "outer.keep_base.path: an encoder-decoder has no next token of a text alone; leave it out, so that the term is of "
    "the answers of the episodes' own query rows"
)


def read_text(config: Config) -> Rows | None:
    """The texts of outer.keep_base.path as rows of the model's tokens; None without one. Raises InputError."""
    kept, model = config.outer.keep_base, config.model
    if kept is None or kept.path is None or model.pretrained is None:
        return None
    texts = [text for text in read_inputs(kept.path, config.data.text) if text is not None]
    if not texts:
        raise InputError(f"outer.keep_base.path = {kept.path}: no text in it")
    tokens, lengths = next(encode(load_tokenizer(model.pretrained), [texts], model.max_tokens))
    long = lengths > 1  # of one token nothing is foretold
    if not long.any():
        raise InputError(f"outer.keep_base.path = {kept.path}: no text of two tokens in it")
    offsets = np.concatenate([[0], np.cumsum(lengths)])
    tokens, offsets = gather(tokens, offsets, np.flatnonzero(long))
    ends = np.diff(offsets) - 1
    return Rows(tokens, offsets, ends, np.arange(len(ends)))


def check(config: Config) -> None:
    """Raises InputError for a text that the term cannot be of; at the start of a run."""
    kept = config.outer.keep_base
    if kept is not None and kept.path is not None:
        source = str(config.model.pretrained)
        if architectures(source) is not None and not is_decoder(source):
            raise InputError(NO_DECODER)
        read_text(config)
