"""Does `distmeta predict --reject` tell texts that fit none of a task's labels?

    python benchmarks/rejection.py --data DIR/clinc150 --pretrained MODEL_DIR

CLINC150, class split 01: the recipe `intents` with class means by cosine, trained in this process. Meta-test episodes
of unseen intents, each with as many queries of its own intents as out-of-scope queries (published beside the data set,
and of no intent), and queries of other unseen intents. Area: the chance that a query of the task is more typical than
one that is not, by the highest class score, or by the highest probability. Then at each rate: which share of each kind
is rejected, and the accuracy of the task's queries that are not. Means over episodes with 95% intervals. Writes
benchmarks/results/rejection.json. No row of the data is kept.
"""

from __future__ import annotations

import argparse
import json
import os
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import torch
import torch.distributed as dist
from intents import SETTINGS
from real_text import overrides
from records import RESULTS
from sklearn.metrics import roc_auc_score

from distmeta.bench.measure import setting
from distmeta.config import load_config
from distmeta.evaluation.adapt import AdaptedModel, adapted_model
from distmeta.evaluation.adaptable import Adaptable, fit, on_device
from distmeta.evaluation.rejection import judged, scores_left_out
from distmeta.evaluation.support import read_support
from distmeta.learner.worker import learn
from distmeta.runs import checkpoint as checkpoints
from distmeta.runs.checkpoint import write_text
from distmeta.tasks.build import build_store
from distmeta.tasks.store import open_store

KINDS = [(5, 5), (5, 2), (20, 5)]  # ways, shots
QUERIES = 25
RATES = (0.05, 0.1, 0.2)


def trained(options: argparse.Namespace, run: Path) -> Adaptable:
    words = overrides("intents", options.data, options.pretrained)
    config = load_config("intents", [*words, *SETTINGS, f"run.seed={options.seed}", *options.more])
    store = open_store(build_store(config.data, config.task, config.model))
    run.mkdir()
    learn(config, run, store.path, [], 0, 1, torch.device("cpu"))
    return on_device(checkpoints.load(run))


def adapted_to(start: Adaptable, rows: list[dict[str, str]]) -> AdaptedModel:
    support = read_support(rows, start.config, start.state, start.tokenizer)
    return adapted_model(start, support, *fit(start, [support])[0])


def episode(rng: Any, by_label: dict[str, list[str]], outside: list[str], ways: int, shots: int) -> dict[str, Any]:
    """A support set, and texts and labels by kind of query."""
    names = rng.permutation(sorted(by_label))
    each = QUERIES // ways or 1
    drawn = {name: rng.permutation(by_label[name])[: shots + each].tolist() for name in names[:ways]}
    others = rng.choice([text for name in names[ways:] for text in by_label[name]], QUERIES, replace=False)
    return {
        "support": [(text, name) for name, texts in drawn.items() for text in texts[:shots]],
        "labels": [name for name, texts in drawn.items() for _ in texts[shots:]],
        "task": [text for texts in drawn.values() for text in texts[shots:]],
        "out_of_scope": rng.choice(outside, QUERIES, replace=False).tolist(), "other_intents": others.tolist(),
    }  # fmt: skip


def scored(start: Adaptable, drawn: dict[str, Any]) -> dict[str, float]:
    data = start.config.data
    model = adapted_to(start, [{data.text: text, data.label: label} for text, label in drawn["support"]])
    left_out = scores_left_out(start, model)
    out: dict[str, float] = {}
    highest = {kind: model.scores(drawn[kind])[1] for kind in ("task", "out_of_scope", "other_intents")}
    sure = {kind: [one["confidence"] for one in model.predict(drawn[kind])] for kind in highest}
    for kind in ("out_of_scope", "other_intents"):
        right = [1] * len(drawn["task"]) + [0] * QUERIES
        out[f"area_{kind}"] = float(roc_auc_score(right, [*highest["task"], *highest[kind]]))
        out[f"area_of_probability_{kind}"] = float(roc_auc_score(right, [*sure["task"], *sure[kind]]))
    plain = [one["label"] for one in model.predict(drawn["task"])]
    out["accuracy"] = float(np.mean([said == label for said, label in zip(plain, drawn["labels"], strict=True)]))
    for rate in (r for r in RATES if r >= 1 / (len(left_out) + 1)):
        said = {kind: [one["label"] for one in judged(model, drawn[kind], left_out, rate)] for kind in highest}
        for kind, labels in said.items():
            out[f"rejected_{kind}_at_{rate:g}"] = float(np.mean([label is None for label in labels]))
        kept = [label == true for label, true in zip(said["task"], drawn["labels"], strict=True) if label is not None]
        out[f"accuracy_of_accepted_at_{rate:g}"] = float(np.mean(kept)) if kept else float("nan")
    return out


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", required=True, type=Path)
    parser.add_argument("--pretrained", required=True)
    parser.add_argument("--episodes", type=int, default=100)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("more", nargs="*", metavar="key=value")
    options = parser.parse_args()
    torch.set_num_threads(1)
    os.environ.setdefault("LOCAL_RANK", "0")  # which DeepSpeed asks for
    folder = Path(tempfile.mkdtemp())
    dist.init_process_group("gloo", init_method=f"file://{folder}/group", rank=0, world_size=1)
    start = trained(options, folder / "run")
    split = json.loads((options.data / "splits.json").read_text())["01"]["test"]
    by_label: dict[str, list[str]] = {name: [] for name in split}
    for row in pq.read_table(options.data / "data.parquet").to_pylist():
        if row["label"] in by_label:
            by_label[row["label"]].append(row["text"])
    outside = [row["text"] for row in pq.read_table(options.data / "oos.parquet").to_pylist() if row["split"] == "test"]
    about = {key: value for key, value in setting({"seed": options.seed}).items() if key != "command"}
    command = "python benchmarks/rejection.py --data DIR/clinc150 --pretrained MODEL_DIR"
    command = " ".join([command, "--episodes", str(options.episodes), *options.more])
    record: dict[str, Any] = {"command": command, "setting": about, "kinds": {}}
    for ways, shots in KINDS:
        rng = np.random.default_rng([options.seed, ways, shots])
        drawn = (episode(rng, by_label, outside, ways, shots) for _ in range(options.episodes))
        values = [scored(start, one) for one in drawn]
        record["kinds"][f"{ways}x{shots}"] = {
            name: {
                "mean": round(float(np.nanmean(each := [one[name] for one in values])), 4),
                "half_width": round(1.96 * float(np.nanstd(each, ddof=1)) / len(each) ** 0.5, 4),
            }
            for name in values[0]
        }
        write_text(RESULTS / "rejection.json", json.dumps(record, indent=1) + "\n")
        print(
            ways, shots, {name: value["mean"] for name, value in record["kinds"][f"{ways}x{shots}"].items()}, flush=True
        )


if __name__ == "__main__":
    main()
