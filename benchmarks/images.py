"""Characters of unseen alphabets from one drawing of each: MAML beside prototypical networks, on the same episodes.

    python benchmarks/images.py --run-dir DIR                          # drawn by the program
    python benchmarks/images.py --run-dir DIR --data OMNIGLOT_SMALL    # data.parquet with columns bits, label, split
    python benchmarks/images.py --run-dir DIR --data OMNIGLOT_SMALL --published    # by the published network

Each algorithm trains by the recipe `omniglot`, with as many meta-steps, and is scored on the same meta-test episodes (5
ways, 1 shot, 15 queries a class); the paired difference has its interval over classes. One rank. --published: four
blocks of 64 filters with batch norm, so that the query images of an episode are classified together, and 1,500 meta-
steps of 16 tasks by the settings of Finn et al. 2017; mirrored classes are classes too, as turned ones are. Goes on
from what --run-dir holds. Writes benchmarks/results/images.json; no image of the data is kept.
"""

from __future__ import annotations

import argparse
import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from records import RESULTS

import distmeta
from distmeta.algorithms.rates import inner_loop
from distmeta.bench.measure import setting
from distmeta.config import load_config
from distmeta.evaluation.evaluate import load_model
from distmeta.evaluation.paired import difference
from distmeta.evaluation.scoring import Scored, Scoring, score_episodes, split_meta, summarise
from distmeta.runs import checkpoint as checkpoints
from distmeta.runs.checkpoint import write_text
from distmeta.tasks.episodes.episode import sample_episode
from distmeta.tasks.store import open_store

ALGORITHMS = {"maml": ["algorithm=maml"], "prototypes": ["algorithm=prototypes"]}
PUBLISHED = [
    "model.config={hidden_size: 64, num_hidden_layers: 4, norm: batch}", "outer.steps=1500",
    "outer.meta_batch_size=16", "outer.lr=1e-3", "task.augment.flips=classes",
]  # fmt: skip
PUBLISHED_LOOP = ["inner.steps=1", "inner.lr=0.4", "inner.learn_lr=null", "eval.steps=3"]


def as_images(folder: Path, out: Path) -> Path:
    """A table of PNG images of Omniglot's drawings, which data.parquet has as bits."""
    import pyarrow as pa
    import pyarrow.parquet as pq
    from PIL import Image

    table = pq.read_table(folder / "data.parquet", columns=["bits", "label", "split"]).to_pydict()
    contents = []
    for bits in table["bits"]:
        ink = np.unpackbits(np.frombuffer(bits, np.uint8))[:784].reshape(28, 28)
        file = io.BytesIO()
        Image.fromarray(255 * (1 - ink)).save(file, "PNG")
        contents.append(file.getvalue())
    pq.write_table(pa.table({"image": contents, "label": table["label"], "split": table["split"]}), out)
    return out


def scored(run: Path, count: int) -> list[Scored]:
    """The first `count` meta-test episodes, after the inner steps of the run's evaluations."""
    saved = checkpoints.load(run)
    model, store = load_model(saved), open_store(json.loads((run / "environment.json").read_text())["store"])
    fast, shared, rates = split_meta(model, saved.meta)
    config = saved.config.of_evaluation()
    episodes = [sample_episode(store, config.task, 0, "test", i) for i in range(count)]
    loop = inner_loop(config.inner, rates, config.inner.steps if config.eval.steps is None else config.eval.steps)
    return score_episodes(Scoring(model, fast, shared, loop, config, store.pad_id, torch.device("cpu")), episodes)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--run-dir", type=Path, required=True)
    parser.add_argument("--data", type=Path)
    parser.add_argument("--published", action="store_true")
    parser.add_argument("--episodes", type=int, default=300)
    parser.add_argument("more", nargs="*", help="further overrides, section.key=value")
    options = parser.parse_intermixed_args()
    torch.set_num_threads(1)
    options.run_dir.mkdir(parents=True, exist_ok=True)
    name = ("omniglot_small" if options.data else "built_in") + ("_published" if options.published else "")
    words = [f"data.path={as_images(options.data, options.run_dir / 'omniglot.parquet')}"] if options.data else []
    words += ["eval.queries=15", "eval.episodes=2", "eval.baselines=false", "cluster.workers=1"]
    out = RESULTS / "images.json"
    record: dict[str, Any] = json.loads(out.read_text()) if out.exists() else {}
    shared = [*(PUBLISHED if options.published else []), *options.more]
    loop = PUBLISHED_LOOP if options.published else []
    result: dict[str, Any] = {"episodes": options.episodes, "settings": [*loop, *shared]}
    by_name = {}
    for algorithm, own in ALGORITHMS.items():
        more = [*own, *(loop if algorithm == "maml" else []), *shared]
        place = options.run_dir / f"{name}-{algorithm}"
        if not (place / "evaluation.json").is_file():
            distmeta.train(load_config("omniglot", [*words, *more, f"run.dir={place}"]), resume=place.exists())
        steps = [json.loads(line) for line in (place / "metrics.jsonl").read_text().splitlines()]
        by_name[algorithm] = scored(place, options.episodes)
        result[algorithm] = {
            "accuracy": summarise(by_name[algorithm])["accuracy"], "meta_steps": len(steps),
            "training_s": sum(step["inner_s"] + step["aggregate_s"] + step["wait_s"] for step in steps),
        }  # fmt: skip
        print(name, algorithm, result[algorithm], flush=True)
    result["maml less prototypes"] = difference(by_name["maml"], by_name["prototypes"], by_class=True)["accuracy"]
    record |= {**setting({"runs": [0]}), name: result}
    write_text(out, json.dumps(record, indent=1))


if __name__ == "__main__":
    main()
