"""What does meta-training give on real text? CLINC150 intents, and Chinese three-class reviews.

    python benchmarks/real_text.py intents   --data DIR/clinc150 --pretrained MODEL_DIR
    python benchmarks/real_text.py sentiment --data DIR/zh_reviews_3class

Runs the recipe of that name with its defaults on the data (or continues the run in --run-dir), scores meta-train and
meta-test tasks, and writes benchmarks/results/real_text_NAME.json. No row of the data is kept.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

import distmeta
from distmeta.checkpoint import write_text
from distmeta.config import load_config

RESULTS = Path(__file__).parent / "results"


def overrides(name: str, data: Path, pretrained: str | None) -> list[str]:
    if name == "intents":
        return [
            f"data.path={data}/data.parquet",
            f"data.splits={data}/splits.json#01",
            f"model.pretrained={pretrained}",
        ]
    # One of its test domains has 11 neutral reviews of 60 characters.
    return [f"data.path={data}/matched60.parquet", "task.queries=6"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("name", choices=["intents", "sentiment"])
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--pretrained")
    parser.add_argument("--run-dir", type=Path, default=None)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("more", nargs="*", help="further overrides, section.key=value")
    given = parser.parse_args()
    run_dir = given.run_dir or Path("runs") / f"real-{given.name}-{given.seed}"
    words = [*overrides(given.name, given.data, given.pretrained), *given.more, f"run.seed={given.seed}"]
    run = distmeta.train(load_config(given.name, [*words, f"run.dir={run_dir}"]), resume=True, show=True)
    seen = distmeta.evaluate(run.checkpoint, split="train", baselines=False)
    environment = json.loads((run.path / "environment.json").read_text())
    details = json.loads((run.path / "evaluation_details.json").read_text())
    record = {
        "command": " ".join(sys.argv),
        "hardware": {key: environment[key] for key in ("platform", "cores")},
        "versions": environment["versions"],
        "seed": given.seed,
        "settings": [word for word in words if not word.startswith(("data.", "model.pretrained"))],
        "meta_steps": run.metrics[-1]["step"],
        "seconds": sum(r[k] for r in run.metrics for k in ("wait_s", "inner_s", "aggregate_s", "checkpoint_s")),
        "meta_test": run.evaluation,
        "meta_test_classes": details["meta_trained"].get("per_class"),
        "meta_test_tasks": details["meta_trained"].get("per_task"),
        "meta_train": seen.methods,
        "meta_train_classes": seen.details["meta_trained"].get("per_class"),
    }
    RESULTS.mkdir(exist_ok=True)
    write_text(RESULTS / f"real_text_{given.name}.json", json.dumps(record, indent=1, ensure_ascii=False))


if __name__ == "__main__":
    main()
