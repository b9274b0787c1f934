"""Does it pay to meta-train a language model for reading, and does the exact second order pay?

    python benchmarks/documents.py --data DATA.parquet --run-dir DIR --seeds 0 1 2
    python benchmarks/documents.py --data DATA.parquet --run-dir DIR --pretrained DECODER --seeds 0 --steps 30 \
        --only maml fomaml_as_many_steps fomaml --episodes 36 --rates 0.003 0.01 0.03 0.1 \
        --set task.chunk_tokens=64 task.context_tokens=64 outer.meta_batch_size=2 outer.lr=1e-4

A decoder of two million parameters is first pretrained on the meta-train documents (algorithm multi_task, whose
objective is the ordinary loss), or --pretrained names a decoder. From it every algorithm goes on with the same budget,
counted in gradients over the same tokens: a Hessian-vector product counts as two; `fomaml_as_many_steps` has the
meta-steps of exact instead. Each run then reads the same meta-test passages, a step on each chunk after it has been
scored. `naive` is the pretrained model with such steps at the rate that is best on validation documents, which is also
the rate that the algorithms begin with. Paired differences have intervals over authors; the smallest difference that
could have been seen is half of the interval's width.

Goes on from what --run-dir holds. Writes benchmarks/results/documents.json, or documents_pretrained.json; no row of
the data is kept.
"""

from __future__ import annotations

import argparse
import json
import time
from dataclasses import replace
from functools import reduce
from pathlib import Path
from typing import Any

import numpy as np
import torch
from records import RESULTS

import distmeta
from distmeta.algorithms.rates import inner_loop
from distmeta.bench.measure import setting
from distmeta.config import Config, make_config
from distmeta.config.loading import parse_override
from distmeta.config.trees import merge
from distmeta.evaluation.evaluate import load_model
from distmeta.evaluation.paired import difference
from distmeta.evaluation.reading import score_documents, score_long_context
from distmeta.evaluation.scoring import Scoring, split_meta
from distmeta.export.export import export
from distmeta.models.backbone import set_attention
from distmeta.models.build import build_model
from distmeta.runs import checkpoint as checkpoints
from distmeta.runs.checkpoint import write_text
from distmeta.tasks.build import build_store
from distmeta.tasks.episodes.episode import sample_episode
from distmeta.tasks.store import open_store

RECIPE: dict[str, Any] = {
    "task": {"family": "document", "chunks": 8, "chunk_tokens": 48, "context_tokens": 48},
    "data": {"task": "document"},
    "inner": {"adapt": "last_quarter_mlp", "lr": 0.5, "clip": 1.0},
    "outer": {"meta_batch_size": 8, "lr": 1e-3, "schedule": "cosine", "base": "train"},
    "eval": {"episodes": 4, "validation_episodes": 24, "baselines": False},
    "cluster": {"workers": 1}, "sampling": {"actors": 1}, "run": {"checkpoint_every": 100},
}  # fmt: skip
MODEL: dict[str, Any] = {
    "architecture": "llama", "tokenizer": "bpe", "vocab_size": 2048,
    "config": {"hidden_size": 192, "num_hidden_layers": 4, "num_attention_heads": 6, "num_key_value_heads": 6,
               "intermediate_size": 512, "max_position_embeddings": 512, "tie_word_embeddings": True},
}  # fmt: skip
PRETRAINING = {"algorithm": "multi_task", "outer": {"steps": 900, "lr": 3e-3}}
RATES = [0.03, 0.1, 0.3, 1.0, 3.0]
# Gradients of a chunk in a meta-step of one episode with K = 7 steps: exact 7 + 1, and 2 x 7 for the products.
COST = {"maml": 22, "fomaml": 8, "reptile": 8, "multi_task": 8, "fomaml_as_many_steps": 22}
ALGORITHMS: dict[str, dict[str, Any]] = {
    "maml": {"inner": {"learn_lr": "per_layer"}},
    "fomaml": {"inner": {"learn_lr": "per_layer"}},
    "reptile": {"outer": {"base": "freeze"}},
    "multi_task": {},
    "fomaml_as_many_steps": {
        "algorithm": "fomaml",
        "inner": {"learn_lr": "per_layer"},
    },  # as exact has, not as much work
}
PAIRS = [("maml", name) for name in ALGORITHMS if name != "maml"] + [("fomaml", "multi_task")]
EPISODES = 186


def trained(folder: Path, content: dict[str, Any]) -> Path:
    """The run of a configuration, trained unless it is whole."""
    if not (folder / "evaluation.json").is_file():
        distmeta.train(make_config(merge(content, {"run": {"dir": str(folder)}})), resume=folder.exists())
    return folder


def scoring_of(run: Path) -> tuple[Scoring, Any]:
    """What a run's model reads with, and its task store."""
    saved = checkpoints.load(run, which="last")
    config = saved.config
    store = open_store(build_store(config.data, config.task, config.model, tokenizer_file=saved.tokenizer_file))
    model = load_model(saved)
    return reader(config, model, saved.meta, store), store


def scoring_of_base(config: Config) -> tuple[Scoring, Any]:
    """What the decoder of `model.pretrained` reads with as it comes, and its task store."""
    store = open_store(build_store(config.data, config.task, config.model))
    model = build_model(config, store.vocab_size, store.pad_id, 1)
    return reader(config, model, model.fast | model.shared, store), store


def reader(config: Config, model: Any, meta: dict[str, torch.Tensor], store: Any) -> Scoring:
    fast, shared, rates = split_meta(model, meta)
    set_attention(model.backbone, "first_order")
    loop = inner_loop(config.inner, rates)
    return Scoring(model, fast, shared, loop, config, store.pad_id, torch.device("cpu"))


def episodes_of(config: Config, store: Any, split: str, count: int) -> list[Any]:
    return [sample_episode(store, config.task, 0, split, i) for i in range(count)]


def best_rate(scoring: Scoring, store: Any, rates: list[float], count: int) -> tuple[float, dict[float, float]]:
    """The rate with the least loss on validation passages, and the loss at each."""
    episodes = episodes_of(scoring.config, store, "validation", count)
    losses = {}
    for rate in rates:
        scored = score_documents(replace(scoring, loop=replace(scoring.loop, lr=rate)), episodes, store=store)
        losses[rate] = float(np.mean([one.metrics()["loss"][0] for one in scored]))
    return min(losses, key=losses.__getitem__), losses


def summary(scored: list[Any]) -> dict[str, Any]:
    loss = np.array([one.metrics()["loss"][0] for one in scored])
    bits = np.array([one.metrics()["bits_per_byte"][0] for one in scored])
    by_chunk = np.stack([one.metrics()["loss_by_chunk"] for one in scored]).mean(0)
    return {"loss": float(loss.mean()), "bits_per_byte": float(bits.mean()), "by_chunk": by_chunk.round(4).tolist()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", required=True, help="a table with columns text, document, author, split")
    parser.add_argument("--run-dir", required=True, type=Path)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--steps", type=int, default=200, help="meta-steps of exact; the others have the same budget")
    parser.add_argument("--pretraining", type=int, default=PRETRAINING["outer"]["steps"])  # type: ignore[index]
    parser.add_argument("--again", nargs="+", default=list(ALGORITHMS), help="algorithms of the seeds after the first")
    parser.add_argument("--pretrained", help="a decoder's directory, in place of one pretrained here")
    parser.add_argument("--rates", type=float, nargs="+", default=RATES, help="inner rates tried for `naive`")
    parser.add_argument("--only", nargs="+", default=list(ALGORITHMS), choices=list(ALGORITHMS))
    parser.add_argument("--episodes", type=int, default=EPISODES, help="meta-test passages that are read")
    parser.add_argument("--set", nargs="+", default=[], metavar="KEY=VALUE", help="keys of the recipe to change")
    asked = parser.parse_args()
    torch.set_num_threads(1)
    common = reduce(merge, map(parse_override, asked.set), merge(RECIPE, {"data": {"path": asked.data}}))
    began = time.time()
    if asked.pretrained:
        folder = Path(asked.pretrained)
        common = merge(common, {"outer": {"base": "freeze"}})
        config = merge(common, {"algorithm": "multi_task", "model": {"pretrained": str(folder)}})
        scoring, store = scoring_of_base(make_config(config))
    else:
        first = merge(merge(common, {"model": MODEL}), merge(PRETRAINING, {"outer": {"steps": asked.pretraining}}))
        base = trained(asked.run_dir / "pretrained", first)
        folder = asked.run_dir / "model"
        if not folder.is_dir():
            export(base, folder)
        scoring, store = scoring_of(base)
    test = episodes_of(scoring.config, store, "test", asked.episodes)
    validation = asked.episodes // 4
    rate, losses = best_rate(scoring, store, asked.rates, validation)
    naive = replace(scoring, loop=replace(scoring.loop, lr=rate))
    scored = {
        "no_adaptation": score_documents(scoring.without_steps, test, store=store),
        "naive": score_documents(naive, test, store=store),
        "long_context": score_long_context(scoring, test, store=store),
    }
    chosen = " ".join(["--seeds", *map(str, asked.seeds), "--steps", str(asked.steps), "--again", *asked.again])
    if asked.pretrained:
        chosen += f" --pretrained DECODER --only {' '.join(asked.only)} --episodes {asked.episodes}"
        chosen += f" --rates {' '.join(map(str, asked.rates))}"
        chosen += f" --set {' '.join(asked.set)}" if asked.set else ""
    else:
        chosen += f" --pretraining {asked.pretraining}"
    out = RESULTS / ("documents_pretrained.json" if asked.pretrained else "documents.json")
    record: dict[str, Any] = {
        "command": f"python benchmarks/documents.py --data DATA.parquet --run-dir DIR {chosen}",
        **{key: setting({})[key] for key in ("hardware", "versions", "date")},
        "steps": asked.steps, "pretraining": asked.pretraining, "episodes": asked.episodes, "rates_tried": losses,
        "inner_lr": rate, "base": {name: summary(of) for name, of in scored.items()}, "runs": [], "differences": {},
    }  # fmt: skip
    read: dict[str, list[list[Any]]] = {}
    for seed in asked.seeds:
        for name in asked.only:
            changes = ALGORITHMS[name]
            if seed != asked.seeds[0] and name not in asked.again:
                continue
            steps = asked.steps * COST["maml"] // COST[name]
            content = merge(common, {
                "model": {"pretrained": str(folder)}, "algorithm": name, "inner": {"lr": rate},
                "outer": {"steps": steps}, "run": {"seed": seed, "name": f"{name}-{seed}"},
            })  # fmt: skip
            run = trained(asked.run_dir / f"{name}-{seed}", merge(content, changes))
            of_run, _ = scoring_of(run)
            if name == "multi_task":  # steps at test time as in `naive`, at the rate that is best for it
                best, _ = best_rate(of_run, store, asked.rates, validation)
                of_run = replace(of_run, loop=replace(of_run.loop, lr=best))
            reading = score_documents(of_run, test, store=store)
            still = score_documents(of_run.without_steps, test, store=store)
            seconds = [r["inner_s"] for r in map(json.loads, (run / "metrics.jsonl").open())]
            record["runs"].append({
                "algorithm": name, "seed": seed, "steps": steps, "meta_step_s": float(np.median(seconds)),
                "reading": summary(reading), "no_steps": summary(still),
                "less_naive": difference(reading, scored["naive"], by_class=False)["loss"],
                "less_no_adaptation": difference(reading, scored["no_adaptation"], by_class=False)["loss"],
            })  # fmt: skip
            read.setdefault(name, []).append(reading)
            for first, other in PAIRS:
                by_seed = list(zip(read.get(first, []), read.get(other, [])))
                pairs = [pair for both in by_seed for pair in zip(*both, strict=True)]
                if pairs:
                    ours, theirs = zip(*pairs, strict=True)
                    found = difference(ours, theirs, by_class=False)["loss"]
                    least = (found["high"] - found["low"]) / 2
                    about = {**found, "seeds": len(by_seed), "least_visible": least}
                    record["differences"][f"{first} less {other}"] = about
            record["seconds"] = round(time.time() - began)
            write_text(out, json.dumps(record, indent=1))
            print(name, seed, record["runs"][-1]["reading"], record["runs"][-1]["less_naive"], flush=True)


if __name__ == "__main__":
    main()
