"""Faults by schedule: seeded, fired inside the processes that they hit, each exactly once, and counted.

    python schedule.py PLACE    # a driver: trains PLACE/tiny.yaml with the faults of PLACE/faults.json

A fault fires at a meta-step, however often that step is done again. `install` runs in every Ray worker before
anything else; it wraps functions that take part in sampling, learning and saving, so that distmeta itself knows nothing
of faults. A file of its own, made only if it is not there, says that a fault was fired, before it is.
"""

from __future__ import annotations

import dataclasses
import errno
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

AT_DRIVER = ("kill driver", "interrupt driver", "terminate driver", "refuse learner")  # each ends a driver
AT_STEPS = ("kill sampler", "slow sampler", "kill learner", "slow learner", *AT_DRIVER)
AT_CHECKPOINTS = (
    "kill learner before its checkpoint", "kill learner in its checkpoint", "kill learner after its checkpoint",
    "full disk", "truncate checkpoint", "flip a bit of the checkpoint",
)  # fmt: skip
KINDS = AT_STEPS + AT_CHECKPOINTS
SIGNALS = {"kill driver": signal.SIGKILL, "interrupt driver": signal.SIGINT, "terminate driver": signal.SIGTERM}
ENDS = (-signal.SIGKILL, 130, 143, 2)  # how a driver ends that one of these has hit
SLOW_S = 0.5


@dataclass(frozen=True)
class Fault:
    kind: str
    target: int  # the rank that it hits; of no meaning for samplers and the driver
    step: int  # the meta-step; that of the checkpoint


def make_schedule(seed: int, count: int, steps: int, checkpoint_every: int, ranks: int) -> list[Fault]:
    """`count` different faults, every kind as often as the others but for one."""
    rng = np.random.default_rng(seed)
    saved = [s for s in range(1, steps + 1) if s % checkpoint_every == 0]
    if count > len(KINDS) * len(saved):
        raise ValueError(f"{count} faults: a run of {steps} steps has room for {len(KINDS) * len(saved)}")
    kinds = [KINDS[i] for _ in range(-(-count // len(KINDS))) for i in rng.permutation(len(KINDS))][:count]
    out: list[Fault] = []
    for kind in kinds:
        any_rank = kind in ("kill learner", "slow learner", "refuse learner", "kill learner before its checkpoint")
        while True:
            step = int(rng.choice(saved)) if kind in AT_CHECKPOINTS else int(rng.integers(1, steps + 1))
            fault = Fault(kind, int(rng.integers(ranks)) if any_rank else 0, step)
            if all((f.kind, f.step) != (kind, step) for f in out):
                break
        out.append(fault)
    return out


# --- inside the processes ---


class Firing:
    def __init__(self, place: Path) -> None:
        self.place = place
        content = json.loads((place / "faults.json").read_text())
        self.faults = [Fault(**fault) for fault in content["faults"]]
        self.meta_batch_size = int(content["meta_batch_size"])

    def claim(self, kind: str, step: int, rank: int = 0) -> bool:
        """Whether such a fault is due here and now; then it counts as fired."""
        for number, fault in enumerate(self.faults):
            if fault == Fault(kind, rank, step):
                try:
                    file = os.open(self.place / "fired" / f"{number:03d}", os.O_CREAT | os.O_EXCL | os.O_WRONLY)
                except FileExistsError:
                    return False
                os.write(file, f"{kind}, step {step}, rank {rank}, process {os.getpid()}\n".encode())
                os.close(file)
                return True
        return False

    def kill(self, kind: str, step: int, rank: int = 0) -> None:
        if self.claim(kind, step, rank):
            os.kill(os.getpid(), signal.SIGKILL)


def rank() -> int:
    import ray.train

    return int(ray.train.get_context().get_world_rank())


def install() -> None:
    """Runs in every Ray worker at its start."""
    from distmeta.errors import InputError
    from distmeta.runs import checkpoint
    from distmeta.tasks.episodes import sampler, window

    firing = Firing(Path(os.environ["DISTMETA_FAULTS"]))
    sample, iterate = sampler.sample_episode, window.EpisodeWindow.__iter__
    draft_of, write_tensors, prune = checkpoint.draft_of, checkpoint.write_tensors, checkpoint.prune

    def sample_episode(store: Any, task: Any, seed: int, split: str, index: int, **how: Any) -> Any:
        if split == "train":
            step = index // firing.meta_batch_size + 1
            firing.kill("kill sampler", step)
            if firing.claim("slow sampler", step):
                time.sleep(SLOW_S)
        return sample(store, task, seed, split, index, **how)

    def groups(self: Any) -> Iterator[Any]:
        mine = rank()
        for episodes, wait_s in iterate(self):
            step = episodes[0].index // firing.meta_batch_size + 1
            firing.kill("kill learner", step, mine)
            if firing.claim("slow learner", step, mine):
                time.sleep(SLOW_S)
            if firing.claim("refuse learner", step, mine):
                raise InputError(f"meta-step {step}: what a rank finds out late")
            for kind, number in SIGNALS.items():
                if mine == 0 and firing.claim(kind, step):
                    os.kill(int((firing.place / "driver.pid").read_text()), number)
            yield episodes, wait_s

    ranks: list[int] = []  # known once the learner runs: checkpoints are written by threads, which have no context

    def groups_with_rank(self: Any) -> Iterator[Any]:
        ranks[:] = [rank()]
        return groups(self)

    def begun(path: Path) -> Path:
        firing.kill("kill learner before its checkpoint", checkpoint.step_of(path), ranks[0])
        return draft_of(path)

    def written(draft: Path, *parts: Any) -> None:
        step = checkpoint.step_of(Path(draft.name.removeprefix(".tmp-")))
        if firing.claim("full disk", step):
            (draft / "meta.safetensors").write_bytes(b"as far as there was room")
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        write_tensors(draft, *parts)
        firing.kill("kill learner in its checkpoint", step)

    def published(run_dir: Path, keep: int, step: int, pending: int | None = None) -> None:
        for kind, damage in (("truncate checkpoint", truncate), ("flip a bit of the checkpoint", flip)):
            if firing.claim(kind, step):  # before the next kind: a damaged checkpoint is written anew, a whole one not
                damage(run_dir / "checkpoints" / f"step-{step:06d}")
                os.kill(os.getpid(), signal.SIGKILL)
        firing.kill("kill learner after its checkpoint", step)
        prune(run_dir, keep, step, pending)

    sampler.sample_episode = sample_episode
    window.EpisodeWindow.__iter__ = groups_with_rank  # type: ignore[method-assign]
    checkpoint.draft_of, checkpoint.write_tensors, checkpoint.prune = begun, written, published  # type: ignore[assignment]


def truncate(path: Path) -> None:
    file = path / "optimizer.safetensors"
    os.truncate(file, file.stat().st_size - 7)


def flip(path: Path) -> None:
    content = bytearray((path / "meta.safetensors").read_bytes())
    content[-3] ^= 4
    (path / "meta.safetensors").write_bytes(content)


def drive(place: Path) -> None:
    """The driver: one attempt, from the newest whole checkpoint if there is one."""
    import ray

    import distmeta
    from distmeta.config import load_config
    from distmeta.errors import InputError
    from distmeta.runs import interrupt

    interrupt.catch()
    (place / "driver.pid").write_text(str(os.getpid()))
    config = load_config(place / "tiny.yaml")
    os.environ |= {"RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.2", "RAY_USAGE_STATS_ENABLED": "0"}
    ray.init(
        address="local", num_cpus=4, include_dashboard=False, log_to_driver=False, logging_level="ERROR",
        runtime_env={"worker_process_setup_hook": "schedule.install", "env_vars": {"DISTMETA_FAULTS": str(place)}},
    )  # fmt: skip
    interrupt.catch_again()
    try:
        distmeta.train(config, resume=True)
    except (InputError, KeyboardInterrupt) as error:
        print(repr(error))
        sys.exit(interrupt.exit_code() or 2)
    finally:
        ray.shutdown()


# --- outside: a run to its end ---


@dataclass(frozen=True)
class Outcome:
    run: Path
    drivers: int  # that were started
    fired: list[str]  # a line for each fault
    most_checkpoints: int  # in the run directory at any time
    seconds: float


def run_to_end(place: Path, config: Any, faults: list[Fault], timeout_s: float = 300) -> Outcome:
    """Train in `place` under a schedule; a driver that was killed is started again. Raises RuntimeError.

    timeout_s: of one driver, from its start to its end.
    """
    import yaml

    (place / "fired").mkdir(parents=True)
    content = {"faults": [dataclasses.asdict(f) for f in faults], "meta_batch_size": config.outer.meta_batch_size}
    (place / "faults.json").write_text(json.dumps(content))
    (place / "tiny.yaml").write_text(yaml.safe_dump(config.model_dump(mode="json")))
    run = place / "runs" / config.run.name
    paths = [str(Path(__file__).parent), *(path for path in sys.path if path)]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(paths), "OMP_NUM_THREADS": "1"}
    began, drivers, most = time.monotonic(), 0, 0
    while True:
        drivers += 1
        with (place / f"driver-{drivers}.log").open("w") as log:
            process = subprocess.Popen(
                [sys.executable, __file__, str(place)], cwd=place, stdout=log, stderr=log, env=environment
            )
            deadline = time.monotonic() + timeout_s
            while process.poll() is None:
                most = max(most, len(list((run / "checkpoints").glob("step-*"))))
                if time.monotonic() > deadline:
                    process.kill()
                    raise RuntimeError(f"{place}: driver {drivers} was not at its end after {timeout_s:g} s")
                time.sleep(0.05)
        fired = [file.read_text().strip() for file in sorted((place / "fired").iterdir())]
        if process.returncode == 0:
            return Outcome(run, drivers, fired, most, time.monotonic() - began)
        hit = sum(line.startswith(AT_DRIVER) for line in fired)
        if process.returncode not in ENDS or drivers > hit:
            tail = (place / f"driver-{drivers}.log").read_text()[-2000:]
            raise RuntimeError(f"{place}: driver {drivers} ended with {process.returncode}: {tail}")


if __name__ == "__main__":
    drive(Path(sys.argv[1]))
