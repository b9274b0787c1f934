"""Does the task store scale? Many examples in many tasks, from Parquet, built, opened, and read by several samplers.

    python benchmarks/task_store.py --examples 10000000 --tasks 100000

Each figure is of a process of its own; memory is resident memory as the kernel counts it (Linux). anonymous: what only
this process holds and the system cannot take back. mapped: touched pages of files, libraries among them, which
processes share and the system takes back when it needs them. MB are 2**20 bytes.
"""

from __future__ import annotations

import argparse
import json
import shutil
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from distmeta.bench import measure
from distmeta.config import DataConfig, ModelConfig, TaskConfig
from distmeta.tasks import build_store, open_store
from distmeta.tasks.episodes import Sampler

TASK = TaskConfig(shots=5, queries=15)
MODEL = ModelConfig(tokenizer="word", vocab_size=30_000, max_tokens=64)
ROW_GROUP = 1 << 17
WORDS = 20_000


def resident_mb() -> dict[str, float]:
    """Now, and the peak so far."""
    lines = Path("/proc/self/status").read_text().splitlines()
    kb = {line.split(":")[0]: int(line.split()[1]) for line in lines if line.startswith(("VmHWM", "VmRSS", "Rss"))}
    names = {"resident": "VmRSS", "peak": "VmHWM", "anonymous": "RssAnon", "mapped": "RssFile"}
    return {name: kb[key] / 1024 for name, key in names.items()}


def shared_mb(suffix: str) -> dict[str, float]:
    """Of this process's resident memory: what no other process has; and its pages of files with a name so ending.

    proportional: each page counted by the number of processes that have it.
    """
    text = Path("/proc/self/smaps_rollup").read_text()
    kb = {line.split(":")[0]: int(line.split()[1]) for line in text.splitlines()[1:]}
    files = {"Rss": 0, "Pss": 0}
    ours = False
    for line in Path("/proc/self/smaps").read_text().splitlines():
        word = line.split()[0]
        if not word.endswith(":"):  # the head of the next mapping, with the file's name
            ours = line.endswith(suffix)
        elif ours and word[:-1] in files:
            files[word[:-1]] += int(line.split()[1])
    return {
        "resident": kb["Rss"] / 1024, "proportional": kb["Pss"] / 1024,
        "private": (kb["Private_Clean"] + kb["Private_Dirty"]) / 1024,
        "files": files["Rss"] / 1024, "files_proportional": files["Pss"] / 1024,
    }  # fmt: skip


def write_parquet(path: Path, examples: int, tasks: int, seed: int = 0) -> None:
    """text (8 to 20 words), label (yes, no), task; in random order, every task and label equally often."""
    rng = np.random.default_rng(seed)
    letters = rng.integers(97, 123, (WORDS, 9), np.uint8)
    word_lengths = rng.integers(3, 10, WORDS)
    words = pa.array([bytes(w[:n]).decode() for w, n in zip(letters, word_lengths, strict=True)])
    names = pa.array([f"task{t:06d}" for t in range(tasks)])
    cells = rng.permutation(examples) % (2 * tasks)
    with pq.ParquetWriter(path, pa.schema({"text": pa.string(), "label": pa.string(), "task": pa.string()})) as writer:
        for start in range(0, examples, ROW_GROUP):
            cell = cells[start : start + ROW_GROUP]
            ends = np.concatenate([[0], np.cumsum(rng.integers(8, 21, len(cell)))]).astype(np.int32)
            drawn = words.take(pa.array((rng.random(ends[-1]) ** 2 * WORDS).astype(np.int32)))  # some more often
            writer.write_table(pa.table({
                "text": pc.binary_join(pa.ListArray.from_arrays(pa.array(ends), drawn), " "),
                "label": pa.array(["no", "yes"]).take(pa.array(cell % 2)),
                "task": names.take(pa.array(cell // 2)),
            }))  # fmt: skip


def build(path: str, cache: str) -> dict[str, Any]:
    """Runs in a fresh process."""
    peak = 0.0
    seconds: dict[str, float] = {}
    done = threading.Event()

    def watch() -> None:
        nonlocal peak
        while not done.wait(0.02):
            peak = max(peak, resident_mb()["anonymous"])

    began = time.perf_counter()

    def progress(what: str, count: int, total: int | None) -> None:
        seconds[what] = time.perf_counter() - began

    before = resident_mb()
    watcher = threading.Thread(target=watch, daemon=True)
    watcher.start()
    store = build_store(DataConfig(path=path, cache=cache), TASK, MODEL, progress=progress)
    took = time.perf_counter() - began
    done.set()
    return {
        "path": str(store), "seconds": took, "cpu_s": time.process_time(), "ended_at_s": seconds,
        "anonymous_mb": peak, "anonymous_before_mb": before["anonymous"], "peak_resident_mb": resident_mb()["peak"],
    }  # fmt: skip


def read(path: str, episodes: int) -> dict[str, Any]:
    """Runs in a fresh process: opens the store and draws episodes, as a sampler does."""
    before = resident_mb()
    began = time.perf_counter()
    store = open_store(path)
    opened = time.perf_counter() - began
    after = resident_mb()
    began = time.perf_counter()
    Sampler(store, TASK, 0).sample(range(episodes), "train")
    return {
        "open_s": opened, "rows": store.rows, "tasks": len(store.tasks), "tokens": len(store.tokens),
        "before_mb": before, "opened_mb": after, "episodes": episodes,
        "episodes_per_s": episodes / (time.perf_counter() - began), "sampled_mb": resident_mb(),
    }  # fmt: skip


def actors(path: str, samplers: int, episodes: int) -> list[dict[str, float]]:
    """Memory of several sampler actors on one node, each of which has drawn the same number of other episodes."""
    import ray

    from distmeta.tasks.episodes import start_samplers

    ray.init(address="local", num_cpus=2, include_dashboard=False, log_to_driver=False, logging_level="ERROR")
    handles = start_samplers(path, TASK, 0, samplers)
    for start in range(0, episodes, 500):
        ray.get([h.sample.remote(range(i * episodes + start, i * episodes + start + 500), "train")
                 for i, h in enumerate(handles)])  # fmt: skip
    shared = ray.get([h.__ray_call__.remote(lambda self: shared_mb(".arrow")) for h in handles])
    ray.shutdown()
    return list(shared)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--examples", type=int, default=10_000_000)
    parser.add_argument("--tasks", type=int, default=100_000)
    parser.add_argument("--episodes", type=int, default=2000)
    parser.add_argument("--samplers", type=int, default=3)
    parser.add_argument("--work", type=Path, help="where the data and the cache go (default: a temporary directory)")
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    work = Path(tempfile.mkdtemp(prefix="task-store-", dir=options.work))
    try:
        data = work / "examples.parquet"
        write_parquet(data, options.examples, options.tasks)
        built = fresh("build", path=str(data), cache=str(work / "cache"))
        path = built.pop("path")
        result = {
            **measure.setting({"seed": 0}), "examples": options.examples, "tasks": options.tasks,
            "parquet_mb": data.stat().st_size / 2**20,
            "store_mb": sum(f.stat().st_size for f in Path(path).iterdir()) / 2**20,
            "build": built, "rows_per_s": options.examples / built["seconds"],
            "sampler": fresh("read", path=path, episodes=options.episodes),
            "actors": fresh("actors", path=path, samplers=options.samplers, episodes=options.episodes),
        }  # fmt: skip
    finally:
        shutil.rmtree(work)
    if options.out:
        measure.write_json(options.out, result)
    print(json.dumps(result, indent=1))


def fresh(function: str, **arguments: Any) -> Any:
    return measure.in_fresh_process("task_store", function, timeout_s=7200, **arguments)


if __name__ == "__main__":
    main()
