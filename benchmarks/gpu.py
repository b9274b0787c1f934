"""The meta-gradient of decoders on one GPU: is it right, how fast is it, and what does it take?

    python benchmarks/gpu.py [--minutes 5] [--json FILE]        on a GPU
    python benchmarks/gpu.py --small                            every piece in its smallest form, on a CPU too

It needs torch and transformers and this repository, and no download: models are made from their configurations, with
random weights. LoRA of rank 8 on query and value projections, text to text, one inner step on a support set and the
query's gradient, the output layer on the answers' tokens alone. Ways:

    eager     order exact, transformers' eager attention, every layer's graph kept
    blocks    order exact, attention in blocks of queries
    layers    order exact, attention in blocks, every layer run again, what passes between layers kept
    least     the same, and that is made again too
    fused     order first_order, PyTorch's fused attention
    again     order first_order, and every layer run again

Correctness: the meta-gradient of a small decoder in float32 and bfloat16 against float64, each way. Speed: tokens of
support and query together a second, the median of the rounds; the peak of allocated memory above the model; and the
share of this machine's own rate of matrix products, with the floating point operations that the run itself makes. Cases
go on in their order until the minutes are over; a case that is not reached or does not fit says so.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # a machine where nothing is installed

import torch
from torch import Tensor
from torch.func import functional_call
from transformers import LlamaConfig, LlamaModel

from distmeta.bench.measure import matrix_flops
from distmeta.inner import InnerLoop, meta_gradient
from distmeta.models import attention
from distmeta.models.layers import add_lora, give_task_axis
from distmeta.models.output import token_losses
from distmeta.models.partial import Layers

WAYS = {
    "eager": ("exact", "eager", False, False), "blocks": ("exact", "distmeta", False, False),
    "layers": ("exact", "distmeta", True, True), "least": ("exact", "distmeta", True, False),
    "fused": ("first_order", "sdpa", False, False), "again": ("first_order", "sdpa", True, False),
}  # fmt: skip
SHAPES = {
    "tiny": {"num_hidden_layers": 3, "hidden_size": 32, "num_attention_heads": 4, "num_key_value_heads": 2,
             "intermediate_size": 64, "vocab_size": 512},
    "smollm2-135m": {"num_hidden_layers": 30, "hidden_size": 576, "num_attention_heads": 9, "num_key_value_heads": 3,
                     "intermediate_size": 1536, "vocab_size": 49152},
    "1b": {"num_hidden_layers": 16, "hidden_size": 2048, "num_attention_heads": 32, "num_key_value_heads": 8,
           "intermediate_size": 8192, "vocab_size": 128256},
}  # fmt: skip
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float64": torch.float64}
ANSWER = 16
GB = 2**30


@dataclass(frozen=True)
class Case:
    shape: str
    dtype: str
    rows: int
    tokens: int
    way: str


def cases(small: bool) -> list[Case]:
    """Ordered by what is most wanted, should the minutes not last."""
    if small:
        return [Case("tiny", dtype, rows, tokens, way) for dtype in ("float32", "bfloat16")
                for rows, tokens in ((4, 32), (1, 160)) for way in WAYS]  # fmt: skip
    sizes = {"smollm2-135m": ((32, 256), (4, 2048)), "1b": ((16, 256), (1, 4096))}
    return [
        Case(shape, dtype, rows, tokens, way)
        for long in (0, 1) for dtype in ("bfloat16", "float32") for shape in sizes
        for rows, tokens in [sizes[shape][long]] for way in WAYS
    ]  # fmt: skip


class Decoder:
    """A decoder without its output layer, whose table of embeddings is that layer too, with LoRA as fast weights."""

    def __init__(self, shape: str, dtype: str, device: torch.device) -> None:
        attention.register()
        config = LlamaConfig(**SHAPES[shape], max_position_embeddings=8192, attn_implementation="eager", pad_token_id=0)
        self.dtype, self.device, self.vocabulary = dtype, device, config.vocab_size
        torch.manual_seed(0)
        with device:
            self.backbone = LlamaModel(config).eval()
        give_task_axis(self.backbone)
        add_lora(self.backbone, 8, 16.0, "auto", 0)
        self.backbone.requires_grad_(False)
        if device.type != "cpu":
            self.backbone.to(device)
        self.layers = Layers(self.backbone)
        named = dict(self.backbone.named_parameters())
        generator = torch.Generator().manual_seed(1)  # LoRA begins where its products are zero
        self.fast = {
            name: (value + 0.02 * torch.randn(value.shape, generator=generator).to(device)).detach()
            for name, value in named.items() if "lora_" in name
        }  # fmt: skip
        if dtype == "float64":
            self.backbone.double()
            self.fast = {name: value.double() for name, value in self.fast.items()}
        if dtype == "bfloat16":
            for name, value in named.items():
                value.data = value.data.to(torch.bfloat16) if value.dim() > 1 and name not in self.fast else value.data

    def loss(self, params: dict[str, Tensor], ids: Tensor) -> Tensor:
        """The mean over rows of the mean cross-entropy of the last tokens of ids [n, L]."""
        length, answer = ids.shape[1], min(ANSWER, ids.shape[1] // 4)
        place = torch.arange(length - answer - 1, length - 1, device=ids.device).expand(len(ids), -1)
        narrow, wide = self.dtype == "bfloat16", torch.float64 if self.dtype == "float64" else torch.float32
        # of the states' dtype: on a CPU the fused kernel takes a float32 mask beside float64 for something else
        future = torch.full((length, length), torch.finfo(torch.float32).min, device=ids.device, dtype=wide).triu_(1)
        # cache_enabled: a weight that was cast in one derivative's graph must not be used in another's
        with torch.autocast(ids.device.type, torch.bfloat16, enabled=narrow, cache_enabled=False):
            states = self.layers.from_states(
                lambda: functional_call(self.backbone, params, (), {
                    "input_ids": ids, "attention_mask": future[None, None], "use_cache": False,
                    "position_ids": torch.arange(length, device=ids.device).expand(len(ids), -1),
                }, tie_weights=False).last_hidden_state, 0, None, place,
            )  # fmt: skip
        table = self.backbone.embed_tokens.weight

        def score(states: Tensor) -> Tensor:
            return (states.to(table.dtype) @ table.mT).to(wide)

        losses, _ = token_losses(score, self.vocabulary, states.unsqueeze(0), ids[:, -answer:].unsqueeze(0))
        return losses.mean()

    def gradient(self, way: str, support: Tensor, query: Tensor, steps: int = 1) -> dict[str, Tensor]:
        """The meta-gradient."""
        order, kernel, again, keeps = WAYS[way]
        self.backbone.set_attn_implementation(attention.name_of(True) if kernel == "distmeta" else kernel)
        self.layers.recomputed = len(self.layers) if again else 0
        loop = InnerLoop(steps=steps, lr=0.1, memory="auto" if keeps else "walk", budget_mb=1e9, seed=0)
        options: Any = {"check": False, "last_inner_loss": False}
        return meta_gradient(self.loss, self.fast, support, query, loop, order, **options).grads

    def ids(self, rows: int, tokens: int, seed: int) -> Tensor:
        generator = torch.Generator().manual_seed(seed)
        return torch.randint(1, self.vocabulary, (rows, tokens), generator=generator).to(self.device)


def errors(device: torch.device) -> dict[str, dict[str, float]]:
    """The relative distance of the meta-gradient from float64's, plain double backward, by dtype and way.

    Random text of 160 tokens, so that attention has two blocks.
    """
    out: dict[str, dict[str, float]] = {}
    expected: dict[str, dict[str, Tensor]] = {}
    for dtype in ("float64", "float32", "bfloat16"):
        decoder = Decoder("tiny", dtype, device)
        sets = decoder.ids(2, 160, 1), decoder.ids(2, 160, 2)
        out[dtype] = {}
        for way, (order, *_) in WAYS.items():
            grads = decoder.gradient(way, *sets)
            if order not in expected:
                expected[order] = {name: g.double() for name, g in grads.items()}
            true = expected[order]
            gap = torch.stack([(grads[name].double() - g).norm() for name, g in true.items()]).norm()
            out[dtype][way] = float(gap / torch.stack([g.norm() for g in true.values()]).norm())
    return out


def matrix_rate(device: torch.device, dtype: torch.dtype, size: int) -> float:
    """FLOP/s of a product of two random matrices."""
    a, b = (torch.randn(size, size, device=device).to(dtype) for _ in range(2))
    for _ in range(3):
        a @ b
    return 2 * size**3 / statistics.median(seconds(lambda: a @ b, device) for _ in range(7))


def seconds(function: Callable[[], object], device: torch.device) -> float:
    synchronize(device)
    began = time.perf_counter()
    function()
    synchronize(device)
    return time.perf_counter() - began


def synchronize(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize()


def measure(decoder: Decoder, case: Case, rounds: int, rate: float) -> dict[str, Any]:
    device = decoder.device
    sets = decoder.ids(case.rows, case.tokens, 1), decoder.ids(case.rows, case.tokens, 2)
    before = 0
    if device.type == "cuda":
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
    flops = matrix_flops(lambda: decoder.gradient(case.way, *sets))
    synchronize(device)
    peak = torch.cuda.max_memory_allocated() - before if device.type == "cuda" else None
    taken = statistics.median(seconds(lambda: decoder.gradient(case.way, *sets), device) for _ in range(rounds))
    return {
        "seconds": taken, "tokens_per_s": 2 * case.rows * case.tokens / taken,
        "peak_gb": None if peak is None else peak / GB, "flops": flops, "of_matrix_rate": flops / taken / rate,
    }  # fmt: skip


def run(small: bool, minutes: float, rounds: int = 3, say: Callable[[str], None] = print) -> dict[str, Any]:
    """Everything, as JSON."""
    began = time.perf_counter()
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    torch.backends.cuda.matmul.allow_tf32 = False
    size = 256 if small else 8192
    rates = {dtype: matrix_rate(device, DTYPES[dtype], size) for dtype in ("float32", "bfloat16")}
    out: dict[str, Any] = {
        "device": torch.cuda.get_device_name() if device.type == "cuda" else "cpu", "torch": torch.__version__,
        "matrix_tflops": {dtype: rate / 1e12 for dtype, rate in rates.items()},
        "errors": errors(device), "cases": [],
    }  # fmt: skip
    say(f"{out['device']}: {out['matrix_tflops']}\nerrors {json.dumps(out['errors'], indent=1)}")
    decoder, made = None, None
    for case in cases(small):
        row: dict[str, Any] = dict(vars(case))
        if time.perf_counter() - began > 60 * minutes:
            row["skipped"] = "the minutes were over"
        else:
            with contextlib.suppress(torch.OutOfMemoryError):
                if made != (case.shape, case.dtype):
                    decoder = None
                    decoder, made = Decoder(case.shape, case.dtype, device), (case.shape, case.dtype)
                assert decoder is not None
                row |= measure(decoder, case, rounds, rates[case.dtype])
            if "seconds" not in row:
                row["skipped"] = "out of memory"
        out["cases"].append(row)
        say(json.dumps(row))
    out["seconds"] = time.perf_counter() - began
    return out


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--small", action="store_true", help="every piece in its smallest form")
    parser.add_argument("--minutes", type=float, default=5.0, help="no case begins after these")
    parser.add_argument("--json", type=Path)
    words = parser.parse_args()
    result = run(words.small, words.minutes)
    if words.json:
        words.json.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
