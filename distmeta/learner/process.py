"""A rank's process under Ray Train: its device and threads, the run's lock, and errors that the driver can tell."""

from __future__ import annotations

import contextlib
import json
import resource
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from distmeta.config import Config, make_config
from distmeta.errors import InputError, ProgramError
from distmeta.runs import checkpoint as checkpoints
from distmeta.runs.directory import note
from distmeta.runs.interrupt import PLACEMENT


def run_rank(
    settings: dict[str, Any],
    body: Callable[[Config, Path, int, int, torch.device], None],
    diverged: tuple[type[Exception], ...],
) -> None:
    """Set this process up, and call body(config, run directory, rank, world size, device).

    settings: as train.py makes them. diverged: errors that another attempt would meet again, as it would an InputError.
    """
    import ray.train

    run_dir = Path(settings["run_dir"])
    if (run_dir / "error.json").exists():
        return  # the first attempt ended in an error that a second would meet again
    context = ray.train.get_context()
    rank, world = context.get_world_rank(), context.get_world_size()
    device = torch.device("cuda", torch.cuda.current_device()) if torch.cuda.is_available() else torch.device("cpu")
    if device.type == "cpu":
        torch.set_num_threads(max(1, int(settings["threads"])))
    config = make_config(settings["config"])
    if rank == 0:
        note_placement(run_dir)
    lasting: tuple[type[Exception], ...] = (InputError, ProgramError, *diverged)
    # Learners outlive a driver that is killed, by seconds: those of its successor wait for their end.
    alone = checkpoints.only_holder(run_dir / ".learner.lock", config.run.timeout_s / 2)
    try:
        with alone if rank == 0 else contextlib.nullcontext():
            body(config, run_dir, rank, world, device)
        if rank == 0:
            note(run_dir, peak_mb=peak_mb(device))
    except lasting as error:
        kind = "input" if isinstance(error, InputError) else "diverged"
        checkpoints.write_text(run_dir / "error.json", json.dumps({"kind": kind, "message": str(error)}))
        raise


def peak_mb(device: torch.device) -> dict[str, float]:
    """The largest memory of this process so far, in megabytes: resident, and on its GPU what torch has allocated."""
    peak = {"resident": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024}
    return peak | ({"gpu": torch.cuda.max_memory_allocated(device) / 2**20} if device.type == "cuda" else {})


def note_placement(run_dir: Path) -> None:
    """Write down the group's reserved processors, which outlive a controller that is killed before its driver's end."""
    from ray.util import get_current_placement_group

    group = get_current_placement_group()
    if group is not None:
        checkpoints.write_text(run_dir / PLACEMENT, group.id.hex())
