"""Scoring episodes whose answers are words: losses after every inner step, and answers before the first and after
the last.

Letters: T tasks of a group, K inner steps, n query rows.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, lru_cache
from itertools import takewhile
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from distmeta.config import Config
from distmeta.evaluation import metrics
from distmeta.evaluation.details import by_name
from distmeta.evaluation.scoring import WORST_LOSS, Scoring, adaptation, by_episode
from distmeta.evaluation.text_metrics import corpus_scores, text_scores
from distmeta.models import context
from distmeta.models.backbone import positions, set_attention
from distmeta.models.batch import TextBatch
from distmeta.models.calls import windows_of
from distmeta.models.generate import generate
from distmeta.models.language import LanguageModel
from distmeta.models.prefix import fixed_prefix
from distmeta.models.sharding import all_together
from distmeta.tasks.episodes.collate import collate
from distmeta.tasks.records import Encoder, Record, encode_records, parse
from distmeta.tasks.rows import Episode, Rows
from distmeta.tasks.tokenizer import load_tokenizer, special_ids
from distmeta.tasks.written import encoder_of

if TYPE_CHECKING:
    from tokenizers import Tokenizer

    from distmeta.tasks.store import TaskStore

PER_TASK = ("exact_match", "token_f1", "rouge_l")


@dataclass(frozen=True)
class TextScored:
    """One episode's query set. `loss` is not finite where the inner loop diverged."""

    task: str
    label_names: tuple[str, ...]
    records: tuple[Record, ...]  # [n]
    loss: NDArray[np.float64]  # [K+1] or [1]: per answer's token, mean over rows
    token_loss: NDArray[np.float64]  # likewise, mean over all tokens: the logarithm of the perplexity
    token_accuracy: NDArray[np.float64]  # likewise, after the right tokens before each
    said: tuple[tuple[str, ...], ...]  # answers [n] before the first step (where asked for) and after the last
    fits: NDArray[np.bool_]  # [n]: whether model.answer_tokens has room for one of the accepted answers
    # Where all rows have options, at the same times: the probability of the one that is chosen, [n], and free answers
    confidence: tuple[NDArray[np.float64], ...] = ()
    free: tuple[tuple[str, ...], ...] = ()

    def at_start(self) -> TextScored:
        """The same before the first inner step."""
        curves = ("loss", "token_loss", "token_accuracy", "said", "confidence", "free")
        first = {name: getattr(self, name)[:1] for name in curves}
        return dataclasses.replace(self, **first)

    @cached_property
    def of_words(self) -> dict[str, NDArray[np.float64]]:
        """Each metric of the last answers, [1]; it is asked for by summary, tables and curves.

        Where rows have options the answers are the chosen ones: option_accuracy and option_ece are of them, and
        free_match the exact match of what is said freely.
        """
        accepted = [record.answers for record in self.records]
        scores = text_scores(self.said[-1], accepted)
        means = {name: np.array([values.mean()]) for name, values in scores.items()}
        if self.confidence:
            right = scores["exact_match"] == 1
            error = metrics.calibration_error(self.confidence[-1], right)
            free = text_scores(self.free[-1], accepted)["exact_match"]
            means |= {"option_accuracy": np.array([right.mean()]), "option_ece": np.array([error]),
                      "free_match": np.array([free.mean()])}  # fmt: skip
        return means

    def metrics(self) -> dict[str, NDArray[np.float64]]:
        """Each metric after 0..K inner steps, or of the last answers alone, [K+1] or [1]."""
        return self.of_words | {
            "token_accuracy": self.token_accuracy,
            "perplexity": np.exp(np.fmin(self.token_loss, WORST_LOSS)),
            "loss": np.where(np.isfinite(self.loss), self.loss, WORST_LOSS),
        }


@all_together
def score_texts(
    scoring: Scoring,
    episodes: Sequence[Episode],
    curve: bool = True,
    *,
    store: TaskStore,
    in_context: bool | None = None,
    words: bool = True,
) -> list[TextScored]:
    """As `distmeta.evaluation.scoring.score_episodes`.

    in_context: whether the support set is read; None: as the model does. words: whether answers are generated; without
    them there are losses alone.
    """
    model, shared, config = scoring.model, scoring.shared, scoring.config
    assert isinstance(model, LanguageModel)
    set_attention(model.backbone, "first_order")
    tokenizer = read_tokenizer(store.tokenizer_file)
    out: list[TextScored] = []
    for group in scoring.groups(episodes):
        with model.reading(model.reads_support if in_context is None else in_context):
            support, query = scoring.load(group)
            if not model.reads_support:
                support, query = (fixed_prefix(model, scoring.values, part) for part in (support, query))
            order = np.concatenate([batch.store_rows.reshape(len(group), -1) for batch in query], 1)  # [T, n]
            rows = [tuple(parse(store.text(row)) for row in of_task) for of_task in order.tolist()]
            totals, answered = [], []
            for k, values in enumerate(adaptation(scoring, support, len(group), curve)):
                with torch.no_grad():
                    params = {**shared, **values}
                    params |= model.settle(params, support)
                    totals.append(_totals(model, params, query))
                    if words and k in (0, scoring.loop.steps if curve else 0):
                        answered.append(answers(model, params, query, rows, tokenizer, config))
        for t, episode in enumerate(group):
            loss, token_loss, hits = np.array([of_tasks[t] for of_tasks in totals]).T
            of_task = [of_tasks[t] for of_tasks in answered]
            fits = fit_whole(rows[t], tokenizer, config.model.answer_tokens)
            out.append(TextScored(
                episode.task, episode.label_names, rows[t], loss, token_loss, hits, tuple(s.words for s in of_task),
                fits, tuple(s.confidence for s in of_task if s.confidence is not None),
                tuple(s.free for s in of_task if s.confidence is not None),
            ))  # fmt: skip
    return out


def fit_whole(records: Sequence[Record], tokenizer: Tokenizer, most: int) -> NDArray[np.bool_]:
    """Whether a model can say one of a row's accepted answers whole: it is an option, or has room for its end, [n]."""

    def lengths(texts: Sequence[str]) -> list[int]:
        return [sum(e.attention_mask) for e in tokenizer.encode_batch(list(texts), add_special_tokens=False)]

    return np.array([bool(record.options) or min(lengths(record.answers)) < most for record in records])


def _totals(model: LanguageModel, params: Mapping[str, Tensor], query: Sequence[TextBatch]) -> NDArray[np.float64]:
    """Each task's (mean over rows of the loss of a token, mean over tokens, share of tokens that are right), [T, 3]."""
    parts = [model.by_row(dict(params), batch) for batch in query]
    losses, hits, counts = (torch.cat(part, 1).double() for part in zip(*parts, strict=True))  # [T, n]
    means = [(losses / counts).mean(1), losses.sum(1) / counts.sum(1), hits.sum(1) / counts.sum(1)]
    sums: NDArray[np.float64] = torch.stack(means, 1).cpu().numpy()
    return sums


@dataclass(frozen=True)
class Said:
    """What the model says to the rows of a task: words [n]. Of options, where the rows have them, each chosen one's
    probability [n], and what the model says freely."""

    words: tuple[str, ...]
    confidence: NDArray[np.float64] | None
    free: tuple[str, ...]


def answers(
    model: LanguageModel,
    params: Mapping[str, Tensor],
    query: Sequence[TextBatch],
    records: Sequence[Sequence[Record]],
    tokenizer: Tokenizer,
    config: Config,
) -> list[Said]:
    """What the model says to the rows of each task, in the order of the batches.

    Where all of a task's rows have options, the one that `choose` gives; else by greedy decoding.
    """
    most, ends = config.model.answer_tokens, encoder_for(tokenizer, config).ends
    free: list[list[str]] = [[] for _ in records]
    for batch in query:
        tokens, _ = generate(model, params, replace(batch, states=None), ends, most)
        words = in_words(tokenizer, tokens.tolist(), ends)
        n = batch.labels.shape[1]
        for t, of_task in enumerate(free):
            of_task += words[t * n : (t + 1) * n]
    out = []
    for t, (task, greedy) in enumerate(zip(records, map(tuple, free), strict=True)):
        if not all(record.options for record in task):
            out.append(Said(greedy, None, greedy))
            continue
        of_one = {
            name: value[t : t + 1] if name in model.fast and value.dim() > model.fast[name].dim() else value
            for name, value in params.items()
        } | {name: value[t : t + 1] for name, value in params.items() if name.startswith("context_")}
        options, confidence = zip(*choose(model, of_one, task, tokenizer, config), strict=True)
        out.append(Said(options, np.array(confidence), greedy))
    return out


def choose(
    model: LanguageModel, params: Mapping[str, Tensor], records: Sequence[Record], tokenizer: Tokenizer, config: Config
) -> list[tuple[str, float]]:
    """For each record of one task its likeliest option, and its probability among the options.

    By eval.normalise: the log-likelihood of an option's tokens, its end among them, on average (length, the default:
    Min et al. 2022, arXiv 2110.15943, section 4.2), added up (none), or added up less that after an empty input and
    without a support set (unconditional: PMI_DC, Holtzman et al. 2021, arXiv 2104.08315).
    """
    pairs = [(record, option) for record in records for option in record.options]
    how = config.eval.normalise or "length"
    total, tokens = option_likelihoods(model, params, pairs, tokenizer, config)
    each = total / tokens if how == "length" else total
    if how == "unconditional":
        bare = [(Record("", (), (), record.instruction), option) for record, option in pairs]
        kinds = {pair: i for i, pair in enumerate(dict.fromkeys(bare))}
        alone = {name: value for name, value in params.items() if not name.startswith("context_")}
        prior, _ = option_likelihoods(model, alone, list(kinds), tokenizer, config)
        each = total - prior[[kinds[pair] for pair in bare]]
    out, start = [], 0
    for record in records:
        scores = np.nan_to_num(
            each[start : start + len(record.options)], nan=-1e9, neginf=-1e9
        )  # of weights that diverged
        start += len(record.options)
        weights = np.exp(scores - scores.max())
        best = int(scores.argmax())
        out.append((record.options[best], float(weights[best] / weights.sum())))
    return out


def option_likelihoods(
    model: LanguageModel, params: Mapping[str, Tensor], pairs: Sequence[tuple[Record, str]], tokenizer: Tokenizer,
    config: Config,
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:  # fmt: skip
    """Of each option after its record's prompt: the log-likelihood of its tokens, added up, and their number, [m]."""
    encoder = encoder_for(tokenizer, config)
    prompts = prompts_of(encoder, params, [record for record, _ in pairs], config)
    rows = as_rows(prompts, encoder.answers([option for _, option in pairs]))
    device = next(iter(params.values())).device
    out = np.zeros((2, len(pairs)))
    parts = collate([rows], config.inner.buckets, special_ids(tokenizer).pad, part_tokens=4096)
    with torch.no_grad():
        for part, batch in zip(parts, model.batches(parts, device), strict=True):
            losses, _, counts = model.by_row(dict(params), batch)
            out[:, part["rows"][0]] = torch.stack([-losses[0], counts[0]]).double().cpu().numpy()
    return out[0], out[1]


def write(
    model: LanguageModel, params: Mapping[str, Tensor], records: Sequence[Record], tokenizer: Tokenizer, config: Config
) -> list[tuple[str, float]]:
    """For each record of one task the answer in words, and the geometric mean of its tokens' probabilities."""
    encoder = encoder_for(tokenizer, config)
    prompts = prompts_of(encoder, params, records, config)
    rows = as_rows(prompts, [[encoder.end]] * len(prompts))
    device = next(iter(params.values())).device
    out: list[tuple[str, float]] = [("", 0.0)] * len(records)
    parts = collate([rows], config.inner.buckets, special_ids(tokenizer).pad, part_tokens=4096)
    for part, batch in zip(parts, model.batches(parts, device), strict=True):
        tokens, confidence = generate(model, params, batch, encoder.ends, config.model.answer_tokens)
        words = in_words(tokenizer, tokens.tolist(), encoder.ends)
        for place, *answer in zip(part["rows"][0].tolist(), words, confidence.exp().tolist(), strict=True):
            out[place] = answer[0], answer[1]
    return out


def support_rows(records: Sequence[Record], tokenizer: Tokenizer, config: Config) -> Rows:
    """Examples with their first answers as rows of an episode."""
    encoder = encoder_for(tokenizer, config)
    made = encode_records(encoder, records, config.task.instructions)
    rows = Rows(
        made.tokens, np.concatenate([[0], np.cumsum(made.lengths)]), made.begins.astype(np.int64),
        np.arange(len(records)),
    )  # fmt: skip
    return rows if encoder.later is None else replace(rows, heads=made.heads, later=np.array(encoder.later, np.int32))


def encoder_for(tokenizer: Tokenizer, config: Config) -> Encoder:
    return encoder_of(tokenizer, config.model, config.task.prompt)


def prompts_of(
    encoder: Encoder, params: Mapping[str, Tensor], records: Sequence[Record], config: Config
) -> list[list[int]]:
    """Prompts of one task, behind its support set where the parameters hold one."""
    about = [record.instruction if config.task.instructions else "" for record in records]
    return encoder.prompts([record.input for record in records], None, about, later=context.KEPT in params)


def as_rows(prompts: Sequence[list[int]], ends: Sequence[list[int]]) -> Rows:
    """Prompts with their answers as rows of an episode."""
    lengths = [len(p) + len(e) for p, e in zip(prompts, ends, strict=True)]
    flat = [token for pair in zip(prompts, ends, strict=True) for ids in pair for token in ids]
    offsets = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)
    begins = np.array([len(p) for p in prompts], np.int64)
    return Rows(np.array(flat, np.int32), offsets, begins, np.arange(len(lengths)))


def in_words(tokenizer: Tokenizer, tokens: Sequence[list[int]], ends: Sequence[int]) -> list[str]:
    """The text before each row's first end token, any of `ends`."""
    cut = [list(takewhile(lambda token: token not in ends, row)) for row in tokens]
    return [text.strip() for text in tokenizer.decode_batch(cut, skip_special_tokens=True)]


@lru_cache(maxsize=4)
def read_tokenizer(file: Path) -> Tokenizer:
    return load_tokenizer(file)


def text_details(scored: Sequence[TextScored], shown: int = 10) -> dict[str, Any]:
    """How many episodes diverged, scores by task with the worst, BLEU and chrF of all answers together, and some."""
    values, tasks = by_episode(scored), [s.task for s in scored]
    per_task = by_name(values, tasks, PER_TASK)
    worst = min(per_task, key=lambda task: float(per_task[task]["token_f1"]["mean"]))
    answered = [answer for s in scored for answer in s.said[-1]]
    accepted = [record.answers for s in scored for record in s.records]
    some = [
        {"task": s.task, "input": s.records[0].input, "accepted": list(s.records[0].answers), "said": s.said[-1][0]}
        for s in scored[:shown]
    ]
    over: dict[str, Any] = {}
    fits = np.concatenate([s.fits for s in scored])
    if not fits.all():  # answers are compared whole, so that no model can match the others
        scores = {name: values[fits] for name, values in text_scores(answered, accepted).items()}
        means = {name: float(scores[name].mean()) if fits.any() else None for name in PER_TASK}
        over["fitting_answers"] = {"rows": int(fits.sum()), "of": len(fits), **means}
    optional = [s for s in scored if s.confidence]
    if optional:  # the calibration error of an episode's few rows is too high
        right = np.concatenate([text_scores(s.said[-1], [r.answers for r in s.records])["exact_match"] == 1
                                for s in optional])  # fmt: skip
        error = metrics.calibration_error(np.concatenate([s.confidence[-1] for s in optional]), right)
        over["options"] = {"rows": len(right), "accuracy": float(right.mean()), "ece_pooled": float(error)}
    if over_tasks := metrics.over_groups(values["token_f1"][:, -1], tasks, "tasks"):
        over["over_tasks"] = over_tasks
    return {
        **over,
        "diverged": sum(not np.isfinite(s.loss[-1]) for s in scored),
        "corpus": corpus_scores(answered, accepted),
        "worst_task": {"task": worst, **per_task[worst]["token_f1"]},
        "per_task": per_task,
        "answers": some,
    }


def can_read(model: LanguageModel, config: Config) -> bool:
    """Whether a model could read a support set in context, also one that adapts: a decoder with room for it."""
    if model.seq2seq:
        return False
    limit, need = positions(model.backbone), model.longest_support(config)
    if any(window < need for window in windows_of(model.backbone.config.to_dict())):  # type: ignore[operator, union-attr]
        return model.keeps_context(need)
    return model.keeps_keys and (limit is None or need <= limit)
