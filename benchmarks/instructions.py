"""Does meta-training help a pretrained decoder with instruction tasks that it has never seen?

    python benchmarks/instructions.py --data DIR/instruction_induction --pretrained MODEL_DIR [--methods in_context ...]
    python benchmarks/instructions.py --data DIR/natural_instructions_v1 --pretrained MODEL_DIR --by-corpus \
        --out benchmarks/results/natural_instructions.json model.max_tokens=128 model.answer_tokens=32 outer.steps=100

Leave-tasks-out: the 24 tasks are divided into folds of eight; of each fold's 16 others, three are for validation and 13
for meta-training. --by-corpus: one fold instead, whose test tasks are of source corpora (CosmosQA, QASC) that no other
task was made from. A task is given by five examples without its instruction. All methods of a fold are scored on the
same episodes, by the words of their answers (token F1) and the loss of the right answer; differences are paired, and
their intervals are over the tasks of all folds. Goes on from what the record holds; writes
benchmarks/results/instructions.json. No row of the data is kept.
"""

from __future__ import annotations

import argparse
import json
import os
import random
from dataclasses import replace
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")
import numpy as np
import pyarrow.parquet as pq
import torch
from real_text import held_out
from records import RESULTS

import distmeta
from distmeta.algorithms.rates import initial_log_rates, inner_loop
from distmeta.bench.measure import setting
from distmeta.config import Config, load_config
from distmeta.evaluation import baselines
from distmeta.evaluation.evaluate import load_model
from distmeta.evaluation.metrics import over_groups
from distmeta.evaluation.scoring import Scoring, split_meta
from distmeta.runs import checkpoint
from distmeta.runs.checkpoint import write_text
from distmeta.tasks.store import open_store

FOLDS, VALIDATION, SHUFFLE = 3, 3, 0
ADAM = ["inner.optimizer=adam", "inner.lr=1.5e-3", "inner.steps=4"]
METHODS = {
    "in_context": ["algorithm=in_context"],
    "fomaml": ["algorithm=fomaml", *ADAM],
    "in context + fomaml": ["algorithm=fomaml", "model.head=context", *ADAM],
    "maml": ["algorithm=maml", *ADAM],
    "reptile": ["algorithm=reptile", *ADAM],
    "multi_task": ["algorithm=multi_task", *ADAM],
}
BASE = ("base_zero_shot", "base_in_context", "fine_tuned")  # rows of a fold that its first run brings
SHOWN = ("token_f1", "exact_match", "loss")


def splits(data: Path, fold: int) -> dict[str, list[str]]:
    """The tasks of each split; every task is in the test split of one fold."""
    tasks = sorted(set(pq.read_table(data / "data.parquet", columns=["task"])["task"].to_pylist()))
    random.Random(SHUFFLE).shuffle(tasks)
    others = [task for i, task in enumerate(tasks) if i % FOLDS != fold]
    return {"test": tasks[fold::FOLDS], "validation": others[:VALIDATION], "train": others[VALIDATION:]}


def configured(options: argparse.Namespace, method: str, fold: int, seed: int) -> Config:
    place = options.run_dir / f"{method.replace(' ', '')}-fold{fold}-seed{seed}"
    tasks = held_out(options.data) if options.by_corpus else splits(options.data, fold)
    return load_config("instructions", [
        f"data.path={options.data}/data.parquet", "data.input=text", "data.target=answers",
        f"data.splits={json.dumps(tasks)}", f"model.pretrained={options.pretrained}",
        "task.prompt=plain", "task.instructions=false", "task.queries=2", "model.lora_rank=16", "model.lora_alpha=32",
        "model.lora_targets=all-linear", "outer.base=freeze",
        "outer.lr=5e-4", "outer.schedule=linear", "outer.meta_batch_size=2", "eval.every=0", "eval.baselines=false",
        "eval.episodes=2", "eval.queries=5", "cluster.workers=1", "sampling.actors=0", "run.checkpoint_every=50",
        *METHODS[method], f"run.seed={seed}", f"run.dir={place}", *options.more,
    ])  # fmt: skip


def of_run(run: Path, episodes: int) -> baselines.Setting:
    """What is scored of a trained run: the fold's test episodes, the same for every method and seed."""
    saved = checkpoint.load(run)
    config = saved.config.model_copy(update={
        "run": saved.config.run.model_copy(update={"seed": 0}),
        "eval": saved.config.eval.model_copy(update={"episodes": episodes}),
    })  # fmt: skip
    environment = json.loads((run / "environment.json").read_text())
    store, model = open_store(environment["store"]), load_model(saved)
    fast, shared, rates = split_meta(model, saved.meta)
    loop = inner_loop(config.inner, rates)
    scoring = Scoring(model, fast, shared, loop, config.of_evaluation(), store.pad_id, torch.device("cpu"))
    rest = {"rank": 0, "world": 1, "gather": lambda values: values, "score": None, "say": print}
    found = baselines.Setting(scoring, [], store, "test", config, **rest)
    return replace(found, episodes=found.draw("test", 0, episodes))


def row(scored: Any) -> dict[str, Any]:
    """Of each episode: its task, and what is shown of it."""
    each = [one.metrics() for one in scored]
    return {"task": [one.task for one in scored]} | {n: [round(float(m[n][-1]), 5) for m in each] for n in SHOWN}


def trained_row(found: baselines.Setting) -> Any:
    """After its inner steps, or, if it learnt to read, with the support set before its eyes."""
    return found.score_all(found.scoring, found.episodes)


def untrained_row(found: baselines.Setting) -> Any:
    """The same inner steps from the model as it comes, at the rates that the training began with."""
    inner, model = found.config.inner, found.scoring.model
    loop = inner_loop(inner, initial_log_rates(inner, model.adapted))
    return found.score_all(replace(found.untrained, loop=loop), found.episodes)


def over_folds(record: dict[str, Any], name: str, other: str | None, metric: str) -> dict[str, float]:
    """Mean of a row (less another's), with its interval over the tasks of all folds that have both."""
    values: list[float] = []
    tasks: list[str] = []
    for fold in record["folds"].values():
        if name in fold and (other is None or other in fold):
            less = np.array(fold[other][metric]) if other else 0.0
            values += list(np.array(fold[name][metric]) - less)
            tasks += [str(task) for task in fold[name]["task"]]
    bounds = {"loss": (-np.inf, np.inf)}.get(metric, (-1.0, 1.0) if other else (0.0, 1.0))
    return over_groups(np.array(values), tasks, "tasks", bounds) if values else {}


def with_means(rows: dict[str, Any]) -> dict[str, Any]:
    """Rows of a fold, and of a method with several seeds the mean of each episode over them."""
    seeds: dict[str, list[Any]] = {}
    for name, row in rows.items():
        method, _, seed = name.partition(", seed ")
        if seed:
            seeds.setdefault(method, []).append(row)
    return rows | {
        f"{method}, mean of {len(each)} seeds": {
            "task": each[0]["task"], **{metric: np.mean([one[metric] for one in each], 0).tolist() for metric in SHOWN}
        }
        for method, each in seeds.items() if len(each) > 1
    }  # fmt: skip


def summary(record: dict[str, Any]) -> dict[str, Any]:
    """Of each row its scores, and what it has more than the others that a user would take."""
    record = {"folds": {fold: with_means(rows) for fold, rows in record["folds"].items()}}
    names = dict.fromkeys(name for fold in record["folds"].values() for name in fold)
    of = {name: {metric: over_folds(record, name, None, metric) for metric in SHOWN} for name in names}
    for name in names:
        for other in ("base_in_context", "fine_tuned", f"{name.split(',')[0]}, not meta-trained"):
            for metric in ("token_f1", "loss"):
                if name != other and (less := over_folds(record, name, other, metric)):
                    of[name][f"{metric} less {other}"] = less
    return of


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--pretrained", required=True)
    parser.add_argument("--run-dir", type=Path, default=Path("runs/instructions"))
    parser.add_argument("--methods", nargs="+", default=["in_context"], choices=METHODS)
    folds = parser.add_mutually_exclusive_group()
    folds.add_argument("--folds", nargs="+", type=int, default=list(range(FOLDS)))
    folds.add_argument("--by-corpus", action="store_true", help="one fold, held out by source corpus")
    parser.add_argument("--seeds", nargs="+", type=int, default=[0])
    parser.add_argument("--episodes", type=int, default=40, help="of each fold")
    parser.add_argument("--base", nargs="*", default=list(BASE), choices=BASE, help="rows beside the methods'")
    parser.add_argument("--out", type=Path, default=RESULTS / "instructions.json")
    parser.add_argument("more", nargs="*", help="further overrides, section.key=value")
    options = parser.parse_intermixed_args()
    torch.set_num_threads(1)
    record: dict[str, Any] = json.loads(options.out.read_text()) if options.out.exists() else {"folds": {}}

    def note(fold: int, name: str, scored: Any) -> None:
        record["folds"].setdefault(str(fold), {})[name] = row(scored)
        record.update(setting({"runs": options.seeds}), episodes=options.episodes, summary=summary(record))
        write_text(options.out, json.dumps(record, indent=1))
        print(fold, name, round(float(np.mean(record["folds"][str(fold)][name]["token_f1"])), 3), flush=True)

    for fold in [0] if options.by_corpus else options.folds:
        for method in options.methods:
            for seed in options.seeds:
                name, config = f"{method}, seed {seed}", configured(options, method, fold, seed)
                rows = record["folds"].setdefault(str(fold), {})
                asked = [one for one in options.base if one not in rows]
                untrained = f"{method}, not meta-trained"
                wanted = config.algorithm != "in_context" and untrained not in rows
                if name in rows and not asked and not wanted:
                    continue
                run = Path(config.run.dir)
                if not (run / "evaluation.json").is_file():
                    distmeta.train(config, resume=True, show=True)
                found = of_run(run, options.episodes)
                words = [*METHODS[method], *options.more]
                record.setdefault("methods", {})[name] = {"meta_steps": config.outer.steps, "settings": words}
                if name not in rows:
                    note(fold, name, trained_row(found))
                if wanted:
                    note(fold, untrained, untrained_row(found))
                for one in asked:
                    if (result := baselines.BASELINES[one](found)) is not None:
                        note(fold, one, result[0])


if __name__ == "__main__":
    main()
