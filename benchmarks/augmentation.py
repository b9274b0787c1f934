"""Which augmentation of the training episodes helps? The built-in default recipe, cut short, each against none.

    python benchmarks/augmentation.py

One rank, one thread, one process. Each augmentation alone, and none, for each seed: the same number of meta-steps on
the same episodes, but for what the augmentation does to them; then the accuracy on meta-test episodes, the same for all
runs of a seed, so that differences are paired episode by episode. The interval of a difference is by Student's t over
the seeds' means: what another seed would give is what one wants to know. Writes benchmarks/results/augmentation.json
after every run, and goes on from there.
"""

from __future__ import annotations

import argparse
import json
import os
import tempfile
import time
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("LOCAL_RANK", "0")

import numpy as np
from records import RESULTS
from scipy.stats import t as student

from distmeta.bench.measure import setting, write_json
from distmeta.config import Config, load_config

VARIANTS = {
    "none": [],
    "token_dropout": ["task.augment.token_dropout=0.1"],
    "word_swap": ["task.augment.word_swap=0.1"],
    "mix": ["task.augment.mix=0.1"],
    "permute_labels": ["task.augment.permute_labels=true"],
    "resplit": ["task.augment.resplit=true"],
}


def configured(variant: str, seed: int, steps: int, words: list[str]) -> Config:
    return load_config(
        "default",
        [*VARIANTS[variant], f"run.seed={seed}", f"outer.steps={steps}", f"run.checkpoint_every={steps}",
         "eval.baselines=false", "eval.episodes=2", "cluster.workers=1", "sampling.actors=0", *words],
    )  # fmt: skip


def accuracies(config: Config, episodes: int) -> list[float]:
    """Of each meta-test episode, after training and the recipe's inner steps."""
    import torch

    from distmeta.algorithms.rates import inner_loop
    from distmeta.drive.train import prepare_store
    from distmeta.evaluation.evaluate import load_model
    from distmeta.evaluation.scoring import Scoring, by_episode, score_episodes, split_meta
    from distmeta.learner.worker import learn
    from distmeta.runs import checkpoint
    from distmeta.tasks.episodes.episode import sample_episode
    from distmeta.tasks.store import open_store

    with tempfile.TemporaryDirectory(prefix="distmeta-augmentation-") as place:
        store_path = prepare_store(config)
        learn(config, Path(place), store_path, [], 0, 1, torch.device("cpu"))
        saved, store = checkpoint.load(place), open_store(store_path)
    model = load_model(saved)
    fast, shared, rates = split_meta(model, saved.meta)
    episodes_ = [sample_episode(store, config.task, config.run.seed, "test", i) for i in range(episodes)]
    loop = inner_loop(config.inner, rates)
    scoring = Scoring(model, fast, shared, loop, config, store.pad_id, torch.device("cpu"))
    scored = score_episodes(scoring, episodes_, curve=False)
    return [round(float(x), 6) for x in by_episode(scored)["accuracy"][:, -1]]


def compared(runs: dict[str, dict[str, Any]], none: dict[str, dict[str, Any]]) -> dict[str, Any]:
    """Mean accuracy, and its difference from no augmentation with a 95% interval over seeds."""
    seeds = sorted(set(runs) & set(none))
    mean = float(np.mean([np.mean(runs[seed]["accuracy"]) for seed in seeds]))
    gains = [float(np.mean(np.subtract(runs[seed]["accuracy"], none[seed]["accuracy"]))) for seed in seeds]
    half = float(student.ppf(0.975, len(gains) - 1) * np.std(gains, ddof=1) / len(gains) ** 0.5) if gains[1:] else 0.0
    gain = float(np.mean(gains))
    return {"accuracy": mean, "gain": gain, "low": gain - half, "high": gain + half, "gain_by_seed": gains}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", default="0,1,2")
    parser.add_argument("--steps", type=int, default=60, help="meta-steps of each run")
    parser.add_argument("--episodes", type=int, default=200, help="meta-test episodes")
    parser.add_argument("--out", type=Path, default=RESULTS / "augmentation.json")
    parser.add_argument("more", nargs="*", help="further overrides, section.key=value")
    options = parser.parse_args()
    import torch
    import torch.distributed as dist

    torch.set_num_threads(1)
    seeds = [int(seed) for seed in options.seeds.split(",")]
    record: dict[str, Any] = json.loads(options.out.read_text()) if options.out.exists() else {"runs": {}}
    with tempfile.TemporaryDirectory(prefix="distmeta-group-") as place:
        dist.init_process_group("gloo", init_method=f"file://{place}/group", world_size=1, rank=0)
        for seed in seeds:
            for variant in VARIANTS:
                told = record["runs"].setdefault(variant, {})
                if str(seed) in told:
                    continue
                began = time.process_time()
                scores = accuracies(configured(variant, seed, options.steps, options.more), options.episodes)
                told[str(seed)] = {"accuracy": scores, "cpu_seconds": round(time.process_time() - began, 1)}
                print(variant, seed, round(float(np.mean(scores)), 4), told[str(seed)]["cpu_seconds"], flush=True)
                none = record["runs"]["none"]
                record |= {
                    **setting({"runs": seeds}), "meta_steps": options.steps, "episodes": options.episodes,
                    "settings": {**VARIANTS, "all": options.more},
                    "compared": {name: compared(runs, none) for name, runs in record["runs"].items()},
                }  # fmt: skip
                write_json(options.out, record)
        dist.destroy_process_group()
    for name, scores in record["compared"].items():
        print(
            f"{name:15} {scores['accuracy']:.3f}  {scores['gain']:+.3f} [{scores['low']:+.3f}, {scores['high']:+.3f}]"
        )


if __name__ == "__main__":
    main()
