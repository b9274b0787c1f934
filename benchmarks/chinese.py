"""Chinese reviews of shops: pretrain on text of other domains, meta-train, report as FewCLUE does.

    python benchmarks/chinese.py --data DIR --work DIR [section.key=value ...]

DIR holds zh_online_shopping10 and zh_reviews_3class. Three products (phones, water heaters, milk) are in no training
here: a character-level BERT is pretrained on the reviews of the others, in pieces of 60 characters, without labels,
and meta-trained on six of them, good or bad. FewCLUE (Xu et al. 2021, arXiv 2107.07498) reports EPRSTMT, reviews of
shops, so: five sets of 16 reviews a label to learn from, five more as large to choose by, and one test set for all of
them; accuracy, mean over the five. Here each of the three products is such a task, and the accuracy is balanced.
Beside it the same without meta-training, and n-grams with logistic regression, of the 32 reviews alone and of all
reviews of the other products. Goes on from what --work holds; writes benchmarks/results/chinese.json. No row of the
data is kept. The three-class case goes on from it, with masked characters alone or with both trainings:

    python benchmarks/real_text.py sentiment --data DIR/zh_reviews_3class --pretrained WORK/pretrained/model
    python benchmarks/real_text.py sentiment --data DIR/zh_reviews_3class --pretrained WORK/meta_trained/export
"""

from __future__ import annotations

import argparse
import json
import random
import statistics
import sys
from collections import defaultdict
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from records import RESULTS

import distmeta
from distmeta.bench.measure import setting
from distmeta.config import load_config
from distmeta.runs.checkpoint import write_text

HELD_OUT = ("phone", "water_heater", "mengniu_dairy")
PIECE, PIECES, FEWEST = 60, 4, 10  # characters; pieces of a review; characters of a piece that is worth keeping
DRAWS, SHOTS, POOL = 5, 16, 64  # FewCLUE's draws share reviews too; no test row is in any
STEPS = (0, 1, 2, 3, 5, 10)
ONE = ["cluster.workers=1", "sampling.actors=0"]
PRETRAIN = [
    "model.config={hidden_size: 128, num_hidden_layers: 3, num_attention_heads: 4, intermediate_size: 256}",
    "pretrain.steps=5000", "pretrain.lr=2e-3", "pretrain.batch_size=64", "pretrain.every=1000",
]  # fmt: skip
TRAIN = [
    "model.distance=euclidean", "outer.base=train", "outer.steps=400", "outer.lr=1e-3", "inner.lr=0.1",
    "eval.every=50", "eval.validation_episodes=60", "eval.baselines=false", "eval.episodes=100",
]  # fmt: skip
METHODS = {"meta_trained": [], "fine_tune": ["algorithm=fine_tune", "outer.steps=1"]}

Rows = list[dict[str, str]]


def corpus(data: Path, out: Path) -> None:
    """The reviews of all products but those held out, in pieces, each review once."""
    texts = {
        row["text"]
        for name in ("zh_online_shopping10", "zh_reviews_3class")
        for row in pq.read_table(data / name / "data.parquet", columns=["text", "domain"]).to_pylist()
        if row["domain"] not in HELD_OUT
    }
    pieces = [t[i : i + PIECE] for t in sorted(texts) for i in range(0, min(len(t), PIECE * PIECES), PIECE)]
    pq.write_table(pa.table({"text": [piece for piece in pieces if len(piece) >= FEWEST]}), out)


def dealt(rows: Rows, seed: int) -> tuple[list[tuple[Rows, Rows]], Rows]:
    """([(to learn from, to choose by), ...], test rows): draws from POOL reviews a label, and all the others."""
    rng = random.Random(seed)
    by_label: dict[str, Rows] = defaultdict(list)
    for row in rows:
        by_label[row["label"]].append(row)
    for found in by_label.values():
        rng.shuffle(found)
    labels = sorted(by_label)
    draws: list[tuple[Rows, Rows]] = []
    for _ in range(DRAWS):
        drawn = [rng.sample(by_label[label][:POOL], 2 * SHOTS) for label in labels]
        few, held = ([row for found in drawn for row in found[i : i + SHOTS]] for i in (0, SHOTS))
        draws.append((few, held))
    return draws, [row for label in labels for row in by_label[label][POOL:]]


def accuracy(predict: Callable[[list[str]], Sequence[str]], rows: Rows) -> float:
    """Mean over the labels, as one of the products has eleven good reviews for each bad one."""
    right: dict[str, list[bool]] = defaultdict(list)
    for found, row in zip(predict([row["text"] for row in rows]), rows, strict=True):
        right[row["label"]].append(found == row["label"])
    return statistics.mean(statistics.mean(each) for each in right.values())


def adapted(checkpoint: Path, few: Rows, steps: int) -> Callable[[list[str]], Sequence[str]]:
    model = distmeta.adapt(checkpoint, few, steps=steps)
    return lambda texts: [found["label"] for found in model.predict(texts)]


def n_grams(rows: Rows) -> Callable[[list[str]], Sequence[str]]:
    from sklearn.feature_extraction.text import TfidfVectorizer
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline

    grams = TfidfVectorizer(analyzer="char", ngram_range=(1, 2), sublinear_tf=True)
    model = make_pipeline(grams, LogisticRegression(C=10, max_iter=300, class_weight="balanced"))
    model.fit([row["text"] for row in rows], [row["label"] for row in rows])
    return lambda texts: list(model.predict(texts))


def of_product(rows: Rows, checkpoints: dict[str, Path], pooled: Callable[[list[str]], Sequence[str]]) -> Any:
    """Balanced accuracy on the test rows of one product: of each method, a number a draw."""
    draws, test = dealt(rows, seed=0)
    found: dict[str, list[float]] = defaultdict(list)
    chosen: dict[str, list[int]] = defaultdict(list)
    for few, held in draws:
        for name, checkpoint in checkpoints.items():
            scores = {steps: accuracy(adapted(checkpoint, few, steps), held) for steps in STEPS}
            chosen[name].append(max(STEPS, key=scores.__getitem__))  # the first of those that are best
            found[name].append(accuracy(adapted(checkpoint, few, chosen[name][-1]), test))
        found["meta_trained, no steps"].append(accuracy(adapted(checkpoints["meta_trained"], few, 0), test))
        found["n-grams of the 32"].append(accuracy(n_grams(few), test))
    found["n-grams of the other products"] = [accuracy(pooled, test)] * DRAWS
    return {"rows": len(test), "steps": chosen, "balanced_accuracy": found}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--out", type=Path, default=RESULTS / "chinese.json")
    parser.add_argument("more", nargs="*", help="further overrides of the meta-training, section.key=value")
    options = parser.parse_intermixed_args()
    options.work.mkdir(parents=True, exist_ok=True)
    text, reviews = options.work / "corpus.parquet", options.data / "zh_online_shopping10" / "data.parquet"
    if not text.is_file():
        corpus(options.data, text)
    given = [f"data.path={reviews}", *ONE]
    place = options.work / "pretrained"
    config = load_config("sentiment", [*given, f"pretrain.path={text}", *PRETRAIN, f"run.dir={place}"])
    before = distmeta.pretrain(config, resume=True, show=True)
    checkpoints, seconds = {}, {"pretraining": sum(record["seconds"] for record in before.metrics)}
    for name, words in METHODS.items():
        settings = [*given, f"model.pretrained={before.model}", *TRAIN, *words, *options.more]
        config = load_config("sentiment", [*settings, f"run.dir={options.work / name}"])
        run = distmeta.train(config, resume=True, show=True)
        checkpoints[name] = run.checkpoint
        seconds[name] = sum(r[k] for r in run.metrics for k in ("wait_s", "inner_s", "aggregate_s", "checkpoint_s"))
    most = config.model.max_tokens - 2
    rows = [{**row, "text": row["text"][:most]} for row in pq.read_table(reviews).to_pylist()]
    pooled = n_grams([row for row in rows if row["split"] == "train"])
    products = {}
    for product in HELD_OUT:
        products[product] = of_product([row for row in rows if row["domain"] == product], checkpoints, pooled)
        print(
            product, {name: round(statistics.mean(v), 3) for name, v in products[product]["balanced_accuracy"].items()}
        )
    record = {
        **setting({"run": 0}), "command": " ".join(sys.argv), "settings": [*PRETRAIN, *TRAIN, *options.more],
        "seconds": seconds, "perplexity": before.summary["validation"]["perplexity"], "products": products,
    }  # fmt: skip
    write_text(options.out, json.dumps(record, indent=1))


if __name__ == "__main__":
    main()
