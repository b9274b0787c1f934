"""What does the exact meta-gradient of a deep decoder take, in memory above the model and in CPU seconds?

    python benchmarks/depth.py [--cases 30x1x512 ...] [--rounds 2] [--json FILE]

A decoder of SmolLM2-135M's shape from its configuration (random weights; layers as a case says; float32), LoRA of rank
8 on query and value projections, text to text, one inner step on a support set and a query set of as many rows, one
thread. A case is LAYERSxROWSxTOKENS. Ways:

    eager         transformers' eager attention, every layer's graph kept     order exact, memory walk
    walk          attention in blocks of queries                              order exact, memory walk
    layers        and layers that are run again                               order exact, memory layers
    first         PyTorch's fused attention                                   order first_order
    first_again   and layers that are run again           order first_order, model.activation_checkpointing

Memory is the peak of resident memory over what the process held with the model, each way of a case in a process of its
own, live bytes: MALLOC_MMAP_THRESHOLD_=131072 gives what is freed back at once. Seconds are of the CPU, the ways of a
case in one process by turns, the least of the rounds, without that setting, which costs some.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from records import RESULTS

WAYS = {
    "eager": ("maml", "eager", False), "walk": ("maml", "blocks", False), "layers": ("maml", "blocks", True),
    "first": ("fomaml", "", False), "first_again": ("fomaml", "", True),
}  # fmt: skip
CASES = ["30x1x512", "8x1x512", "30x4x128", "8x4x128", "30x1x1024", "8x4x512", "8x2x1024", "8x1x2048"]
SHAPE = {
    "hidden_size": 576, "num_attention_heads": 9, "num_key_value_heads": 3, "intermediate_size": 1536,
    "max_position_embeddings": 8192, "tie_word_embeddings": True,
}  # fmt: skip
VOCABULARY, ANSWER = 49152, 8


def steps(case: str) -> Callable[[str], None]:
    """A function that takes a step of a case in a way, in this process; called once in each, on a short row."""
    from distmeta.algorithms.rates import inner_loop
    from distmeta.config import make_config
    from distmeta.config.algorithms import load_algorithm
    from distmeta.learner.gradients import group_gradient
    from distmeta.models.attention import name_of
    from distmeta.models.backbone import set_attention
    from distmeta.models.build import build_model

    torch.set_num_threads(1)
    layers, rows, tokens = map(int, case.split("x"))
    config = make_config({
        "algorithm": "maml", "task": {"family": "text_to_text"}, "outer": {"base": "freeze"},
        "model": {"architecture": "llama", "config": {**SHAPE, "num_hidden_layers": layers}, "max_tokens": tokens,
                  "answer_tokens": ANSWER},
        "inner": {"steps": 1, "lr": 0.01, "adapt": "lora", "memory": "walk"},
    })  # fmt: skip
    model = build_model(config, VOCABULARY, 0, 1)
    rng = np.random.default_rng(0)

    def part(rows: int, tokens: int) -> Any:
        ids = rng.integers(5, VOCABULARY, (1, rows, tokens))
        begin = np.full((1, rows), tokens - ANSWER)
        return model.batches([{
            "input_ids": ids, "attention_mask": np.ones_like(ids), "labels": begin, "store_rows": begin, "total": rows,
        }], "cpu")  # fmt: skip

    def step(way: str, rows: int = rows, tokens: int = tokens) -> None:
        name, kernel, again = WAYS[way]
        model.backbone.exact_attention = "eager" if kernel == "eager" else name_of(True)
        model.layers.recomputed = layers if again else 0
        algorithm = load_algorithm(name)
        set_attention(model.backbone, algorithm.ORDER)
        parts = part(rows, tokens), part(rows, tokens)
        memory = "layers" if way == "layers" else "walk"
        loop = inner_loop(config.inner.model_copy(update={"memory": memory}), {})
        group_gradient(model, model.fast, model.shared, algorithm, loop, parts, ["task"])

    for way in WAYS:
        step(way, 1, 2 * ANSWER)  # what the first call sets up
    return step


def peak(case: str, way: str) -> dict[str, float]:
    from distmeta.bench.measure import peak_mb

    step = steps(case)
    return {way: round(peak_mb(lambda: step(way)), 1)}


def seconds(case: str, ways: Sequence[str], rounds: int) -> dict[str, float]:
    """The least of interleaved rounds, of each way."""
    from distmeta.bench.measure import interleave

    step = steps(case)
    timings = interleave({way: lambda _, way=way: step(way) for way in ways}, rounds)
    return {way: round(min(t.cpu_s for t in of), 3) for way, of in timings.items()}


def in_a_process(*words: str, live: bool) -> dict[str, float]:
    environment = {**os.environ, "OMP_NUM_THREADS": "1"} | ({"MALLOC_MMAP_THRESHOLD_": "131072"} if live else {})
    command = [sys.executable, __file__, "--one", *words]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=1800)
    if done.returncode:
        raise RuntimeError(f"{' '.join(words)}: {done.stderr.strip().splitlines()[-1]}")
    result: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return result


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cases", nargs="+", default=CASES)
    parser.add_argument("--ways", nargs="+", default=list(WAYS))
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--json", type=Path, default=RESULTS / "depth.json")
    parser.add_argument("--one", nargs="+", help=argparse.SUPPRESS)
    words = parser.parse_args()
    if words.one:
        case, rounds, *ways = words.one
        print(json.dumps(seconds(case, ways, int(rounds)) if int(rounds) else peak(case, ways[0])))
        return
    from distmeta.bench.measure import setting

    rows: dict[str, dict[str, Any]] = {}
    if words.json.is_file():
        rows = json.loads(words.json.read_text())["cases"]
    for case in words.cases:
        cpu = in_a_process(case, str(words.rounds), *words.ways, live=False) if words.rounds else {}
        for way in words.ways:
            mb = in_a_process(case, "0", way, live=True)[way]
            rows.setdefault(case, {})[way] = {"peak_mb": mb, "cpu_s": cpu.get(way)}
            print(f"{case:>12} {way:<12} {mb:8.0f} MB  {cpu.get(way)} s", flush=True)
            about = {"command": "python " + " ".join(sys.argv), "setting": setting({}), "cases": rows}
            words.json.write_text(json.dumps(about, indent=1) + "\n")


if __name__ == "__main__":
    main()
