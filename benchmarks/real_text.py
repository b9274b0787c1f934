"""What does meta-training give on real text? CLINC150 intents, Chinese three-class reviews, instruction tasks.

    python benchmarks/real_text.py intents      --data DIR/clinc150 --pretrained MODEL_DIR
    python benchmarks/real_text.py sentiment    --data DIR/zh_reviews_3class [--pretrained LM_OF_OTHER_REVIEWS]
    python benchmarks/real_text.py instructions --data DIR/instruction_induction --pretrained DECODER

Runs the recipe of that name with its defaults on the data (or continues the run in --run-dir), scores meta-train and
meta-test tasks, and writes benchmarks/results/real_text_NAME.json. No row of the data is kept.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

import pyarrow.parquet as pq

import distmeta
from distmeta.checkpoint import write_text
from distmeta.config import load_config

# Of the 24 tasks of Honovich et al. (2022, arXiv 2205.10782), chosen before anything was trained.
HELD_OUT = [
    "sentiment", "larger_animal", "word_in_context", "sentence_similarity", "negation", "orthography_starts_with",
]  # fmt: skip
RESULTS = Path(__file__).parent / "results"


def overrides(name: str, data: Path, pretrained: str | None) -> list[str]:
    if name == "intents":
        return [
            f"data.path={data}/data.parquet",
            f"data.splits={data}/splits.json#01",
            f"model.pretrained={pretrained}",
        ]
    if name == "instructions":
        tasks = sorted(set(pq.read_table(data / "data.parquet", columns=["task"])["task"].to_pylist()))
        kept = {"test": HELD_OUT, "validation": ["antonyms", "informal_to_formal", "sum"]}
        kept["train"] = [task for task in tasks if task not in {*kept["test"], *kept["validation"]}]
        return [
            f"data.path={data}/data.parquet", "data.input=text", "data.target=answers",
            f"data.splits={json.dumps(kept)}", f"model.pretrained={pretrained}",
        ]  # fmt: skip
    # One of its test domains has 11 neutral reviews of 60 characters.
    words = [f"data.path={data}/matched60.parquet", "task.queries=6"]
    return [*words, f"model.pretrained={pretrained}", "outer.base=train"] if pretrained else words


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("name", choices=["intents", "sentiment", "instructions"])
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--pretrained")
    parser.add_argument("--run-dir", type=Path, default=None)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("more", nargs="*", help="further overrides, section.key=value")
    given = parser.parse_intermixed_args()
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
