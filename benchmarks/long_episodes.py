"""How much do episodes of long texts take of Ray's object store, of the driver and of a sampler, at many ranks?

    python benchmarks/long_episodes.py --ranks 16

Made-up texts of 2,048 tokens, three labels, five support and ten query texts of each: an episode holds 92,160 tokens.
Each task's inner loop is replaced by a wait, as by `distmeta bench scaling --timed`, so that ranks need no core; what
carries episodes is real. Once a second: the bytes in the object store, and the private memory of the driver, the
samplers and the ranks. Writes benchmarks/results/long_episodes.json.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import tempfile
import threading
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")
import pyarrow as pa
import pyarrow.parquet as pq
from records import RESULTS
from sampler_kills import store_bytes

TOKENS, DOMAINS, LABELS, ROWS = 2048, 12, ("one", "two", "three"), 20
WARM_UP = 3  # steps
KINDS = {"ray::Sampler": "sampler", "ray::RayTrainWorker": "rank"}


def texts(out: Path) -> None:
    """Rows of as many words as a text has tokens, less the two at its ends."""
    rng = random.Random(0)
    words = [f"word{i}" for i in range(500)]
    rows = [
        (" ".join(rng.choices(words, k=TOKENS - 2)), label, f"domain{d}")
        for d in range(DOMAINS) for label in LABELS for _ in range(ROWS)
    ]  # fmt: skip
    pq.write_table(pa.table(dict(zip(("text", "label", "task"), map(list, zip(*rows, strict=True)), strict=True))), out)


def private() -> dict[str, list[tuple[float, float]]]:
    """By kind of process: (MB of private memory, CPU seconds so far) of each."""
    found: dict[str, list[tuple[float, float]]] = {"driver": [], "sampler": [], "rank": []}
    for entry in Path("/proc").iterdir():
        try:
            if not entry.name.isdecimal():
                continue
            command = (entry / "cmdline").read_bytes().decode(errors="replace")
            kind = next((k for name, k in KINDS.items() if command.startswith(name)), None)
            if int(entry.name) == os.getpid():
                kind = "driver"
            if kind:
                rss = next(line for line in (entry / "status").read_text().splitlines() if line.startswith("RssAnon"))
                fields = (entry / "stat").read_text().rpartition(")")[2].split()
                seconds = (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
                found[kind].append((int(rss.split()[1]) / 1024, seconds))
        except (OSError, StopIteration):
            continue
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--ranks", type=int, default=16)
    parser.add_argument("--samplers", type=int, default=4)
    parser.add_argument("--steps", type=int, default=12)
    parser.add_argument("--tasks", type=int, default=4, help="of a rank in a meta-step")
    parser.add_argument("--seconds", type=float, default=3.0, help="of a task")
    options = parser.parse_args()
    import ray

    import distmeta
    from distmeta.bench.measure import setting, write_json
    from distmeta.bench.scaling import summary
    from distmeta.config import load_config

    batch = options.tasks * options.ranks
    with tempfile.TemporaryDirectory(prefix="long-episodes-") as temporary:
        place = Path(temporary)
        texts(place / "texts.parquet")
        config = load_config("default", [
            f"data.path={place / 'texts.parquet'}", f"model.max_tokens={TOKENS}", "algorithm=distmeta.bench.timed",
            "model.config={hidden_size: 64, num_hidden_layers: 2, num_attention_heads: 2, intermediate_size: 128, "
            f"max_position_embeddings: {TOKENS}}}", f"inner.lr={options.seconds}", "inner.momentum=0.05",
            "inner.learn_lr=none", "inner.schedule=constant", "inner.task_batch=1", "cluster.cpus_per_worker=0.01",
            "cluster.cpus_per_sampler=0.01", f"cluster.workers={options.ranks}", f"sampling.actors={options.samplers}",
            f"outer.meta_batch_size={batch}", f"outer.steps={options.steps}", "eval.every=0", "eval.baselines=false",
            "eval.episodes=2", f"run.dir={place / 'run'}",
        ])  # fmt: skip
        over, stored, seen = threading.Event(), [0], [private()]

        def watch() -> None:
            while not over.wait(1.0):
                stored.append(store_bytes())
                seen.append(private())

        with ray.init(address="local", num_cpus=4, include_dashboard=False, log_to_driver=False, logging_level="ERROR"):
            watcher = threading.Thread(target=watch, daemon=True)
            watcher.start()
            run = distmeta.train(config, show=True)
            over.set()
            watcher.join(60)
        phases = summary(run.metrics[WARM_UP:], batch)
    most: dict[str, Any] = {}
    for kind in ("driver", "sampler", "rank"):
        each = [one for moment in seen for one in moment[kind]]
        most[kind] = {"private_mb": max(mb for mb, _ in each), "cpu_s": max(seconds for _, seconds in each)}
    support, query = 5 * len(LABELS), 10 * len(LABELS)
    result = {
        **setting({"run": 0}), "ranks": options.ranks, "samplers": options.samplers, "steps": options.steps,
        "tokens": TOKENS, "window": config.sampling.window, "episode_mb": (support + query) * TOKENS * 4 / 2**20,
        "store_mb_most": max(stored) / 2**20, "watched_s": len(stored), "most": most,
        "phases": phases,
    }  # fmt: skip
    write_json(RESULTS / "long_episodes.json", result)
    print(json.dumps({key: result[key] for key in ("episode_mb", "store_mb_most", "most", "phases")}, indent=1))


if __name__ == "__main__":
    main()
