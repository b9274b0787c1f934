"""What fits a GPU, and how long a meta-step takes there, of an 8B decoder: reckoned from counted bytes and operations.

    python benchmarks/paper.py [--json FILE]

No weight is allocated: the decoder of benchmarks/gpu.py runs on fake tensors, which know their shapes alone, at 3 and
at 4 layers, one row at a time. Every allocation and every matrix product of one inner step and of one query gradient is
counted, and drawn out to all layers and rows, which add alike. What is compared with the card is the peak of live bytes
and the weights: in bfloat16, LoRA of rank 8 in float32. The meta-step is of one task, 8 support and 8 query examples, 5
inner steps. Seconds are the operations at SHARE of the card's dense bfloat16 rate.

`--check` runs the same count on SmolLM2-135M's shape in float32, for a comparison with benchmarks/results/depth.json.
"""

from __future__ import annotations

import argparse
import json
import weakref
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from gpu import ANSWER, GB, SHAPES, WAYS, Decoder
from records import RESULTS
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from distmeta.bench.measure import matrix_flops

SHAPES["8b"] = {
    "num_hidden_layers": 32, "hidden_size": 4096, "num_attention_heads": 32, "num_key_value_heads": 8,
    "intermediate_size": 14336, "vocab_size": 128256,
}  # fmt: skip
CARDS = {"24 GB": (24, 165e12), "80 GB": (80, 312e12), "141 GB": (141, 790e12)}  # RTX 4090, A100, H200 as measured
SHARE = 0.45
EXAMPLES, STEPS = 8, 5
OF_A_CARD = 0.95  # the rest is the driver's and the allocator's


class LiveBytes(TorchDispatchMode):
    """The bytes of tensors made within it that are alive, and their peak. held: others, which do not count."""

    def __init__(self, held: Iterable[torch.Tensor]) -> None:
        super().__init__()
        self.now = self.peak = 0
        self._known = {tensor.untyped_storage()._cdata for tensor in held}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(out):
            if isinstance(tensor, torch.Tensor):
                self._see(tensor.untyped_storage())
        return out

    def _see(self, storage: torch.UntypedStorage) -> None:
        key, size = storage._cdata, storage.nbytes()
        if key in self._known:
            return
        self._known.add(key)
        self.now += size
        self.peak = max(self.peak, self.now)
        weakref.finalize(storage, self._lose, key, size)

    def _lose(self, key: int, size: int) -> None:
        self._known.discard(key)
        self.now -= size


def count(shape: str, dtype: str, layers: int, rows: int, tokens: int, way: str) -> tuple[float, float, float]:
    """(peak of live bytes, operations of a step, operations of the query) of one micro-batch."""
    kept = SHAPES[shape]["num_hidden_layers"]
    SHAPES[shape]["num_hidden_layers"] = layers
    try:
        with FakeTensorMode(allow_non_fake_inputs=True):
            decoder = Decoder(shape, dtype, torch.device("cpu"))
            sets = decoder.ids(rows, tokens, 1), decoder.ids(rows, tokens, 2)
            with LiveBytes([*decoder.backbone.parameters(), *decoder.fast.values()]) as live:
                both = matrix_flops(lambda: decoder.gradient(way, *sets))
            query = matrix_flops(lambda: decoder.gradient(way, *sets, steps=0))
    finally:
        SHAPES[shape]["num_hidden_layers"] = kept
    return live.peak, both - query, query


def at_all_layers(shape: str, dtype: str, rows: int, tokens: int, way: str) -> list[float]:
    """As `count`, from the counts at 3 and at 4 layers."""
    layers = SHAPES[shape]["num_hidden_layers"]
    few, more = (count(shape, dtype, n, rows, tokens, way) for n in (3, 4))
    return [a + (b - a) * (layers - 3) for a, b in zip(few, more, strict=True)]


def weights(shape: str, bytes_each: int) -> int:
    """Bytes of the frozen weights; the output layer is one of its own."""
    s = SHAPES[shape]
    d, keys = s["hidden_size"], s["hidden_size"] // s["num_attention_heads"] * s["num_key_value_heads"]
    layer = 2 * d * d + 2 * d * keys + 3 * d * s["intermediate_size"]
    return bytes_each * (s["num_hidden_layers"] * layer + 2 * s["vocab_size"] * d)


def reckon(tokens: int, way: str) -> dict[str, Any]:
    """One task's meta-step at `tokens` a row: GB by rows of a micro-batch, and by card what fits and its seconds.

    layers: what passes between layers (a state and its cotangent, of all examples and steps) is kept where there is
    room, which saves operations.
    """
    held = weights("8b", 2)
    of_a_row, step, query = at_all_layers("8b", "bfloat16", 1, tokens, "least" if way == "layers" else way)
    needed = {rows: held + rows * of_a_row for rows in (1, 2, 4, 8)}
    total = kept_total = EXAMPLES * (STEPS * step + query)
    between = 0
    if way == "layers":
        _, step, query = at_all_layers("8b", "bfloat16", 1, tokens, "layers")
        kept_total = EXAMPLES * (STEPS * step + query)
        shape = SHAPES["8b"]
        between = 2 * 2 * shape["num_hidden_layers"] * shape["hidden_size"] * tokens * EXAMPLES * STEPS
    cards: dict[str, Any] = {}
    for card, (size, rate) in CARDS.items():
        room = OF_A_CARD * size * GB
        rows = max((rows for rows, taken in needed.items() if taken <= room), default=0)
        kept = bool(rows) and way == "layers" and needed[1] + between <= room
        if kept:
            rows = max(rows for rows, taken in needed.items() if taken + between <= room)
        cards[card] = {"rows": rows, "kept": kept, "seconds": (kept_total if kept else total) / (SHARE * rate)}
    gb = {str(rows): taken / GB for rows, taken in needed.items()}
    return {"gb": gb, "between_gb": between / GB, "flops": total, "flops_kept": kept_total, "cards": cards}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path, default=RESULTS / "paper.json")
    parser.add_argument("--check", action="store_true", help="SmolLM2-135M's shape, beside benchmarks/depth.py's")
    words = parser.parse_args()
    if words.check:
        for way in WAYS:
            peak, step, query = at_all_layers("smollm2-135m", "float32", 1, 512, way)
            print(f"{way:<7} {peak / 2**20:6.0f} MB, {step / 1e9:.0f} and {query / 1e9:.0f} GFLOP", flush=True)
        return
    out: dict[str, Any] = {
        "command": "python benchmarks/paper.py", "weights_gb": weights("8b", 2) / GB, "share": SHARE,
        "cards": {card: {"gb": size, "flops_per_s": rate} for card, (size, rate) in CARDS.items()},
        "answer_tokens": ANSWER, "examples": EXAMPLES, "steps": STEPS, "tokens": {},
    }  # fmt: skip
    for tokens in (1024, 4096):
        out["tokens"][str(tokens)] = {way: reckon(tokens, way) for way in ("blocks", "layers", "again")}
        print(tokens, json.dumps(out["tokens"][str(tokens)]))
    words.json.write_text(json.dumps(out, indent=1) + "\n")


if __name__ == "__main__":
    main()
