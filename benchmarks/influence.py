"""Does the influence of a support example say what leaving it out does?

    python benchmarks/influence.py --run-dir DIR

On meta-test episodes of the built-in reviews (fifteen support examples, one query example), with the model of the
recipe `default` after 60 meta-steps: the predicted change of the query's log-probability without each support example,
against adapting again without it, the loss then being the mean over the others. Spearman's correlation within an
episode, and its mean over episodes; at the recipe's learnt rates, and at smaller ones. Also the CPU seconds of the
derivative beside those of one exact meta-gradient of the same episode. Writes benchmarks/results/influence.json.
"""

from __future__ import annotations

import argparse
import json
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from records import RESULTS
from scipy.stats import spearmanr

import distmeta
from distmeta.algorithms import maml
from distmeta.algorithms.rates import PREFIX, inner_loop
from distmeta.bench.measure import setting
from distmeta.config import load_config
from distmeta.evaluation.adaptable import on_device
from distmeta.evaluation.influence import Learner, left_out, loss_of, slopes_of
from distmeta.evaluation.scoring import load_group
from distmeta.inner import adapt
from distmeta.learner.gradients import group_gradient
from distmeta.models.backbone import set_attention
from distmeta.runs import checkpoint as checkpoints
from distmeta.tasks.build import build_store
from distmeta.tasks.episodes.episode import sample_episode
from distmeta.tasks.store import open_store

FACTORS = (1.0, 0.3, 0.1, 0.03)  # of the recipe's learnt rates
EPISODES = 24
ROUNDS = 5


def loss_after(learner: Learner, query: list[Any], weights: torch.Tensor) -> float:
    start = learner.start
    loss, loop = loss_of(start.model), inner_loop(start.config.inner, start.rates, learner.steps)
    shared = {**start.shared, "row_weights": weights}
    params = adapt(loss, start.fast, [("support", b) for b in learner.support], loop, shared=shared).params
    with torch.no_grad():
        return sum(float(loss({**shared, **params}, ("query", batch))) for batch in query)


def seconds_of(function: Any) -> float:
    each = []
    for _ in range(ROUNDS):
        began = time.process_time()
        function()
        each.append(time.process_time() - began)
    return min(each)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--run-dir", required=True, type=Path)
    asked = parser.parse_args()
    torch.set_num_threads(1)
    if not (asked.run_dir / "evaluation.json").is_file():
        keys = ["outer.steps=60", "eval.baselines=false", "eval.episodes=20", f"run.dir={asked.run_dir}"]
        distmeta.train(load_config("default", keys))
    saved = checkpoints.load(asked.run_dir, which="last")
    config = saved.config.model_copy(update={"task": saved.config.task.model_copy(update={"queries": 1})})
    store = open_store(build_store(config.data, config.task, config.model, tokenizer_file=saved.tokenizer_file,
                                   labels=saved.state["labels"]))  # fmt: skip
    start = on_device(saved, torch.device("cpu"))
    model, fast, shared, rates = start.model, dict(start.fast), dict(start.shared), start.rates
    set_attention(model.backbone, "exact")
    rows: list[dict[str, Any]] = []
    cost: list[float] = []
    for factor in FACTORS:
        scaled = {n: v + np.log(factor) if n.split(".")[0] == PREFIX else v for n, v in rates.items()}
        found, pairs = [], 0
        for index in range(EPISODES):
            episode = sample_episode(store, config.task, config.run.seed, "test", index)
            support, query = load_group([episode], model, config, store.pad_id, torch.device("cpu"))
            n = len(episode.support.labels)
            learner = Learner(replace(start, config=config, rates=scaled), support, n, config.inner.steps)
            one = [replace(query[0], total=1)] if len(query) == 1 else query
            predicted = left_out(slopes_of(learner, one))
            whole = loss_after(learner, one, torch.full((n,), 1 / n))
            changes = []
            for i in range(n):
                weights = torch.full((n,), 1 / (n - 1))
                weights[i] = 0.0
                changes.append(whole - loss_after(learner, one, weights))
            found.append(float(spearmanr(predicted, changes).statistic))
            pairs += n
            if factor == 1.0 and index < 4:
                loop = inner_loop(config.inner, scaled)
                plain = seconds_of(
                    lambda: group_gradient(model, fast, shared, maml, loop, (support, one), ["task"])  # noqa: B023
                )
                cost.append(seconds_of(lambda: slopes_of(learner, one)) / plain)  # noqa: B023
        rows.append({
            "rates": factor, "mean_spearman": round(float(np.mean(found)), 4), "least": round(min(found), 4),
            "episodes": EPISODES, "pairs": pairs,
        })  # fmt: skip
        print(rows[-1], flush=True)
    about = {key: value for key, value in setting({}).items() if key != "command"}
    record = {
        "command": "python benchmarks/influence.py --run-dir DIR", "setting": about, "rows": rows,
        "cpu_of_a_meta_gradient": round(float(np.median(cost)), 3),
    }  # fmt: skip
    print(record["cpu_of_a_meta_gradient"])
    (RESULTS / "influence.json").write_text(json.dumps(record, indent=1) + "\n")


if __name__ == "__main__":
    main()
