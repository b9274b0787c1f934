"""Measuring: interleaved rounds, peak memory in a fresh process, matrix-product FLOPs, and what it all ran on.

Times are CPU seconds of this process, which another job on the machine disturbs less than the clock, and the clock's
beside them; on a GPU, where the CPU only launches, the clock alone. MB are 2**20 bytes.
"""

from __future__ import annotations

import functools
import gc
import importlib
import json
import os
import platform
import statistics
import subprocess
import sys
import time
import weakref
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils import flop_counter
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.weak import WeakIdKeyDictionary

MB = 2**20
PACKAGES = ("torch", "transformers", "numpy", "ray", "deepspeed", "higher", "torchopt", "learn2learn")


@dataclass(frozen=True)
class Timing:
    """One run. cpu_s: of this process; wall_s: of the clock."""

    cpu_s: float
    wall_s: float


@dataclass(frozen=True)
class Spread:
    """Of a number over the rounds."""

    median: float
    low: float
    high: float


def spread(values: Sequence[float]) -> Spread:
    return Spread(statistics.median(values), min(values), max(values))


def timed(function: Callable[[], object]) -> Timing:
    """Run it once. Garbage of earlier runs is collected before, work queued on a GPU is waited for."""
    gc.collect()
    _synchronize()
    wall, cpu = time.perf_counter(), time.process_time()
    function()
    _synchronize()
    return Timing(time.process_time() - cpu, time.perf_counter() - wall)


def interleave(systems: Mapping[str, Callable[[int], object]], rounds: int) -> dict[str, list[Timing]]:
    """A B C, A B C, ...: each system once a round, in one process, given the round's number.

    What drifts over the run (clock rate, other jobs) then meets all of them alike, and the ratio of two systems
    within a round is free of it. Warm them up before.
    """
    timings: dict[str, list[Timing]] = {name: [] for name in systems}
    gc.collect()
    gc.freeze()  # the modules loaded so far need no more looking at, which makes the collections below quick
    for number in range(rounds):
        for name, system in systems.items():
            timings[name].append(timed(functools.partial(system, number)))
    gc.unfreeze()
    return timings


def seconds(timings: Sequence[Timing]) -> list[float]:
    """The seconds that are compared: of the CPU, or of the clock where a GPU does the work."""
    return [t.wall_s if torch.cuda.is_available() else t.cpu_s for t in timings]


def ratio(ours: Sequence[Timing], theirs: Sequence[Timing]) -> Spread:
    """Ours over theirs, round by round."""
    return spread([a / b for a, b in zip(seconds(ours), seconds(theirs), strict=True)])


def peak_mb(function: Callable[[], object]) -> float:
    """MB by which one run raised the peak of resident memory (GPU: allocated memory) over what was held before.

    Call it in a fresh process, after a tiny warm-up: what the allocator kept from earlier work would hide a part.
    Raises OSError where the kernel has no resettable peak (it is Linux that has).
    """
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        kept = function()
        torch.cuda.synchronize()
        del kept
        return (torch.cuda.max_memory_allocated() - before) / MB
    Path("/proc/self/clear_refs").write_text("5")
    before = _status_kb("VmRSS")
    kept = function()
    after = _status_kb("VmHWM")
    del kept
    return (after - before) / 1024


def live_peak(function: Callable[[], object]) -> int:
    """The largest number of bytes that are alive at once while it runs, of all tensors that it makes."""
    gc.collect()
    measured = LivePeak()
    with measured:
        function()
    return measured.peak


class LivePeak(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """The largest number of bytes that were alive at once, of all storages made inside."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._seen: Any = WeakIdKeyDictionary()
        self.live = self.peak = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        for t in torch.utils._pytree.tree_leaves(out):
            if isinstance(t, Tensor) and (storage := t.untyped_storage()) not in self._seen:
                self._seen[storage] = size = storage.nbytes()
                self.live += size
                weakref.finalize(storage, self._freed, size)
        self.peak = max(self.peak, self.live)
        return out

    def _freed(self, size: int) -> None:
        self.live -= size


def _status_kb(key: str) -> int:
    line = next(x for x in Path("/proc/self/status").read_text().splitlines() if x.startswith(f"{key}:"))
    return int(line.split()[1])


def in_fresh_process(module: str, function: str, timeout_s: float = 900, **arguments: Any) -> Any:
    """module.function(**arguments) in a new Python process: what it returns, both as JSON. Raises RuntimeError."""
    command = [sys.executable, "-m", "distmeta.bench.measure", module, function, json.dumps(arguments)]
    paths = os.pathsep.join(path for path in sys.path if path)
    threads = str(torch.get_num_threads())
    environment = {**os.environ, "PYTHONPATH": paths, "OMP_NUM_THREADS": threads}
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=timeout_s, env=environment)
    except subprocess.TimeoutExpired:
        raise RuntimeError(f"{module}.{function}: no answer within {timeout_s:.0f} s") from None
    if done.returncode != 0:
        lines = done.stderr.strip().splitlines() or [f"killed by signal {-done.returncode}: out of memory?"]
        raise RuntimeError(f"{module}.{function}: {lines[-1]}")
    return json.loads(done.stdout.splitlines()[-1])


def matrix_flops(function: Callable[[], object]) -> int:
    """Floating point operations of the matrix products, convolutions and attention kernels while it runs."""
    counter = Operations()
    with counter:
        function()
    return counter.total


class Operations(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Counts as torch's FlopCounterMode, whose hooks on modules bear no gradient within a gradient."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.total = 0
        attend = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
        back = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward
        forward_count: Any = flop_counter.sdpa_flop_count
        backward_count: Any = flop_counter.sdpa_backward_flop_count
        self._known: dict[Any, Callable[..., int]] = {
            **flop_counter.flop_registry,
            attend: lambda q, k, v, *_, **__: forward_count(q.shape, k.shape, v.shape),
            back: lambda g, q, k, v, *_, **__: backward_count(g.shape, q.shape, k.shape, v.shape),
        }

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        if func.overloadpacket in self._known:
            self.total += self._known[func.overloadpacket](*args, **(kwargs or {}), out_val=out)
        return out


def matrix_rate(n: int = 1024, repeats: int = 7, dtype: torch.dtype = torch.float32) -> float:
    """FLOP/s of an n x n matrix product with the threads that torch has now: the median of some."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    a, b = torch.randn(n, n, device=device, dtype=dtype), torch.randn(n, n, device=device, dtype=dtype)
    for _ in range(3):
        a @ b
    runs = [timed(lambda: [a @ b for _ in range(5)]) for _ in range(repeats)]
    # By the clock of the CPU that the process had, as the times that it is compared with.
    return 5 * 2 * n**3 / statistics.median(seconds(runs))


def setting(seeds: Mapping[str, int]) -> dict[str, Any]:
    """What a figure needs to be read: hardware, versions, command, seeds."""
    return {
        "hardware": {
            "processor": _processor(), "cores": os.cpu_count(), "threads": torch.get_num_threads(),
            "memory_gb": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30, 1),
            "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        },
        "versions": {"python": platform.python_version(), **{p: v for p in PACKAGES if (v := _version(p))}},
        "command": " ".join([Path(sys.argv[0]).name, *sys.argv[1:]]),
        "seeds": dict(seeds),
        "date": time.strftime("%Y-%m-%d"),
    }  # fmt: skip


def write_json(path: Path, content: Any) -> None:
    """Whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f".{path.name}.{os.getpid()}")
    part.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
    os.replace(part, path)


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
        return next(line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def _synchronize() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()


if __name__ == "__main__":
    torch.set_num_threads(int(os.environ["OMP_NUM_THREADS"]))
    answer = getattr(importlib.import_module(sys.argv[1]), sys.argv[2])(**json.loads(sys.argv[3]))
    print(json.dumps(answer))
