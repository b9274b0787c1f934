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

Each way of a case runs in a process of its own. Memory is the peak of resident memory over what the process held with
the model, live bytes: MALLOC_MMAP_THRESHOLD_=131072 gives what is freed back at once. Seconds are of the CPU, the least
of the rounds, without that setting, which costs some.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch

WAYS = ("eager", "walk", "layers", "first", "first_again")
CASES = ["8x1x512", "30x1x512", "8x4x128", "30x4x128", "8x1x1024", "30x1x1024", "8x1x2048"]
SHAPE = {
    "hidden_size": 576, "num_attention_heads": 9, "num_key_value_heads": 3, "intermediate_size": 1536,
    "max_position_embeddings": 8192, "tie_word_embeddings": True,
}  # fmt: skip
VOCABULARY, ANSWER = 49152, 8


def measure(layers: int, rows: int, tokens: int, way: str, rounds: int) -> dict[str, Any]:
    """One way of one case, in this process."""
    from distmeta.algorithms.rates import inner_loop
    from distmeta.bench.measure import peak_mb
    from distmeta.config import make_config
    from distmeta.config.algorithms import load_algorithm
    from distmeta.learner.gradients import group_gradient
    from distmeta.models.backbone import set_attention
    from distmeta.models.build import build_model

    torch.set_num_threads(1)
    first = way.startswith("first")
    config = make_config({
        "algorithm": "fomaml" if first else "maml", "task": {"family": "text_to_text"},
        "model": {"architecture": "llama", "config": {**SHAPE, "num_hidden_layers": layers}, "max_tokens": tokens,
                  "answer_tokens": ANSWER, "activation_checkpointing": way == "first_again"},
        "inner": {"steps": 1, "lr": 0.01, "adapt": "lora", "memory": "layers" if way == "layers" else "walk"},
        "outer": {"base": "freeze"},
    })  # fmt: skip
    model = build_model(config, VOCABULARY, 0, 1)
    if way == "eager":
        del model.backbone.exact_attention
    algorithm = load_algorithm(config.algorithm)
    set_attention(model.backbone, algorithm.ORDER)
    rng = np.random.default_rng(0)

    def part(rows: int, tokens: int) -> Any:
        ids = rng.integers(5, VOCABULARY, (1, rows, tokens))
        begin = np.full((1, rows), tokens - ANSWER)
        return model.batches([{
            "input_ids": ids, "attention_mask": np.ones_like(ids), "labels": begin, "store_rows": begin, "total": rows,
        }], "cpu")  # fmt: skip

    def step(rows: int, tokens: int) -> None:
        parts = part(rows, tokens), part(rows, tokens)
        loop = inner_loop(config.inner, {})
        group_gradient(model, model.fast, model.shared, algorithm, loop, parts, ["task"])

    step(1, 2 * ANSWER)  # what the first call sets up
    peak = peak_mb(lambda: step(rows, tokens))
    seconds = []
    for _ in range(rounds):
        began = time.process_time()
        step(rows, tokens)
        seconds.append(time.process_time() - began)
    return {"peak_mb": round(peak, 1), "cpu_s": round(min(seconds), 3) if seconds else None}


def in_a_process(case: str, way: str, rounds: int, live: bool) -> dict[str, Any]:
    environment = {**os.environ, "OMP_NUM_THREADS": "1"} | ({"MALLOC_MMAP_THRESHOLD_": "131072"} if live else {})
    command = [sys.executable, __file__, "--one", case, way, str(rounds)]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=1800)
    if done.returncode:
        raise RuntimeError(f"{case} {way}: {done.stderr.strip().splitlines()[-1]}")
    result: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return result


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cases", nargs="+", default=CASES)
    parser.add_argument("--ways", nargs="+", default=list(WAYS))
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--json", type=Path, default=Path("benchmarks/results/depth.json"))
    parser.add_argument("--one", nargs=3, help=argparse.SUPPRESS)
    words = parser.parse_args()
    if words.one:
        case, way, rounds = words.one
        print(json.dumps(measure(*map(int, case.split("x")), way, int(rounds))))
        return
    from distmeta.bench.measure import setting

    rows: dict[str, dict[str, Any]] = {}
    if words.json.is_file():
        rows = json.loads(words.json.read_text())["cases"]
    for case in words.cases:
        for way in words.ways:
            peak = in_a_process(case, way, 0, live=True)["peak_mb"]
            cpu = in_a_process(case, way, words.rounds, live=False)["cpu_s"] if words.rounds else None
            rows.setdefault(case, {})[way] = {"peak_mb": peak, "cpu_s": cpu}
            print(f"{case:>12} {way:<12} {peak:8.0f} MB  {cpu} s", flush=True)
            about = {"command": "python " + " ".join(sys.argv), "setting": setting({}), "cases": rows}
            words.json.write_text(json.dumps(about, indent=1) + "\n")


if __name__ == "__main__":
    main()
