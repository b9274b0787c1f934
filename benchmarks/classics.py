"""The classics of meta-learning: do they come out?

    python benchmarks/classics.py sinusoid --run-dir DIR --checkpoint last
    python benchmarks/classics.py navigation --run-dir DIR

They are recipes with the words below, and train as a command would: ranks, samplers, checkpoints. A run directory that
is there is gone on with, and one that has ended is only read. Writes their part of
benchmarks/results/trained_classics.json. (Of Omniglot: benchmarks/images.py.) Of navigation also the policy pretrained
on all goals, which adapts by as many rollouts, and the paired difference.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

from records import RESULTS

import distmeta
from distmeta.bench.measure import setting, write_json
from distmeta.config import load_config
from distmeta.runs import checkpoint as checkpoints

WORDS = {  # of the protocols of Finn et al. 2017, with more steps of the same rates at test
    "sinusoid": ["outer.steps=30000", "outer.lr=6e-3", "eval.every=5000", "eval.baselines=false"],
    "navigation": [],
}  # fmt: skip
METRIC = {"sinusoid": "loss", "navigation": "return"}


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="name", required=True)
    for name in WORDS:
        command = commands.add_parser(name)
        command.add_argument("--run-dir", type=Path, required=True)
        command.add_argument("--checkpoint", default="best", help="the meta-step that is scored")
        command.add_argument("more", nargs="*", help="further overrides, section.key=value")
    return parser.parse_args()


def trained(name: str, run: Path, which: str, more: list[str]) -> dict[str, Any]:
    """The scores of a recipe's run after each inner step, on its meta-test episodes."""
    words = [*WORDS[name], *more]
    if not (run / "evaluation.json").is_file():
        distmeta.train(load_config(name, [*words, f"run.dir={run}"]), resume=run.exists())
    config = checkpoints.read_config(run / "config.yaml")
    if which == "best":
        files = (run / f"evaluation{part}.json" for part in ("", "_details"))
        methods, details = (json.loads(file.read_text()) for file in files)
    else:
        evaluation = distmeta.evaluate(run, checkpoint=which, episodes=config.eval.episodes)
        methods, details = evaluation.methods, evaluation.details
    curve = details["meta_trained"]["curves"][METRIC[name]]
    of_pretrained: dict[str, Any] = {}
    if "multi_task" in methods:
        less = details["differences"]["multi_task"][METRIC[name]]
        of_pretrained = {"pretrained": methods["multi_task"][METRIC[name]], "less_pretrained": less}
    print(name, [f"{x:.3f}" for x in curve["mean"]])
    return {
        "command": " ".join(["distmeta train", name, *(word for word in words if not word.startswith("data.path"))]),
        "meta_steps": details["settings"]["meta_step"], "asked": config.outer.steps,
        "ranks": config.cluster.workers, "samplers": config.sampling.actors, "episodes": config.eval.episodes,
        METRIC[name]: curve, **of_pretrained,
    }  # fmt: skip


def main() -> None:
    options = arguments()
    out = RESULTS / "trained_classics.json"
    record: dict[str, Any] = json.loads(out.read_text()) if out.exists() else {}
    found = trained(options.name, options.run_dir, options.checkpoint, options.more)
    write_json(out, {**record, **setting({"runs": [0]}), options.name: found})


if __name__ == "__main__":
    main()
