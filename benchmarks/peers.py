"""distmeta against higher, TorchOpt, learn2learn and a hand-written loop: time, memory, and the FLOP floor.

    python benchmarks/peers.py [--rows exact-lora text-arsc] [--rounds 3] [--out results/peers.json] [--quick]

The same Hugging Face model, weights, episodes, steps, rate, dtype (float32) and one thread. For each row: every system
runs once, which warms it up, and its meta-gradient must agree with the hand-written loop's; the two quickest peers then
meet distmeta in interleaved rounds. A ratio is distmeta over the best peer, round by round; its median and range are
shown. Peak memory is of one run in a fresh process, after a tiny one. The floor is the matrix-product FLOPs that the
mathematics needs (benchmarks/floor.py) over this machine's matrix rate, measured in this run.
"""

from __future__ import annotations

import argparse
import dataclasses
import os
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE), str(HERE.parent)]
for variable in ("OMP_NUM_THREADS", "MKL_NUM_THREADS"):  # before torch
    os.environ[variable] = "1"

import torch  # noqa: E402
import workloads  # noqa: E402
from peer_loops import importable  # noqa: E402
from records import RESULTS  # noqa: E402
from workloads import Row, Unavailable, Workload, agreement  # noqa: E402

from distmeta.bench.measure import (  # noqa: E402
    Timing,
    in_fresh_process,
    interleave,
    matrix_rate,
    peak_mb,
    ratio,
    seconds,
    setting,
    spread,
    timed,
    write_json,
)

TOLERANCE = 1e-3  # relative, of a float32 meta-gradient
KEPT = 2  # peers that go into the rounds


@dataclass(frozen=True)
class Claim:
    """What must hold: `quantity` of `system`, as a ratio to the best peer's, is at most `most`.

    time, memory. auto: time over that of the better of walk and unroll. growth: MB a step, from `short_steps` to all.
    """

    row: str
    system: str
    quantity: str
    most: float


ROWS = {
    row.name: row
    for row in [
        Row("exact-all", "exact, all parameters", ("unroll", "walk", "auto"), adapt="all", part_tokens={"walk": 320}),
        Row("exact-lora", "exact, LoRA rank 8", ("unroll", "walk", "auto"), part_tokens={"walk": 320}),
        Row("exact-lora-50", "the same, 50 steps", ("walk",), steps=50, part_tokens={"walk": 320}, memory_only=True),
        Row("first-order-all", "first order, all parameters", ("auto",), adapt="all", order="first_order"),
        Row("first-order-lora", "first order, LoRA rank 8", ("auto",), order="first_order"),
        Row("text-clinc150", "exact, LoRA, intents as they come", ("unroll", "walk", "auto"), data="clinc150"),
        Row("text-zh", "exact, LoRA, Chinese reviews", ("unroll", "walk", "auto"), data="zh_online_shopping10",
            part_tokens={"walk": 640}),
        Row("text-arsc", "exact, LoRA, English reviews", ("unroll", "walk", "auto"), data="arsc",
            part_tokens={"walk": 640}),
        Row("top-quarter", "exact, LoRA in the last of 4 layers", ("unroll", "walk", "auto"), last_layer=True,
            part_tokens={"walk": 320}),
        Row("head-only", "exact, the head", ("unroll", "walk", "auto"), adapt="head", rounds=5),
        Row("frozen-base", "LoRA in the last layer, second pass over the same examples", ("second pass",),
            last_layer=True),
        Row("tiny-tasks", "exact, LoRA, 8 tasks of 5 x 16 tokens", ("unroll", "walk", "auto"), tasks=8,
            support=(5, 16), query=(15, 16), rounds=9),
        Row("sinusoid", "exact, 1-40-40-1 network, 25 tasks", ("batched",), tasks=25, support=(10, 1), query=(10, 1),
            rounds=25),
        Row("sinusoid-compiled", "the same, compiled", ("compiled",), tasks=25, support=(10, 1), query=(10, 1),
            rounds=25),
    ]
}  # fmt: skip

CLAIMS = [
    Claim("exact-all", "unroll", "time", 1.0),
    Claim("exact-all", "walk", "time", 1.15),
    Claim("exact-all", "walk", "memory", 0.2),
    Claim("exact-lora", "unroll", "time", 1.0),
    Claim("exact-lora", "walk", "time", 1.2),
    Claim("exact-lora", "walk", "memory", 0.07),
    Claim("exact-lora-50", "walk", "memory", 0.03),
    Claim("exact-lora-50", "walk", "growth", 0.2),
    Claim("first-order-all", "auto", "time", 0.95),
    Claim("first-order-lora", "auto", "time", 0.95),
    Claim("text-clinc150", "unroll", "time", 0.75),
    *(Claim(row, "unroll", "time", 0.5) for row in ("text-zh", "text-arsc")),
    *(Claim(row, "walk", "time", 0.6) for row in ("text-zh", "text-arsc")),
    *(Claim(row, "walk", "memory", 0.1) for row in ("text-zh", "text-arsc")),
    Claim("top-quarter", "unroll", "time", 0.4),
    Claim("top-quarter", "walk", "memory", 0.06),
    Claim("head-only", "unroll", "time", 0.4),
    Claim("tiny-tasks", "unroll", "time", 0.7),
    Claim("sinusoid", "batched", "time", 0.1),
    Claim("sinusoid-compiled", "compiled", "time", 0.04),
    *(Claim(row.name, "auto", "auto", 1.1) for row in ROWS.values() if {"auto", "walk", "unroll"} <= set(row.ours)),
]  # fmt: skip


def build(row: Row, tiny: bool, data: Path) -> Workload:
    """Raises Unavailable."""
    peers, _ = importable()
    if row.name.startswith("sinusoid"):
        return workloads.sinusoid_workload(row, peers)
    return workloads.text_workload(row, peers, tiny, data)


def run_row(row: Row, rounds: int, tiny: bool, data: Path, memory: tuple[str, ...], rate: float) -> dict[str, Any]:
    """Everything measured of one row, as JSON. memory: distmeta's settings whose peak is taken. rate: FLOP/s."""
    out: dict[str, Any] = {"row": row.name, "about": row.about, "settings": dataclasses.asdict(row), "systems": {}}
    try:
        work = build(row, tiny, data)
    except Unavailable as reason:
        return out | {"skipped": str(reason)}
    peers = ["hand-written"]
    if not row.memory_only:
        found, peers = _times(row, work, rounds, rate)
        out |= found
    if memory:
        out["memory_mb"] = {name: _peak(row, name, tiny, data) for name in (*memory, *(peers[:1] if tiny else peers))}
        if row.memory_only:
            out["growth_mb_per_step"] = _growth(row, out["memory_mb"], tiny, data)
    return out


def _times(row: Row, work: Workload, rounds: int, rate: float) -> tuple[dict[str, Any], list[str]]:
    """(agreement, seconds and ratios of a row, the peers that went into the rounds)."""
    every = work.ours | work.peers
    reference = next(iter(work.peers.values()))(0)
    apart: dict[str, float] = {}
    warm: dict[str, Timing] = {}
    for name, system in every.items():
        results: list[Any] = []
        warm[name] = timed(lambda system=system, results=results: results.append(system(0)))  # type: ignore[misc]
        apart[name] = agreement(results[0], reference)
    kept = sorted(work.peers, key=lambda name: seconds([warm[name]])[0])[:KEPT]
    timings = interleave({name: every[name] for name in (*work.ours, *kept)}, rounds)
    best = min(kept, key=lambda name: spread(seconds(timings[name])).median)
    floors = [work.flops(i) / rate for i in range(rounds)]
    systems = {
        name: {
            "cpu_s": [t.cpu_s for t in runs],
            "wall_s": [t.wall_s for t in runs],
            "ratio": dataclasses.asdict(ratio(runs, timings[best])),
            "over_floor": spread([s / floor for s, floor in zip(seconds(runs), floors, strict=True)]).median,
        }
        for name, runs in timings.items()
    }
    out: dict[str, Any] = {
        "peer": best, "systems": systems, "floor_s": floors, "agreement": {"worst": max(apart.values()), **apart},
        "slower_peers_s": {name: t.cpu_s for name, t in warm.items() if name not in timings},
    }  # fmt: skip
    if {"unroll", "walk", "auto"} <= set(work.ours):
        auto, unroll, walk = (seconds(timings[name]) for name in ("auto", "unroll", "walk"))
        over = [a / min(u, w) for a, u, w in zip(auto, unroll, walk, strict=True)]
        out["auto_over_better"] = dataclasses.asdict(spread(over))
    return out, kept


def _growth(row: Row, at_all: dict[str, float | str], tiny: bool, data: Path) -> dict[str, float]:
    """MB that a step adds to each system's peak: from a fifth of the steps to all."""
    few = dataclasses.replace(row, steps=max(1, row.steps // 5))
    grown = {}
    for name, mb in at_all.items():
        short = _peak(few, name, tiny, data)
        if isinstance(mb, float) and isinstance(short, float):
            grown[name] = (mb - short) / (row.steps - few.steps)
    return grown


def _peak(row: Row, system: str, tiny: bool, data: Path) -> float | str:
    try:
        return float(
            in_fresh_process(
                "peers", "peak", row=dataclasses.asdict(row), system=system, tiny=tiny, data=str(data), timeout_s=1200
            )
        )
    except RuntimeError as error:
        return str(error)


def peak(row: dict[str, Any], system: str, tiny: bool, data: str) -> float:
    """Runs in the fresh process."""
    torch.set_num_threads(1)
    whole = Row(**{key: tuple(v) if isinstance(v, list) else v for key, v in row.items()})

    def of(row: Row, small: bool) -> Any:
        work = build(row, small, Path(data))
        return (work.ours | work.peers)[system]

    of(workloads.quick(dataclasses.replace(whole, data=None)), True)(0)
    run = of(whole, tiny)
    return peak_mb(lambda: run(0))


# --- what is shown ---


def verdicts(result: dict[str, Any]) -> list[dict[str, Any]]:
    """Each claim about this row with the figure found, and whether it holds."""
    out = []
    for claim in CLAIMS:
        if claim.row != result["row"] or "skipped" in result:
            continue
        value = _value(result, claim)
        if value is not None:
            out.append({**dataclasses.asdict(claim), "found": value, "holds": value <= claim.most})
    return out


def _value(result: dict[str, Any], claim: Claim) -> float | None:
    if claim.quantity == "time":
        return float(result["systems"][claim.system]["ratio"]["median"])
    if claim.quantity == "auto":
        return float(result["auto_over_better"]["median"])
    if claim.quantity == "growth":
        return result.get("growth_mb_per_step", {}).get(claim.system)  # type: ignore[no-any-return]
    return memory_ratio(result, claim.system)


def memory_ratio(result: dict[str, Any], system: str) -> float | None:
    """Over the leanest of the peers that were measured."""
    memory = result.get("memory_mb", {})
    peers = [mb for name, mb in memory.items() if name not in result["settings"]["ours"] and isinstance(mb, float)]
    own = memory.get(system)
    return own / min(peers) if peers and min(peers) > 0 and isinstance(own, float) else None


def table(results: list[dict[str, Any]]) -> Any:
    from rich.table import Table

    out = Table(title="distmeta and its best peer: one meta-gradient, one thread")
    for heading in ("row", "distmeta", "s", "peer s", "best peer", "ratio [low, high]", "MB", "peer MB", "ratio",
                    "x floor (peer)", "must be at most"):  # fmt: skip
        out.add_column(heading, justify="left" if heading in ("row", "distmeta", "best peer") else "right")
    for result in results:
        if "skipped" in result:
            out.add_row(result["row"], f"skipped: {result['skipped']}")
            continue
        for number, name in enumerate(result["settings"]["ours"]):
            out.add_row(result["row"] if number == 0 else "", name, *_cells(result, name), end_section=False)
        out.add_section()
    return out


def _cells(result: dict[str, Any], name: str) -> list[str]:
    memory, system = result.get("memory_mb", {}), result["systems"].get(name, {})
    peers = {n: mb for n, mb in memory.items() if n not in result["settings"]["ours"]}
    peer_mb = min((mb for mb in peers.values() if isinstance(mb, float)), default=None)
    share = memory_ratio(result, name)
    mb = memory.get(name)
    times = ["", "", "", ""]
    floor = ""
    if system:
        best = result["systems"][result["peer"]]
        r = system["ratio"]
        own_s, peer_s = (spread(s["cpu_s"]).median for s in (system, best))
        times = [
            f"{own_s:.3g}",
            f"{peer_s:.3g}",
            result["peer"],
            f"{r['median']:.3f} [{r['low']:.2f}, {r['high']:.2f}]",
        ]
        floor = f"{system['over_floor']:.2f} ({best['over_floor']:.2f})"
    judged = [
        f"[{'green' if v['holds'] else 'red'}]{v['quantity']} {v['most']:g}: "
        + ("holds" if v["holds"] else f"MISSED ({v['found']:.3g})")
        + "[/]"
        for v in result["verdicts"]
        if v["system"] == name
    ]
    memories = [f"{mb:.0f}" if isinstance(mb, float) else "", f"{peer_mb:.0f}" if peer_mb is not None else "",
                f"{share:.3f}" if share is not None else ""]  # fmt: skip
    return [*times, *memories, floor, "\n".join(judged)]


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    names = ", ".join(ROWS)
    parser.add_argument("--rows", nargs="+", choices=list(ROWS), metavar="ROW", help=f"default: all of {names}")
    parser.add_argument("--rounds", type=int, default=3, help="interleaved rounds; short rows take more")
    parser.add_argument("--data", type=Path, default=workloads.DATA, help="folder of the data sets")
    parser.add_argument("--out", type=Path, default=RESULTS / "peers.json")
    parser.add_argument("--quick", action="store_true", help="once, tiny, memory of one row: does all run?")
    parser.add_argument("--no-memory", action="store_true", help="leave the fresh processes out")
    return parser.parse_args()


def main() -> None:
    from rich.console import Console

    chosen = arguments()
    torch.set_num_threads(1)
    console = Console(width=None if sys.stdout.isatty() else 190)
    began = time.perf_counter()
    rate = matrix_rate()
    _, absent = importable()
    # To compile takes a minute whatever the size: a quick look has no time for it, unless it is asked to.
    names = chosen.rows or [name for name in ROWS if not (chosen.quick and name == "sinusoid-compiled")]
    content = {
        **setting({"all": workloads.SEED}), "quick": chosen.quick, "dtype": "float32",
        "matrix_gflops_per_s": rate / 1e9, "not_run": absent,
    }  # fmt: skip
    results: list[dict[str, Any]] = []
    for name in names:
        print(f"{name} ({time.perf_counter() - began:.0f} s)", file=sys.stderr, flush=True)
        row = workloads.quick(ROWS[name]) if chosen.quick else ROWS[name]
        memory = row.ours
        if chosen.no_memory or (chosen.quick and name != names[0]):
            memory = ()
        elif chosen.quick:
            memory = row.ours[:1]
        rounds = 1 if chosen.quick else max(row.rounds or 0, chosen.rounds)
        result = run_row(row, rounds, chosen.quick, chosen.data, memory, rate)
        result["verdicts"] = [] if chosen.quick else verdicts(result)
        worst = result.get("agreement", {}).get("worst", 0.0)
        if not worst <= TOLERANCE:
            sys.exit(f"{name}: the meta-gradients differ by {worst:.1e}: {result['agreement']}")
        results.append(result)
        write_json(chosen.out, {**content, "seconds": time.perf_counter() - began, "rows": results})
    console.print(table(results))
    held = [v["holds"] for result in results for v in result["verdicts"]]
    console.print(
        f"{sum(held)} of {len(held)} claims hold; matrix rate {rate / 1e9:.0f} GFLOP/s; largest relative difference of "
        f"meta-gradients {max((r.get('agreement', {}).get('worst', 0.0) for r in results), default=0.0):.1e}; "
        f"{time.perf_counter() - began:.0f} s; {chosen.out}"
    )
    for name, reason in absent.items():
        console.print(f"{name}: {reason}")


if __name__ == "__main__":
    main()
