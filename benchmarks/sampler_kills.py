"""What do dying samplers cost? The default run in peace, and with a random sampler killed every few seconds.

    python benchmarks/sampler_kills.py               # the two runs, once each; --every seconds between two kills

SIGKILL, to whatever sampler process there is; Ray starts the actor again. Records and final meta-parameters must be the
undisturbed run's byte for byte; what it costs is the time of a step. Beside it, the bytes in the object store, once a
second: what is there after a tenth of the run should be no less than what is there at its end. Writes
benchmarks/results/sampler_kills.json.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import signal
import statistics
import sys
import tempfile
import threading
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")
ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "tests"))

import small  # noqa: E402
from records import RESULTS  # noqa: E402

WARM_UP = 5  # steps
SECONDS = ("wait_s", "inner_s", "aggregate_s", "checkpoint_s")


def samplers() -> list[int]:
    """Process ids of sampler actors."""
    pids = []
    for entry in Path("/proc").iterdir():
        try:
            if entry.name.isdecimal() and (entry / "cmdline").read_bytes().startswith(b"ray::Sampler"):
                pids.append(int(entry.name))
        except OSError:
            continue
    return pids


def store_bytes() -> int:
    """Bytes of the objects in the stores of all nodes."""
    from ray._private.internal_api import get_memory_info_reply, get_state_from_address

    reply = get_memory_info_reply(get_state_from_address(None))
    return int(reply.store_stats.object_store_bytes_used)


def run(place: Path, words: list[str], every: float | None) -> dict[str, Any]:
    """One run in a local cluster; every: seconds between two kills."""
    import ray

    import distmeta
    from distmeta.config import load_config

    kills, stored, over = [], [], threading.Event()
    config = load_config("default", [*words, f"run.dir={place}"])

    def watch() -> None:
        wait, rng = every or 1.0, random.Random(0)
        while not (place / "metrics.jsonl").exists() or not (place / "metrics.jsonl").read_text():
            if over.wait(0.2):
                return
        passed = 0.0
        while not over.wait(1.0):
            passed += 1.0
            stored.append(store_bytes())
            alive = samplers()
            if every and passed >= wait and alive:
                os.kill(rng.choice(alive), signal.SIGKILL)
                kills.append(len(stored))
                passed = 0.0

    with ray.init(address="local", num_cpus=4, include_dashboard=False, log_to_driver=False, logging_level="ERROR"):
        watcher = threading.Thread(target=watch, daemon=True)
        watcher.start()
        distmeta.train(config)
        over.set()
        watcher.join(60)
    records = [json.loads(line) for line in (place / "metrics.jsonl").read_text().splitlines()]
    seconds = [sum(record[key] for key in SECONDS) for record in records[WARM_UP:]]
    tenth = len(stored) // 10
    return {
        "kills": len(kills), "tasks_per_s": config.outer.meta_batch_size * len(seconds) / sum(seconds),
        "wait_share": sum(record["wait_s"] for record in records[WARM_UP:]) / sum(seconds),
        "store_mb_early": max(stored[tenth : 2 * tenth + 1], default=0) / 2**20,
        "store_mb_late": max(stored[-tenth - 1 :], default=0) / 2**20,
        "store_mb_most": max(stored, default=0) / 2**20,
    }  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--every", type=float, default=5.0)
    parser.add_argument("--steps", type=int, default=120)
    options = parser.parse_args()
    from distmeta.bench.measure import setting, write_json

    words = [
        f"outer.steps={options.steps}", "eval.baselines=false", "eval.episodes=20", "sampling.actors=2",
        "run.checkpoint_every=40",
    ]  # fmt: skip
    found: dict[str, dict[str, Any]] = {}
    with tempfile.TemporaryDirectory(prefix="kills-") as temporary:
        content = {}
        for name, every in (("in peace", None), ("killed", options.every), ("in peace again", None)):
            place = Path(temporary) / name.replace(" ", "-")
            found[name] = run(place, words, every)
            last = max((place / "checkpoints").glob("step-*"))
            content[name] = (small.records(place), (last / "meta.safetensors").read_bytes())
            print(name, json.dumps(found[name]), flush=True)
        same = content["killed"] == content["in peace"] == content["in peace again"]
    peace = statistics.mean(found[name]["tasks_per_s"] for name in ("in peace", "in peace again"))
    result = {
        **setting({"run": 0}), "every_s": options.every, "steps": options.steps, "runs": found, "identical": same,
        "cost": 1 - found["killed"]["tasks_per_s"] / peace,
    }  # fmt: skip
    write_json(RESULTS / "sampler_kills.json", result)
    print(f"{found['killed']['kills']} kills cost {result['cost']:.1%} of throughput; the same numbers: {same}")
    if not same:
        sys.exit(1)


if __name__ == "__main__":
    main()
