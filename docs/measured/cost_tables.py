"""Tables of time and memory."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from measured.reading import half, interval, listed, number, record, table

PEER_ROWS = [  # the row's name in the record, our variant, how the page calls it
    ("exact-all", "unroll", "exact, all parameters, unroll"),
    ("exact-all", "walk", "exact, all parameters, walk in 320-token parts"),
    ("exact-lora", "unroll", "exact, LoRA rank 8, unroll"),
    ("exact-lora", "walk", "exact, LoRA rank 8, walk in 320-token parts"),
    ("exact-lora-50", "walk", "the same, 50 steps, walk"),
    ("first-order-all", "auto", "first order, all parameters"),
    ("first-order-lora", "auto", "first order, LoRA"),
    ("top-quarter", "unroll", "exact, LoRA in the last of 4 layers, unroll"),
    ("top-quarter", "walk", "the same, walk"),
    ("head-only", "auto", "exact, the head alone"),
    ("frozen-base", "second pass", "LoRA in the last layer, a second pass over the same examples"),
    ("tiny-tasks", "unroll", "exact, LoRA, 8 tasks of 5 x 16 tokens, batched"),
    ("sinusoid", "batched", "sinusoid network, 25 tasks, batched"),
    ("sinusoid-compiled", "compiled", "the same, compiled"),
    ("text-clinc150", "auto", "exact, LoRA, CLINC150 as it comes"),
    ("text-zh", "unroll", "exact, LoRA, Chinese reviews as they come, unroll"),
    ("text-zh", "walk", "the same, walk"),
    ("text-arsc", "unroll", "exact, LoRA, English reviews as they come, unroll"),
    ("text-arsc", "walk", "the same, walk"),
]


def peer(row: str, system: str) -> tuple[str, str, str]:
    """(time over the best peer's, memory (the best peer's), multiple of the FLOP floor (the best peer's))."""
    result = next(one for one in record("peers")["rows"] if one["row"] == row)
    ours = {"unroll", "walk", "auto", "batched", "compiled", "second pass"}
    memory = {name: mb for name, mb in result["memory_mb"].items() if name == system or name not in ours}
    best = min(mb for name, mb in memory.items() if name != system)
    time, floor = "", ""
    if result["systems"]:
        ratio = result["systems"][system]["ratio"]
        time = f"{ratio['median']:.2f} [{ratio['low']:.2f}, {ratio['high']:.2f}]"
        floors = [result["systems"][name]["over_floor"] for name in (system, result["peer"])]
        floor = f"{floors[0]:.1f} ({floors[1]:.1f})"
    return time, f"{memory[system]:.0f} ({best:.0f})", floor


def peers() -> str:
    header = ["", "time / peer", "memory, MB (peer)", "times the FLOP floor (peer)"]
    return table(header, ([about, *peer(row, system)] for row, system, about in PEER_ROWS))


def exact_walk() -> str:
    labels = ["5 steps, unroll", "5 steps, walk in 320-token parts", "50 steps, walk"]
    rows = ([label, *peer(row, system)[:2]] for label, (row, system, _) in zip(labels, PEER_ROWS[2:5]))
    return table(["", "time / best peer", "memory, MB (peer)"], rows)


DEPTH_WAYS = {
    "eager": "every layer's graph kept, transformers' attention", "walk": "the same, attention in blocks",
    "layers": "`inner.memory=layers`", "first": "first order", "first_again": "first order, layers run again",
}  # fmt: skip


def depth() -> str:
    ways = record("depth")["cases"]["30x1x512"]
    plain = ways["eager"]
    rows = (
        [about, f"{ways[way]['peak_mb']:,.0f}", f"{ways[way]['peak_mb'] / plain['peak_mb']:.2f}",
         f"{ways[way]['cpu_s'] / plain['cpu_s']:.2f}"] for way, about in DEPTH_WAYS.items()
    )  # fmt: skip
    return table(["", "memory above the model, MB", "of the first row", "CPU seconds, of the first row"], rows)


PAPER_WAYS = {
    "blocks": "exact, walk",
    "layers": "exact, `inner.memory=layers`",
    "again": "first order, layers run again",
}


def paper() -> str:
    """What fits a card, and how long a task takes there."""
    rows = []
    for tokens, ways in record("paper")["tokens"].items():
        for way, about in PAPER_WAYS.items():
            gb, cards = ways[way]["gb"], ways[way]["cards"].values()
            cells = [f"{card['rows']}, {card['seconds']:.0f} s" if card["rows"] else "does not fit" for card in cards]
            rows.append([f"{int(tokens):,}", about, f"{gb['1']:.0f} / {gb['8']:.0f}", *cells])
    return table(["tokens a row", "order", "GB, 1 / 8 rows at once", *record("paper")["cards"]], rows)


def scaling_points(name: str) -> dict[tuple[str, int], Any]:
    return {(point["mode"], point["workers"]): point for point in record(name)["points"]}


def scaling() -> str:
    rows = []
    for mode in ("weak", "strong"):
        point = scaling_points("scaling")[mode, 2]
        shares = [f"{point['share'][part]:.1%}" for part in ("wait", "inner", "peers", "aggregate", "checkpoint")]
        speed = f"{number(point['tasks_per_s'], 1)} ± {(point['tasks_per_s']['high'] - point['tasks_per_s']['low']) / 2:.1f}"
        rows.append([mode, "2", speed, half(point["efficiency"]), *shares])
    header = ["", "ranks", "tasks/s", "efficiency", "wait", "inner", "idle for peers", "aggregate", "checkpoint"]
    return table(header, rows)


def padding() -> str:
    rows = []
    for name, about in (("zh_online_shopping10", "Chinese reviews, characters"), ("arsc", "Amazon reviews, words")):
        shares = record("sampling")[name]["padding"]
        tasks = shares["tasks_in_a_group"]
        cells = [f"{shares[key]:.1%}" for key in ("one_batch_a_set", "by_length", "by_length_in_groups")]
        rows.append([about, *cells[:2], cells[2] + (f" ({tasks} tasks)" if tasks > 1 else "")])
    return table(["", "one batch", "by length", "tasks as one"], rows)


def compression() -> str:
    models = record("compression")["models"]
    names = {
        "as trained": ("as trained", "as it is"), "magnitude 50%": ("`magnitude:0.5` (zeros are stored)", ""),
        "magnitude 80%": ("`magnitude:0.8`", ""), "units 50%": ("`units:0.5`", "units 50%"),
        "int8": ("int8", "as it is, int8"), "units 50%, int8": ("`units:0.5`, int8", "units 50%, int8"),
    }  # fmt: skip
    rows = []
    for form, (about, base) in names.items():
        full, lora = models["full"][form], models["lora"][form]
        large = models["bert-base, random weights"].get(base)
        rows.append([
            about, f"{full['bytes'] / 1e6:.2f}", medians(full, 1), interval(full["accuracy"]), interval(lora["accuracy"]),
            *((f"{large['bytes'] / 1e6:.0f}", medians(large, 0)) if large else ("", "")),
        ])  # fmt: skip
    header = ["", "default: MB", "ms (1, 32)", "accuracy", "LoRA: accuracy", "BERT-base: MB", "ms (1, 32)"]
    return table(header, rows)


def versions() -> str:
    rows = []
    for row in sorted(record("versions"), key=lambda r: r["tests"]):
        named = ", ".join(f"{name} {row[name]}" for name in row["tests"])
        failures = len(row["failures"])
        rows.append([named, str(row["passed"]), str(failures), f"{row['seconds'] / 60:.0f}"])
    return table(["release", "tests passed", "failed", "minutes"], rows)


def medians(form: Mapping[str, Any], digits: int) -> str:
    """Milliseconds of a forward pass of 1 and of 32 texts."""
    return listed((form[f"batch_{n}_s"]["median"] * 1000 for n in (1, 32)), digits)


def documents_memory() -> str:
    rows = [
        [str(row["steps"]), str(row["snapshots"]), str(row["held"]), f"{row['planned_mb']:.0f} MB",
         f"{row['peak_mb']:.0f} MB", f"{row['cpu_s']:.0f}"]
        for row in record("documents_memory")["cases"]
    ]  # fmt: skip
    return table(["inner steps", "`inner.snapshots`", "held", "these take", "peak above the model", "CPU s"], rows)
