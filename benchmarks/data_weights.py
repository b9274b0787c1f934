"""Do learnt weights of the training data find wrong labels, and what do they win back?

    python benchmarks/data_weights.py intents --data DIR/clinc150 --pretrained MODEL_DIR
    python benchmarks/data_weights.py reviews
    python benchmarks/data_weights.py tasks

30% of the meta-train labels are wrong, in known rows; a fifth of the rows is trusted, and none of these is wrong.
intents: CLINC150, 30 classes of 30 rows, a frozen encoder under a head that adapts. reviews: the built-in reviews
without the names of the products, a small encoder from random weights. tasks: the same, but
the wrong labels are all in 30% of the domains, whose untrusted rows have labels at random; weights by task.
Ways to train on the same steps: clean (right labels), noisy (nothing is known), trusted (queries of trusted rows),
weights (and outer.data_weights), filtered (noisy again, without what the weights turned down: below 1). The area under
the curve is of the weight against whether a row (or task) is wrong, among the untrusted ones. Meta-test tasks are
others, and their labels right. Writes benchmarks/results/data_weights.json. No row of the data is kept.
"""

from __future__ import annotations

import argparse
import json
import os
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
import torch.distributed as dist
from records import RESULTS

from distmeta.algorithms import data_weights
from distmeta.bench.measure import setting
from distmeta.config import load_config
from distmeta.learner.worker import learn
from distmeta.runs import checkpoint as checkpoints
from distmeta.runs.checkpoint import write_text
from distmeta.tasks.build import build_store
from distmeta.tasks.reviews import make_reviews
from distmeta.tasks.store import open_store

RESULT = RESULTS / "data_weights.json"
NOISE, TRUSTED = 0.3, 0.2
LEAST = 20  # rows of a label that an episode draws at most
COMMON = ["eval.baselines=false", "eval.every=0", "eval.episodes=300", "run.checkpoint_every=1000000",
          "inner.adapt=head", "inner.steps=3", "task.queries=5", "outer.meta_batch_size=8"]  # fmt: skip
SMALL = "{hidden_size: 32, num_hidden_layers: 1, num_attention_heads: 2, intermediate_size: 64, " \
        "max_position_embeddings: 64}"  # fmt: skip
REVIEWS = [*COMMON, "task.shots=10", "task.queries=10", "inner.lr=1.0", "outer.lr=5e-3", f"model.config={SMALL}"]


def intents(options: argparse.Namespace, rng: Any) -> tuple[list[dict[str, Any]], list[str]]:
    """Rows {text, label, split, trusted, wrong}, and the configuration."""
    rows = pq.read_table(options.data / "data.parquet").to_pylist()
    split = json.loads((options.data / "splits.json").read_text())["01"]
    out = []
    for part, names in (("train", sorted(split["train"])[:30]), ("test", sorted(split["test"])[:20])):
        for name in names:
            for i, row in enumerate([row for row in rows if row["label"] == name][:30]):
                out.append({"text": row["text"], "label": name, "split": part, "trusted": i < 6})
    corrupt(out, rng, None)
    return out, ["intents", *COMMON, f"model.pretrained={options.pretrained}", "model.head=linear", "algorithm=maml",
                 "inner.lr=1.0", "task.ways=5", "task.shots=5", "outer.lr=1e-3"]  # fmt: skip


def reviews(options: argparse.Namespace, rng: Any) -> tuple[list[dict[str, Any]], list[str]]:
    out, met = [], {}
    for row in make_reviews(0).to_pylist():
        cell = row["task"], row["label"]
        met[cell] = i = met.get(cell, -1) + 1
        if i < options.rows:
            text = row["text"].replace(row["task"], "thing")
            out.append({**row, "text": text, "trusted": i < options.rows * TRUSTED})
    bad = set()
    if options.part == "tasks":
        names = sorted({row["task"] for row in out if row["split"] == "train"})
        bad = set(rng.permutation(names)[: int(len(names) * NOISE)].tolist())
    corrupt(out, rng, bad)
    return out, ["default", *REVIEWS]


def corrupt(rows: list[dict[str, Any]], rng: Any, tasks: set[str] | None) -> None:
    """Give each row `wrong`, and `noisy`, its label or another. tasks: whose labels are drawn at random, if any."""
    labels = sorted({row["label"] for row in rows if row["split"] == "train"})
    for row in rows:
        chance = float(row["task"] in tasks) if tasks else NOISE / (1 - TRUSTED)
        hit = row["split"] == "train" and not row["trusted"] and rng.random() < chance
        others = labels if tasks else [label for label in labels if label != row["label"]]
        row["noisy"] = others[rng.integers(len(others))] if hit else row["label"]
        row["wrong"] = hit


def area(weights: Any, wrong: Any) -> float:
    """The chance that a wrong one has the lower weight of two."""
    low, high = weights[wrong][:, None], weights[~wrong][None]
    return float((low < high).mean() + 0.5 * (low == high).mean())


def unit(row: dict[str, Any]) -> tuple[Any, ...]:
    """What a row is found by in a table of weights, whose `label` is the noisy one."""
    return row["text"], row.get("task"), row.get("noisy", row["label"])


def kept(rows: list[dict[str, Any]], table: list[dict[str, Any]], least: int) -> list[dict[str, Any]]:
    """The rows that were not turned down; of each label in a task that keeps some, at least the `least` best."""
    weights = {unit(row): row["weight"] for row in table}
    cells: dict[tuple[Any, ...], list[dict[str, Any]]] = {}
    for row in rows:
        cells.setdefault((row.get("task"), row["noisy"]), []).append(row)
    out = []
    for cell in cells.values():
        best = sorted(cell, key=lambda row: weights[unit(row)], reverse=True)
        count = sum(weights[unit(row)] >= 1 for row in cell)
        out += best[: max(count, least) if count else 0]
    return out


def trained(
    way: str, rows: list[dict[str, Any]], words: list[str], options: argparse.Namespace
) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """Accuracy on meta-test episodes, and of `weights` the area under the curve; and the table of weights."""
    table: list[dict[str, Any]] = []
    keys = [*words[1:], f"outer.steps={options.steps}", f"run.seed={options.seed}"]
    keys += ["data.trusted=trusted"] if way in ("trusted", "weights") else []
    by = "task" if options.part == "tasks" else "example"
    keys += [f"outer.data_weights={{by: {by}}}"] if way == "weights" else []
    columns = {key: [row[key] for row in rows] for key in rows[0] if key not in ("label", "noisy", "wrong")}
    with tempfile.TemporaryDirectory() as folder:
        path, run = Path(folder) / "rows.parquet", Path(folder) / "run"
        labels = [row["label" if way == "clean" else "noisy"] for row in rows]
        pq.write_table(pa.table({**columns, "label": labels}), path)
        config = load_config(words[0], [*keys, f"data.path={path}", f"data.cache={folder}/cache"])
        store = open_store(build_store(config.data, config.task, config.model))
        run.mkdir()
        learn(config, run, store.path, [], 0, 1, torch.device("cpu"))
        score = json.loads((run / "evaluation.json").read_text())["meta_trained"]["accuracy"]
        out: dict[str, Any] = {key: round(score[key], 4) for key in ("mean", "low", "high")}
        if way == "weights":
            numbers = checkpoints.load(run, which="last").meta[data_weights.NAME]
            table = data_weights.table(config, store, numbers).to_pylist()
    if way == "weights":
        wrong = {unit(row): row["wrong"] for row in rows}
        known = [(row.get("task"), row["weight"], wrong[unit(row)])
                 for row in table if row["split"] == "train" and not row["trusted"]]  # fmt: skip
        if options.part == "tasks":
            known = sorted({(task, weight, any(w for t, _, w in known if t == task)) for task, weight, _ in known})
        weights, is_wrong = np.array([w for _, w, _ in known]), np.array([w for _, _, w in known])
        out |= {"area": round(area(weights, is_wrong), 4), "units": len(known), "wrong": int(is_wrong.sum()),
                "mean_weight": [round(float(weights[is_wrong == w].mean()), 3) for w in (False, True)]}  # fmt: skip
    return out, table


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("part", choices=["intents", "reviews", "tasks"])
    parser.add_argument("--data", type=Path)
    parser.add_argument("--pretrained", type=Path)
    parser.add_argument("--steps", type=int, default=120)
    parser.add_argument("--rows", type=int, default=50, help="of each label in a domain of the reviews")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--ways", nargs="*", default=["clean", "noisy", "trusted", "weights", "filtered"])
    options = parser.parse_args()
    torch.set_num_threads(1)
    os.environ.setdefault("LOCAL_RANK", "0")  # which DeepSpeed asks for
    dist.init_process_group("gloo", init_method=f"file://{tempfile.mkdtemp()}/group", rank=0, world_size=1)
    rows, words = (intents if options.part == "intents" else reviews)(options, np.random.default_rng(options.seed))
    about = {key: value for key, value in setting({}).items() if key != "command"}
    record = json.loads(RESULT.read_text()) if RESULT.exists() else {}
    record["command"] = "python benchmarks/data_weights.py PART"
    part = options.part if not options.seed else f"{options.part}, seed {options.seed}"
    table: list[dict[str, Any]] = []
    for way in options.ways:
        if record.get(part, {}).get("steps") != options.steps:
            record[part] = {"steps": options.steps, "setting": about, "ways": {}}
        ours = record[part]
        of_way = kept(rows, table, LEAST) if way == "filtered" else rows
        ours["ways"][way], weights = trained(way, of_way, words, options)
        table = weights or table
        ours["ways"][way]["rows"] = len(of_way)
        print(way, ours["ways"][way], flush=True)
        write_text(RESULT, json.dumps(record, indent=1) + "\n")


if __name__ == "__main__":
    main()
