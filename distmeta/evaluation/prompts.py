"""Which way of writing an example an untrained model reads better: `task.prompt=auto`, in a process of its own.

    python -m distmeta.evaluation.prompts STORE < CONFIG.json     prints {"plain": {"accuracy": ..., "loss": ...}, ...}

The same meta-validation episodes are written in each style, and the model answers their queries with the support set in
its context, whatever the run trains it to do: nothing is adapted. Of answers in words token_f1 stands for accuracy.
"""

from __future__ import annotations

import json
import sys
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from distmeta.config import Config, make_config, with_changes
from distmeta.evaluation.scoring import Scoring, score_episodes, summarise
from distmeta.evaluation.texts import score_texts, support_rows
from distmeta.inner import InnerLoop
from distmeta.models.build import build_model
from distmeta.models.labels import LabelModel
from distmeta.tasks.episodes.episode import sample_episode
from distmeta.tasks.families import ways_of
from distmeta.tasks.prompts import encode, label_tokens_of
from distmeta.tasks.records import parse
from distmeta.tasks.rows import Episode, Rows
from distmeta.tasks.store import TaskStore, open_store
from distmeta.tasks.tokenizer import load_tokenizer

if TYPE_CHECKING:
    from tokenizers import Tokenizer

EPISODES, MOST = 6, 2  # of these episodes, support and query examples of a class: enough to choose by, in seconds
STYLES = ("plain", "chat")


def measure(config: Config, store: TaskStore, episodes: int = EPISODES) -> dict[str, dict[str, float]]:
    """Accuracy (of text_to_text token_f1) and loss of each of STYLES on the first meta-validation episodes.

    store: of the run's data under task.prompt=plain. Raises InputError.
    """
    text = config.task.family == "text_to_text"
    reads = {
        "model": config.model.model_copy(update={"head": "context"}), "algorithm": "in_context",
        "inner": config.inner.model_copy(update={"steps": 0}),
    }  # fmt: skip
    drawn = config.of_evaluation()
    fewer = {key: min(MOST, getattr(drawn.task, key)) for key in ("shots", "queries")}
    drawn = drawn.model_copy(update={**reads, "task": drawn.task.model_copy(update=fewer)})
    sampled = [sample_episode(store, drawn.task, drawn.run.seed, "validation", i) for i in range(episodes)]
    tokenizer, found = load_tokenizer(store.tokenizer_file), {}
    classes = len(store.labels) if text else ways_of(store, drawn.task)
    model = build_model(drawn, store.vocab_size, store.pad_id, classes)
    for style in STYLES:
        of_style = with_changes(drawn, "task", prompt=style)
        if isinstance(model, LabelModel):
            model.take(label_tokens_of(of_style))
        written = [rewritten(episode, store, tokenizer, of_style) for episode in sampled]
        scoring = Scoring(
            model, model.fast, model.shared, InnerLoop(0), of_style, store.pad_id, next(model.parameters()).device
        )
        score = partial(score_texts, store=store) if text else score_episodes
        scores = summarise(score(scoring, written, curve=False))
        names = "token_f1" if text else "accuracy", "loss"
        found[style] = {name: round(float(scores[name]["mean"]), 6) for name in names}
    return found


def rewritten(episode: Episode, store: TaskStore, tokenizer: Tokenizer, config: Config) -> Episode:
    """The episode with its texts as task.prompt writes them."""

    def of(rows: Rows) -> Rows:
        if config.task.family == "text_to_text":
            made = support_rows([parse(store.text(int(row))) for row in rows.rows], tokenizer, config)
            return replace(made, rows=rows.rows)
        texts = [store.text(int(row)) for row in rows.rows]
        tokens, lengths = next(encode(tokenizer, [texts], config.task, config.model.max_tokens))
        return replace(rows, tokens=tokens, offsets=np.concatenate([[0], np.cumsum(lengths)]))

    return replace(episode, support=of(episode.support), query=of(episode.query))


def better(scores: dict[str, dict[str, float]]) -> str:
    """The style with the higher score; of equals that of the lower loss, then the first."""
    name = "accuracy" if all("accuracy" in of for of in scores.values()) else "token_f1"
    return max(scores, key=lambda style: (scores[style][name], -scores[style]["loss"]))


if __name__ == "__main__":
    given = make_config(json.load(sys.stdin))
    print(json.dumps(measure(given, open_store(Path(sys.argv[1])))))
