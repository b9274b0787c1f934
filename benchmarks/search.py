"""Does a search find the inner learning rate, at what cost, and what does it gain on real text?

    python benchmarks/search.py builtin
    python benchmarks/search.py intents   --data DIR/clinc150 --pretrained MODEL_DIR
    python benchmarks/search.py sentiment --data DIR/zh_reviews_3class
    python benchmarks/search.py letters   --data DIR/clinc150 --pretrained DECODER_DIR

builtin: 16 trials with ASHA, and a grid of 16 rates over the same range, each to its end: do they agree, and how many
meta-steps did each spend? The others: a search from the recipe's defaults, then its best.yaml and the defaults are
trained and scored on the same meta-test episodes (letters: recipe `llm`, intents under letters). Searches that were
begun in --run-dir are continued. Writes benchmarks/results/search.json or search_NAME.json, or --out. No row of the
data is kept.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from real_text import overrides
from records import RESULTS

import distmeta
from distmeta.algorithms.rates import inner_loop
from distmeta.config import load_config
from distmeta.evaluation.evaluate import load_model
from distmeta.evaluation.paired import difference
from distmeta.evaluation.scoring import Scoring, score_episodes, split_meta
from distmeta.runs import checkpoint
from distmeta.runs.checkpoint import write_text
from distmeta.tasks.episodes.episode import sample_episode
from distmeta.tasks.store import open_store

RECIPES = {"intents": "intents", "sentiment": "sentiment", "letters": "llm"}
RANGE = [0.01, 3.0]
STEPS = 81
# One rank a trial, so that two cores hold two trials; the rate is constant, and all else is the recipe's.
SHORT = [
    "cluster.workers=1", "sampling.actors=0", f"outer.steps={STEPS}", "eval.every=8", "eval.validation_episodes=100",
    "eval.episodes=20", "inner.learn_lr=none", "tune.rivals=[]",
]  # fmt: skip


def searched(words: list[str], recipe: str | None = None) -> dict[str, Any]:
    """A search's best trial, what it spent, and all of its trials."""
    began = time.monotonic()
    search = distmeta.tune(load_config(recipe, words), resume=True, show=True)
    rows = search.trials
    best = search.best
    assert best is not None
    kept = (
        "number",
        "kind",
        "params",
        "status",
        "reason",
        "value",
        "low",
        "high",
        "adapt_steps",
        "meta_steps",
        "curve",
    )
    return {
        "path": os.path.relpath(search.path),
        "settings": [word for word in words if not word.startswith(("data.", "model.pretrained", "tune.dir"))],
        "wall_s": time.monotonic() - began,
        "meta_steps": sum(row["meta_steps"] for row in rows),
        "best": {key: best[key] for key in kept},
        "trials": [{key: row[key] for key in kept} for row in rows],
    }


def builtin(place: Path, seed: int, grid: dict[str, Any] | None) -> dict[str, Any]:
    """`grid`: what it gave before, if it need not run again."""
    words = [*SHORT, f"run.seed={seed}", f"tune.seed={seed}"]
    rates = [float(f"{rate:.4g}") for rate in np.geomspace(*RANGE, 16)]
    asha = searched(
        [*words, f"tune.space={{inner.lr: {{log_uniform: {RANGE}}}}}", "tune.scheduler=asha", "tune.grace=8",
         "tune.reduction=4", "tune.trials=16", f"tune.dir={place / 'asha'}"]
    )  # fmt: skip
    grid = grid or searched(
        [*words, f"tune.space={{inner.lr: {{grid: {rates}}}}}", "tune.searcher=grid", "tune.scheduler=none",
         f"tune.dir={place / 'grid'}"]
    )  # fmt: skip
    found, best = (which["best"]["params"]["inner.lr"] for which in (asha, grid))
    return {
        "found_inner_lr": found,
        "grid_best_inner_lr": best,
        "factor": max(found / best, best / found),
        "within_a_factor_of_2": max(found / best, best / found) <= 2,
        "share_of_meta_steps": asha["meta_steps"] / grid["meta_steps"],
        "asha": asha,
        "grid": grid,
    }


def real(name: str, words: list[str], place: Path, seed: int, more: list[str], steps: int | None) -> dict[str, Any]:
    """The search's best against the recipe's defaults, both trained anew and scored on the same episodes.

    `more` holds for the search and for both runs. steps: the meta-steps of both; None: as many as a trial's.
    """
    words = [*words, *more, f"run.seed={seed}"]
    recipe = RECIPES[name]
    search = searched([*words, f"tune.dir={place / 'search'}"], recipe)
    longer = [f"outer.steps={steps}"] if steps else []
    runs = {which: place / (f"{which}-{steps}" if steps else which) for which in ("tuned", "defaults")}
    best = load_config(Path(search["path"]) / "best.yaml", [*longer, f"run.dir={runs['tuned']}"])
    tuned = distmeta.train(best, resume=True, show=True)
    defaults = load_config(recipe, [*words, *longer, f"run.dir={runs['defaults']}"])
    plain = distmeta.train(defaults, resume=True, show=True)
    paired = {}
    for split in ("validation", "test"):
        ours, theirs = (by_episode(run.path, split, defaults.eval.episodes) for run in (tuned, plain))
        paired[split] = difference(ours, theirs, by_class=name != "sentiment")
    return {
        "search": search,
        "meta_steps": defaults.outer.steps,
        "training_s": {name: seconds(run.path) for name, run in (("tuned", tuned), ("defaults", plain))},
        "tuned less defaults": paired["test"],
        "tuned less defaults, on meta-validation": paired["validation"],
        "meta_test": {
            "tuned": tuned.evaluation["meta_trained"],
            "defaults": plain.evaluation["meta_trained"],
            "baselines": {k: v for k, v in plain.evaluation.items() if k != "meta_trained"},
        },
    }


def seconds(run: Path) -> float:
    """What the meta-steps of a run took, without validation."""
    steps = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return float(sum(step["wait_s"] + step["inner_s"] + step["aggregate_s"] for step in steps))


def by_episode(run: Path, split: str, count: int) -> list[Any]:
    """The first `count` episodes of a split, as the run adapts to them."""
    saved = checkpoint.load(run)
    config, model = saved.config, load_model(saved)
    store = open_store(json.loads((run / "environment.json").read_text())["store"])
    fast, shared, rates = split_meta(model, saved.meta)
    loop = inner_loop(config.inner, rates, config.inner.steps if config.eval.steps is None else config.eval.steps)
    scoring = Scoring(model, fast, shared, loop, config.of_evaluation(), store.pad_id, torch.device("cpu"))
    task = config.of_evaluation().task
    return score_episodes(scoring, [sample_episode(store, task, config.run.seed, split, i) for i in range(count)])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("name", choices=["builtin", *RECIPES])
    parser.add_argument("--data", type=Path)
    parser.add_argument("--pretrained")
    parser.add_argument("--run-dir", type=Path, default=None)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--steps", type=int, help="train the search's best and the defaults for so many meta-steps")
    parser.add_argument("--out", type=Path)
    parser.add_argument("--keep-grid", action="store_true", help="builtin: take the grid from search.json")
    parser.add_argument("more", nargs="*", help="further overrides of the search and of both runs, section.key=value")
    options = parser.parse_intermixed_args()
    if options.keep_grid and not (options.name == "builtin" and (RESULTS / "search.json").exists()):
        parser.error(f"--keep-grid: only for builtin, after a run that has written {RESULTS / 'search.json'}")
    if options.steps and options.name == "builtin":
        parser.error("--steps: the built-in search is compared with a grid, not with longer runs; leave it out")
    place = options.run_dir or Path("runs") / f"search-{options.name}-{options.seed}"
    if options.name == "builtin":
        before = json.loads((RESULTS / "search.json").read_text())["grid"] if options.keep_grid else None
        result = builtin(place, options.seed, before)
        environment = json.loads((place / "asha" / "environment.json").read_text())
    else:
        if options.data is None:
            parser.error("--data is needed")
        result = real(
            options.name, overrides(options.name, options.data, options.pretrained), place, options.seed, options.more,
            options.steps,
        )  # fmt: skip
        environment = json.loads((place / "search" / "environment.json").read_text())
    record = {
        "command": " ".join(sys.argv),
        "hardware": {key: environment[key] for key in ("platform", "cores")},
        "versions": environment["versions"],
        "seed": options.seed,
        **({"note": "the grid is of an earlier run of this command"} if options.keep_grid else {}),
        **result,
    }
    name = "search.json" if options.name == "builtin" else f"search_{options.name}.json"
    write_text(options.out or RESULTS / name, json.dumps(record, indent=1, ensure_ascii=False))


if __name__ == "__main__":
    main()
