"""Reading documents: each chunk is scored, and then the model steps on it.

Letters: T documents of a group, E episodes, K + 1 chunks, n scored tokens of an episode.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from distmeta.config import Config
from distmeta.evaluation import metrics
from distmeta.evaluation.scoring import WORST_LOSS, Scoring, stack
from distmeta.evaluation.texts import read_tokenizer
from distmeta.inner.adapt import follow
from distmeta.models.backbone import positions, set_attention
from distmeta.models.batch import TextBatch
from distmeta.models.footprint import fit_layers, part_tokens
from distmeta.models.language import LanguageModel
from distmeta.models.output import NO_TOKEN
from distmeta.models.prefix import fixed_prefix
from distmeta.models.sharding import all_together
from distmeta.models.task_model import TaskModel
from distmeta.tasks.episodes.collate import collate
from distmeta.tasks.rows import Episode, Rows

if TYPE_CHECKING:
    from tokenizers import Tokenizer

    from distmeta.tasks.store import TaskStore

Chunks = list[list[TextBatch]]


@dataclass(frozen=True)
class DocumentScored:
    """One passage, read. `nll` is not finite where the inner loop diverged.

    task: what intervals cluster by: the document's author, or the document.
    """

    task: str
    document: str
    label_names: tuple[str, ...]
    nll: NDArray[np.float64]  # [n], of each token, in nats
    hits: NDArray[np.bool_]  # [n]: whether it was the likeliest
    chunk: NDArray[np.int64]  # [n]: the chunk that it is in
    bytes: int  # of the scored tokens' text, in UTF-8

    @property
    def loss(self) -> NDArray[np.float64]:
        """Mean over all tokens, [1]."""
        return np.array([self.nll.mean()])

    def metrics(self) -> dict[str, NDArray[np.float64]]:
        """Of all tokens, [1], and the mean loss of each chunk, [K + 1]."""
        nll = np.where(np.isfinite(self.nll), self.nll, WORST_LOSS)
        by_chunk = np.bincount(self.chunk, nll) / np.bincount(self.chunk)
        loss = nll.mean()
        return {
            "loss": np.array([loss]),
            "perplexity": np.array([math.exp(loss)]),
            "bits_per_byte": np.array([nll.sum() / math.log(2) / max(1, self.bytes)]),
            "token_accuracy": np.array([self.hits.mean()]),
            "loss_by_chunk": by_chunk,
        }


def load_chunks(
    group: Sequence[Episode], model: TaskModel, config: Config, pad_id: int, device: torch.device, exact: bool = False
) -> Chunks:
    """The chunks of a group of episodes in order, each in parts on `device`. exact: as of `load_group`."""
    tokens = part_tokens(model, config, device, exact)
    chunks = []
    for number in range(len(group[0].support.labels) + 1):
        rows = [_chunk(episode, number) for episode in group]
        chunks.append(model.batches(collate(rows, config.inner.buckets, pad_id, part_tokens=tokens), device))
    fit_layers(model, config, device, [part for chunk in chunks for part in chunk], exact)
    return chunks


def _chunk(episode: Episode, number: int) -> Rows:
    support = len(episode.support.labels)
    rows, at = (episode.support, number) if number < support else (episode.query, number - support)
    return rows.part(at, at + 1)


def for_each(chunks: Chunks, function: Callable[[list[TextBatch]], Sequence[TextBatch]]) -> Chunks:
    """function(all parts of all chunks), as chunks again."""
    done = iter(function([part for chunk in chunks for part in chunk]))
    return [[next(done) for _ in chunk] for chunk in chunks]


@all_together
def score_documents(
    scoring: Scoring, episodes: Sequence[Episode], curve: bool = True, *, store: TaskStore
) -> list[Any]:
    """Each chunk's tokens scored at the weights before the step on it; without inner steps all at the first weights.

    curve: there is no other way; all chunks are scored.
    """
    model, shared, loop = scoring.model, dict(scoring.shared), scoring.loop
    assert isinstance(model, LanguageModel)
    set_attention(model.backbone, "first_order")
    native = model.takes_task_axis
    loss = model.loss if native else lambda p, b: model.loss(p, b).sum()
    out: list[DocumentScored] = []
    for group in scoring.groups(episodes):
        chunks = load_chunks(group, model, scoring.config, scoring.pad_id, scoring.device)
        chunks = for_each(chunks, lambda parts: fixed_prefix(model, scoring.values, parts))
        fast = stack(scoring.fast, len(group)) if native else dict(scoring.fast)
        path: Iterator[Mapping[str, Tensor]] = iter([fast] * len(chunks))
        if loop.steps:
            axis: Any = "native" if native else False
            path = follow(loss, fast, chunks[:-1], loop, shared=shared, task_axis=axis, by_step=True)
        scores = [_scores(model, {**shared, **values}, chunk) for chunk, values in zip(chunks, path, strict=True)]
        out += _scored(group, scores, store)
    return out


@all_together
def score_long_context(scoring: Scoring, episodes: Sequence[Episode], *, store: TaskStore) -> list[Any]:
    """The initial weights with everything before a token in their context, and no inner step."""
    model = scoring.model
    assert isinstance(model, LanguageModel)
    set_attention(model.backbone, "first_order")
    out: list[DocumentScored] = []
    for episode in episodes:
        tokens = passage_of(episode)
        row = Rows(tokens, np.array([0, len(tokens)]), np.array([1]), episode.query.rows[:1])
        (batch,) = model.batches(collate([row], 1, scoring.pad_id), scoring.device)
        fast = stack(scoring.fast, 1) if model.takes_task_axis else dict(scoring.fast)
        nll, hits = _scores(model, {**scoring.shared, **fast}, [batch])
        ends = np.cumsum(scored_counts(episode))[:-1]
        pieces = [(a, b) for a, b in zip(np.split(nll, ends, 1), np.split(hits, ends, 1), strict=True)]
        out += _scored([episode], pieces, store)
    return out


def can_read_whole(model: TaskModel, config: Config) -> bool:
    """Whether a passage fits into the model's positions."""
    limit = positions(model.backbone)
    return limit is None or config.task.passage_tokens <= limit


def scored_counts(episode: Episode) -> list[int]:
    """How many tokens of each chunk are scored."""
    rows = (episode.support, episode.query)
    return [int(n) for part in rows for n in np.diff(part.offsets) - part.labels]


def passage_of(episode: Episode) -> NDArray[np.int32]:
    """All tokens of an episode, each once."""
    pieces: list[NDArray[np.int32]] = []
    for rows in (episode.support, episode.query):
        for i, before in enumerate(rows.labels):
            tokens = rows.tokens[rows.offsets[i] : rows.offsets[i + 1]]
            pieces.append(tokens if not pieces else tokens[before:])
    return np.concatenate(pieces)


def _scores(
    model: LanguageModel, params: dict[str, Tensor], parts: Sequence[TextBatch]
) -> tuple[NDArray[np.float64], NDArray[np.bool_]]:
    """(negative log-likelihood, whether it was the likeliest) of the tokens of a chunk, [T, M]."""
    losses, hits = [], []
    with torch.no_grad():
        for batch in parts:
            nll, right = model.by_token(params, batch)
            assert batch.answer is not None
            there = (batch.answer != NO_TOKEN).view(nll.shape)
            assert bool(there.all()), "the rows of a chunk are of one length"
            losses.append(nll.flatten(1).double().cpu().numpy())
            hits.append(right.flatten(1).cpu().numpy())
    return np.concatenate(losses, 1), np.concatenate(hits, 1)


def _scored(
    group: Sequence[Episode], scores: Sequence[tuple[NDArray[np.float64], NDArray[np.bool_]]], store: TaskStore
) -> list[DocumentScored]:
    tokenizer = read_tokenizer(store.tokenizer_file)
    author_of = dict(zip(store.tasks, store.authors, strict=False))  # empty where the data names no authors
    chunk = np.repeat(np.arange(len(scores)), [nll.shape[1] for nll, _ in scores])
    out = []
    for t, episode in enumerate(group):
        nll = np.concatenate([nll[t] for nll, _ in scores])
        hits = np.concatenate([right[t] for _, right in scores])
        size = scored_bytes(tokenizer, passage_of(episode).tolist())
        author = author_of.get(episode.task, episode.task)
        out.append(DocumentScored(author, episode.task, episode.label_names, nll, hits, chunk, size))
    return out


def scored_bytes(tokenizer: Tokenizer, passage: Sequence[int]) -> int:
    """Bytes in UTF-8 of the text of all tokens but the first, with the space that parts them from it."""
    whole, first = (tokenizer.decode(tokens, skip_special_tokens=False) for tokens in (passage, passage[:1]))
    return len(whole.encode()) - len(first.encode())


def unit_of(scored: Sequence[DocumentScored]) -> str:
    """What intervals cluster by."""
    return "documents" if all(s.task == s.document for s in scored) else "authors"


def document_details(scored: Sequence[DocumentScored]) -> dict[str, Any]:
    """What the means over episodes hide.

    diverged: episodes. by_position: the mean loss of the tokens at each place of a passage, from the second on.
    over_tasks: the loss with its interval over authors, or documents, by a cluster bootstrap.
    """
    losses = np.stack([np.where(np.isfinite(s.nll), s.nll, WORST_LOSS) for s in scored])
    out: dict[str, Any] = {
        "diverged": sum(not bool(np.isfinite(s.nll).all()) for s in scored),
        "documents": len({s.document for s in scored}),
        "by_position": losses.mean(0).tolist(),
    }
    tasks, within = [s.task for s in scored], metrics.limits("loss")
    if over := metrics.over_groups(losses.mean(1), tasks, unit_of(scored), within):
        out["over_tasks"] = over
    return out
