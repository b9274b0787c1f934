"""The classics of meta-learning: do they come out?

    python benchmarks/classics.py sinusoid --run-dir DIR
    python benchmarks/classics.py omniglot --run-dir DIR data.path=TABLE.parquet      columns image, label, split
    python benchmarks/classics.py navigation

sinusoid and omniglot are recipes with the words below, and train as a command would: ranks, samplers, checkpoints. A
run directory that is there is gone on with, and one that has ended is only read. Writes their part of
benchmarks/results/trained_classics.json. TABLE: as benchmarks/images.py makes it of Omniglot's small set.

navigation is a torch.nn.Module, a loss of its parameters, and `distmeta.inner`, and nothing else of distmeta; its
protocol is in classics_navigation.py. On one thread; what was trained is kept in --run-dir, from which a run that was
cut off continues. Writes benchmarks/results/classics_navigation.json.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import classics_navigation as navigation
import torch
from classics_shared import RESULTS

import distmeta
from distmeta.bench.measure import setting, write_json
from distmeta.config import load_config
from distmeta.runs import checkpoint as checkpoints

WORDS = {  # of the protocols of Finn et al. 2017, with more steps of the same rates at test
    "sinusoid": ["outer.steps=15000", "eval.every=3000", "eval.baselines=false"],
    "omniglot": [
        "outer.steps=1500", "outer.meta_batch_size=16", "inner.steps=1", "inner.lr=0.4", "task.augment.flips=classes",
        "model.config={hidden_size: 32, num_hidden_layers: 4, norm: batch}", "eval.steps=3", "eval.queries=15",
        "eval.episodes=600", "eval.baselines=false", "cluster.workers=1", "sampling.actors=1",
    ],
}  # fmt: skip
METRIC = {"sinusoid": "loss", "omniglot": "accuracy"}


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="name", required=True)
    for name in WORDS:
        command = commands.add_parser(name)
        command.add_argument("--run-dir", type=Path, required=True)
        command.add_argument("--checkpoint", default="best", help="the meta-step that is scored")
        command.add_argument("more", nargs="*", help="further overrides, section.key=value")
    command = commands.add_parser("navigation", description=navigation.__doc__)
    command.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    command.add_argument("--run-dir", type=Path, default=Path("runs") / "classics")
    command.add_argument("--out", type=Path, default=RESULTS / "classics_navigation.json")
    sizes = {"steps": 400, "meta-batch": 20, "trajectories": 20, "horizon": 20, "tasks": 400}
    for key, value in {**sizes, "inner-lr": 0.05, "outer-lr": 1e-3}.items():
        command.add_argument(f"--{key}", type=type(value), default=value, help=f"default: {value}")
    return parser.parse_args()


def trained(name: str, run: Path, which: str, more: list[str]) -> dict[str, Any]:
    """The scores of a recipe's run after each inner step, on its meta-test episodes."""
    words = [*WORDS[name], *more]
    if which == "best" and not (run / "evaluation.json").is_file():
        distmeta.train(load_config(name, [*words, f"run.dir={run}"]), resume=run.exists())
    config = checkpoints.read_config(run / "config.yaml")
    evaluation = distmeta.evaluate(run, checkpoint=which, episodes=config.eval.episodes)
    curve = evaluation.details["meta_trained"]["curves"][METRIC[name]]
    print(name, [f"{x:.3f}" for x in curve["mean"]])
    return {
        "command": f"distmeta train {name} {' '.join(word for word in words if not word.startswith('data.path'))}",
        "meta_steps": evaluation.details["settings"]["meta_step"], "asked": config.outer.steps,
        "ranks": config.cluster.workers, "samplers": config.sampling.actors, "episodes": config.eval.episodes,
        METRIC[name]: curve,
    }  # fmt: skip


def main() -> None:
    options = arguments()
    if options.name != "navigation":
        out = RESULTS / "trained_classics.json"
        record: dict[str, Any] = json.loads(out.read_text()) if out.exists() else {}
        found = trained(options.name, options.run_dir, options.checkpoint, options.more)
        write_json(out, {**record, **setting({"runs": [0]}), options.name: found})
        return
    torch.set_num_threads(1)
    result = navigation.run(options)
    write_json(options.out, {**setting({str(seed): seed for seed in options.seeds}), **result})
    for row in navigation.rows(result):
        print(*row, sep="  ")
    for claim, held in result["holds"].items():
        print(f"{claim}: {'holds' if held else 'MISSED'}")


if __name__ == "__main__":
    main()
