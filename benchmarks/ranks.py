"""Groups of local processes for the benchmarks, and what a result says about where it comes from."""

from __future__ import annotations

import json
import os
import platform
import shlex
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path
from typing import Any

import distmeta

PACKAGES = ("torch", "deepspeed", "transformers", "numpy")


def run_group(script: str, world: int, *arguments: str, timeout_s: float = 600) -> list[Any]:
    """Run `script --rank R WORLD ...` once for each rank; the JSON documents that they print last."""
    here = Path(script).parent
    paths = [str(Path(distmeta.__file__).parents[1]), str(here), os.environ.get("PYTHONPATH", "")]
    processes = [
        subprocess.Popen(
            [sys.executable, script, "--rank", str(rank), str(world), *arguments], stdout=subprocess.PIPE, text=True,
            env={
                **os.environ, "PYTHONPATH": os.pathsep.join(paths), "OMP_NUM_THREADS": "1", "PYTHONWARNINGS": "ignore",
                "RANK": str(rank), "WORLD_SIZE": str(world), "LOCAL_RANK": str(rank),
            },
        )
        for rank in range(world)
    ]  # fmt: skip
    try:
        outs = [process.communicate(timeout=timeout_s)[0] for process in processes]
    finally:
        for process in processes:
            process.kill()
    failed = [rank for rank, process in enumerate(processes) if process.returncode]
    if failed:
        raise RuntimeError(f"{Path(script).name}: ranks {failed} of {world} failed")
    return [json.loads(out.splitlines()[-1]) for out in outs]


def about() -> dict[str, Any]:
    """Command, hardware and versions, for a result's file."""
    words = [Path(sys.argv[0]).name, *sys.argv[1:]]
    return {
        "command": "python benchmarks/" + " ".join(shlex.quote(word) for word in words),
        "hardware": {"machine": platform.machine(), "cores": os.cpu_count()},
        "versions": {"python": platform.python_version(), **{name: version(name) for name in PACKAGES}},
    }
