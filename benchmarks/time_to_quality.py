"""Seconds and core-seconds to a stated meta-validation accuracy on CLINC150, from MiniLM: distmeta and plain scripts.

    python benchmarks/time_to_quality.py --data DIR/clinc150 --pretrained MODEL_DIR --target 0.96

The recipe `intents` on 1 and 2 learner ranks of a thread each, against benchmarks/plain_intents.py, a single process
that has a peer's inner loop, with 1 and 2 threads. Data, episodes, initial values, meta-steps, meta-validation episodes
and their cadence are the same; so are the losses, up to rounding, which is checked. Every run is a process of its own
that begins with nothing: it tokenises the data. All run --steps meta-steps, and the target is the first meta-validation
that reaches it.

wall_s from the start of the process, and from that of its first meta-step; core_s: CPU seconds of the process and all
that it started (Ray and samplers among them), until the same moment. Writes benchmarks/results/time_to_quality.json.
"""

from __future__ import annotations

import argparse
import json
import os
import shlex
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import psutil
from real_text import overrides
from records import RESULTS

import distmeta
from distmeta.bench.measure import setting, write_json
from distmeta.config import dump_config, load_config

ROOT = Path(distmeta.__file__).resolve().parents[1]
POLL_S = 0.2
PHASES = ("wait_s", "inner_s", "peers_s", "aggregate_s", "checkpoint_s")
SYSTEMS = {
    "distmeta, 1 rank": {"workers": 1},
    "distmeta, 2 ranks": {"workers": 2},
    "higher, 1 thread": {"peer": "higher", "threads": 1},
    "higher, 2 threads": {"peer": "higher", "threads": 2},
    "hand-written, 1 thread": {"peer": "hand-written", "threads": 1},
    "hand-written, 2 threads": {"peer": "hand-written", "threads": 2},
}


class Tree:
    """CPU seconds of a process and of all processes that have ever been seen below it."""

    def __init__(self, pid: int) -> None:
        self._root = psutil.Process(pid)
        self._known: dict[tuple[int, float], psutil.Process] = {}
        self._spent: dict[tuple[int, float], float] = {}

    def core_s(self) -> float:
        """So far. What a process does between the last look at it and its end is lost: POLL_S of it at most."""
        try:
            for process in [self._root, *self._root.children(recursive=True)]:
                self._known[process.pid, process.create_time()] = process
        except psutil.NoSuchProcess:
            pass
        for key, process in list(self._known.items()):
            try:
                times = process.cpu_times()
                self._spent[key] = times.user + times.system
            except psutil.NoSuchProcess:
                del self._known[key]
        return sum(self._spent.values())


def watched(command: list[str], journal: Path, environment: dict[str, str], log: Path, timeout_s: float) -> Any:
    """Run to the end. (records of metrics.jsonl, when each appeared, CPU seconds until then, (clock, CPU) samples)."""
    records: list[dict[str, Any]] = []
    seen: list[tuple[float, float]] = []
    samples = [(0.0, 0.0)]
    began = time.perf_counter()
    with log.open("w", encoding="utf-8") as out:
        process = subprocess.Popen(command, stdout=out, stderr=out, env={**os.environ, **environment})
        tree = Tree(process.pid)
        try:
            while process.poll() is None:
                core_s, wall_s = tree.core_s(), time.perf_counter() - began
                samples.append((wall_s, core_s))
                lines = journal.read_text(encoding="utf-8").split("\n")[:-1] if journal.exists() else []
                for line in lines[len(records) :]:
                    records.append(json.loads(line))
                    seen.append((wall_s, core_s))
                if wall_s > timeout_s:
                    raise TimeoutError(f"{shlex.join(command)}: no end within {timeout_s:g} s")
                time.sleep(POLL_S)
        finally:
            process.terminate()
            process.wait(60)
    if process.returncode:
        raise RuntimeError(f"{shlex.join(command)}: {log.read_text(encoding='utf-8')[-2000:]}")
    return records, seen, samples


def measured(about: dict[str, Any], words: list[str], timeout_s: float) -> dict[str, Any]:
    """One run of a system, to the end of its meta-steps."""
    threads = str(about.get("threads", 1))
    with tempfile.TemporaryDirectory(prefix="time-to-quality-") as name:
        place = Path(name)
        environment = {
            "OMP_NUM_THREADS": threads, "DISTMETA_CACHE": str(place / "cache"), "RAY_USAGE_STATS_ENABLED": "0",
            "PYTHONPATH": os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")]),
        }  # fmt: skip
        # The samplers hardly need time: one for each rank.
        ranks = about.get("workers", 1)
        words = [*words, f"cluster.workers={ranks}", f"sampling.actors={ranks}", f"run.dir={place / 'run'}"]
        config = load_config("intents", words)
        (place / "run.yaml").write_text(dump_config(config), encoding="utf-8")
        if "workers" in about:
            command = [sys.executable, "-m", "distmeta.cli", "train", str(place / "run.yaml")]
        else:
            script = Path(__file__).with_name("plain_intents.py")
            command = [sys.executable, str(script), "--config", str(place / "run.yaml"), "--peer", about["peer"],
                       "--threads", threads, "--out", str(place / "run")]  # fmt: skip
        records, seen, samples = watched(
            command, place / "run" / "metrics.jsonl", environment, place / "log.txt", timeout_s
        )
    return timeline(records, seen, samples)


def timeline(records: list[dict[str, Any]], seen: list[tuple[float, float]],
             samples: list[tuple[float, float]]) -> dict[str, Any]:  # fmt: skip
    """Each meta-step's end and, under `first`, the first one's beginning: clock and CPU seconds since the start."""
    steps = [
        {
            "step": r["step"], "wall_s": at[0], "core_s": at[1], "busy_s": sum(r.get(name, 0.0) for name in PHASES),
            "outer_loss": r["outer_loss"], "accuracy": r.get("validation", {}).get("accuracy"),
        }
        for r, at in zip(records, seen, strict=True)
    ]  # fmt: skip
    wall_s = seen[0][0] - steps[0]["busy_s"]
    first = {"wall_s": wall_s, "core_s": float(np.interp(wall_s, *zip(*samples, strict=True)))}
    return {"first": first, "steps": steps}


def to_target(run: dict[str, Any], target: float) -> dict[str, Any]:
    """What it took until the first meta-validation of at least `target`, or, where not reached, all of the run."""
    last = next((i for i, s in enumerate(run["steps"]) if (s["accuracy"] or 0.0) >= target), None)
    steps = run["steps"] if last is None else run["steps"][: last + 1]
    first, end = run["first"], steps[-1]
    busy = [s["busy_s"] for s in steps]
    return {
        "reached": last is not None, "steps": end["step"], "accuracy": end["accuracy"],
        "wall_s": end["wall_s"], "core_s": end["core_s"],
        "from_first_step_wall_s": end["wall_s"] - first["wall_s"],
        "from_first_step_core_s": end["core_s"] - first["core_s"],
        "step_s": statistics.median(busy), "validations_s": end["wall_s"] - first["wall_s"] - sum(busy),
    }  # fmt: skip


def disagreement(runs: dict[str, dict[str, Any]]) -> dict[str, float]:
    """The largest relative difference of each system's outer losses from the first's, over the first 5 meta-steps."""
    first, *_ = runs.values()

    def losses(run: dict[str, Any]) -> list[float]:
        return [s["outer_loss"] for s in run["steps"][:5]]

    return {
        name: max(abs(a / b - 1) for a, b in zip(losses(run), losses(first), strict=False))
        for name, run in runs.items()
    }  # fmt: skip


def derived(runs: dict[str, list[dict[str, Any]]], target: float) -> dict[str, Any]:
    """By system: what each run took to the target, and the means over the runs."""
    systems = {}
    for name, of in runs.items():
        reached = [to_target(run, target) for run in of]
        numbers = ("steps", "wall_s", "core_s", "from_first_step_wall_s", "from_first_step_core_s", "step_s",
                   "validations_s")  # fmt: skip
        systems[name] = {
            "reached": sum(f["reached"] for f in reached), "to_target": reached,
            "mean": {key: statistics.mean(f[key] for f in reached) for key in numbers},
        }  # fmt: skip
    count = max(len(of) for of in runs.values())
    alike = [disagreement({name: of[i] for name, of in runs.items() if len(of) > i}) for i in range(count)]
    return {"target": target, "systems": systems, "disagreement": alike}


def table(record: dict[str, Any]) -> Any:
    from rich.table import Table

    title = f"to {record['target']:.1%} meta-validation accuracy, means of {len(record['seeds'])} seeds"
    out = Table(title=title, box=None)
    for heading in ("system", "reached", "meta-steps", "seconds", "core-seconds", "from the first meta-step: seconds",
                    "core-seconds", "a meta-step", "validations"):  # fmt: skip
        out.add_column(heading, justify="left" if heading == "system" else "right")
    for name, found in record["systems"].items():
        mean = found["mean"]
        out.add_row(
            name, f"{found['reached']} of {len(found['to_target'])}", f"{mean['steps']:.0f}",
            f"{mean['wall_s']:.0f}", f"{mean['core_s']:.0f}", f"{mean['from_first_step_wall_s']:.0f}",
            f"{mean['from_first_step_core_s']:.0f}", f"{mean['step_s']:.2f} s", f"{mean['validations_s']:.0f} s",
        )  # fmt: skip
    return out


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--pretrained", required=True)
    parser.add_argument("--target", type=float, required=True)
    parser.add_argument("--seeds", default="0")
    parser.add_argument("--every", type=int, default=10, help="meta-steps between meta-validations")
    parser.add_argument("--episodes", type=int, default=50, help="of a meta-validation")
    parser.add_argument("--steps", type=int, default=100, help="meta-steps of a run")
    parser.add_argument("--systems", default=None, help="; between names: " + "; ".join(SYSTEMS))
    parser.add_argument("--timeout", type=float, default=1800, help="seconds of one run")
    parser.add_argument("--again", action="store_true", help="run nothing: another target of the runs in --out")
    parser.add_argument("--out", type=Path, default=RESULTS / "time_to_quality.json")
    parser.add_argument("more", nargs="*", help="further overrides, section.key=value")
    options = parser.parse_args()
    names = [name.strip() for name in options.systems.split(";")] if options.systems else list(SYSTEMS)
    if unknown := [name for name in names if name not in SYSTEMS]:
        parser.error(f"--systems {unknown[0]}: one of {'; '.join(SYSTEMS)}")
    if options.again:
        record = json.loads(options.out.read_text(encoding="utf-8"))
        record |= derived(record["runs"], options.target)
        write_json(options.out, record)
    else:
        record = run_all(options, names)
    from rich.console import Console

    Console(width=150).print(table(record))


def run_all(options: argparse.Namespace, names: list[str]) -> dict[str, Any]:
    seeds = [int(part) for part in options.seeds.split(",")]
    settings = [
        f"outer.steps={options.steps}", f"eval.every={options.every}", f"eval.validation_episodes={options.episodes}",
        "eval.baselines=false", "eval.episodes=2", *options.more,
    ]  # fmt: skip
    words = [*overrides("intents", options.data, options.pretrained), *settings]
    runs: dict[str, list[dict[str, Any]]] = {}
    record: dict[str, Any] = {**setting({"run": seeds[0]}), "seeds": seeds, "settings": settings}
    for seed in seeds:  # interleaved
        for name in names:
            print(f"seed {seed}: {name}", file=sys.stderr, flush=True)
            before = os.getloadavg()[0]
            run = measured(SYSTEMS[name], [*words, f"run.seed={seed}"], options.timeout)
            runs.setdefault(name, []).append({"seed": seed, "load_before": before, **run})
            record |= {**derived(runs, options.target), "runs": runs}
            write_json(options.out, record)
            print(f"  {to_target(run, options.target)}", file=sys.stderr, flush=True)
    return record


if __name__ == "__main__":
    main()
