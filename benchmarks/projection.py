"""What would 8 to 1,024 GPUs give, and for what price? On paper, and checked against timed runs.

    distmeta bench scaling --timed 0.25,0.05 --workers 1,4,8,16,32 --out benchmarks/results/scaling_timed.json
    python benchmarks/projection.py --timed benchmarks/results/scaling_timed.json
    python benchmarks/projection.py --given task_s=1.2 --given megabytes=26 --given price=2.5 --out mine.json

The model is projection_model.py. Without --given it is asked about the two scenarios below, whose numbers are
assumptions, each with its reason; with --given about yours. --timed: a machine's numbers are fitted to the timed runs
of few ranks, and what they predict for more ranks is compared with what was measured.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import sys
from pathlib import Path
from typing import Any

from projection_model import LIMITS, Given, compare, numbers, project
from records import RESULTS

from distmeta.errors import InputError

WORLDS = (8, 16, 32, 64, 128, 256, 512, 1024)
TASKS = 4  # of a rank, in weak scaling
META_BATCH = 256  # in strong scaling

# Of one GPU: failures every 50,000 hours (419 in 54 days on 16,384 H100: Llama 3, arXiv 2407.21783, section 3.3.4);
# a link of 200 Gb/s (25 GB/s), 20 microseconds a hop for each of four collectives; 3 a GPU hour.
CLUSTER: dict[str, float] = {
    "gb_per_s": 25.0, "latency_s": 80e-6, "mtbf_h": 50_000.0, "restart_s": 180.0, "price": 3.0, "task_deviation": 0.1,
}  # fmt: skip
SCENARIOS = {
    # 4096 support and 4096 query tokens, 3 exact steps: some 40 FLOP a parameter and token, at 400 TFLOP/s.
    # Rank 16 on query and value, 6.8 million float32 numbers.
    "LoRA on an 8B decoder": Given(task_s=3.3, megabytes=26.0, fixed_s=0.05, checkpoint_s=1.0, **CLUSTER),
    # First order: some 20 FLOP. All 8 billion numbers in float32; a checkpoint is three times as many bytes.
    "all of an 8B decoder": Given(task_s=1.7, megabytes=30_500.0, fixed_s=0.2, checkpoint_s=60.0, **CLUSTER),
}


def table(title: str, points: list[dict[str, Any]]) -> Any:
    from rich.table import Table

    out = Table(title=title, box=None)
    headings = ("mode", "GPUs", "tasks a step", "step", "tasks/s", "efficiency", "stragglers", "all-reduce",
                "checkpoints", "failures", "price of 1000", "doubts")  # fmt: skip
    for heading in headings:
        out.add_column(heading, justify="left" if heading in ("mode", "doubts") else "right", no_wrap=True)
    for p in points:
        parts = [f"{p['share'][name]:.1%}" for name in ("stragglers", "all_reduce", "checkpoint", "failures")]
        price = p["price_per_1000_tasks"]
        out.add_row(
            p["mode"], str(p["workers"]), str(p["meta_batch"]), f"{p['step_s']:.3g} s", f"{p['tasks_per_s']:.4g}",
            f"{p['efficiency']:.3f}", *parts, "never" if price is None else f"{price:.3g}", ", ".join(p["doubts"]),
        )  # fmt: skip
    return out


def compared_table(compared: dict[str, Any]) -> Any:
    from rich.table import Table

    title = f"predicted and measured efficiency; fitted to at most {compared['fit_up_to']} ranks"
    out = Table(title=title, box=None)
    for heading in ("mode", "ranks", "samplers", "measured", "predicted", "error", "slowest rank alone", "step",
                    "predicted step", "seen by the fit"):  # fmt: skip
        out.add_column(heading, justify="left" if heading == "mode" else "right", no_wrap=True)
    for p in compared["points"]:
        out.add_row(
            p["mode"], str(p["workers"]), str(p["samplers"]), f"{p['measured']:.3f}", f"{p['predicted']:.3f}",
            f"{p['error']:+.1%}", f"{p['bare']:.3f}", f"{p['step_s']:.3g} s", f"{p['predicted_step_s']:.3g} s",
            "yes" if p["fitted"] else "no",
        )  # fmt: skip
    return out


def plot(record: dict[str, Any], path: Path) -> None:
    """Efficiency and price over GPUs, and, where there are timed runs, predicted and measured efficiency; a PNG."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    compared = record.get("compared")
    panels = 3 if compared else 2
    figure = Figure(figsize=(5 * panels, 4), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots(1, panels)
    for name, scenario in record["scenarios"].items():
        for mode, style in (("weak", "-"), ("strong", "--")):
            line = [p for p in scenario["points"] if p["mode"] == mode]
            gpus = [p["workers"] for p in line]
            axes[0].plot(gpus, [p["efficiency_of_one"] for p in line], style, marker="o", label=f"{name}, {mode}")
            priced = [(p["workers"], p["price_per_1000_tasks"]) for p in line if p["price_per_1000_tasks"]]
            axes[1].plot(*zip(*priced), style, marker="o", label=f"{name}, {mode}") if priced else None
    axes[0].set(xlabel="GPUs", ylabel="efficiency, over one GPU that never fails", xscale="log", ylim=(0, 1.05))
    axes[1].set(xlabel="GPUs", ylabel="price of 1000 tasks", xscale="log", yscale="log")
    if compared:
        for mode in sorted({p["mode"] for p in compared["points"]}):
            line = [p for p in compared["points"] if p["mode"] == mode]
            ranks, measured = [p["workers"] for p in line], [p["measured"] for p in line]
            error = [[p["measured"] - p["low"] for p in line], [p["high"] - p["measured"] for p in line]]
            axes[2].errorbar(ranks, measured, error, fmt="o", capsize=3, label=f"{mode}, measured")
            for key, style in (("predicted", "-"), ("bare", ":")):
                label = f"{mode}, " + ("predicted" if key == "predicted" else "slowest rank alone")
                axes[2].plot(ranks, [p[key] for p in line], style, label=label)
        axes[2].axvline(compared["fit_up_to"], color="grey", linewidth=0.8)
        axes[2].set(xlabel="ranks (fitted up to the line)", ylabel="efficiency", ylim=(0, 1.15))
    for axis in axes:
        axis.legend(fontsize=7)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=120)


def given_of(words: list[str]) -> Given:
    """Of key=value words. Raises InputError."""
    fields = [field.name for field in dataclasses.fields(Given)]
    values: dict[str, float] = {}
    for word in words:
        key, _, text = word.partition("=")
        try:
            values[key] = float(text)
        except ValueError:
            raise InputError(f"--given {word}: key=number") from None
        if key not in fields:
            raise InputError(f"--given {word}: a key of {', '.join(fields)}")
    if "task_s" not in values:
        raise InputError("--given: task_s, the seconds of a task on one GPU, is needed")
    return Given(**values)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--given", action="append", default=[], metavar="KEY=NUMBER", help="your own numbers")
    parser.add_argument("--workers", default=",".join(map(str, WORLDS)))
    parser.add_argument("--tasks", type=int, default=TASKS, help="of a rank, in weak scaling")
    parser.add_argument("--meta-batch", type=int, default=META_BATCH, help="in strong scaling")
    parser.add_argument("--timed", type=Path, help="result of `distmeta bench scaling` to fit to and to check against")
    parser.add_argument("--fit-up-to", type=int, default=8, help="ranks that the fit sees")
    parser.add_argument("--out", type=Path, default=RESULTS / "projection.json", help="a plot is written beside it")
    options = parser.parse_args()
    try:
        record = made(options)
    except InputError as error:
        sys.exit(f"error: {error}")
    from rich.console import Console

    from distmeta.bench.measure import write_json

    write_json(options.out, record)
    plot(record, options.out.with_suffix(".png"))
    console = Console(width=150)
    for name, scenario in record["scenarios"].items():
        console.print(table(name, scenario["points"]))
    if "compared" in record:
        console.print(compared_table(record["compared"]))
    console.print("Where it stops being true:", *(f"  {line}" for line in LIMITS), sep="\n")


def made(options: argparse.Namespace) -> dict[str, Any]:
    scenarios = {"given": given_of(options.given)} if options.given else SCENARIOS
    try:
        worlds = [int(part) for part in options.workers.split(",")]
    except ValueError:
        raise InputError(f"--workers {options.workers}: numbers of ranks such as 8,16,32") from None
    record: dict[str, Any] = {
        "command": "python benchmarks/projection.py " + " ".join(sys.argv[1:]),
        "limits": LIMITS,
        "scenarios": {
            name: {
                "given": numbers(one),
                "points": project(one, worlds, options.tasks) + project(one, worlds, options.meta_batch, "strong"),
            }
            for name, one in scenarios.items()
        },
    }
    if options.timed:
        try:
            timed = json.loads(options.timed.read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise InputError(f"--timed {options.timed}: {error}") from None
        record["compared"] = {
            "timed": {key: timed.get(key) for key in ("command", "hardware", "versions", "date", "timed_task_s")},
            **compare(timed, options.fit_up_to),
        }
    return record


if __name__ == "__main__":
    main()
