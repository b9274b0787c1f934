"""The built-in text-to-text suite: made-up reports and 36 tasks that each ask for other parts of them.

A report names a person, a city, a number, a colour, a thing and a day, in one of several orders: "on monday anna from
lisbon bought three red lamps". A task is which of the six parts to answer with, one or two of them in an order: "colour
city". Which one it is can be read from its instruction, or from a few examples; the tasks of the splits are disjoint,
and every part is asked for in each split.
"""

from __future__ import annotations

import random

import pyarrow as pa

VERSION = 1
ROWS = 60
PARTS: dict[str, tuple[str, ...]] = {
    "person": ("anna", "boris", "clara", "david", "elena", "farid", "greta", "hugo", "ines", "jonas"),
    "city": ("lisbon", "oslo", "cairo", "lima", "kyoto", "quito", "dakar", "turin", "perth", "riga"),
    "number": ("two", "three", "four", "five", "six", "seven", "eight", "nine", "ten", "twelve"),
    "colour": ("red", "blue", "green", "white", "black", "yellow", "purple", "orange", "silver", "brown"),
    "thing": ("lamps", "chairs", "books", "coats", "drums", "kites", "plates", "boats", "clocks", "tents"),
    "day": ("monday", "tuesday", "wednesday", "thursday", "friday", "saturday", "sunday"),
}
TEMPLATES = (
    "on {day} {person} from {city} bought {number} {colour} {thing}",
    "{person} bought {number} {colour} {thing} in {city} on {day}",
    "{number} {colour} {thing} were sold to {person} in {city} last {day}",
    "in {city} {person} found {number} {colour} {thing} on {day}",
    "last {day} {number} {colour} {thing} came to {city} for {person}",
)


def make_questions(seed: int = 0) -> pa.Table:
    """Columns text (a record of distmeta.tasks.records), label, task and split, the same for a seed."""
    from distmeta.tasks.records import ANSWER, Record

    rng = random.Random(f"questions {VERSION} {seed}")
    names = list(PARTS)
    rows: dict[str, list[str]] = {"text": [], "label": [], "task": [], "split": []}
    for i, first in enumerate(names):
        for j, second in enumerate(names):
            # Of the pairs, (i, i + 1) and (i, i + 2) around the circle are for meta-test and -validation.
            split = {1: "test", 2: "validation"}.get((j - i) % len(names), "train")
            parts = [first] if i == j else [first, second]
            for _ in range(ROWS):
                drawn = {name: rng.choice(words) for name, words in PARTS.items()}
                record = Record(
                    input=rng.choice(TEMPLATES).format(**drawn),
                    answers=(" ".join(drawn[part] for part in parts),),
                    instruction="answer with the " + " and the ".join(parts),
                )
                for column, value in zip(rows, (record.line(), ANSWER, " ".join(parts), split), strict=True):
                    rows[column].append(value)
    return pa.table(rows)
