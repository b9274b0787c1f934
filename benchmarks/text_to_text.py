"""Do language models learn to learn a task in words? The built-in questions: GPT-2, the same in context, and T5.

    python benchmarks/text_to_text.py [NAME ...]

Trains each recipe from its configuration (or continues the run in --run-dir) and writes what its meta-test tasks gave,
before and after adaptation and beside the baselines, to benchmarks/results/text_to_text.json.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

from records import RESULTS

import distmeta
from distmeta.config import load_config
from distmeta.runs.checkpoint import write_text

RUNS = {
    "gpt2": ("questions", []),
    "gpt2_in_context": ("questions", ["algorithm=in_context", "eval.baselines=false"]),
    "t5": ("questions_t5", []),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", default=list(RUNS), help=", ".join(RUNS))
    parser.add_argument("--run-dir", type=Path, default=Path("runs/text-to-text"))
    options = parser.parse_args()
    path = RESULTS / "text_to_text.json"
    record = json.loads(path.read_text()) if path.is_file() else {"runs": {}}
    for name in options.names:
        recipe, words = RUNS[name]
        config = load_config(recipe, [*words, f"run.dir={options.run_dir / name}"])
        run = distmeta.train(config, resume=True, show=True)
        environment = json.loads((run.path / "environment.json").read_text())
        record |= {
            "command": "benchmarks/text_to_text.py",
            "hardware": {key: environment[key] for key in ("platform", "cores")},
            "versions": environment["versions"],
        }
        record["runs"][name] = {
            "recipe": recipe,
            "overrides": words,
            "seed": config.run.seed,
            "meta_steps": run.metrics[-1]["step"],
            "training_s": sum(r[k] for r in run.metrics for k in ("wait_s", "inner_s", "aggregate_s", "checkpoint_s")),
            "meta_test": run.evaluation,
            "answers": json.loads((run.path / "evaluation_details.json").read_text())["meta_trained"]["answers"],
        }
        write_text(path, json.dumps(record, indent=1, ensure_ascii=False))
    print(" ".join(sys.argv), "->", path)


if __name__ == "__main__":
    main()
