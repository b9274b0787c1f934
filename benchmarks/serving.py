"""How fast does the service adapt and predict under load? Many clients with many tasks against a real server.

    python benchmarks/serving.py [RUN|CHECKPOINT] [--clients 100] [--tasks 50] [--seconds 60] [--replicas 1]

Without a run: the default recipe's model with its initial weights, whose speed is that of a trained one. First every
task's support set is given once by the clients together (adaptation), then for SECONDS each client asks, one request
after the other, for the predictions of INPUTS texts of a random task, every 20th time for a new task instead, which it
deletes again. Texts are the built-in reviews'. Clients are coroutines of this process, on the same cores. Memory is the
replicas' (their proportional set size), before the load, in the middle of it and after it. `model_alone` is in CPU
seconds of one core, without HTTP. Writes benchmarks/results/serving.json.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import random
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")

import aiohttp
import numpy as np
from records import RESULTS

from distmeta.bench.measure import setting, write_json

ADAPT_EVERY = 20


def initial_checkpoint(folder: Path) -> Path:
    """The default recipe's model before any meta-training."""
    from distmeta.algorithms.rates import initial_log_rates
    from distmeta.config import load_config
    from distmeta.models.build import build_model
    from distmeta.runs import checkpoint
    from distmeta.tasks.build import build_store
    from distmeta.tasks.store import open_store

    config = load_config("default")
    store = open_store(build_store(config.data, config.task, config.model))
    classes = config.ways or len(store.labels)
    model = build_model(config, store.vocab_size, store.pad_id, classes)
    meta = {**model.fast, **model.shared, **initial_log_rates(config.inner, model.adapted)}
    state = {"step": 0, "labels": store.labels, "classes": classes, "vocab_size": store.vocab_size,
             "pad_id": store.pad_id}  # fmt: skip
    values = {name: value.detach().clone() for name, value in meta.items()}
    checkpoint.save(folder, config, state, values, {}, store.tokenizer_file)
    return folder


def support_sets(
    checkpoint: Path, count: int, shots: int, seed: int = 0
) -> tuple[list[list[dict[str, str]]], list[str]]:
    """(`count` support sets of `shots` texts of each label, texts to predict), of the built-in reviews."""
    from distmeta.runs import checkpoint as checkpoints
    from distmeta.tasks.build import build_store
    from distmeta.tasks.store import open_store

    config = checkpoints.read_config(checkpoint / "config.yaml")
    store = open_store(build_store(config.data, config.task, config.model))
    rng = np.random.default_rng(seed)
    rows = {label: np.flatnonzero(store.label_ids == i) for i, label in enumerate(store.labels)}
    sets = [
        [{"text": store.text(int(row)), "label": label} for label, of in rows.items() for row in rng.choice(of, shots)]
        for _ in range(count)
    ]
    return sets, [store.text(int(row)) for row in rng.choice(len(store.label_ids), 1000)]


class Load:
    """Requests of all clients, with their seconds and what went wrong."""

    def __init__(self, session: aiohttp.ClientSession, url: str) -> None:
        self.session, self.url = session, url
        self.seconds: dict[str, list[float]] = {"adapt": [], "predict": []}
        self.errors: dict[str, int] = {}

    async def post(self, kind: str, path: str, body: Any) -> Any:
        began = time.perf_counter()
        try:
            async with self.session.post(self.url + path, json=body) as answer:
                content = await answer.json()
                if answer.status < 300:
                    self.seconds[kind].append(time.perf_counter() - began)
                    return content
                what = f"{answer.status}: {content.get('error', '')[:80]}"
        except (aiohttp.ClientError, asyncio.TimeoutError) as error:
            what = type(error).__name__
        self.errors[what] = self.errors.get(what, 0) + 1
        return None


def percentiles(seconds: list[float]) -> dict[str, float]:
    if not seconds:
        return {}
    percentiles = np.percentile(seconds, [50, 90, 95, 99, 100]) * 1000
    return dict(zip(("p50_ms", "p90_ms", "p95_ms", "p99_ms", "max_ms"), percentiles.round(1).tolist(), strict=True))


async def measure(
    url: str, pids: list[int], sets: Any, texts: list[str], options: argparse.Namespace
) -> dict[str, Any]:
    limits = aiohttp.TCPConnector(limit=0)
    timeout = aiohttp.ClientTimeout(total=120)
    async with aiohttp.ClientSession(connector=limits, timeout=timeout) as session:
        load = Load(session, url)
        memory = {"begin_mb": megabytes(pids)}
        ready = asyncio.Semaphore(options.clients)
        began = time.perf_counter()

        async def first(rows: Any) -> Any:
            async with ready:
                return await load.post("adapt", "/tasks", {"support": rows})

        handles = [found["task"] for found in await asyncio.gather(*map(first, sets[: options.tasks])) if found]
        adapting = time.perf_counter() - began
        at_first = {
            "tasks": len(handles), "seconds": round(adapting, 2), "tasks_per_s": round(len(handles) / adapting, 1),
            **percentiles(load.seconds["adapt"]),
        }  # fmt: skip
        load.seconds = {"adapt": [], "predict": []}
        spare = iter(sets[options.tasks :])
        until = time.perf_counter() + options.seconds

        async def client(number: int) -> None:
            rng = random.Random(number)
            turn = 0
            while time.perf_counter() < until:
                turn += 1
                rows = next(spare, None) if (turn + number) % ADAPT_EVERY == 0 else None
                if rows is not None:
                    found = await load.post("adapt", "/tasks", {"support": rows})
                    if found:
                        async with session.delete(f"{url}/tasks/{found['task']}"):
                            pass
                else:
                    path = f"/tasks/{rng.choice(handles)}/predict"
                    await load.post("predict", path, {"inputs": rng.sample(texts, options.inputs)})

        async def middle() -> None:
            await asyncio.sleep(options.seconds / 2)
            memory["middle_mb"] = megabytes(pids)

        began = time.perf_counter()
        await asyncio.gather(middle(), *(client(number) for number in range(options.clients)))
        wall = time.perf_counter() - began
        memory["end_mb"] = megabytes(pids)
        async with session.get(f"{url}/metrics") as answer:
            lines = (await answer.text()).splitlines()
    predicted, adapted = len(load.seconds["predict"]), len(load.seconds["adapt"])
    return {
        "adapting_to_all_tasks": at_first,
        "load": {
            "seconds": round(wall, 1),
            "predict": {"requests_per_s": round(predicted / wall, 1),
                        "predictions_per_s": round(predicted * options.inputs / wall, 1),
                        **percentiles(load.seconds["predict"])},
            "adapt": {"tasks_per_s": round(adapted / wall, 2), **percentiles(load.seconds["adapt"])},
            "errors": load.errors,
        },
        "memory": memory,
        "mean_batch": {kind: mean_batch(lines, kind) for kind in ("adapt", "predict")},
    }  # fmt: skip


def mean_batch(lines: list[str], kind: str) -> float:
    """Requests that went through the base together."""
    total, count = (
        next(float(x.split()[-1]) for x in lines if x.startswith(f'distmeta_batch_size_{name}{{kind="{kind}"}}'))
        for name in ("sum", "count")
    )
    return round(total / max(1.0, count), 2)


def replicas_of(server: int) -> list[int]:
    """Processes of Ray Serve's replicas below the server's."""
    import psutil

    children = psutil.Process(server).children(recursive=True)
    return [p.pid for p in children if "ServeReplica" in " ".join(p.cmdline())]


def megabytes(pids: list[int]) -> float:
    import psutil

    return round(sum(psutil.Process(pid).memory_full_info().pss for pid in pids) / 2**20, 1)


def model_alone(source: Path, sets: Any, texts: list[str], inputs: int, rounds: int = 10) -> dict[str, float]:
    """Without HTTP, in this process and thread: tasks adapted and texts predicted in a CPU second, of 32 tasks."""
    from distmeta.serve.batches import Base

    base = Base(source)
    asked = [base.asked(rows) for rows in sets[:32]]
    tasks = base.adapt(asked)
    wanted = [(task, texts[32 * i : 32 * i + inputs]) for i, task in enumerate(tasks)]
    ways: dict[str, Callable[[], Any]] = {
        "adapt_together": lambda: base.adapt(asked),
        "adapt_one_by_one": lambda: [base.adapt([one]) for one in asked],
        "predict_together": lambda: base.predict(wanted),
        "predict_one_by_one": lambda: [base.predict([one]) for one in wanted],
    }
    rates: dict[str, list[float]] = {name: [] for name in ways}
    for turn in range(rounds + 1):
        for name, way in ways.items():
            began = time.process_time()
            way()
            each = (len(asked) if "adapt" in name else len(wanted) * inputs) / (time.process_time() - began)
            rates[name] += [each] if turn else []  # the first is a warm-up
    return {f"{name}_per_cpu_s": round(float(np.median(values)), 1) for name, values in rates.items()}


def run(options: argparse.Namespace) -> dict[str, Any]:
    with tempfile.TemporaryDirectory() as folder:
        from distmeta.runs import checkpoint as checkpoints

        source = (
            checkpoints.resolve(options.source) if options.source else initial_checkpoint(Path(folder) / "step-000000")
        )
        sets, texts = support_sets(source, options.tasks + 20 * options.clients, options.shots)
        with socket.create_server(("127.0.0.1", 0)) as free:
            port = free.getsockname()[1]
        log = (Path(folder) / "log").open("w+")
        command = [sys.executable, "-m", "distmeta", "serve", str(source), "--port", str(port), "--tasks",
                   f"{folder}/tasks", "--replicas", str(options.replicas)]  # fmt: skip
        server = subprocess.Popen(command, stderr=log)
        try:
            until = time.monotonic() + 400
            while f":{port}" not in Path(log.name).read_text():
                if server.poll() is not None or time.monotonic() > until:
                    raise RuntimeError(f"the server did not start: {Path(log.name).read_text()}")
                time.sleep(0.2)
            found = asyncio.run(measure(f"http://127.0.0.1:{port}", replicas_of(server.pid), sets, texts, options))
        finally:
            server.send_signal(signal.SIGTERM)
            try:
                server.wait(timeout=120)
            except subprocess.TimeoutExpired:
                server.kill()
        return found | {"model_alone": model_alone(source, sets, texts, options.inputs)}


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", 1)[0])
    parser.add_argument("source", nargs="?", help="run or checkpoint; default: the default recipe's initial weights")
    parser.add_argument("--clients", type=int, default=100)
    parser.add_argument("--tasks", type=int, default=50)
    parser.add_argument("--seconds", type=float, default=60)
    parser.add_argument("--shots", type=int, default=5, help="examples of each label")
    parser.add_argument("--inputs", type=int, default=8, help="texts of a request")
    parser.add_argument("--replicas", type=int, default=1)
    parser.add_argument("--out", type=Path, default=RESULTS / "serving.json")
    options = parser.parse_args()
    load_before = os.getloadavg()
    result = run(options)
    asked = {key: value for key, value in vars(options).items() if key not in ("out", "source")}
    result |= {
        "asked": asked,
        "machine_load": {"before": load_before, "after": os.getloadavg()},
        **setting({"load": 0}),
    }
    write_json(options.out, result)
    print(json.dumps({key: result[key] for key in ("load", "memory", "mean_batch", "model_alone")}, indent=1))


if __name__ == "__main__":
    main()
