"""What does meta-training give on real text? CLINC150 intents, Chinese three-class reviews, instruction tasks.

    python benchmarks/real_text.py intents      --data DIR/clinc150 --pretrained MODEL_DIR
    python benchmarks/real_text.py sentiment    --data DIR/zh_reviews_3class [--whole|--train-whole]
    python benchmarks/real_text.py instructions --data DIR/instruction_induction --pretrained DECODER
    python benchmarks/real_text.py instructions --data DIR/natural_instructions_v1 --pretrained DECODER

Runs the recipe of that name with its defaults on the data (or continues the run in --run-dir), scores meta-train and
meta-test tasks, and writes benchmarks/results/real_text_NAME.json, or --out. Of the reviews every row of the meta-test
domains is also classified, as one would score a model that does not adapt, and beside it a lexical model (n-grams
of characters, logistic regression) and one that is told the length of a text and nothing else. --whole: the reviews as
they are, up to 160 characters, instead of those cut to equal lengths. --train-whole: so those of the meta-train
domains, short ones too; what is validated and tested has equal lengths. No row of the data is kept.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from records import RESULTS

import distmeta
from distmeta.config import load_config
from distmeta.runs.checkpoint import write_text

# Chosen before anything was trained. Of the 24 tasks of Honovich et al. (2022, arXiv 2205.10782), and of Natural
# Instructions (Mishra et al. 2022, arXiv 2104.08773) all tasks that were made from a source corpus.
HELD_OUT = {
    "test": {
        "sentiment", "larger_animal", "word_in_context", "sentence_similarity", "negation", "orthography_starts_with",
        "cosmosqa", "qasc",
    },
    "validation": {"antonyms", "informal_to_formal", "sum", "ropes", "essential"},
}  # fmt: skip
LABELS = ("neg", "neu", "pos")


def held_out(data: Path) -> dict[str, list[str]]:
    """The instruction tasks of each split: by their names, or by the source corpus that they were made from."""
    rows = pq.read_table(data / "data.parquet", columns=["task", "domain"]).to_pylist()
    kept: dict[str, list[str]] = {"train": [], "validation": [], "test": []}
    for task, domain in sorted({(row["task"], row["domain"]) for row in rows}):
        kept[next((s for s in HELD_OUT if {task, domain} & HELD_OUT[s]), "train")].append(task)
    return kept


def overrides(name: str, data: Path, pretrained: str | None) -> list[str]:
    if name in ("intents", "letters"):
        words = [
            f"data.path={data}/data.parquet", f"data.splits={data}/splits.json#01", f"model.pretrained={pretrained}",
        ]  # fmt: skip
        return [*words, "model.distance=euclidean"] if name == "intents" else words
    if name == "instructions":
        return [
            f"data.path={data}/data.parquet", "data.input=text", "data.target=answers",
            f"data.splits={json.dumps(held_out(data))}", f"model.pretrained={pretrained}",
        ]  # fmt: skip
    # One of its test domains has 11 neutral reviews of 60 characters.
    words = [f"data.path={data}/matched60.parquet", "task.queries=6"]
    return (
        [*words, f"model.pretrained={pretrained}", "model.distance=euclidean", "outer.base=train"]
        if pretrained
        else words
    )


def row_scores(labels: Sequence[str], predicted: Sequence[str]) -> dict[str, float]:
    from sklearn.metrics import accuracy_score, precision_recall_fscore_support

    precision, recall, f1, _ = precision_recall_fscore_support(labels, predicted, average="macro", zero_division=0)
    scores = {"accuracy": accuracy_score(labels, predicted), "precision": precision, "recall": recall, "f1": f1}
    return {key: float(value) for key, value in scores.items()}


def reviews(kind: str, data: Path, place: Path) -> tuple[Path, int]:
    """(file, most characters) of the reviews: matched, whole, or train_whole, which is made in `place`."""
    if kind != "train_whole":
        return (data / "data.parquet", 160) if kind == "whole" else (data / "matched60.parquet", 60)
    whole, matched = (pq.read_table(data / f"{name}.parquet") for name in ("data", "matched60"))
    made = pa.concat_tables([
        whole.filter(pc.equal(whole["split"], "train")), matched.filter(pc.not_equal(matched["split"], "train")),
    ])  # fmt: skip
    place.mkdir(parents=True, exist_ok=True)
    pq.write_table(made, place / "reviews.parquet")
    return place / "reviews.parquet", 160


def lexical(train: list[dict[str, str]], C: float = 10) -> Any:
    """N-grams of one and two characters, and a logistic regression fitted to these rows."""
    from sklearn.feature_extraction.text import TfidfVectorizer
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline

    grams = TfidfVectorizer(analyzer="char", ngram_range=(1, 2), min_df=2, sublinear_tf=True)
    model = make_pipeline(grams, LogisticRegression(C=C, max_iter=300, class_weight="balanced"))
    return model.fit([row["text"] for row in train], [row["label"] for row in train])


def by_domain(rows: list[dict[str, str]], split: str, shots: int) -> dict[str, tuple[list[Any], list[Any]]]:
    """Of each domain of a split the first `shots` rows of each label, to adapt to, and all others."""
    parts = {}
    for domain in dict.fromkeys(row["task"] for row in rows if row["split"] == split):
        found = [row for row in rows if row["task"] == domain]
        support = [row for label in LABELS for row in [r for r in found if r["label"] == label][:shots]]
        parts[domain] = (support, [row for row in found if row not in support])
    return parts


def every_row(checkpoint: Path, file: Path, most: int, shots: int) -> dict[str, Any]:
    """Scores of each model over all rows of the meta-test domains but the first `shots` of each label, adapted to."""
    from sklearn.tree import DecisionTreeClassifier

    rows = [{**row, "text": row["text"][:most]} for row in pq.read_table(file).to_pylist()]
    train = [row for row in rows if row["split"] == "train"]
    grams = lexical(train)
    length = DecisionTreeClassifier(max_leaf_nodes=8, class_weight="balanced", random_state=0)
    length.fit([[len(row["text"])] for row in train], [row["label"] for row in train])
    domains = by_domain(rows, "test", shots)
    predictions: dict[str, dict[str, list[str]]] = {}
    kept: dict[str, list[str]] = {}
    for domain, (support, rest) in domains.items():
        texts, kept[domain] = [row["text"] for row in rest], [row["label"] for row in rest]
        predictions[domain] = {
            "adapted": [p["label"] for p in distmeta.adapt(checkpoint, support).predict(texts)],
            "no_adaptation": [p["label"] for p in distmeta.adapt(checkpoint, support, steps=0).predict(texts)],
            "lexical": list(grams.predict(texts)),
            "length": list(length.predict([[len(text)] for text in texts])),
        }
    models = list(next(iter(predictions.values())))
    told = {m: {domain: row_scores(kept[domain], predictions[domain][m]) for domain in domains} for m in models}
    pooled = [label for domain in domains for label in kept[domain]]
    for m in models:
        told[m]["all"] = row_scores(pooled, [label for domain in domains for label in predictions[domain][m]])
    return told


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("name", choices=["intents", "sentiment", "instructions"])
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--pretrained")
    parser.add_argument("--run-dir", type=Path, default=None)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=None)
    which = parser.add_mutually_exclusive_group()
    which.add_argument("--whole", action="store_const", const="whole", help="sentiment: reviews of any length")
    which.add_argument(
        "--train-whole", dest="whole", action="store_const", const="train_whole",
        help="sentiment: reviews of any length to learn from, of equal lengths to be scored on",
    )  # fmt: skip
    parser.add_argument("more", nargs="*", help="further overrides, section.key=value")
    options = parser.parse_intermixed_args()
    if options.whole and options.name != "sentiment":
        parser.error(f"--whole and --train-whole are for sentiment, not {options.name}")
    kind = f"{options.name}_{options.whole}" if options.whole else options.name
    run_dir = options.run_dir or Path("runs") / f"real-{kind}-{options.seed}"
    file, most = reviews(options.whole, options.data, run_dir.with_name(f"{run_dir.name}-data"))
    whole = [f"data.path={file}", f"model.max_tokens={most + 2}"] if options.whole else []
    words = [
        *overrides(options.name, options.data, options.pretrained),
        *whole,
        *options.more,
        f"run.seed={options.seed}",
    ]
    run = distmeta.train(load_config(options.name, [*words, f"run.dir={run_dir}"]), resume=True, show=True)
    seen = distmeta.evaluate(run.checkpoint, split="train", baselines=False)
    environment = json.loads((run.path / "environment.json").read_text())
    details = json.loads((run.path / "evaluation_details.json").read_text())
    record = {
        "command": " ".join(sys.argv),
        "hardware": {key: environment[key] for key in ("platform", "cores")},
        "versions": environment["versions"],
        "seed": options.seed,
        "settings": [word for word in words if not word.startswith(("data.", "model.pretrained"))],
        "meta_steps": run.metrics[-1]["step"],
        "seconds": sum(r[k] for r in run.metrics for k in ("wait_s", "inner_s", "aggregate_s", "checkpoint_s")),
        "meta_test": run.evaluation,
        "meta_test_classes": details["meta_trained"].get("per_class"),
        "meta_test_tasks": details["meta_trained"].get("per_task"),
        "meta_train": seen.methods,
        "meta_train_classes": seen.details["meta_trained"].get("per_class"),
    }
    if options.name == "sentiment":
        record["every_row"] = every_row(run.checkpoint, file, most, shots=5)
    RESULTS.mkdir(exist_ok=True)
    write_text(options.out or RESULTS / f"real_text_{kind}.json", json.dumps(record, indent=1, ensure_ascii=False))


if __name__ == "__main__":
    main()
