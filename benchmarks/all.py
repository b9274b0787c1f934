"""Runs the smallest form of each benchmark and compares it with its record, so that a regression shows.

    python benchmarks/all.py                                    # the records, with the command of each
    python benchmarks/all.py --quick [--data DIR] [--encoder DIR] [--only NAME ...]

A figure passes if its interval meets the record's (for scores), or if it lies within the stated factor of it (for
seconds' ratios and memory), or if it is equal (for counts). The forms are small, so a small regression does not show. A
benchmark whose data or model was not given is left out, and said to be. The quick records go to --work, those of
benchmarks/results stay as they are. Exit code 1 if any figure fails.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from records import RESULTS

HERE = Path(__file__).parent
ROOT = HERE.parent


@dataclass(frozen=True)
class Figure:
    """What is read of a record. factor: how far a number may be from the record's; None: intervals have to meet."""

    name: str
    of: Callable[[Any], Any]
    factor: float | None = None


@dataclass(frozen=True)
class Quick:
    """One benchmark's smallest form. commands: words of `python`; {work}, {data}, {encoder} are filled in."""

    record: str
    commands: tuple[str, ...]
    figures: tuple[Figure, ...]


def ratio(cell: Any, way: str, key: str) -> float:
    """Of one way of taking the gradient to every layer's graph at once."""
    return float(cell[way][key] / cell["eager"][key])


def interval(score: Any) -> tuple[float, float]:
    """Of a score with bounds, or with half the width of its interval."""
    half = score.get("half_width")
    return (score["low"], score["high"]) if half is None else (score["mean"] - half, score["mean"] + half)


def seeds(name: str) -> Callable[[Any], dict[str, float]]:
    """From the lowest to the highest seed of an algorithm: another processor rounds as another seed draws."""

    def span(record: Any) -> dict[str, float]:
        scores = [run["test"]["accuracy"] for run in record["algorithms"][name]["runs"].values()]
        return {"low": min(score["low"] for score in scores), "high": max(score["high"] for score in scores)}

    return span


def seeds_of_default(record: Any) -> dict[str, float]:
    """From the lowest to the highest seed of `distmeta train`, adapted."""
    scores = [record["evaluation"]["meta_trained"]["accuracy"], *record.get("other_seeds", {}).values()]
    return {"low": min(score["low"] for score in scores), "high": max(score["high"] for score in scores)}


def row(name: str, system: str) -> Callable[[Any], float]:
    """The median ratio of a system in a row of the peers' table."""
    return lambda record: float(
        next(r for r in record["rows"] if r["row"] == name)["systems"][system]["ratio"]["median"]
    )


QUICK = (
    Quick("paper", ("benchmarks/paper.py",), (
        Figure("operations of a meta-step at 1,024 tokens", lambda r: r["tokens"]["1024"]["layers"]["flops"], 1.0),
        Figure("memory at 8 rows", lambda r: r["tokens"]["1024"]["layers"]["gb"]["8"], 1.001),
    )),
    Quick("default", ("-m distmeta train default --run-dir {work}/default", "benchmarks/default.py {work}/default"), (
        Figure("accuracy after adaptation", seeds_of_default),
        Figure("accuracy of pooled training", lambda r: r["evaluation"]["multi_task"]["accuracy"]),
    )),
    Quick("depth", ("benchmarks/depth.py --cases 30x1x512 --ways eager layers --rounds 1",), (
        Figure("memory of layers over eager", lambda r: ratio(r["cases"]["30x1x512"], "layers", "peak_mb"), 1.25),
        Figure("CPU seconds of layers over eager", lambda r: ratio(r["cases"]["30x1x512"], "layers", "cpu_s"), 1.25),
    )),
    Quick("peers", ("benchmarks/peers.py --rows exact-all first-order-lora --rounds 1 --no-memory",), (
        Figure("exact, time over higher's", row("exact-all", "auto"), 1.25),
        Figure("first order, time over higher's", row("first-order-lora", "auto"), 1.25),
    )),
    Quick("algorithms_builtin", (
        "benchmarks/algorithms.py builtin outer.steps=75 outer.lr=4e-3 --seeds 0 --validation 50 "
        "--algorithms maml,fomaml",
    ), tuple(
        Figure(f"accuracy of {name}", seeds(name))
        for name in ("maml", "fomaml")
    )),
    Quick("zero_table", ("benchmarks/zero_table.py --worlds 2 --stages 0 2",), (
        Figure("first norms of exact gradients", lambda r: r["gradient_norms"]["adapter/exact"][0], 1.0001),
        Figure("difference of stage 2 below 1e-6", lambda r: r["cells"]["2/adapter/exact/2"]["difference"] < 1e-6, 1.0),
    )),
    Quick("images", ("benchmarks/images.py --run-dir {work}/images --episodes 100 outer.steps=150",), (
        Figure("accuracy of prototypes", lambda r: r["built_in"]["prototypes"]["accuracy"]),
        Figure("accuracy of maml", lambda r: r["built_in"]["maml"]["accuracy"]),
    )),
    Quick("chaos", ("benchmarks/chaos.py --inside 1 --faults 14 --outside 0 --out {work}/chaos.json",), (
        Figure("runs with traces", lambda r: r["with_traces"], 1.0),
    )),
    Quick("scaling_timed", (
        "-m distmeta bench scaling outer.meta_batch_size=4 --timed 0.25,0.05 --workers 1,8 --mode weak --samplers 4 "
        "--steps 30 --repeats 1 --out {work}/scaling_timed.json",
    ), (Figure("efficiency of 8 ranks", lambda r: r["points"][1]["efficiency"]["mean"], 1.2),)),
    Quick("intents", (
        "benchmarks/intents.py --data {data}/clinc150 --pretrained {encoder} --run-dir {work}/intents --splits 01 "
        "--kinds 5x1 --episodes 100 -- outer.steps=40 outer.lr=3e-5 cluster.workers=1 sampling.actors=1",
    ), (
        Figure("5 ways, 1 shot, meta-trained", lambda r: r["runs"]["01"]["5x1"]["meta_trained"]),
        Figure("5 ways, 1 shot, frozen", lambda r: r["runs"]["01"]["5x1"]["frozen"]),
    )),
    Quick("real_text_sentiment_60", (
        "benchmarks/real_text.py sentiment --data {data}/zh_reviews_3class --run-dir {work}/sentiment "
        "--out {work}/real_text_sentiment_60.json outer.steps=60 eval.baselines=false eval.episodes=150 "
        "cluster.workers=1 sampling.actors=0",
    ), (
        Figure("accuracy after adaptation", lambda r: r["meta_test"]["meta_trained"]["accuracy"]),
        Figure("macro recall of n-grams on all rows", lambda r: r["every_row"]["lexical"]["all"]["recall"], 1.001),
    )),
    Quick("algorithms_mixed", (
        "benchmarks/mixed.py --clinc {data}/clinc150 --arsc {data}/arsc --induction {data}/instruction_induction "
        "--pretrained {encoder} --out {work}/mixed",
        "benchmarks/algorithms.py mixed --data {work}/mixed --seeds 0 --validation 32 --episodes 160 "
        "--algorithms maml",
    ), (Figure("accuracy of maml", seeds("maml")),)),
    Quick("rejection", (
        "benchmarks/rejection.py --data {data}/clinc150 --pretrained {encoder} --episodes 20 outer.steps=30 "
        "outer.lr=3e-5",
    ), (
        Figure("area, out of scope", lambda r: r["kinds"]["5x5"]["area_out_of_scope"]),
        Figure("accuracy", lambda r: r["kinds"]["5x5"]["accuracy"]),
    )),
)  # fmt: skip


def compared(figure: Figure, quick: Any, record: Any) -> tuple[bool, str]:
    """Whether a figure of a quick run is that of the record, and both in words."""
    new, old = figure.of(quick), figure.of(record)
    if figure.factor is None:
        (a, b), (c, d) = interval(new), interval(old)
        return max(a, c) <= min(b, d), f"[{a:.3f}, {b:.3f}], in the record [{c:.3f}, {d:.3f}]"
    fits = new == old or (new > 0 < old and 1 / figure.factor <= new / old <= figure.factor)
    return fits, f"{new:.4g}, in the record {old:.4g}"


def missing(one: Quick, places: dict[str, Any]) -> str | None:
    """The first option that a quick form needs and that was not given."""
    return next((f"--{n}" for n, v in places.items() if v is None and f"{{{n}}}" in " ".join(one.commands)), None)


def run(one: Quick, places: dict[str, Any], timeout_s: float) -> Any:
    """What the quick form leaves. Raises RuntimeError, subprocess.TimeoutExpired."""
    work = Path(places["work"])
    paths = os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])
    environment = {**os.environ, "DISTMETA_RESULTS": str(work), "OMP_NUM_THREADS": "1", "PYTHONPATH": paths}
    for command in one.commands:
        words = [word.format(**places) for word in command.split()]
        done = subprocess.run(
            [sys.executable, *words], cwd=ROOT, env=environment, capture_output=True, text=True, timeout=timeout_s
        )
        if done.returncode:
            raise RuntimeError(f"{' '.join(words)}: {(done.stderr or done.stdout)[-1500:]}")
    return json.loads((work / f"{one.record}.json").read_text(encoding="utf-8"))


def listed() -> Iterator[str]:
    """A line for each record: its name, whether it has a quick form, and the command that made it."""
    quick = {one.record for one in QUICK}
    for file in sorted(RESULTS.glob("*.json")):
        content = json.loads(file.read_text(encoding="utf-8"))
        parts = [content, *content.values()] if isinstance(content, dict) else content
        command = next((part["command"] for part in parts if isinstance(part, dict) and "command" in part), "")
        yield f"{file.stem:32} {'quick' if file.stem in quick else '':6} {command}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="run the smallest forms")
    parser.add_argument("--data", type=Path, help="folder of the data sets")
    parser.add_argument("--encoder", type=Path, help="directory of a pretrained sentence encoder")
    parser.add_argument("--only", nargs="+", choices=[one.record for one in QUICK], metavar="NAME")
    parser.add_argument("--work", type=Path, help="where runs and quick records go (default: a temporary directory)")
    parser.add_argument("--timeout-s", type=float, default=1200, help="of one command")
    asked = parser.parse_args()
    if not asked.quick:
        print("\n".join(listed()))
        return
    failed = 0
    with tempfile.TemporaryDirectory(prefix="distmeta-quick-") as temporary:
        work = asked.work or Path(temporary)
        work.mkdir(parents=True, exist_ok=True)
        places = {"work": work.resolve(), "data": asked.data, "encoder": asked.encoder}
        for one in QUICK:
            if asked.only and one.record not in asked.only:
                continue
            if need := missing(one, places):
                print(f"{one.record}: left out, it needs {need}")
                continue
            began = time.monotonic()
            try:
                quick = run(one, places, asked.timeout_s)
            except (RuntimeError, subprocess.TimeoutExpired) as error:
                print(f"{one.record}: FAILED: {error}", flush=True)
                failed += 1
                continue
            record = json.loads((HERE / "results" / f"{one.record}.json").read_text(encoding="utf-8"))
            for figure in one.figures:
                fits, words = compared(figure, quick, record)
                failed += not fits
                print(f"{one.record}: {'ok' if fits else 'FAILED'}: {figure.name}: {words}")
            print(f"{one.record}: {time.monotonic() - began:.0f} s", flush=True)
    sys.exit(1 if failed else 0)


if __name__ == "__main__":
    main()
