"""CLINC150, five published class splits, 5- and 20-way, 1- and 5-shot: do meta-learnt features beat frozen ones?

    python benchmarks/intents.py --data DIR/clinc150 --pretrained MODEL_DIR --run-dir DIR

For each split the recipe `intents` with algorithm=prototypes (a new task costs one forward pass), trained on episodes
of 20 classes (more ways than a task has teach more: Snell et al. 2017, arXiv 1703.05175, section 3.1), then meta-test
episodes of classes never seen, beside prototypes of the frozen encoder on the same episodes. Goes on from what
--run-dir and the record hold. Writes benchmarks/results/intents.json. No row of the data is kept.
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
from real_text import RESULTS, overrides

import distmeta
from distmeta import checkpoint as checkpoints
from distmeta.checkpoint import write_text
from distmeta.config import load_config
from distmeta.evaluate import load_model
from distmeta.sampling.episode import sample_episode
from distmeta.scoring import score_prototypes, summarise
from distmeta.tasks.store import open_store

FLOORS = {"5x1": 0.946, "5x5": 0.988}  # frozen encoder, nearest prototype, 600 episodes
SETTINGS = [
    "algorithm=prototypes", "inner.adapt=all", "task.ways=20", "task.shots=1", "task.queries=5",
    "outer.meta_batch_size=2", "eval.baselines=false", "eval.every=0", "eval.episodes=2",
]  # fmt: skip


def trained(given: argparse.Namespace, split: str) -> Path:
    """The run of a split, trained if it is not whole yet."""
    words = [w for w in overrides("intents", given.data, given.pretrained) if not w.startswith("data.splits")]
    place = given.run_dir / split
    config = load_config("intents", [
        *words, f"data.splits={given.data}/splits.json#{split}", *SETTINGS, f"run.seed={given.seed}",
        f"run.dir={place}", *given.more,
    ])  # fmt: skip
    return Path(distmeta.train(config, resume=True, show=True).checkpoint)


def scored(checkpoint: Path, kind: str, count: int, split: str) -> dict[str, Any]:
    """The meta-trained encoder and the frozen one on the same episodes, `kind` ways x shots."""
    saved = checkpoints.load(checkpoint)
    ways, shots = map(int, kind.split("x"))
    ours = distmeta.evaluate(checkpoint, episodes=count, split=split, ways=ways, shots=shots, baselines=False)
    store = open_store(json.loads((checkpoint.parents[1] / "environment.json").read_text())["store"])
    task = saved.config.task.model_copy(update={"ways": ways, "shots": shots})
    episodes = [sample_episode(store, task, saved.config.run.seed, split, i) for i in range(count)]
    model = load_model(saved)
    model.classes = ways
    values = {**model.fast, **model.shared}  # as they were before meta-training
    frozen = score_prototypes(model, values, episodes, saved.config, store.pad_id, torch.device("cpu"))
    both = {"meta_trained": ours.methods["meta_trained"], "frozen_prototypes": summarise(frozen)}
    return {name: {k: found[k] for k in ("accuracy", "f1", "loss")} for name, found in both.items()}


def mean_over_splits(runs: dict[str, Any], kind: str) -> dict[str, Any]:
    """Means of accuracy over the splits that have been scored at this kind."""
    mine = [run[kind] for run in runs.values() if kind in run]
    ours, frozen = (np.array([r[m]["accuracy"]["mean"] for r in mine]) for m in ("meta_trained", "frozen_prototypes"))
    return {
        "meta_trained": float(ours.mean()), "frozen_prototypes": float(frozen.mean()),
        "better_in": f"{int((ours > frozen).sum())} of {len(mine)} splits", "reported_floor": FLOORS.get(kind),
    }  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--pretrained", required=True)
    parser.add_argument("--run-dir", type=Path, default=Path("runs/intents-splits"))
    parser.add_argument("--splits", nargs="*", default=["01", "02", "03", "04", "05"])
    parser.add_argument("--kinds", nargs="*", default=["5x1", "5x5", "20x1"], help="ways x shots")
    parser.add_argument("--episodes", type=int, default=300, help="of 5 ways; of 20 ways a third as many")
    parser.add_argument("--score", default="test", help="tasks to score: test, or validation to choose settings by")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=RESULTS / "intents.json")
    parser.add_argument("more", nargs="*", help="further overrides, section.key=value")
    given = parser.parse_intermixed_args()
    record: dict[str, Any] = json.loads(given.out.read_text()) if given.out.exists() else {"runs": {}}
    asked = {
        "seed": given.seed, "settings": [*SETTINGS, *given.more], "scored": given.score, "episodes": given.episodes,
    }  # fmt: skip
    if other := [key for key, value in asked.items() if record.get(key, value) != value]:
        parser.error(
            f"{given.out} was begun with another value of {', '.join(other)}; move it away, or give another --out"
        )
    for split in given.splits:
        checkpoint = trained(given, split)
        environment = json.loads((checkpoint.parents[1] / "environment.json").read_text())
        run = record["runs"].setdefault(split, {"meta_steps": checkpoints.load(checkpoint).step})
        for kind in given.kinds:
            if kind not in run:
                count = given.episodes if int(kind.split("x")[0]) < 20 else given.episodes // 3
                run[kind] = scored(checkpoint, kind, count, given.score)
            print(split, kind, {name: round(found["accuracy"]["mean"], 4) for name, found in run[kind].items()})
            record |= {
                "command": shlex.join(sys.argv), **asked,
                "hardware": {key: environment[key] for key in ("platform", "cores")},
                "versions": environment["versions"],
                "means": {k: mean_over_splits(record["runs"], k) for k in given.kinds if k in run},
            }  # fmt: skip
            write_text(given.out, json.dumps(record, indent=1, ensure_ascii=False))


if __name__ == "__main__":
    main()
