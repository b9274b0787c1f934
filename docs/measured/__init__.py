"""The measured figures of the pages: tables by name, and sentences with the figures that they must have."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from measured import cost_sentences, cost_tables, language_tables, learning_sentences, learning_tables
from measured.reading import Sentence

COST = ("peers", "exact_walk", "depth", "paper", "scaling", "padding", "compression", "documents_memory", "versions")
LEARNING = (
    "default", "default_short", "time_to_quality", "classics", "orders", "algorithms", "algorithms_short",
    "algorithms_mixed", "algorithms_real", "answers", "sentiment", "sentiment_rows", "sentiment_train_whole",
    "sentiment_whole", "sentiment_pretrained", "ensemble", "fewclue",
    "images", "captions", "intents", "arsc", "documents_builtin",
    "documents_runs", "documents_pretrained", "influence", "data_weights", "rejection", "pays",
)  # fmt: skip
LANGUAGE = ("letters", "letters_methods", "instructions", "natural_instructions")
ROOMS = ((cost_tables, COST), (learning_tables, LEARNING), (language_tables, LANGUAGE))
TABLES: dict[str, Callable[[], str]] = {name: getattr(room, name) for room, names in ROOMS for name in names}


def sentences() -> Iterator[Sentence]:
    """Every sentence with a measured figure that has a record."""
    for section in (*cost_sentences.SECTIONS, *learning_sentences.SECTIONS):
        yield from section()
