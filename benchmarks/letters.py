"""CLINC150 under letters: does a pretrained decoder learn to classify unseen intents by examples alone?

    python benchmarks/letters.py --data DIR/clinc150 --pretrained MODEL_DIR --run-dir DIR --seeds 0 1 2

For each seed the recipe `llm` on the training classes of split 01; then, on episodes of classes never seen, the
accuracy over the episode's letters by how many examples of its class a text has before it, of the trained model and of
the base on the same episodes. One sequence scores every number of shots. Goes on from what --run-dir and the record
hold. Writes benchmarks/results/letters.json. No row of the data is kept.
"""

from __future__ import annotations

import argparse
import json
import shlex
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from records import RESULTS

import distmeta
from distmeta.config import load_config
from distmeta.evaluation.evaluate import load_model
from distmeta.evaluation.metrics import interval
from distmeta.evaluation.scoring import load_group
from distmeta.models.backbone import set_attention
from distmeta.runs import checkpoint as checkpoints
from distmeta.runs.checkpoint import write_text
from distmeta.tasks.episodes.episode import sample_episode
from distmeta.tasks.store import open_store

EPISODES_SEED = 1_000_003  # the same episodes for every seed of training


def trained(options: argparse.Namespace, seed: int) -> Path:
    """The run of a seed, trained unless it is whole."""
    place = options.run_dir / f"seed{seed}"
    config = load_config("llm", [
        f"model.pretrained={options.pretrained}", f"data.path={options.data}/data.parquet",
        f"data.splits={options.data}/splits.json#01", "cluster.workers=1", "sampling.actors=0", "eval.episodes=2",
        "eval.baselines=false", f"run.seed={seed}", f"run.dir={place}", *options.more,
    ])  # fmt: skip
    if not (place / "evaluation.json").is_file():
        distmeta.train(config, resume=True, show=True)
    return place


@torch.no_grad()
def by_shots(model: Any, values: dict[str, torch.Tensor], config: Any, store: Any, count: int) -> list[dict[str, Any]]:
    """Accuracy with its interval over episodes, by the examples of a text's class before it, 1, 2, ..."""
    set_attention(model.backbone, "first_order")
    device, letters = torch.device("cpu"), np.array(model.tokens.labels)
    hits = np.zeros((count, config.task.shots + config.task.queries))
    for index in range(count):
        episode = sample_episode(store, config.task, EPISODES_SEED, "test", index)
        _, (batch,) = load_group([episode], model, config, store.pad_id, device, training=True)
        scores = model.scores(values, model.features(values, batch))[0, 0]
        picked = scores[:, letters[: model.classes]].argmax(1).numpy()
        labels = np.concatenate([episode.support.labels, episode.query.labels])
        before = np.tril(labels[:, None] == labels, -1).sum(1)
        np.add.at(hits[index], before, (picked == labels) / model.classes)  # one example of each class has each number
    return [interval(values) for values in hits.T[1:]]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--pretrained", required=True)
    parser.add_argument("--run-dir", type=Path, default=Path("runs/letters"))
    parser.add_argument("--seeds", nargs="*", type=int, default=[0, 1, 2])
    parser.add_argument("--episodes", type=int, default=60)
    parser.add_argument("--out", type=Path, default=RESULTS / "letters.json")
    parser.add_argument("more", nargs="*", help="further overrides, section.key=value")
    options = parser.parse_intermixed_args()
    record: dict[str, Any] = json.loads(options.out.read_text()) if options.out.exists() else {"runs": {}}
    for seed in options.seeds:
        if str(seed) in record["runs"]:
            continue
        run = trained(options, seed)
        saved = checkpoints.load(run)
        environment = json.loads((run / "environment.json").read_text())
        store, model = open_store(environment["store"]), load_model(saved)
        began = time.perf_counter()
        if "base" not in record:
            record["base"] = by_shots(model, {**model.fast, **model.shared}, saved.config, store, options.episodes)
        steps = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
        record["runs"][str(seed)] = {
            "step": saved.step, "by_shots": by_shots(model, saved.meta, saved.config, store, options.episodes),
            "training_s": sum(step["inner_s"] + step["aggregate_s"] + step["wait_s"] for step in steps),
            "last_losses": [round(step["outer_loss"], 4) for step in steps[-10:]],
        }  # fmt: skip
        record |= {
            "command": shlex.join(sys.argv), "episodes": options.episodes, "scored_s": time.perf_counter() - began,
            "hardware": {key: environment[key] for key in ("platform", "cores")},
            "versions": environment["versions"],
        }  # fmt: skip
        write_text(options.out, json.dumps(record, indent=1))
        for name, each in (("base", record["base"]), (f"seed {seed}", record["runs"][str(seed)]["by_shots"])):
            print(name, " ".join(f"{of['mean']:.3f} [{of['low']:.3f}, {of['high']:.3f}]" for of in each), flush=True)


if __name__ == "__main__":
    main()
