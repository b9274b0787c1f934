"""Which algorithm should a pretrained decoder learn to classify by, when letters name the classes?

    python benchmarks/letters_methods.py --data DIR/clinc150 --pretrained MODEL_DIR --encoder ENCODER_DIR

Every algorithm meta-trains the same LoRA on the training classes of CLINC150's split 01, by the recipe `llm`, within
the same budget: rows under a gradient, where a row that a Hessian-vector product passes counts as two more. All are
then scored on the same episodes of classes never seen, at one shot and at five. The inner optimizer and rate are those
that are best for the model as it comes, on validation episodes; `no meta-training` adapts it by them. The class means
are those of an encoder of sentences. One rank, one thread. Goes on from what the record holds; writes
benchmarks/results/letters_methods.json. No row of the data is kept.
"""

from __future__ import annotations

import argparse
import json
import os
import tempfile
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ["LOCAL_RANK"] = "0"
import torch
import torch.distributed as dist
from algorithms import train_here
from records import RESULTS

from distmeta.algorithms.rates import inner_loop
from distmeta.bench.measure import setting
from distmeta.config import Config, load_config
from distmeta.drive.train import prepare_store
from distmeta.evaluation.scoring import Scored, Scoring, score_episodes, summarise
from distmeta.models.backbone import set_attention
from distmeta.models.build import build_model
from distmeta.runs.checkpoint import write_text
from distmeta.tasks.episodes.episode import sample_episode
from distmeta.tasks.store import open_store

WAYS, SHOTS, STEPS = 5, 5, 3  # and inner steps
SUPPORT, QUERY = WAYS * SHOTS, WAYS
GRADIENT = [f"inner.steps={STEPS}", "inner.learn_lr=per_layer"]
METHODS: dict[str, tuple[list[str], int]] = {  # settings, rows under a gradient of a task
    "in_context": ([], SUPPORT + QUERY),
    "fomaml": (["algorithm=fomaml", *GRADIENT], STEPS * SUPPORT + QUERY),
    "in context + fomaml": (
        ["algorithm=fomaml", "model.head=context", *GRADIENT], STEPS * SUPPORT + SUPPORT + QUERY),
    "maml": (["algorithm=maml", *GRADIENT], 3 * STEPS * SUPPORT + QUERY),
    "reptile": (["algorithm=reptile", f"inner.steps={STEPS}"], STEPS * SUPPORT),
    "multi_task": (["algorithm=multi_task"], SUPPORT + QUERY),
}  # fmt: skip
LOOPS = (("sgd", 0.1), ("sgd", 0.5), ("adam", 1e-3), ("adam", 5e-3))


def words_of(options: argparse.Namespace) -> list[str]:
    return [
        f"model.pretrained={options.pretrained}", f"data.path={options.data}/data.parquet",
        f"data.splits={options.data}/splits.json#01", f"task.ways={WAYS}", f"task.shots={SHOTS}", "cluster.workers=1",
        "sampling.actors=0", "eval.every=0", "eval.baselines=false", "eval.episodes=2", "run.checkpoint_every=1000",
        *options.more,
    ]  # fmt: skip


def untrained(words: list[str]) -> tuple[Any, ...]:
    """(model, fast weights, shared weights, rates, configuration, task store) of the model as it comes."""
    config = load_config("llm", words)
    store = open_store(prepare_store(config))
    model = build_model(config, store.vocab_size, store.pad_id, WAYS)
    return model, model.fast, model.shared, {}, config, store


def score(split: str, count: int, shots: int, loop: Any, parts: tuple[Any, ...]) -> list[Scored]:
    """The first `count` episodes of the split, by the query set after the last step of `loop` (None: the run's own)."""
    model, fast, shared, rates, config, store = parts
    set_attention(model.backbone, "first_order")
    of_run = inner_loop(config.inner, rates)
    task = config.task.model_copy(update={"shots": shots, "queries": 2})
    episodes = [sample_episode(store, task, 0, split, i) for i in range(count)]
    scoring = Scoring(model, fast, shared, loop or of_run, config, store.pad_id, torch.device("cpu"))
    return score_episodes(scoring, episodes)


def class_means(encoder: str, store: Any, config: Config, count: int, shots: int) -> list[float]:
    """Accuracy of each test episode by the nearest mean of a frozen encoder's sentence vectors."""
    from transformers import AutoModel, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(encoder, trust_remote_code=False)
    model = AutoModel.from_pretrained(encoder, trust_remote_code=False).eval()

    @torch.no_grad()
    def vectors(rows: Any) -> torch.Tensor:
        batch = tokenizer([store.text(int(row)) for row in rows], padding=True, truncation=True, return_tensors="pt")
        mask = batch["attention_mask"].unsqueeze(2)
        return torch.nn.functional.normalize((model(**batch).last_hidden_state * mask).sum(1) / mask.sum(1), dim=1)

    out = []
    task = config.task.model_copy(update={"shots": shots, "queries": 2})
    for i in range(count):
        episode = sample_episode(store, task, 0, "test", i)
        support, query = vectors(episode.support.rows), vectors(episode.query.rows)
        means = torch.stack([support[torch.tensor(episode.support.labels == c)].mean(0) for c in range(WAYS)])
        out.append(float((torch.cdist(query, means).argmin(1).numpy() == episode.query.labels).mean()))
    return out


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--pretrained", required=True)
    parser.add_argument("--encoder")
    parser.add_argument("--methods", nargs="+", default=list(METHODS), choices=METHODS)
    parser.add_argument("--budget", type=int, default=4000, help="rows under a gradient that a method may train with")
    parser.add_argument("--episodes", type=int, default=24)
    parser.add_argument("--out", type=Path, default=RESULTS / "letters_methods.json")
    parser.add_argument("more", nargs="*", help="further overrides, section.key=value")
    options = parser.parse_intermixed_args()
    torch.set_num_threads(1)
    words = words_of(options)
    record: dict[str, Any] = json.loads(options.out.read_text()) if options.out.exists() else {"methods": {}}
    record |= {**setting({"runs": [0]}), "budget": options.budget, "episodes": options.episodes, "ways": WAYS}

    def note(name: str, parts: tuple[Any, ...], loop: Any, **more: Any) -> None:
        entry: dict[str, Any] = {**more, "shots": {}}
        began = time.process_time()
        for shots in (1, SHOTS):
            scored = score("test", options.episodes, shots, loop, parts)
            entry["shots"][str(shots)] = {
                "accuracy": summarise(scored)["accuracy"],
                "by_episode": [float(one.metrics()["accuracy"][-1]) for one in scored],
            }
        entry["scoring_cpu_s"] = time.process_time() - began
        record["methods"][name] = entry
        write_text(options.out, json.dumps(record, indent=1))
        print(name, {shots: entry["shots"][shots]["accuracy"]["mean"] for shots in entry["shots"]}, flush=True)

    if "model as it comes" not in record["methods"]:
        note("model as it comes", untrained(words), None)
    if "inner" not in record:
        alone = untrained([*words, "algorithm=fomaml", *GRADIENT])
        tried = []
        for optimizer, lr in LOOPS:
            loop = replace(inner_loop(alone[4].inner, {}), optimizer=optimizer, lr=lr)
            mean = summarise(score("validation", 6, SHOTS, loop, alone))["accuracy"]["mean"]
            tried.append({"optimizer": optimizer, "lr": lr, "accuracy": mean})
        best = max(tried, key=lambda one: one["accuracy"])
        record["inner"] = {**best, "tried": tried}
        loop = replace(inner_loop(alone[4].inner, {}), optimizer=best["optimizer"], lr=best["lr"])
        note("no meta-training", alone, loop)
    if options.encoder and "class means" not in record:
        store, config = untrained(words)[5], load_config("llm", words)
        record["class means"] = {
            str(shots): class_means(options.encoder, store, config, options.episodes, shots) for shots in (1, SHOTS)
        }
        write_text(options.out, json.dumps(record, indent=1))
    inner = [f"inner.optimizer={record['inner']['optimizer']}", f"inner.lr={record['inner']['lr']}"]
    for name in options.methods:
        if name in record["methods"]:
            continue
        settings, rows = METHODS[name]
        steps = max(1, round(options.budget / (2 * rows)))
        with tempfile.TemporaryDirectory(prefix="distmeta-letters-") as place:
            if not dist.is_initialized():  # once: DeepSpeed keeps the group
                dist.init_process_group("gloo", init_method=f"file://{place}/group", world_size=1, rank=0)
            adapts = inner if "inner.steps" in " ".join(settings) else []
            config = load_config("llm", [*words, *settings, *adapts, f"outer.steps={steps}"])
            parts, seconds = train_here(config, Path(place) / "run")
            lines = [json.loads(line) for line in (Path(place) / "run" / "metrics.jsonl").read_text().splitlines()]
        loop = None
        if name == "multi_task":  # trained without steps; tested with those of `no meta-training`
            of_base = {key: record["inner"][key] for key in ("optimizer", "lr")}
            loop = replace(inner_loop(parts[4].inner, {}, STEPS), **of_base)
        note(name, parts, loop, meta_steps=steps, training_cpu_s=seconds,
             losses=[round(line["outer_loss"], 4) for line in lines])  # fmt: skip


if __name__ == "__main__":
    main()
