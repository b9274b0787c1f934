"""CLINC150, five published class splits, 5- and 20-way, 1- and 5-shot: do meta-learnt features beat frozen ones?

    python benchmarks/intents.py --data DIR/clinc150 --pretrained MODEL_DIR --run-dir DIR

For each split the recipe `intents` with algorithm=prototypes (a new task costs one forward pass), trained on episodes
of 20 classes (more ways than a task has teach more: Snell et al. 2017, arXiv 1703.05175, section 3.1), then meta-test
episodes of classes never seen, beside prototypes of the frozen encoder on the same episodes. Both also refined
(eval.refine): class means move to the query set, which is then classified together (transductively). `lexical` are
class means of hashed n-grams of letters, which know no language. Goes on from what --run-dir and the record hold.
Writes benchmarks/results/intents.json. No row of the data is kept.
"""

from __future__ import annotations

import argparse
import json
import shlex
import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch
from real_text import overrides
from records import RESULTS
from sklearn.feature_extraction.text import HashingVectorizer

import distmeta
from distmeta.config import load_config
from distmeta.evaluation.evaluate import load_model
from distmeta.evaluation.scoring import Scoring, row_features, score_means, summarise
from distmeta.inner import InnerLoop
from distmeta.runs import checkpoint as checkpoints
from distmeta.runs.checkpoint import write_text
from distmeta.tasks.episodes.episode import sample_episode
from distmeta.tasks.store import open_store

SETTINGS = [
    "algorithm=prototypes", "model.distance=cosine", "inner.adapt=all", "task.ways=20", "task.shots=1",
    "task.queries=5", "outer.meta_batch_size=2", "eval.baselines=false", "eval.every=0", "eval.episodes=2",
]  # fmt: skip
ROUNDS = 4  # of refining


def trained(options: argparse.Namespace, split: str) -> Path:
    """The run of a split, trained unless it is whole."""
    words = [w for w in overrides("intents", options.data, options.pretrained) if not w.startswith("data.splits")]
    place = options.run_dir / split
    config = load_config("intents", [
        *words, f"data.splits={options.data}/splits.json#{split}", *SETTINGS, f"run.seed={options.seed}",
        f"run.dir={place}", *options.more,
    ])  # fmt: skip
    if not (place / "evaluation.json").is_file():
        distmeta.train(config, resume=True, show=True)
    return place


def scored(run: Path, kinds: list[str], count: int, split: str) -> dict[str, dict[str, Any]]:
    """Accuracy of nearest class means by kind, ways x shots, of learnt and of frozen features on the same episodes, and
    of both refined, with the curve over the rounds.

    The same as `distmeta evaluate RUN --ways --shots`, but for features that all kinds share. All are at unit length,
    which is how the encoder was trained to be used.
    """
    saved = checkpoints.load(run)
    store = open_store(json.loads((run / "environment.json").read_text())["store"])
    episodes = {}
    for kind in kinds:
        ways, shots = map(int, kind.split("x"))
        task = saved.config.task.model_copy(update={"ways": ways, "shots": shots})
        many = count if ways < 20 else count // 3
        episodes[kind] = [sample_episode(store, task, saved.config.run.seed, split, i) for i in range(many)]
    model = load_model(saved)
    together = [episode for some in episodes.values() for episode in some]
    features, scales = {}, {}
    for name, values in {"meta_trained": saved.meta, "frozen": {**model.fast, **model.shared}}.items():
        scoring = Scoring(
            model, values, {}, InnerLoop(steps=0, lr=0.0), saved.config, store.pad_id, torch.device("cpu")
        )
        ids, features[name] = row_features(scoring, together)
        scales[name] = float(values["head_log_scale"].exp())
    hashed = HashingVectorizer(n_features=4096, analyzer="char_wb", ngram_range=(3, 5))
    letters = torch.from_numpy(hashed.transform([store.text(int(row)) for row in ids]).toarray())
    out: dict[str, dict[str, Any]] = {}
    for kind, some in episodes.items():
        means = {name: score_means(ids, x, some, scales[name], ROUNDS) for name, x in features.items()}
        means["lexical"] = score_means(ids, letters, some)
        alone = {name: summarise([one.at_start() for one in each])["accuracy"] for name, each in means.items()}
        out[kind] = alone | {f"{name} refined": summarise(means[name])["accuracy"] for name in features}
    return out


def mean_over_splits(runs: dict[str, Any], kind: str) -> dict[str, Any]:
    """Means of accuracy over the splits, and in how many of them the learnt features are better."""
    first = next(iter(runs.values()))[kind]
    values = {name: np.array([run[kind][name]["mean"] for run in runs.values()]) for name in first}
    better = f"{int((values['meta_trained'] > values['frozen']).sum())} of {len(runs)} splits"
    return {name: float(each.mean()) for name, each in values.items()} | {"better_in": better}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--pretrained", required=True)
    parser.add_argument("--run-dir", type=Path, default=Path("runs/intents-splits"))
    parser.add_argument("--splits", nargs="*", default=["01", "02", "03", "04", "05"])
    parser.add_argument("--kinds", nargs="*", default=["5x1", "5x5", "20x1"], help="ways x shots")
    parser.add_argument("--episodes", type=int, default=300, help="of 5 ways; of 20 ways a third as many")
    parser.add_argument(
        "--score", choices=["test", "validation"], default="test", help="validation: to choose settings"
    )
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=RESULTS / "intents.json")
    parser.add_argument("more", nargs="*", help="further overrides, section.key=value")
    options = parser.parse_intermixed_args()
    record: dict[str, Any] = json.loads(options.out.read_text()) if options.out.exists() else {"runs": {}}
    asked = {
        "seed": options.seed, "settings": [*SETTINGS, *options.more], "scored": options.score,
        "episodes": options.episodes, "kinds": options.kinds,
    }  # fmt: skip
    if other := [key for key, value in asked.items() if record.get(key, value) != value]:
        parser.error(
            f"{options.out} was begun with another value of {', '.join(other)}; move it away, or give another --out"
        )
    for split in options.splits:
        run = trained(options, split)
        environment = json.loads((run / "environment.json").read_text())
        if split not in record["runs"] and options.kinds:
            record["runs"][split] = scored(run, options.kinds, options.episodes, options.score)
        for kind in options.kinds:
            print(split, kind, {name: round(of["mean"], 4) for name, of in record["runs"][split][kind].items()})
        record |= {
            "command": shlex.join(sys.argv), **asked,
            "hardware": {key: environment[key] for key in ("platform", "cores")},
            "versions": environment["versions"],
            "means": {kind: mean_over_splits(record["runs"], kind) for kind in options.kinds},
        }  # fmt: skip
        write_text(options.out, json.dumps(record, indent=1, ensure_ascii=False))


if __name__ == "__main__":
    main()
