"""CLINC150, five published class splits, 5- and 20-way, 1- and 5-shot: do meta-learnt features beat frozen ones?

    python benchmarks/intents.py --data DIR/clinc150 --pretrained MODEL_DIR --run-dir DIR

Recipe `intents` with algorithm=prototypes (LoRA is meta-learnt, a new task costs one forward pass) on each split, then
meta-test episodes of classes never seen, beside prototypes of the frozen encoder on the same episodes. Runs that are
whole in --run-dir are not done again. Writes benchmarks/results/intents.json. No row of the data is kept.
"""

from __future__ import annotations

import argparse
import json
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

FLOORS = {(5, 1): 0.946, (5, 5): 0.988}  # frozen encoder, nearest prototype, 600 episodes


def one(given: argparse.Namespace, split: str, ways: int, shots: int) -> dict[str, Any]:
    place = given.run_dir / f"{split}-{ways}way-{shots}shot"
    words = [w for w in overrides("intents", given.data, given.pretrained) if not w.startswith("data.splits")]
    run = distmeta.train(
        load_config("intents", [
            *words, f"data.splits={given.data}/splits.json#{split}", "algorithm=prototypes", f"task.ways={ways}",
            f"task.shots={shots}", "task.queries=5", "eval.baselines=false", "eval.every=0",
            f"run.seed={given.seed}", f"run.dir={place}", *given.more,
        ]), resume=True, show=True,
    )  # fmt: skip
    saved = checkpoints.load(run.checkpoint)
    store = open_store(json.loads((place / "environment.json").read_text())["store"])
    count = run.evaluation["meta_trained"]["accuracy"]["episodes"]
    episodes = [sample_episode(store, saved.config.task, given.seed, "test", i) for i in range(count)]
    model = load_model(saved)
    values = {**model.fast, **model.shared}  # as they were before meta-training: LoRA's products are zero
    frozen = score_prototypes(model, values, episodes, saved.config, store.pad_id, torch.device("cpu"))
    return {
        "split": split, "ways": ways, "shots": shots, "meta_steps": saved.step,
        "meta_trained": run.evaluation["meta_trained"], "frozen_prototypes": summarise(frozen),
    }  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--pretrained", required=True)
    parser.add_argument("--run-dir", type=Path, default=Path("runs/intents-splits"))
    parser.add_argument("--splits", nargs="*", default=["01", "02", "03", "04", "05"])
    parser.add_argument("--kinds", nargs="*", default=["5x1", "5x5", "20x1"], help="ways x shots")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("more", nargs="*", help="further overrides, section.key=value")
    given = parser.parse_intermixed_args()
    runs = []
    for kind in given.kinds:
        ways, shots = map(int, kind.split("x"))
        runs += [one(given, split, ways, shots) for split in given.splits]
    environment = json.loads(next(given.run_dir.glob("*/environment.json")).read_text())
    means = {}
    for kind in given.kinds:
        ways, shots = map(int, kind.split("x"))
        mine = [r for r in runs if (r["ways"], r["shots"]) == (ways, shots)]
        ours, frozen = (
            np.array([r[method]["accuracy"]["mean"] for r in mine]) for method in ("meta_trained", "frozen_prototypes")
        )
        means[kind] = {
            "meta_trained": float(ours.mean()), "frozen_prototypes": float(frozen.mean()),
            "better_in": f"{int((ours > frozen).sum())} of {len(mine)} splits",
            "reported_floor": FLOORS.get((ways, shots)),
        }  # fmt: skip
    record = {
        "command": " ".join(sys.argv),
        "hardware": {key: environment[key] for key in ("platform", "cores")},
        "versions": environment["versions"],
        "seed": given.seed,
        "settings": given.more,
        "means": means,
        "runs": runs,
    }
    RESULTS.mkdir(exist_ok=True)
    write_text(RESULTS / "intents.json", json.dumps(record, indent=1, ensure_ascii=False))


if __name__ == "__main__":
    main()
