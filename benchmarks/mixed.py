"""Tables of tasks whose labels mean another thing in each: which of two, and by what, the examples alone can say.

    python benchmarks/mixed.py --clinc DIR/clinc150 --arsc DIR/arsc --induction DIR/instruction_induction \
        --pretrained MODEL_DIR --out DIR

Four kinds, each a source of one run, with tasks of two labels, "one" and "two", that every episode deals anew:
- intents: two intents of CLINC150 (split 01);
- products: Amazon reviews of two products, good and bad ones;
- sentiment: Amazon reviews of two products, good or bad; so the same texts as of `products`, told apart otherwise;
- instructions: inputs of two of the 24 instruction tasks.
No class, product or instruction is in tasks of two splits. --out also gets the pretrained encoder's first two layers, a
small model that knows words, and a recipe: `benchmarks/algorithms.py mixed --data DIR` trains them. No row of the data
is kept beside these files.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import random
from collections import defaultdict
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

KINDS = ("intents", "products", "sentiment", "instructions")
SPLITS = ("train", "validation", "test")
PRODUCTS = {"test": ("books", "dvd", "electronics", "kitchen_housewares"),
            "validation": ("beauty", "software", "sports_outdoors", "toys_games")}  # fmt: skip
INSTRUCTIONS = {  # as benchmarks/real_text.py holds them out
    "test": ("sentiment", "larger_animal", "word_in_context", "sentence_similarity", "negation",
             "orthography_starts_with"),
    "validation": ("antonyms", "informal_to_formal", "sum"),
}  # fmt: skip
MOST = {"train": 60, "validation": 12, "test": 30}  # tasks of a kind
ROWS = 60  # of a label in a task
LAYERS = 2

Texts = dict[str, list[str]]  # by class


def pairs(texts: Texts, split: str, rng: random.Random) -> list[tuple[str, Texts]]:
    """Tasks of two classes each, by their names."""
    found = list(itertools.combinations(sorted(texts), 2))
    rng.shuffle(found)
    return [(f"{split}: {a} or {b}", {"one": texts[a], "two": texts[b]}) for a, b in found[: MOST[split]]]


def split_of(name: str, held: dict[str, tuple[str, ...]]) -> str:
    return next((split for split, names in held.items() if name in names), "train")


def intents(folder: Path, rng: random.Random) -> dict[str, list[tuple[str, Texts]]]:
    table = pq.read_table(folder / "data.parquet").to_pydict()
    named = json.loads((folder / "splits.json").read_text())["01"]
    out = {}
    for split, key in zip(SPLITS, ("train", "val", "test"), strict=True):
        texts: Texts = defaultdict(list)
        for text, label in zip(table["text"], table["label"], strict=True):
            if label in named[key]:
                texts[label].append(text)
        out[split] = pairs(texts, split, rng)
    return out


def reviews(folder: Path, rng: random.Random) -> tuple[dict[str, list[tuple[str, Texts]]], ...]:
    """(products, sentiment) of the same pairs of products."""
    table = pq.read_table(folder / "data.parquet").to_pydict()
    texts: dict[str, Texts] = defaultdict(lambda: defaultdict(list))
    for text, label, product, task in zip(*(table[c] for c in ("text", "label", "domain", "task")), strict=True):
        if task.endswith(".t4"):
            texts[product][label].append(text)
    by_product: dict[str, list[tuple[str, Texts]]] = {}
    by_sentiment: dict[str, list[tuple[str, Texts]]] = {}
    for split in SPLITS:
        names = [product for product in sorted(texts) if split_of(product, PRODUCTS) == split]
        found = list(itertools.combinations(names, 2))
        rng.shuffle(found)
        by_product[split], by_sentiment[split] = [], []
        for a, b in found[: MOST[split]]:
            cells = {
                (p, s): rng.sample(texts[p][s], min(ROWS // 2, len(texts[p][s]))) for p in (a, b) for s in texts[p]
            }
            by_product[split].append((f"{split}: {a} or {b}", {
                "one": [t for (p, _), rows in cells.items() if p == a for t in rows],
                "two": [t for (p, _), rows in cells.items() if p == b for t in rows],
            }))  # fmt: skip
            by_sentiment[split].append((f"{split}: {a} and {b}, good or bad", {
                "one": [t for (_, s), rows in cells.items() if s == "pos" for t in rows],
                "two": [t for (_, s), rows in cells.items() if s == "neg" for t in rows],
            }))  # fmt: skip
    return by_product, by_sentiment


def instructions(folder: Path, rng: random.Random) -> dict[str, list[tuple[str, Texts]]]:
    table = pq.read_table(folder / "data.parquet", columns=["text", "task"]).to_pydict()
    texts: dict[str, Texts] = {split: defaultdict(list) for split in SPLITS}
    for text, task in zip(table["text"], table["task"], strict=True):
        texts[split_of(task, INSTRUCTIONS)][task].append(text)
    return {split: pairs({t: sorted(set(rows)) for t, rows in of.items()}, split, rng) for split, of in texts.items()}


def write(tasks: dict[str, list[tuple[str, Texts]]], out: Path, rng: random.Random) -> None:
    rows: list[tuple[str, str, str, str]] = []
    for split, named in tasks.items():
        for name, of in named:
            for label, texts in of.items():
                rows += [(text, label, name, split) for text in rng.sample(texts, min(ROWS, len(texts)))]
    columns = dict(zip(("text", "label", "domain", "split"), map(list, zip(*rows, strict=True)), strict=True))
    pq.write_table(pa.table(columns), out)


def first_layers(pretrained: str, out: Path) -> None:
    from transformers import AutoModel, AutoTokenizer

    model = AutoModel.from_pretrained(pretrained, trust_remote_code=False, num_hidden_layers=LAYERS)
    model.save_pretrained(out)
    AutoTokenizer.from_pretrained(pretrained, trust_remote_code=False).save_pretrained(out)


def recipe(folder: Path) -> dict[str, Any]:
    """Of a run on the tables in `folder`."""
    return {
        "run": {"name": "mixed"},
        "data": {"sources": {kind: {"path": str(folder / f"{kind}.parquet")} for kind in KINDS}, "task": "domain"},
        "model": {"pretrained": str(folder / "encoder"), "max_tokens": 32},
        "task": {"family": "domain", "permute_labels": True, "shots": 5, "queries": 5},
        "inner": {"adapt": "lora", "lr": 0.1, "steps": 3, "learn_lr": "per_layer"},
        "outer": {
            "lr": 2e-3,
            "steps": 40,
            "meta_batch_size": 4,
            "warmup_steps": 4,
            "schedule": "cosine",
            "base": "freeze",
        },
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name in ("clinc", "arsc", "induction", "out"):
        parser.add_argument(f"--{name}", type=Path, required=True)
    parser.add_argument("--pretrained", required=True)
    options = parser.parse_args()
    os.makedirs(options.out, exist_ok=True)
    rng = random.Random(0)
    products, sentiment = reviews(options.arsc, rng)
    made = (intents(options.clinc, rng), products, sentiment, instructions(options.induction, rng))
    for kind, tasks in zip(KINDS, made, strict=True):
        write(tasks, options.out / f"{kind}.parquet", rng)
        print(kind, {split: len(named) for split, named in tasks.items()})
    first_layers(options.pretrained, options.out / "encoder")
    (options.out / "mixed.yaml").write_text(json.dumps(recipe(options.out.resolve()), indent=1))


if __name__ == "__main__":
    main()
