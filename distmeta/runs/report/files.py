"""What a run directory holds, whole or not: only what was written is there."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from distmeta.config import Config
from distmeta.errors import InputError
from distmeta.runs import checkpoint as checkpoints
from distmeta.runs.journal import records

# What a meta-step consists of, in its order, and how it is said.
PHASES = {
    "wait_s": "waiting for episodes",
    "inner_s": "inner loops and meta-gradients",
    "peers_s": "waiting for other ranks",
    "aggregate_s": "reduction and outer step",
    "validation_s": "meta-validations",
    "checkpoint_s": "checkpoints",
    "source_s": "waiting for tasks to come",
}
RATE = "log_lr"  # the names of learnt inner rates begin so (distmeta.algorithms.rates, which imports torch)


@dataclass(frozen=True)
class RunFiles:
    path: Path
    config: Config
    environment: dict[str, Any]
    records: list[dict[str, Any]]  # metrics.jsonl, a record a meta-step
    evaluation: dict[str, Any]  # evaluation.json; empty before it is written
    details: dict[str, Any]  # evaluation_details.json
    rates: dict[str, NDArray[np.float64]]  # learnt inner rates of the newest checkpoint, by parameter ("": all)
    rates_step: int | None  # the meta-step of that checkpoint
    learnt: int  # numbers that are meta-learnt, inner rates among them; 0 before the first checkpoint
    error: str  # why the run ended early; empty if nothing is known

    @property
    def step(self) -> int:
        return int(self.records[-1]["step"]) if self.records else 0

    @property
    def seconds(self) -> float:
        """Of all meta-steps."""
        return float(sum(record.get(phase, 0.0) for record in self.records for phase in PHASES))

    @property
    def took(self) -> float | None:
        """Seconds from the start to the end; None for a run without an end, or that was continued in between."""
        environment = self.environment
        if "ended" not in environment or environment.get("continued"):
            return None
        return (
            datetime.fromisoformat(environment["ended"]) - datetime.fromisoformat(environment["started"])
        ).total_seconds()


def read_run(path: str | Path) -> RunFiles:
    """Raises InputError where `path` is no run directory."""
    path = Path(path)
    if not (path / "config.yaml").is_file() or (path / "state.json").is_file():
        what = "no such directory" if not path.is_dir() else "no config.yaml of a run in it"
        raise InputError(f"{path}: {what}; give the directory of a run or of a search, such as runs/default")
    config = checkpoints.read_config(path / "config.yaml")
    step, rates, learnt = learnt_numbers(path)
    return RunFiles(
        path, config, read_json(path / "environment.json"), list(records(path)), read_json(path / "evaluation.json"),
        read_json(path / "evaluation_details.json"), rates, step, learnt,
        read_json(path / "error.json").get("message", ""),
    )  # fmt: skip


def read_json(file: Path) -> dict[str, Any]:
    """Empty where the file is not there. Raises InputError where it is not readable."""
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}
    except (OSError, ValueError) as error:
        raise InputError(f"{file}: not readable: {error}") from None
    if not isinstance(content, dict):
        raise InputError(f"{file}: not a JSON object; it was not written by distmeta")
    return content


def learnt_numbers(run_dir: Path) -> tuple[int | None, dict[str, NDArray[np.float64]], int]:
    """(meta-step, rates by parameter, count of what is learnt) of the newest whole checkpoint; None, {}: no rates."""
    from safetensors import safe_open

    path = checkpoints.newest_whole(run_dir, lambda line: None)
    if path is None:
        return None, {}, 0
    rates, learnt = {}, 0
    for file in sorted(path.glob("meta*.safetensors")):
        with safe_open(file, framework="np") as tensors:
            for name in tensors.keys():  # noqa: SIM118 (it is no mapping)
                learnt += math.prod(tensors.get_slice(name).get_shape())
                if name.split(".")[0] == RATE:
                    rates[name.removeprefix(RATE).removeprefix(".")] = np.exp(tensors.get_tensor(name).astype(float))
    return (checkpoints.step_of(path) if rates else None), rates, learnt
