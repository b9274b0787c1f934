"""What do hundreds of inner steps take, in memory above the model and in CPU seconds?

    python benchmarks/documents_memory.py

A llama decoder of four layers of 384 from its configuration, LoRA of rank 8 on every linear module (0.9 MB of fast
weights), chunks of 64 tokens read with 64 before them, the exact meta-gradient of the summed loss, one document, one
thread. `all` keeps the fast weights of every step; a number is inner.snapshots. Each case runs in a process of its own;
memory is the peak of resident memory over what the process held with the model, live bytes
(MALLOC_MMAP_THRESHOLD_=131072); planned is what the snapshots hold. Writes benchmarks/results/documents_memory.json.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from typing import Any

import numpy as np
import torch
from records import RESULTS

CASES = [(8, 0), (256, 0), (256, 40), (256, 16)]  # steps, snapshots
SHAPE = {
    "hidden_size": 384, "num_hidden_layers": 4, "num_attention_heads": 6, "num_key_value_heads": 6,
    "intermediate_size": 1024, "max_position_embeddings": 256, "tie_word_embeddings": True,
}  # fmt: skip
VOCABULARY, TOKENS = 4096, 64


def measure(steps: int, kept: int) -> dict[str, Any]:
    """One case, in this process."""
    from distmeta.algorithms import maml
    from distmeta.algorithms.rates import inner_loop
    from distmeta.bench.measure import peak_mb
    from distmeta.config import make_config
    from distmeta.inner.snapshots import held, width
    from distmeta.learner.gradients import group_gradient
    from distmeta.models.backbone import set_attention
    from distmeta.models.build import build_model

    torch.set_num_threads(1)
    config = make_config({
        "task": {"family": "document", "chunks": steps + 1, "chunk_tokens": TOKENS, "context_tokens": TOKENS},
        "model": {"architecture": "llama", "config": SHAPE, "lora_targets": "all-linear"},
        "inner": {"adapt": "lora", "lr": 0.05, "memory": "walk", "snapshots": kept},
        "outer": {"base": "freeze"},
    })  # fmt: skip
    model = build_model(config, VOCABULARY, 0, 1)
    set_attention(model.backbone, "exact")
    rng = np.random.default_rng(0)

    def chunk(number: int) -> Any:
        ids = rng.integers(5, VOCABULARY, (1, 1, TOKENS * (1 + (number > 0))))
        begin = np.array([[TOKENS if number else 1]])
        return model.batches([{
            "input_ids": ids, "attention_mask": np.ones_like(ids), "labels": begin, "store_rows": begin, "total": 1,
        }], "cpu")  # fmt: skip

    def read(count: int) -> None:
        *before, last = (chunk(number) for number in range(count + 1))
        loop = inner_loop(config.inner, {}, count)
        group_gradient(model, model.fast, model.shared, maml, loop, (before, last), ["document"])

    read(2)  # what the first call sets up
    began = time.process_time()
    peak = peak_mb(lambda: read(steps))
    size = sum(t.numel() * t.element_size() for t in model.fast.values())
    at_once = held(width(inner_loop(config.inner, {}, steps), steps, size), steps)
    return {
        "steps": steps, "snapshots": kept or "all", "peak_mb": round(peak, 1), "held": at_once,
        "planned_mb": round(at_once * size / 2**20, 1), "cpu_s": round(time.process_time() - began, 2),
    }  # fmt: skip


def main() -> None:
    if sys.argv[1:2] == ["--one"]:
        print(json.dumps(measure(int(sys.argv[2]), int(sys.argv[3]))))
        return
    from distmeta.bench.measure import setting

    rows = []
    for steps, kept in CASES:
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "MALLOC_MMAP_THRESHOLD_": "131072"}
        command = [sys.executable, __file__, "--one", str(steps), str(kept)]
        done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=1800, check=True)
        rows.append(json.loads(done.stdout.splitlines()[-1]))
        print(rows[-1], flush=True)
    file = RESULTS / "documents_memory.json"
    about = {"command": "python benchmarks/documents_memory.py", "setting": setting({}), "cases": rows}
    file.write_text(json.dumps(about, indent=1) + "\n")


if __name__ == "__main__":
    main()
