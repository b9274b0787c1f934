"""Checkpoints on disk: safetensors and JSON, whole or absent, readable at any world size.

    step-000200/  meta.safetensors        meta-parameters by name, whole, float32
                  optimizer.safetensors   their optimizer state, "exp_avg/NAME" ...
                                          (large ones in parts by name: meta-00001-of-00002.safetensors ...)
                  base.safetensors        of a compressed model (distmeta.export.compress): its frozen weights
                  state.json              format, step, tasks seen, what the model needs to be built
                  config.yaml  tokenizer.json
                  manifest.json           size and SHA-256 of every other file; written last

    best.json               beside them: which of them had the best meta-validation (eval.best)

A directory is filled under a temporary name and renamed, so a half-written one is never seen under its own; a file
that was damaged later does not match the manifest. Nothing here unpickles.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import hashlib
import json
import os
import re
import shutil
import socket
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from distmeta.config import Config, dump_config, make_config
from distmeta.errors import InputError

if TYPE_CHECKING:
    from torch import Tensor

MANIFEST = "manifest.json"
# What the numbers in a checkpoint mean, `format` in state.json. 1, which state.json does not name: text goes through
# the model with distmeta's own positions and masks, and an answer ends by the first token of a list. 2: by the model's.
FORMAT = 2
BEST = "best.json"
Keep = Callable[[str, "Tensor"], "Tensor"]  # of a tensor's name and value


@dataclass(frozen=True)
class Checkpoint:
    """What a checkpoint holds."""

    path: Path
    config: Config
    state: dict[str, Any]  # state.json
    meta: dict[str, Tensor]  # meta-parameters by name, float32, whole
    optimizer: dict[str, Tensor]  # "KEY/NAME" -> optimizer state of that meta-parameter; empty if not asked for
    base: dict[str, Tensor] = field(default_factory=dict)  # frozen weights, where the checkpoint brings its own

    @property
    def step(self) -> int:
        return int(self.state["step"])

    @property
    def format(self) -> int:
        """What its numbers mean: see FORMAT."""
        return int(self.state["format"])

    @property
    def tokenizer_file(self) -> Path:
        return self.path / "tokenizer.json"


def write_directory(path: Path, fill: Callable[[Path], None]) -> None:
    """Fill a new directory and give it its name in one step; its manifest is the last file written.

    An existing directory of that name is replaced, but for one that another process has written meanwhile: then
    raises InputError. A crash leaves at most a directory named `.tmp-NAME-PROCESS`.
    """
    replace = path.is_dir() and any(path.iterdir())
    draft = path.with_name(f".tmp-{path.name}-{os.getpid()}")
    begin(draft)
    try:
        fill(draft)
        publish(draft, path, replace)
    except BaseException:
        shutil.rmtree(draft, ignore_errors=True)
        raise


def draft_of(path: Path) -> Path:
    """Where the directory `path` is filled; the same for every process that fills it."""
    return path.parent / f".tmp-{path.name}"


def begin(draft: Path) -> None:
    """An empty directory, whatever a crash has left there."""
    shutil.rmtree(draft, ignore_errors=True)
    draft.mkdir(parents=True)


def publish(draft: Path, path: Path, replace: bool = True) -> None:
    """Give a filled directory its manifest, the last file written, and then its name.

    Raises InputError when the name is taken, unless it is to `replace`.
    """
    files = sorted(file for file in draft.rglob("*") if file.is_file())
    manifest = {str(f.relative_to(draft)): {"bytes": f.stat().st_size, "sha256": _sha256(f)} for f in files}
    write_text(draft / MANIFEST, json.dumps({"format": 1, "files": manifest}, indent=1))
    for file in [*files, draft / MANIFEST]:
        sync(file)
    earlier = path.with_name(f".old-{path.name}")
    shutil.rmtree(earlier, ignore_errors=True)
    if replace and path.exists():
        os.replace(path, earlier)
    try:
        os.replace(draft, path)  # the system does so where there is nothing, or an empty directory
    except OSError as error:
        if error.errno not in (errno.ENOTEMPTY, errno.EEXIST):
            raise
        raise InputError(f"{path}: another process has just written it; give another directory") from None
    sync(path.parent)
    shutil.rmtree(earlier, ignore_errors=True)


def write_text(path: Path, text: str) -> None:
    """Write a file so that a reader sees the old content or the new, never a part."""
    draft = path.with_name(f".tmp-{path.name}-{os.getpid()}")
    draft.write_text(text, encoding="utf-8")
    os.replace(draft, path)


@contextlib.contextmanager
def only_holder(file: Path, timeout_s: float) -> Iterator[None]:
    """Hold the lock `file` of a run, so that two processes never write into one run; the system frees it at their end.

    It says who holds it. Raises InputError when another process has it for `timeout_s` more seconds.
    """
    deadline = time.monotonic() + timeout_s
    while True:
        lock = file.open("a")
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if file.exists() and os.path.samestat(os.fstat(lock.fileno()), file.stat()):
                break  # and not the lock of a directory that was removed meanwhile
        except BlockingIOError:
            pass
        lock.close()
        if time.monotonic() > deadline:
            holder = file.read_text(encoding="utf-8") if file.exists() else ""
            raise InputError(f"{file.parent}: {holder or 'another process'} is training this run (it holds {file})")
        time.sleep(0.2)
    with lock:
        lock.truncate(0)
        lock.write(f"process {os.getpid()} on {socket.gethostname()}")
        lock.flush()
        yield


def damage(path: Path) -> str | None:
    """Why a directory is not a whole checkpoint, or None if it is one."""
    try:
        files: dict[str, Any] = json.loads((path / MANIFEST).read_text(encoding="utf-8"))["files"]
        sums = {str(name): (int(entry["bytes"]), str(entry["sha256"])) for name, entry in files.items()}
    except FileNotFoundError:
        return f"{MANIFEST} is missing (the checkpoint was not finished)"
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return f"{MANIFEST} is not readable"
    if not sums:
        return f"{MANIFEST} names no files"
    for name, (size, sha256) in sums.items():
        file = path / name
        if not file.is_file():
            return f"{name} is missing"
        if file.stat().st_size != size:
            return f"{name} has {file.stat().st_size} bytes instead of {size}"
        if _sha256(file) != sha256:
            return f"{name} was changed (its SHA-256 differs from the manifest)"
    return None


def checkpoints_of(run_dir: Path) -> list[Path]:
    """Directories of checkpoints of a run, newest first, whole or not."""
    folders = [p for p in (run_dir / "checkpoints").glob("step-*") if p.name.removeprefix("step-").isdecimal()]
    return sorted(folders, key=step_of, reverse=True)


def step_of(path: Path) -> int:
    """The meta-step in the name of a checkpoint's directory."""
    return int(path.name.removeprefix("step-"))


def newest_whole(run_dir: Path, say: Callable[[str], None] = print) -> Path | None:
    """The newest undamaged checkpoint of a run; those passed over are named through `say`."""
    for path in checkpoints_of(run_dir):
        reason = damage(path)
        if reason is None:
            return path
        say(f"checkpoint {path} is passed over: {reason}")
    return None


def best_of(run_dir: Path) -> Path | None:
    """The checkpoint that best.json names, whole or not; None where a run has none. Raises InputError."""
    file = run_dir / "checkpoints" / BEST
    try:
        return file.parent / f"step-{int(json.loads(file.read_text(encoding='utf-8'))['step']):06d}"
    except FileNotFoundError:
        return None
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise InputError(f"{file}: not readable: {error}; --checkpoint last takes the newest checkpoint") from None


def write_best(run_dir: Path, best: dict[str, Any] | None) -> None:
    """Name the best checkpoint in best.json, or none. best: its step, metric and value."""
    file = run_dir / "checkpoints" / BEST
    if best is None:
        file.unlink(missing_ok=True)
    else:
        write_text(file, json.dumps(best, indent=1))


def prune(run_dir: Path, keep: int, step: int, pending: int | None = None) -> None:
    """Remove all but the `keep` newest checkpoints up to `step`, just written or read, and drafts that a crash left.

    The best is left, whatever its step, and that of meta-step `pending`. Damaged ones of later steps, which the run
    went on before, are left until they are written anew.
    """
    best = best_of(run_dir)
    for path in [p for p in checkpoints_of(run_dir) if step_of(p) <= step][keep:]:
        if path == best or step_of(path) == pending:
            continue
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

    def fill(draft: Path) -> None:
        write_tensors(draft, meta, optimizer)
        write_rest(draft, config, state, tokenizer_file)

    write_directory(path, fill)


def write_tensors(
    draft: Path, meta: dict[str, Tensor], optimizer: dict[str, Tensor], part: int = 0, parts: int = 1
) -> None:
    """Part `part` of `parts` of a checkpoint's tensors, on the disk when this returns."""
    from safetensors.torch import save_file

    suffix = f"-{part + 1:05d}-of-{parts:05d}" if parts > 1 else ""
    for kind, tensors in (("meta", meta), ("optimizer", optimizer)):
        file = draft / f"{kind}{suffix}.safetensors"
        save_file(tensors, file)
        sync(file)


def write_rest(draft: Path, config: Config, state: dict[str, Any], tokenizer_file: Path) -> None:
    """What is not tensors. A run that is continued keeps the format that it began with."""
    state = {"format": format_of_run(draft.parent.parent), **state}
    (draft / "state.json").write_text(json.dumps(state, indent=1), encoding="utf-8")
    (draft / "config.yaml").write_text(dump_config(config), encoding="utf-8")
    copy_tokenizer(tokenizer_file, draft)


def copy_tokenizer(file: Path, draft: Path) -> None:
    """A tokenizer, and what names its ends, which lies beside it where it is a pretrained one."""
    shutil.copyfile(file, draft / "tokenizer.json")
    names = file.with_name("tokenizer_config.json")
    if names.is_file():
        shutil.copyfile(names, draft / names.name)


def format_of_run(run_dir: Path) -> int:
    """The format of the checkpoints that a run has, or of the first that it will write. Raises InputError."""
    for path in checkpoints_of(run_dir):
        with contextlib.suppress(OSError, ValueError):
            return int(read_state(path / "state.json")["format"])
    return FORMAT


def read_state(file: Path) -> dict[str, Any]:
    """state.json, or adapted.json, with its format. Raises InputError for a format that is not known here."""
    state: dict[str, Any] = {"format": 1, **json.loads(file.read_text(encoding="utf-8"))}
    if state["format"] not in range(1, FORMAT + 1):
        raise InputError(
            f"{file.parent}: written in format {state['format']!r} by a newer distmeta, this one reads formats 1 to "
            f"{FORMAT}; upgrade distmeta, or open it with the version that wrote it (environment.json of the run)"
        )
    return state


def resolve(path: str | Path, which: str | int = "best") -> Path:
    """The checkpoint that a run directory or a checkpoint directory stands for, verified. Raises InputError.

    which: of a run, `best` (where it has no best: the newest whole one), `last`, or a meta-step.
    """
    path = Path(path)
    if not path.exists():
        raise InputError(f"{path}: no such run or checkpoint")
    if (path / "checkpoints").is_dir():
        chosen = named(path, which)
        if chosen is None:
            passed: list[str] = []
            chosen = newest_whole(path, passed.append)
            if chosen is None:
                raise InputError(f"{path}: no whole checkpoint in it. {'; '.join(passed) or 'It has none yet.'}")
            return chosen
        path = chosen
    elif not (path / "state.json").is_file():
        raise InputError(
            f"{path}: not a run (no checkpoints/) and not a checkpoint (no state.json); "
            "give the directory of a run, or one of its checkpoints/step-NNNNNN"
        )
    elif which != "best":
        raise InputError(f"--checkpoint {which}: {path} is one checkpoint; leave --checkpoint out, or give the run")
    reason = damage(path)
    if reason is not None:
        raise InputError(f"{path}: damaged checkpoint: {reason}")
    return path


def named(run_dir: Path, which: str | int) -> Path | None:
    """The directory of a run's best checkpoint, or of a meta-step's; None: its newest. Raises InputError."""
    if which == "last":
        return None
    if which == "best":
        return best_of(run_dir)
    steps = [step_of(path) for path in checkpoints_of(run_dir)]
    if not str(which).isdecimal() or int(which) not in steps:
        existing = ", ".join(map(str, sorted(steps))) or "none"
        raise InputError(
            f"--checkpoint {which}: best, last, or a meta-step whose checkpoint {run_dir} has ({existing})"
        )
    return run_dir / "checkpoints" / f"step-{int(which):06d}"


def load(path: str | Path, optimizer: bool = False, keep: Keep | None = None, which: str | int = "best") -> Checkpoint:
    """Read a checkpoint, or that one of a run (see `resolve`). Raises InputError.

    keep: what becomes of each tensor, read one by one: a rank that has a part of each never has more than one whole.
    """
    path = resolve(path, which)
    state = read_state(path / "state.json")
    if (path / "model.safetensors").is_file():
        raise InputError(
            f"{path}: of a pretraining run, which knows no task; `distmeta train ... model.pretrained=RUN/model` "
            "meta-trains from it"
        )
    meta, base = read_tensors(path, "meta", keep), read_tensors(path, "base", keep)
    if "compression" in state:
        from distmeta.models.compression import restore

        meta, base = restore(meta), restore(base)
    return Checkpoint(
        path=path, config=read_config(path / "config.yaml"), state=state, meta=meta,
        optimizer=read_tensors(path, "optimizer", keep) if optimizer else {}, base=base,
    )  # fmt: skip


def read_tensors(path: Path, kind: str, keep: Keep | None = None) -> dict[str, Tensor]:
    """The meta-parameters, optimizer state or frozen weights of a whole checkpoint, of however many parts."""
    from safetensors import safe_open
    from safetensors.torch import load_file

    files = json.loads((path / MANIFEST).read_text(encoding="utf-8"))["files"]
    names = sorted(name for name in files if re.fullmatch(rf"{kind}(-\d+-of-\d+)?\.safetensors", name))
    if keep is None:
        return {key: value for name in names for key, value in load_file(path / name).items()}
    out: dict[str, Tensor] = {}
    for name in names:
        with safe_open(path / name, framework="pt") as file:
            out |= {key: keep(key, file.get_tensor(key)) for key in file.keys()}  # noqa: SIM118 (it is no mapping)
    return out


def read_config(path: Path) -> Config:
    """A configuration that a run or a checkpoint wrote. Raises InputError."""
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, yaml.YAMLError) as error:
        raise InputError(f"{path}: not readable: {' '.join(str(error).split())}") from None
    task = content.get("task") if isinstance(content, dict) else None
    if isinstance(task, dict) and task.get("family") == "text_to_text" and task.get("prompt") == "plain":
        task["prompt"] = "bare"  # what it was called before a family had several
    return make_config(content, where=str(path))


def _sha256(file: Path) -> str:
    digest = hashlib.sha256()  # hashlib.file_digest needs Python 3.11
    with file.open("rb") as stream:
        while chunk := stream.read(1 << 20):
            digest.update(chunk)
    return digest.hexdigest()


def sync(path: Path) -> None:
    """Have a file, or the names in a directory, on the disk before going on."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def digest_of(value: Any) -> str:
    """Of JSON, in hexadecimal digits."""
    text = json.dumps(value, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()[:32]


def digest(path: Path) -> str:
    """Of all files of a checkpoint, by its manifest: a copy elsewhere has the same."""
    return digest_of(json.loads((path / MANIFEST).read_text(encoding="utf-8"))["files"])
