"""The built-in documents: made-up ledgers, each in a code and a grammar of its own.

A ledger speaks of a few persons. Each of them has a code word there, a verb goes with each of them, every sentence
ends in the ledger's own particle, and whether the code stands before or after the name is the ledger's too: "kesu anna
lends vo ." All that is drawn anew for every ledger, so that a later part can be predicted by who has learnt the earlier
ones, and by no one else.
"""

from __future__ import annotations

import random

import pyarrow as pa

VERSION = 1
LEDGERS = {"train": 240, "validation": 48, "test": 96}
PERSONS = 5
SENTENCES = 110
NAMES = (
    "anna", "boris", "clara", "david", "elena", "farid", "greta", "hugo", "ines", "jonas", "karin", "luis",
    "mira", "nils", "olga", "pavel", "rosa", "stefan", "tessa", "viktor",
)  # fmt: skip
CODES = tuple(a + b for a in ("ke", "ta", "mi", "ro", "zu") for b in ("su", "lo", "na", "vi"))
VERBS = ("lends", "owes", "sells", "buys", "keeps", "sends")
PARTICLES = ("vo", "ba", "ki", "du", "fe", "gi")


def make_ledgers(seed: int = 0) -> pa.Table:
    """Columns text, label, task and split, a row a document, the same for a seed."""
    rng = random.Random(f"ledgers {VERSION} {seed}")
    rows: dict[str, list[str]] = {"text": [], "label": [], "task": [], "split": []}
    for split, count in LEDGERS.items():
        for number in range(count):
            persons = rng.sample(NAMES, PERSONS)
            codes = dict(zip(persons, rng.sample(CODES, PERSONS), strict=True))
            verbs = {person: rng.choice(VERBS) for person in persons}
            particle, code_first = rng.choice(PARTICLES), rng.random() < 0.5
            sentences = []
            for _ in range(SENTENCES):
                person = rng.choice(persons)
                pair = [person, codes[person]]
                sentences.append(" ".join([*(pair[::-1] if code_first else pair), verbs[person], particle, "."]))
            for column, value in zip(
                rows, ("\n".join(sentences), "text", f"ledger {split} {number}", split), strict=True
            ):
                rows[column].append(value)
    return pa.table(rows)
