"""Checkpoints on disk: safetensors and JSON, whole or absent, readable at any world size.

    step-000200/  meta.safetensors        meta-parameters by name, whole, float32
                  optimizer.safetensors   their optimizer state, "exp_avg/NAME" ...
                  state.json              step, tasks seen, what the model needs to be built
                  config.yaml  tokenizer.json
                  manifest.json           size and SHA-256 of every other file; written last

A directory is filled under a temporary name and renamed, so a half-written one is never seen under its own; a file
that was damaged later does not match the manifest. Nothing here unpickles.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from distmeta.config import Config, dump_config, make_config
from distmeta.errors import InputError

if TYPE_CHECKING:
    from torch import Tensor

MANIFEST = "manifest.json"


@dataclass(frozen=True)
class Checkpoint:
    """What a checkpoint holds."""

    path: Path
    config: Config
    state: dict[str, Any]  # state.json
    meta: dict[str, Tensor]  # meta-parameters by name, float32, whole
    optimizer: dict[str, Tensor]  # "KEY/NAME" -> optimizer state of that meta-parameter; empty if not asked for

    @property
    def step(self) -> int:
        return int(self.state["step"])

    @property
    def tokenizer_file(self) -> Path:
        return self.path / "tokenizer.json"


def write_directory(path: Path, fill: Callable[[Path], None]) -> None:
    """Fill a new directory and give it its name in one step; its manifest is the last file written.

    An existing directory of that name is replaced. A crash leaves at most a directory named `.tmp-*`.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    draft = path.parent / f".tmp-{path.name}-{os.getpid()}"
    shutil.rmtree(draft, ignore_errors=True)
    draft.mkdir()
    try:
        fill(draft)
        manifest = {
            str(file.relative_to(draft)): {"bytes": file.stat().st_size, "sha256": _sha256(file)}
            for file in sorted(draft.rglob("*"))
            if file.is_file()
        }
        write_text(draft / MANIFEST, json.dumps({"format": 1, "files": manifest}, indent=1))
        for file in draft.rglob("*"):
            if file.is_file():
                _sync(file)
        if path.exists():
            shutil.rmtree(path)
        os.replace(draft, path)
        _sync(path.parent)
    except BaseException:
        shutil.rmtree(draft, ignore_errors=True)
        raise


def write_text(path: Path, text: str) -> None:
    """Write a file so that a reader sees the old content or the new, never a part."""
    draft = path.with_name(f".tmp-{path.name}-{os.getpid()}")
    draft.write_text(text, encoding="utf-8")
    os.replace(draft, path)


def damage(path: Path) -> str | None:
    """Why a directory is not a whole checkpoint, or None if it is one."""
    try:
        files = json.loads((path / MANIFEST).read_text(encoding="utf-8"))["files"]
    except FileNotFoundError:
        return f"{MANIFEST} is missing (the checkpoint was not finished)"
    except (OSError, ValueError, KeyError, TypeError):
        return f"{MANIFEST} is not readable"
    for name, expected in files.items():
        file = path / name
        if not file.is_file():
            return f"{name} is missing"
        if file.stat().st_size != expected["bytes"]:
            return f"{name} has {file.stat().st_size} bytes instead of {expected['bytes']}"
        if _sha256(file) != expected["sha256"]:
            return f"{name} was changed (its SHA-256 differs from the manifest)"
    return None


def checkpoints_of(run_dir: Path) -> list[Path]:
    """Directories of checkpoints of a run, newest first, whole or not."""
    return sorted((run_dir / "checkpoints").glob("step-*"), reverse=True)


def newest_whole(run_dir: Path, say: Callable[[str], None] = print) -> Path | None:
    """The newest undamaged checkpoint of a run; those passed over are named through `say`."""
    for path in checkpoints_of(run_dir):
        reason = damage(path)
        if reason is None:
            return path
        say(f"checkpoint {path} is passed over: {reason}")
    return None


def prune(run_dir: Path, keep: int) -> None:
    """Remove all but the `keep` newest checkpoints, and drafts that a crash left."""
    for path in checkpoints_of(run_dir)[keep:]:
        shutil.rmtree(path, ignore_errors=True)
    for draft in (run_dir / "checkpoints").glob(".tmp-*"):
        shutil.rmtree(draft, ignore_errors=True)


def save(
    path: Path,
    config: Config,
    state: dict[str, Any],
    meta: dict[str, Tensor],
    optimizer: dict[str, Tensor],
    tokenizer_file: Path,
) -> None:
    """Write a checkpoint (see the head of this file)."""
    from safetensors.torch import save_file

    def fill(draft: Path) -> None:
        save_file(meta, draft / "meta.safetensors")
        save_file(optimizer, draft / "optimizer.safetensors")
        (draft / "state.json").write_text(json.dumps(state, indent=1), encoding="utf-8")
        (draft / "config.yaml").write_text(dump_config(config), encoding="utf-8")
        shutil.copyfile(tokenizer_file, draft / "tokenizer.json")

    write_directory(path, fill)


def resolve(path: str | Path) -> Path:
    """The checkpoint that a run directory or a checkpoint directory stands for, verified. Raises InputError."""
    path = Path(path)
    if not path.exists():
        raise InputError(f"{path}: no such run or checkpoint")
    if (path / "checkpoints").is_dir():
        passed: list[str] = []
        found = newest_whole(path, passed.append)
        if found is None:
            raise InputError(f"{path}: no whole checkpoint in it. {'; '.join(passed) or 'It has none yet.'}")
        return found
    if not (path / "state.json").is_file():
        raise InputError(
            f"{path}: not a run (no checkpoints/) and not a checkpoint (no state.json); "
            "give the directory of a run, or one of its checkpoints/step-NNNNNN"
        )
    reason = damage(path)
    if reason is not None:
        raise InputError(f"{path}: damaged checkpoint: {reason}")
    return path


def load(path: str | Path, optimizer: bool = False) -> Checkpoint:
    """Read a checkpoint, or the newest whole one of a run. Raises InputError."""
    from safetensors.torch import load_file

    path = resolve(path)
    return Checkpoint(
        path=path,
        config=make_config(yaml.safe_load((path / "config.yaml").read_text(encoding="utf-8")), where=str(path / "config.yaml")),
        state=json.loads((path / "state.json").read_text(encoding="utf-8")),
        meta=load_file(path / "meta.safetensors"),
        optimizer=load_file(path / "optimizer.safetensors") if optimizer else {},
    )


def _sha256(file: Path) -> str:
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
