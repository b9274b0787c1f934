"""All algorithms on one harness: the same model, tasks and number of gradient evaluations. Which learns to learn best?

    python benchmarks/algorithms.py builtin --seeds 0,1,2
    python benchmarks/algorithms.py intents   --data DIR/clinc150 --pretrained MODEL_DIR
    python benchmarks/algorithms.py sentiment --data DIR/zh_reviews_3class
    python benchmarks/algorithms.py mixed     --data DIR       (what benchmarks/mixed.py wrote)

The budget is what the recipe's meta-steps cost under MAML; an algorithm whose meta-step costs less takes more of them.
A gradient counts 1, a Hessian-vector product 2. Each algorithm's inner learning rate is the best of three on
meta-validation tasks after --share of the budget; how many steps to adapt with is then chosen there too, from 0 to
--longer times the recipe's. The score is over meta-test episodes that no choice has seen. One rank, one thread, a
process for each training. Writes benchmarks/results/algorithms_NAME.json after every run, and goes on from there. No
row of the data is kept.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")
from real_text import overrides
from records import RESULTS

from distmeta.algorithms.maml_pp import FIRST_ORDER
from distmeta.config import Config, load_config
from distmeta.config.algorithms import ALGORITHMS
from distmeta.runs.checkpoint import write_text

RECIPES = {"builtin": "default", "intents": "intents", "sentiment": "sentiment", "mixed": "{data}/mixed.yaml"}
FACTORS = (0.3, 1.0, 3.0)  # of the recipe's inner.lr
LEFT_OUT = {"online": "its tasks arrive one after another; it is measured by its regret"}
WITHOUT_DECODER = {"in_context": "a decoder reads its support set, and the model of this suite is an encoder"}


def cost(name: str, config: Config) -> float:
    """Gradient evaluations of one task in a meta-step."""
    steps, exact = config.inner.steps, 3 * config.inner.steps + 1
    return {
        "fomaml": steps + 1, "fine_tune": steps + 1, "reptile": steps,
        "prototypes": 2, "multi_task": 2, "in_context": 2,
        "imaml": steps + 1 + 2 * config.inner.cg_steps,
        "maml_pp": FIRST_ORDER * 2 * steps + (1 - FIRST_ORDER) * exact,  # first order, with a query loss each step
    }.get(name, exact)  # fmt: skip


def configured(recipe: str, name: str, words: list[str], share: float = 1.0) -> Config:
    """The algorithm's run, with as many meta-steps as `share` of the budget allows."""
    base = load_config(recipe, [*words, "algorithm=maml"])
    configured = load_config(recipe, [*words, f"algorithm={name}"])
    steps = base.outer.steps * cost("maml", base) / cost(name, configured)
    count = 1 if name == "fine_tune" else max(1, round(share * steps))
    return load_config(
        recipe,
        [*words, f"algorithm={name}", f"outer.steps={count}", f"run.checkpoint_every={count}", "eval.every=0",
         "eval.baselines=false", "eval.episodes=2", "outer.until=null", "cluster.workers=1", "sampling.actors=0"],
    )  # fmt: skip


def scored(
    split: str, count: int, steps: int, model: Any, fast: Any, shared: Any, rates: Any, config: Config, store: Any
) -> list[Any]:
    """`count` episodes of the split: meta-validation after 0 to `steps` inner steps, meta-test after `steps`."""
    import torch

    from distmeta.algorithms.rates import inner_loop
    from distmeta.evaluation.scoring import Scoring, score_episodes
    from distmeta.tasks.episodes.episode import sample_episode

    episodes = [sample_episode(store, config.task, config.run.seed, split, i) for i in range(count)]
    loop = inner_loop(config.inner, rates, steps)
    scoring = Scoring(model, fast, shared, loop, config, store.pad_id, torch.device("cpu"))
    return score_episodes(scoring, episodes, curve=split == "validation")


def train_here(config: Config, run: Path) -> tuple[tuple[Any, ...], float]:
    """Trains in this process, a group of one: (what `scored` takes after the number of steps, CPU seconds)."""
    import torch

    from distmeta.drive.train import prepare_store
    from distmeta.evaluation.evaluate import load_model
    from distmeta.evaluation.scoring import split_meta
    from distmeta.learner.worker import learn
    from distmeta.runs import checkpoint
    from distmeta.tasks.store import open_store

    store_path = prepare_store(config)
    run.mkdir()
    began = time.process_time()
    learn(config, run, store_path, [], 0, 1, torch.device("cpu"))
    seconds = time.process_time() - began
    saved = checkpoint.load(run)
    model = load_model(saved)
    return (model, *split_meta(model, saved.meta), config, open_store(store_path)), seconds


def run_child(settings: dict[str, Any]) -> None:
    """Train once for each rate, and score; prints JSON."""
    import torch
    import torch.distributed as dist

    from distmeta.evaluation.scoring import curves, summarise

    torch.set_num_threads(1)
    os.environ["LOCAL_RANK"] = "0"
    with tempfile.TemporaryDirectory(prefix="distmeta-algorithms-") as place:
        dist.init_process_group("gloo", init_method=f"file://{place}/group", world_size=1, rank=0)
        out = []
        for i, lr in enumerate(settings["rates"]):
            words = [*settings["words"], f"inner.lr={lr}"]
            config = configured(settings["recipe"], settings["algorithm"], words, settings["share"])
            trained, seconds = train_here(config, Path(place) / f"run{i}")
            most = settings["longer"] * settings["steps"] if config.inner.steps else 0
            curve = curves(scored("validation", settings["validation"], most, *trained))["accuracy"]["mean"]
            best = max(range(len(curve)), key=curve.__getitem__)
            result = {
                "inner_lr": lr, "meta_steps": config.outer.steps, "cpu_s": seconds, "validation": curve[best],
                "adapt_steps": best, "peak_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
            }  # fmt: skip
            if settings["test"]:
                found = scored("test", settings["episodes"], best, *trained)
                summary = summarise(found)
                result["test"] = {k: summary[k] for k in ("accuracy", "loss")}
                if config.data.sources is not None:
                    result["by_source"] = by_source(found)
            out.append(result)
        print(json.dumps(out))
        dist.destroy_process_group()


def by_source(found: list[Any]) -> dict[str, float]:
    """Accuracy after the last step, of each source's episodes; a task's name begins with its source."""
    of: dict[str, list[float]] = {}
    for one in found:
        of.setdefault(one.task.split("/")[0], []).append(float(one.metrics()["accuracy"][-1]))
    return {name: statistics.mean(values) for name, values in sorted(of.items())}


def child(**settings: Any) -> list[dict[str, Any]]:
    done = subprocess.run(
        [sys.executable, __file__, "--child", json.dumps(settings)], capture_output=True, text=True, timeout=7200
    )
    if done.returncode:
        raise RuntimeError(f"{settings['algorithm']}: {done.stderr[-2000:]}")
    results: list[dict[str, Any]] = json.loads(done.stdout.splitlines()[-1])
    return results


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("suite", choices=RECIPES, nargs="?", default="builtin")
    parser.add_argument("--child", help=argparse.SUPPRESS)
    parser.add_argument("--data", type=Path)
    parser.add_argument("--pretrained")
    parser.add_argument("--seeds", default="0")
    parser.add_argument("--algorithms", help="names with commas; all that go with the suite")
    parser.add_argument("--episodes", type=int, default=600, help="meta-test episodes")
    parser.add_argument("--validation", type=int, default=100, help="meta-validation episodes of each choice")
    parser.add_argument("--share", type=float, default=0.5, help="of the budget, spent on each rate that is tried")
    parser.add_argument("--longer", type=int, default=2, help="most steps to adapt with, times the recipe's")
    parser.add_argument("--out", type=Path)
    parser.add_argument("more", nargs="*", help="further overrides, section.key=value")
    options = parser.parse_intermixed_args()
    if options.child:
        return run_child(json.loads(options.child))
    from distmeta.bench.measure import setting

    recipe = RECIPES[options.suite].format(data=options.data)
    of_file = options.suite in ("builtin", "mixed")
    data = [] if of_file else overrides(options.suite, options.data, options.pretrained)
    words = [*data, *options.more]
    out = options.out or RESULTS / f"algorithms_{options.suite}.json"
    record: dict[str, Any] = json.loads(out.read_text()) if out.exists() else {"algorithms": {}}
    base = load_config(recipe, words)
    seeds = [int(seed) for seed in options.seeds.split(",")]
    left_out = LEFT_OUT | (WITHOUT_DECODER if options.suite != "builtin" else {})
    names = (
        options.algorithms.split(",") if options.algorithms else [name for name in ALGORITHMS if name not in left_out]
    )
    chosen = {"episodes": options.episodes, "validation": options.validation, "longer": options.longer}
    asked = {"settings": options.more, **chosen, "share": options.share}
    if other := [key for key, value in asked.items() if record.get(key, value) != value]:
        parser.error(f"{out} was begun with another value of {', '.join(other)}; move it away, or give another --out")
    for name in names:
        entry = record["algorithms"].setdefault(name, {"search": [], "runs": {}})
        factors = (1.0,) if name in ("prototypes", "in_context") else FACTORS  # those two have no inner loop
        rates = [base.inner.lr * factor for factor in factors]
        about = {"recipe": recipe, "algorithm": name, "steps": base.inner.steps, **chosen}
        if not entry["search"]:
            entry["search"] = child(**about, words=[*words, "run.seed=0"], rates=rates, share=options.share, test=False)
        lr = max(entry["search"], key=lambda trial: trial["validation"])["inner_lr"]
        for seed in seeds:
            if str(seed) not in entry["runs"]:
                seeded = [*words, f"run.seed={seed}"]
                (entry["runs"][str(seed)],) = child(**about, words=seeded, rates=[lr], share=1.0, test=True)
            print(name, seed, {k: v for k, v in entry["runs"][str(seed)].items() if k != "test"},
                  entry["runs"][str(seed)]["test"]["accuracy"]["mean"], flush=True)  # fmt: skip
            record |= {
                **setting({"runs": seeds}), **asked, "factors": FACTORS,
                "budget": base.outer.steps * base.outer.meta_batch_size * cost("maml", base), "left_out": left_out,
            }  # fmt: skip
            write_text(out, json.dumps(record, indent=1))
    from rich.console import Console
    from rich.table import Table

    table = Table(title=f"{options.suite}: meta-test accuracy, means of {len(seeds)} seeds", box=None)
    for heading in ("algorithm", "accuracy", "95%", "inner.lr", "adapt steps", "meta-steps", "CPU s", "MB"):
        table.add_column(heading, justify="left" if heading == "algorithm" else "right", no_wrap=True)
    for name, entry in sorted(record["algorithms"].items(), key=lambda item: -mean_accuracy(item[1])):
        runs = list(entry["runs"].values())
        low, high = (statistics.mean(run["test"]["accuracy"][end] for run in runs) for end in ("low", "high"))
        table.add_row(
            name, f"{mean_accuracy(entry):.3f}", f"{low:.3f} .. {high:.3f}", f"{runs[0]['inner_lr']:.3g}",
            ",".join(str(run["adapt_steps"]) for run in runs), str(runs[0]["meta_steps"]),
            f"{statistics.mean(run['cpu_s'] for run in runs):.0f}", f"{max(run['peak_mb'] for run in runs):.0f}",
        )  # fmt: skip
    Console(width=120).print(table)
    return None


def mean_accuracy(entry: dict[str, Any]) -> float:
    return statistics.mean(run["test"]["accuracy"]["mean"] for run in entry["runs"].values())


if __name__ == "__main__":
    main()
